"""A kind of data as tasks know it: one row says how a dataset is opened, read, evaluated, sampled and served.

A new kind is a file with its row and one line in KINDS. Nothing else in tasks/ compares a kind's name.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from reducible.data.batches import Examples
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec, Evaluation, SampleOptions
from reducible.tasks.mlflow.served import Served
from reducible.tasks.words import unknown
from reducible.tasks.workflow.record import Record


class Kind(ABC):
    """A kind of data that families read (`Family.reads`), and everything that tasks do with it."""

    name: ClassVar[str]
    data: ClassVar[str]
    """The kind of dataset that it is read from: `kind` in dataset.json and in the recipe's data section."""
    unit: ClassVar[str]
    """The name of a target unit; losses are in nats per unit."""
    test_split: ClassVar[str]
    """What to do if there is no test split."""
    settings: ClassVar[type[EvaluateSpec]]
    """The settings of an evaluation: the recipe's section `evaluate`."""
    served: ClassVar[Served | None] = None
    """The model that MLflow gets; None: no model."""

    @abstractmethod
    def open(self, folder: Path, content: dict[str, Any]) -> Any:
        """Opens the dataset (dataset.py) in an artifact; `content` is its dataset.json."""

    @abstractmethod
    def examples(self, dataset: Any, split: str, sequence: int, mask_documents: bool) -> Examples:
        """The split as a family of this kind reads it."""

    @abstractmethod
    def evaluate(self, model: Any, dataset: Any, trained: dict[str, Any], spec: Any, record: Record) -> Evaluation:
        """Measures a model. `trained` is the spec of its training; `spec` is of the class `settings`."""

    @abstractmethod
    def sample(self, model: Any, dataset: Any, trained: dict[str, Any], prompt: str, options: SampleOptions) -> str:
        """What the model makes of a prompt, as text for a person."""


KINDS = {
    "text": "reducible.tasks.dataset.text_kind:TEXT",
    "sentences": "reducible.tasks.dataset.sentences_kind:SENTENCES",
    "pairs": "reducible.tasks.dataset.pairs_kind:PAIRS",
    "series": "reducible.tasks.dataset.series_kind:SERIES",
}
"""The place of each row, which is imported when it is first used."""


def kind_named(name: str) -> Kind:
    """The row of that kind.

    Raises:
        ValueError: there is none. The line names the nearest one and all.
    """
    if name not in KINDS:
        raise ValueError(unknown("kind of data", name, KINDS))
    module, _, attribute = KINDS[name].partition(":")
    found: Kind = getattr(import_module(module), attribute)
    return found
