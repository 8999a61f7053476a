"""The row of pipelines/dataset/kinds.py: what a recipe says of grids, and the task that makes the dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from reducible.data import schemes
from reducible.data.hashes import InputFile
from reducible.data.sources import files_of
from reducible.pipelines.dataset.data_section import DataSection
from reducible.pipelines.recipe.fields import Location
from reducible.tasks.count import Count
from reducible.tasks.dataset.input_files import by_content, paths_of
from reducible.tasks.dataset.make_series import Places
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task
from toy_kind.grids import read_grids
from toy_kind.make import GridSpec


class GridData(DataSection):
    paths = ("source",)

    kind: Literal["grids"]
    source: Location
    sequence: Count = 16
    """Pixels of a grid."""

    @property
    def may_test(self) -> bool:
        return False

    def facts(self, store: Store) -> dict[str, Any]:
        grids = [grid for file in self._files(store) for grid in read_grids(Path(file.path))]
        sizes = {len(pixels) for _, pixels in grids}
        if sizes != {self.sequence}:
            raise UserError(f"data.sequence: {self.sequence} must be the pixels of every grid: {sorted(sizes)}")
        symbols = 1 + max(int(digit) for _, pixels in grids for digit in pixels)
        return {"captions": len({caption for caption, _ in grids}), "pixels": self.sequence, "symbols": symbols}

    def dataset_task(self, name: str, store: Store, tokenizers: Mapping[str, Task] | None = None) -> Task:
        files = self._files(store)
        return Task(
            name="dataset",
            version=1,
            run="toy_kind.make:make_grids",
            spec=GridSpec(files=by_content(files)),
            label="dataset",
            execution=Places(name=name, source=schemes.shown(self.source), paths=paths_of(files)),
        )

    def _files(self, store: Store) -> list[InputFile]:
        return files_of(self.source, "grids", cache=store.root / "hashes")
