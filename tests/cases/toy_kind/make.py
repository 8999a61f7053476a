"""The task that makes a dataset of grids: every fifth one validates."""

from pathlib import Path

import numpy as np

from reducible.tasks.dataset.input_files import FileSpec
from reducible.tasks.dataset.make_series import Places
from reducible.tasks.dataset.write_dataset import write_dataset
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.identity import fingerprint
from reducible.tasks.workflow.task import Context
from toy_kind.grids import read_grids


class GridSpec(Frozen):
    files: tuple[FileSpec, ...]


def make_grids(context: Context) -> None:
    spec: GridSpec = context.spec
    places: Places = context.execution
    grids = [grid for file in spec.files for grid in read_grids(Path(places.paths[file.name]))]
    captions = sorted({caption for caption, _ in grids})
    caption = np.array([captions.index(one) for one, _ in grids])
    pixels = np.array([[int(digit) for digit in digits] for _, digits in grids])
    held_out = np.arange(len(grids)) % 5 == 4
    splits = {}
    for split, chosen in (("train", ~held_out), ("validation", held_out)):
        np.savez(context.staging / f"{split}.npz", caption=caption[chosen], pixels=pixels[chosen])
        splits[split] = {"grids": int(chosen.sum()), "pixels": int(pixels[chosen].size)}
    content = {
        "kind": "grids",
        "name": places.name,
        "source": places.source,
        "fingerprint": fingerprint([file.sha256 for file in spec.files]),
        "captions": captions,
        "splits": splits,
    }
    note = f"{len(grids)} grids with {len(captions)} captions."
    write_dataset(context, content, ("source", "captions"), note)
