"""Series as a dataset: split in time or by series, standardised on the train part, cut into windows.

A dataset folder holds dataset.json and for every split that is not empty

    SPLIT-values.npy      (steps, C) float32: all series end to end, standardised; missing values are 0
    SPLIT-observed.npy    (steps, C) bool
    SPLIT-starts.npy      (series + 1,) int64: where each series begins, and the end

A window never reaches over the end of a series or of a split.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reducible.data.errors import DataError
from reducible.data.series_files import NumericSeries
from reducible.data.split import content_key

SPLITS = ("train", "validation", "test")
SplitBy = Literal["time", "series"]
"""Whether the end of every series validates, or whole series."""


def split_series(
    series: Iterable[NumericSeries], by: SplitBy, validation: float, test: float
) -> dict[str, list[NumericSeries]]:
    """Puts each series into a split, or cuts each in three in time: train, then validation, then test.

    `validation` and `test` are shares of the steps of every series, or of the number of series. A series whose file
    names a split (piano rolls) stays in it.
    """
    parts: dict[str, list[NumericSeries]] = {split: [] for split in SPLITS}
    loose: list[NumericSeries] = []
    for one in series:
        if len(one.values):
            (loose if one.split is None else parts[one.split]).append(one)
    if by == "time":
        for one in loose:
            steps = len(one.values)
            held_out, tested = (round(share * steps) for share in (validation, test))
            borders = (0, max(0, steps - held_out - tested), max(0, steps - tested), steps)
            for split, first, last in zip(SPLITS, borders[:-1], borders[1:], strict=True):
                if last > first:
                    parts[split].append(NumericSeries(one.name, one.values[first:last]))
        return parts
    # By name, so that the order of the file does not matter; by rank, so that the shares are kept.
    ranked = sorted(loose, key=lambda one: content_key(one.name.encode()))
    held_out, tested = (max(1, round(share * len(ranked))) if share else 0 for share in (validation, test))
    for place, one in enumerate(ranked):
        split = "validation" if place < held_out else "test" if place < held_out + tested else "train"
        parts[split].append(one)
    return parts


def write_series(
    parts: Mapping[str, list[NumericSeries]], folder: Path, columns: list[str], standardise: bool, where: str
) -> dict[str, Any]:
    """Writes the arrays and returns what dataset.json says of them.

    Raises:
        DataError: `where` leaves a split without steps, or a channel of the train part has no value at all.
    """
    for split in ("train", "validation"):
        if not parts[split]:
            counts = ", ".join(f"{len(parts[one])} for {one}" for one in SPLITS)
            raise DataError(
                f"data.source: {where} leaves the {split} split empty (series: {counts}); choose data.split (time or "
                "series) and data.validation_share so that both have some"
            )
    if all(np.isnan(one.values).all() for one in parts["validation"]):
        raise DataError(f"data.source: {where} has no value at all in the validation split; choose another part of it")
    mean, deviation = _statistics(parts["train"], columns, where)
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
        column = columns[int(np.argmin(np.isfinite(mean) & np.isfinite(deviation)))]
        raise DataError(f"data.source: {where}, column {column!r}: holds values too large to standardise; rescale it")
    if not standardise:
        mean, deviation = np.zeros_like(mean), np.ones_like(deviation)
    splits: dict[str, dict[str, int]] = {}
    content = hashlib.sha256()
    for split, series in parts.items():
        values = np.concatenate([one.values for one in series]) if series else np.empty((0, len(columns)))
        observed = ~np.isnan(values)
        standardised = np.where(observed, (values - mean) / deviation, 0.0).astype("<f4")
        starts = np.cumsum([0] + [len(one.values) for one in series]).astype("<i8")
        for name, array in (("values", standardised), ("observed", observed), ("starts", starts)):
            np.save(folder / f"{split}-{name}.npy", array)
            content.update(np.ascontiguousarray(array).tobytes())
        splits[split] = {"series": len(series), "steps": len(values), "missing": int((~observed).sum())}
    return {
        "channels": len(columns),
        "columns": columns,
        "mean": mean.tolist(),
        "deviation": deviation.tolist(),
        "splits": splits,
        "series": {split: [one.name for one in series] for split, series in parts.items()},
        "content": content.hexdigest(),
    }


def _statistics(series: list[NumericSeries], columns: list[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (C,) of what is observed; the deviation of a constant channel is 1."""
    values = np.concatenate([one.values for one in series])
    seen = ~np.isnan(values)
    if not seen.any(axis=0).all():
        column = columns[int(np.flatnonzero(~seen.any(axis=0))[0])]
        raise DataError(f"data.columns: {where} has no value of {column!r} in the train split; leave that column out")
    mean = np.nanmean(values, axis=0)
    deviation = np.nanstd(values, axis=0)
    return mean, np.where(deviation > 1e-12 * np.maximum(1.0, np.abs(mean)), deviation, 1.0)


