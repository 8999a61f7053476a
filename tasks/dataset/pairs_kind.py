"""Pairs: a source text and the target text that belongs to it. Models that write an output for an input read them."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from reducible.data.pairs import Pairs
from reducible.data.tokenizer import Tokenizer
from reducible.tasks.dataset.dataset import TokenisedDataset
from reducible.tasks.dataset.kind import Kind
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate import evaluate_pairs
from reducible.tasks.evaluate.evaluate_pairs import PairsSettings
from reducible.tasks.evaluate.evaluate_spec import Evaluation, SampleOptions
from reducible.tasks.mlflow.served import Served
from reducible.tasks.workflow.record import Record

log = logging.getLogger(__name__)


class PairDataset(TokenisedDataset):
    """Token shards of both sides; `tokenizer` belongs to the targets."""

    @cached_property
    def source_tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "source_tokenizer")

    @property
    def lowercase(self) -> bool:
        """Whether both sides were converted to lower case."""
        return bool(self.content["lowercase"])


class PairsKind(Kind):
    name = data = "pairs"
    unit = "token"
    test_split = "name a source for it (data.test), or take validation"
    settings = PairsSettings
    served = Served(
        "translations",
        ("source_tokenizer", "tokenizer"),
        (("string", "output"), ("double", "score"), ("double", "nats")),
        (("tokens", "long", 200), ("beam", "long", 5), ("length_penalty", "double", 1.0)),
        facts=("lowercase",),
    )

    def open(self, folder: Path, content: dict[str, Any]) -> PairDataset:
        return PairDataset(folder, content)

    def examples(self, dataset: PairDataset, split: str, sequence: int, mask_documents: bool) -> Pairs:
        if split not in dataset.content["splits"]:
            raise UserError(f"{dataset.name}: has no {split} split; name a source for it (data.{split})")
        examples = Pairs(dataset.shards, split, sequence, dataset.source_tokenizer, dataset.tokenizer)
        if examples.cut:
            log.warning(
                "data.sequence: %d of %d %s pairs have a side longer than %d tokens with its end; it is cut",
                *(examples.cut, len(examples), split, sequence),
            )
        return examples

    def evaluate(
        self, model: Any, dataset: PairDataset, trained: dict[str, Any], spec: PairsSettings, record: Record
    ) -> Evaluation:
        return evaluate_pairs.evaluate(model, dataset, trained, spec, record)

    def sample(
        self, model: Any, dataset: PairDataset, trained: dict[str, Any], prompt: str, options: SampleOptions
    ) -> str:
        return evaluate_pairs.sample(model, dataset, trained, prompt, options)


PAIRS = PairsKind()
