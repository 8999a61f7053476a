"""Packed text: documents one after another, cut into examples of equal length. Language models read it."""

from pathlib import Path
from typing import Any

from reducible.data.packing import PackedSequences
from reducible.tasks.dataset.dataset import TokenisedDataset
from reducible.tasks.dataset.kind import Kind
from reducible.tasks.evaluate import evaluate_text
from reducible.tasks.evaluate.evaluate_spec import Evaluation, SampleOptions
from reducible.tasks.evaluate.evaluate_text import TextSettings
from reducible.tasks.mlflow.served import Served
from reducible.tasks.workflow.record import Record


class Text(Kind):
    name = data = "text"
    unit = "token"
    test_split = "text is split into train and validation; take validation"
    settings = TextSettings
    served = Served(
        "continuations",
        ("tokenizer",),
        (("string", "continuation"), ("double", "nats"), ("double", "bits_per_byte")),
        (("tokens", "long", 32), ("temperature", "double", 0.0), ("top_k", "long", 0), ("seed", "long", 0)),
    )

    def open(self, folder: Path, content: dict[str, Any]) -> TokenisedDataset:
        return TokenisedDataset(folder, content)

    def examples(self, dataset: TokenisedDataset, split: str, sequence: int, mask_documents: bool) -> PackedSequences:
        tokenizer = dataset.tokenizer
        return PackedSequences(dataset.shards, split, sequence, tokenizer.identity, tokenizer.separator, mask_documents)

    def evaluate(
        self, model: Any, dataset: TokenisedDataset, trained: dict[str, Any], spec: TextSettings, record: Record
    ) -> Evaluation:
        return evaluate_text.evaluate(model, dataset, trained, spec, record)

    def sample(
        self, model: Any, dataset: TokenisedDataset, trained: dict[str, Any], prompt: str, options: SampleOptions
    ) -> str:
        return evaluate_text.sample(model, dataset, trained, prompt, options)


TEXT = Text()
