"""The recipe's data section: what every kind of data tells about itself, before and after anything is read.

A new kind is a file with its section and one line in kinds.py. Nothing else in pipelines/ compares a kind's name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from reducible.data.known_entropy import KnownEntropy
from reducible.models.cost.ledger import Lengths
from reducible.pipelines.recipe.fields import Section
from reducible.tasks.count import Count
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task


class DataSection(Section, ABC):
    """What a recipe says of its data."""

    paths: ClassVar[tuple[str, ...]]
    """Keys that name files, dotted: a path or a list of paths. They travel with a job."""
    kept: ClassVar[tuple[str, ...]] = ()
    """Keys that a base model decides in a fine-tuning."""

    kind: str
    sequence: Count

    @property
    def unit(self) -> str:
        """What a target unit is called."""
        return kind_named(self.kind).unit

    @property
    @abstractmethod
    def may_test(self) -> bool:
        """Whether the dataset can have a test split."""

    @property
    def masks_documents(self) -> bool:
        """Whether attention stays inside each document."""
        return False

    @abstractmethod
    def facts(self, store: Store) -> dict[str, Any]:
        """The keys of a model's configuration that the data decide, known before anything runs."""

    @abstractmethod
    def dataset_task(self, name: str, store: Store, tokenizers: Mapping[str, Task] | None = None) -> Task:
        """The task that makes the dataset `name`. Inputs are listed and hashed now; the root remembers the hashes.

        `tokenizers` are those of a base model, which replace the recipe's.
        """

    def known_entropy(self, content: Mapping[str, Any] | None) -> KnownEntropy | None:
        """The least possible loss per target unit, if the data are generated and it is known.

        `content` is the dataset.json; None if the dataset is not made yet.
        """
        return None

    def gives(self, reads: str) -> bool:
        """Whether a family that reads this can be trained on these data."""
        return kind_named(reads).data == self.kind

    def lengths(self, store: Store, dataset: Task, reads: str) -> Lengths:
        """How long examples are: measured if the dataset exists, otherwise the longest that they may be."""
        from reducible.models.batches import BATCHES  # torch, which reading a recipe should not wait for

        batch = BATCHES[reads]
        if batch.packed or not store.committed("dataset", dataset.identity):
            return batch.lengths(self.sequence)
        from reducible.tasks.train.examples import lengths_of

        opened = open_dataset(store.artifact("dataset", dataset.identity))
        return lengths_of(opened.examples(reads, "train", self.sequence))

    def as_trained(self, base: str, config: Any, content: Mapping[str, Any], store: Store) -> Self:
        """The section as a base model needs it: `config` is the model's, `content` its dataset.json (empty: unknown).

        Raises:
            UserError: the section sets what the base decides.
        """
        for key in self.kept:
            if key in self.model_fields_set:
                raise UserError(f"data.{key}: fine-tuning keeps the tokens of {base}; leave it out")
        return self
