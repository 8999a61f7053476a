"""Sentences: text in which each document is one example. Latent variable models of sentences read them."""

from pathlib import Path
from typing import Any

from reducible.data.sentences import Sentences
from reducible.tasks.dataset.dataset import TokenisedDataset
from reducible.tasks.dataset.kind import Kind
from reducible.tasks.dataset.text_kind import TEXT
from reducible.tasks.evaluate import evaluate_sentences
from reducible.tasks.evaluate.evaluate_sentences import SentencesSettings
from reducible.tasks.evaluate.evaluate_spec import Evaluation, SampleOptions
from reducible.tasks.workflow.record import Record


class SentencesKind(Kind):
    name = "sentences"
    data = TEXT.data
    unit = TEXT.unit
    test_split = TEXT.test_split
    settings = SentencesSettings

    def open(self, folder: Path, content: dict[str, Any]) -> TokenisedDataset:
        return TEXT.open(folder, content)

    def examples(self, dataset: TokenisedDataset, split: str, sequence: int, mask_documents: bool) -> Sentences:
        tokenizer = dataset.tokenizer
        return Sentences(dataset.shards, split, sequence, tokenizer.identity, tokenizer.separator)

    def evaluate(
        self, model: Any, dataset: TokenisedDataset, trained: dict[str, Any], spec: SentencesSettings, record: Record
    ) -> Evaluation:
        return evaluate_sentences.evaluate(model, dataset, trained, spec, record)

    def sample(
        self, model: Any, dataset: TokenisedDataset, trained: dict[str, Any], prompt: str, options: SampleOptions
    ) -> str:
        return evaluate_sentences.sample(model, dataset, trained, prompt, options)


SENTENCES = SentencesKind()
