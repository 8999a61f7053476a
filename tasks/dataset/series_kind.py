"""Series: steps of one or more channels. State-space models read them."""

from pathlib import Path
from typing import Any

import numpy as np

from reducible.data.linear_gaussian import LinearGaussianSeries
from reducible.data.series import Series
from reducible.tasks.dataset.dataset import Dataset
from reducible.tasks.dataset.kind import Kind
from reducible.tasks.dataset.make_series import GeneratedSpec
from reducible.tasks.evaluate import evaluate_series
from reducible.tasks.evaluate.evaluate_series import SeriesSettings
from reducible.tasks.evaluate.evaluate_spec import Evaluation, SampleOptions
from reducible.tasks.workflow.record import Record


class SeriesDataset(Dataset):
    """Series in windows, in standardised units; `in_units` converts values to the data's own units."""

    @property
    def columns(self) -> list[str]:
        """Names of the channels."""
        return list(self.content["columns"])

    @property
    def generated(self) -> LinearGaussianSeries | None:
        """The model that the series were drawn from; None if it is not known."""
        found = self.content["generated"]
        return None if found is None else LinearGaussianSeries(**GeneratedSpec(**found).model_dump())

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """Standardised values (..., C) in the data's own units."""
        return values * np.array(self.content["deviation"]) + np.array(self.content["mean"])

    def log_scale(self) -> np.ndarray:
        """(C,) what to add for each observed value to turn nats in standardised units into nats in the data's units."""
        return np.log(np.array(self.content["deviation"]))


class SeriesKind(Kind):
    name = data = "series"
    unit = "step"
    test_split = "give it a share (data.test_share), or take validation"
    settings = SeriesSettings

    def open(self, folder: Path, content: dict[str, Any]) -> SeriesDataset:
        return SeriesDataset(folder, content)

    def examples(self, dataset: SeriesDataset, split: str, sequence: int, mask_documents: bool) -> Series:
        return Series(dataset.folder, split, sequence)

    def evaluate(
        self, model: Any, dataset: SeriesDataset, trained: dict[str, Any], spec: SeriesSettings, record: Record
    ) -> Evaluation:
        return evaluate_series.evaluate(model, dataset, trained, spec, record)

    def sample(
        self, model: Any, dataset: SeriesDataset, trained: dict[str, Any], prompt: str, options: SampleOptions
    ) -> str:
        return evaluate_series.sample(model, dataset, trained, prompt, options)


SERIES = SeriesKind()