class Series:
    """Windows of at most `sequence` steps of one split; a window at the end of a series may be shorter.

    Windows begin every `stride` steps of a series, until one reaches its end. They overlap in training only: in the
    other splits every step is in exactly one window.
    """

    def __init__(self, folder: Path, split: str, sequence: int) -> None:
        """Raises DataError if the folder holds no such split."""
        if sequence < 1:
            raise DataError(f"data.sequence: {sequence} is not a positive length")
        self.sequence = sequence
        self.split = split
        content = read_content(folder)
        try:
            self.values = np.load(folder / f"{split}-values.npy", mmap_mode="r")
            self.observed = np.load(folder / f"{split}-observed.npy", mmap_mode="r")
            self.starts = np.load(folder / f"{split}-starts.npy")
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: holds no series of the {split} split ({error}); make it again") from None
        if len(self.values) != content["splits"][split]["steps"]:
            raise DataError(f"{folder}: {split}-values.npy is not what was written; make it again")
        self.channels = int(content["channels"])
        stride = content.get("stride") or sequence
        self._stride = min(stride, sequence) if split == "train" else sequence
        self._content = content["content"]
        self._first, self.lengths = self._windows()

    def _windows(self) -> tuple[np.ndarray, np.ndarray]:
        """First step and length of every window."""
        firsts, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            count = 1 + max(0, -(-(end - start - self.sequence) // self._stride))
            first = start + self._stride * np.arange(count)
            firsts.append(first)
            lengths.append(np.minimum(self.sequence, end - first))
        return np.concatenate(firsts), np.concatenate(lengths)

    @property
    def sizes(self) -> np.ndarray:
        """(windows,) steps that each takes in a batch."""
        return self.lengths

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the examples. Paths and times have no part in it."""
        content = [self._content, self.split, self.sequence, self._stride]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._first)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """values (B, T, C) float32, observed (B, T, C) bool, steps (B, T) bool; T is the longest window's length.

        steps is True within a window and False behind its end, where values are 0 and observed is False too.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"examples {indices.min()} to {indices.max()} are not within 0 to {len(self) - 1}")
        lengths = self.lengths[indices]
        longest = int(lengths.max(initial=0))
        values = np.zeros((len(indices), longest, self.channels), np.float32)
        observed = np.zeros(values.shape, bool)
        for row, (first, length) in enumerate(zip(self._first[indices].tolist(), lengths.tolist(), strict=True)):
            values[row, :length] = self.values[first : first + length]
            observed[row, :length] = self.observed[first : first + length]
        return {"values": values, "observed": observed, "steps": np.arange(longest) < lengths[:, None]}

    def units(self, batch: dict[str, np.ndarray]) -> int:
        """The number of steps within windows, observed or not."""
        return int(np.count_nonzero(batch["steps"]))

    def series(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A whole series of the split: values (T, C) float32 and observed (T, C) bool."""
        first, last = int(self.starts[number]), int(self.starts[number + 1])
        return np.asarray(self.values[first:last]), np.asarray(self.observed[first:last])


def read_content(folder: Path) -> dict[str, Any]:
    """dataset.json of a series dataset. Raises DataError if it is missing or of another kind."""
    try:
        content: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
        if content["kind"] != "series":
            raise ValueError(f"its kind is {content['kind']}")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: holds no series ({error}); make it again") from None
    return content
