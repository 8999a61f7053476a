"""What the tasks that make a dataset do alike: take the shards together, and write dataset.json and its record."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reducible.data.hashes import verify_splits
from reducible.data.tokenizer import Tokenizer
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.identity import fingerprint
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.store import MANIFEST
from reducible.tasks.workflow.task import Context


class Naming(Frozen):
    """Execution: what people call the dataset."""

    name: str
    source: str


class Shards:
    """The shards that a task was given, in the order of its inputs, each one verified.

    `statistics` reads what was counted in one.
    """

    def __init__(self, context: Context, splits: Sequence[str], statistics: Callable[[Path], dict[str, Any]]) -> None:
        self.splits = splits
        self.folders = [folder for name, folder in sorted(context.inputs.items()) if name.startswith("shard-")]
        self.counted = [statistics(folder) for folder in self.folders]
        for folder, counted in zip(self.folders, self.counted, strict=True):
            verify_splits(folder, counted["splits"])

    def total(self, key: str) -> int:
        return sum(shard[key] for shard in self.counted)

    def totals(self) -> dict[str, dict[str, int]]:
        """The sums of what was counted, by split."""
        return {
            split: {
                key: sum(shard["splits"][split][key] for shard in self.counted)
                for key in self.counted[0]["splits"][split]
                if key not in ("content", "sha256")
            }
            for split in self.splits
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint([[shard["splits"][split]["content"] for split in self.splits] for shard in self.counted])

    @property
    def places(self) -> list[str]:
        """Relative to the dataset's artifact, so that the root may be moved or mounted elsewhere."""
        return [f"../../{folder.parent.name}/{folder.name}" for folder in self.folders]


def copied_tokenizer(context: Context, name: str) -> Tokenizer:
    """The tokenizer among the inputs; the dataset gets it under the same name."""
    shutil.copytree(context.inputs[name], context.staging / name, ignore=shutil.ignore_patterns(MANIFEST))
    return Tokenizer.load(context.inputs[name])


def write_dataset(context: Context, content: dict[str, Any], shown: Sequence[str], note: str) -> None:
    """Writes dataset.json and what MLflow shows: these keys of it, the counts of every split, and the note."""
    (context.staging / "dataset.json").write_text(json.dumps(content, indent=1) + "\n")
    record = Record(context.staging / "record", context.attempt)
    totals = {f"{split}.{key}": value for split, counts in content["splits"].items() for key, value in counts.items()}
    parameters = {**{key: content[key] for key in shown}, **totals}
    record.describe("dataset", f"data {content['name']}", parameters, context.tags)
    if content.get("skipped"):
        note += f"\n\n**{content['skipped']:,} inputs were skipped:**\n\n" + "\n".join(
            f"- {name}" for name in content["skipped_inputs"][:100]
        )
    record.note(note)
