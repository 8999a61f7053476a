"""A kind of data as somebody adds one: grids of small integers with a caption each. docs/extending.md plays it.

batch.py, kind.py and section.py hold its rows, one for each layer; grids.py and make.py are what they need; family.py
is a model that reads it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from reducible.models.batches import BATCHES
from reducible.pipelines.dataset import kinds as sections
from reducible.tasks.dataset.kind import KINDS
from toy_kind.batch import GRIDS

ROWS = {"kind": "toy_kind.kind:GRIDS", "section": "toy_kind.section:GridData"}


@contextmanager
def registered() -> Iterator[None]:
    """As a line in models/batches.py, tasks/dataset/kind.py and pipelines/dataset/kinds.py would do for good."""
    tables: list[dict] = [BATCHES, KINDS, sections.KINDS]
    for table, row in zip(tables, (GRIDS, ROWS["kind"], ROWS["section"]), strict=True):
        table["grids"] = row
    try:
        yield
    finally:
        for table in tables:
            del table["grids"]
