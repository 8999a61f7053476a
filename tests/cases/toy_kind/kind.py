"""The row of tasks/dataset/kind.py: how a dataset of grids is opened, read, evaluated and sampled."""

from pathlib import Path
from typing import Any

import torch

from reducible.data.batches import fixed
from reducible.tasks.dataset.dataset import Dataset
from reducible.tasks.dataset.kind import Kind
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec, Evaluation, SampleOptions
from reducible.tasks.workflow.record import Record
from toy_kind.grids import Grids


class GridSettings(EvaluateSpec):
    most_likely: bool = True
    """Count the pixels that the most likely grid has right."""


class GridsKind(Kind):
    name = data = "grids"
    unit = "pixel"
    test_split = "grids are split into train and validation; take validation"
    settings = GridSettings

    def open(self, folder: Path, content: dict[str, Any]) -> Dataset:
        return Dataset(folder, content)

    def examples(self, dataset: Dataset, split: str, sequence: int, mask_documents: bool) -> Grids:
        return Grids(dataset.folder, split, sequence, f"{dataset.content['fingerprint']}-{split}")

    def evaluate(
        self, model: Any, dataset: Dataset, trained: dict[str, Any], spec: GridSettings, record: Record
    ) -> Evaluation:
        examples = dataset.examples(self.name, spec.split, trained["sequence"])
        count = len(examples) if spec.units is None else max(1, spec.units // examples.sequence)
        nats = units = right = 0.0
        with torch.inference_mode():
            for indices in fixed(examples, count, 64):
                batch = {name: torch.as_tensor(array) for name, array in examples.batch(indices).items()}
                loss = model(batch)
                nats, units = nats + float(loss.nats), units + float(loss.units)
                right += float((model.logits(batch["caption"]).argmax(-1) == batch["pixels"]).sum())
        numbers: dict[str, Any] = {"loss": nats / units, "units": int(units)}
        if spec.most_likely:
            numbers["right"] = right / units
        headline = f"{numbers['loss']:.4f} nats per pixel"
        return Evaluation(numbers, headline, f"{headline}\n")

    def sample(self, model: Any, dataset: Dataset, trained: dict[str, Any], prompt: str, options: SampleOptions) -> str:
        captions = dataset.content["captions"]
        if prompt not in captions:
            raise UserError(f"--prompt: {prompt!r} is not a caption; captions are {', '.join(captions)}")
        pixels_T = model.logits(torch.tensor([captions.index(prompt)]))[0].argmax(-1).tolist()
        side = round(len(pixels_T) ** 0.5)
        return "\n".join("".join(map(str, pixels_T[at : at + side])) for at in range(0, len(pixels_T), side))


GRIDS = GridsKind()
