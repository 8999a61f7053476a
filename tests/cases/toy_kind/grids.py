"""Grids in files, `caption TAB pixels` a line, and as numbered examples (data/batches.py, Examples). No torch."""

from pathlib import Path

import numpy as np

from reducible.data.errors import DataError


def read_grids(path: Path) -> list[tuple[str, str]]:
    """(caption, pixels as digits) of every line."""
    grids = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        caption, tab, pixels = line.partition("\t")
        if not tab or not pixels.isdigit():
            raise DataError(f"{path}, line {number}: must be a caption, a tab and digits")
        grids.append((caption, pixels))
    return grids


class Grids:
    """The grids of one split, numbered."""

    def __init__(self, folder: Path, split: str, sequence: int, fingerprint: str) -> None:
        self.split, self.sequence, self.fingerprint = split, sequence, fingerprint
        with np.load(folder / f"{split}.npz") as arrays:
            self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(self.arrays["caption"])

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in self.arrays.items()}

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(batch["pixels"].size)
