"""Checkpoints: sharded, written in the background, complete or invisible, and verified before they are used.

    <folder>/step-00000100/    *.distcp and .metadata (torch.distributed.checkpoint), progress.json, rows.jsonl,
                               manifest.json with every file's size and SHA-256
    <folder>/.step-....part    one that is being written, or was being written when its process was killed
    <folder>/damaged-step-...  one whose files are not what was saved; it does not count as one of the last or the best

A checkpoint appears by one rename after everything in it was flushed. Its state maps names to tensors, plain or
sharded. torch.distributed.checkpoint fits them to the world that loads them.
"""

import json
import logging
import shutil
import uuid
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from reducible.tasks.errors import UserError
from reducible.tasks.train.folders import MANIFEST, checkpoint_name, complete
from reducible.tasks.train.parallel import World
from reducible.tasks.workflow.store import flush, sha256_of

log = logging.getLogger(__name__)

# A single process saves and loads without torch.distributed on purpose.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

PROGRESS = "progress.json"
ROWS = "rows.jsonl"


class Damaged(Exception):
    """A checkpoint differs from what was saved. The message names the file."""


class Checkpoints:
    """Saves into one folder and keeps the last few and the best. Every rank calls it at the same steps."""

    def __init__(self, folder: Path, world: World, keep_last: int) -> None:
        self.folder = folder
        self.world = world
        self.keep_last = keep_last
        self.newest: Path | None = None
        """The last complete checkpoint that this run knows of."""
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        # A process that was taken for dead may still write, so each has its own unfinished folders.
        self.attempt = world.agreed(uuid.uuid4().hex[:8])
        if world.leads:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob(".*.part"):
                shutil.rmtree(part, ignore_errors=True)

    def save(self, step: int, state: Mapping[str, Tensor], progress: Mapping[str, Any], rows: list[dict]) -> None:
        """Copies the state and returns; a thread writes it. Waits first until the save before has ended.

        If a save fails (full disk), the log says so in one line. Training goes on and earlier checkpoints stay.
        """
        self.finish()
        # A stager for each save: torch 2.11's is of no use after its first, and this one keeps nothing between saves.
        copy: Any = DefaultStager(StagingOptions(False, False, False, False)).stage(dict(state))
        self.pending = self.writer.submit(self._write, step, copy, dict(progress), rows)

    def finish(self) -> None:
        """Waits until the last save is on disk, or has failed."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def close(self) -> None:
        self.finish()
        self.writer.shutdown()

    def _write(self, step: int, state: dict[str, Any], progress: dict[str, Any], rows: list[dict]) -> None:
        target = self.folder / checkpoint_name(step)
        part = self.folder / f".{target.name}.{self.attempt}.part"
        for work in (
            lambda: self._prepare(part),
            lambda: self._write_state(part, state),
            lambda: self._complete(part, target, progress, rows),
        ):
            failure = self._any(_failure_of(work))
            if failure is not None:
                if self.world.leads:
                    shutil.rmtree(part, ignore_errors=True)
                    log.error(
                        "the checkpoint at step %d was not saved (%s); training goes on, the newest one is %s",
                        step,
                        failure,
                        self.newest or "none",
                    )
                return
        self.newest = target

    def _prepare(self, part: Path) -> None:
        if self.world.leads:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)

    def _write_state(self, part: Path, state: dict[str, Any]) -> None:
        dcp.save(
            state,
            storage_writer=dcp.FileSystemWriter(part),
            process_group=self.world.background,
            no_dist=not self.world.joined,
        )

    def _complete(self, part: Path, target: Path, progress: dict[str, Any], rows: list[dict]) -> None:
        if not self.world.leads:
            return
        (part / PROGRESS).write_text(json.dumps(progress))
        (part / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {}
        for file in sorted(part.iterdir()):
            flush(file)
            files[file.name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
        (part / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
        flush(part / MANIFEST)
        flush(part)
        if target.exists():  # the same step, written by a process that was taken for dead
            shutil.rmtree(target)
        part.rename(target)
        flush(target.parent)
        self._forget()

    def _any(self, failure: str | None) -> str | None:
        """The first failure of any rank, on every rank."""
        if self.world.size == 1:
            return failure
        failures: list[str | None] = [None] * self.world.size
        dist.all_gather_object(failures, failure, group=self.world.background)
        return next((one for one in failures if one is not None), None)

    def _forget(self) -> None:
        """Removes all but the last few and the one of lowest validation loss."""
        paths = complete(self.folder)
        losses = {path: loss for path in paths if (loss := _validated(path)) is not None}
        keep = set(paths[-self.keep_last :])
        if losses:
            keep.add(min(losses, key=lambda path: losses[path]))
        for path in paths:
            if path not in keep:
                trash = path.with_name(f".{path.name}.part")
                path.rename(trash)  # so that a kill during the removal leaves nothing that looks complete
                shutil.rmtree(trash, ignore_errors=True)


def newest(folder: Path, world: World) -> Path | None:
    """The newest checkpoint whose files agree with its manifest. Damaged ones are named in the log and set aside."""
    found = None
    if world.leads:
        for path in reversed(complete(folder)):
            try:
                verify(path)
            except Damaged as damage:
                log.warning("checkpoint %s is damaged (%s); using the one before", path, damage)
                # If it stayed, it would count as one of the last few and displace a sound one.
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                continue
            found = path
            break
    return world.agreed(found)


def verify(path: Path) -> None:
    """Raises Damaged naming the first file that is missing or altered."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Damaged(f"{MANIFEST} cannot be read") from None
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise Damaged(f"{name} is missing")
        if file.stat().st_size != expected["size"]:
            raise Damaged(f"{name} has {file.stat().st_size} bytes instead of {expected['size']}")
        if sha256_of(file) != expected["sha256"]:
            raise Damaged(f"{name} was altered: its SHA-256 is not the manifest's")


def load(path: Path, state: Mapping[str, Tensor], world: World) -> dict[str, Any]:
    """Fills the tensors in place and returns the progress.

    Raises:
        UserError: the checkpoint is of another model. The line names the first name or shape that differs.
    """
    reader = dcp.FileSystemReader(path)
    held = reader.read_metadata().state_dict_metadata
    for name, tensor in state.items():
        if name not in held:
            raise UserError(f"{path}: holds no {name!r}; it was saved from another model")
        shape = getattr(held[name], "size", None)
        if shape is not None and tuple(shape) != tuple(tensor.shape):
            raise UserError(f"{path}: {name} is {tuple(shape)} there and {tuple(tensor.shape)} in this model")
    surplus = sorted(set(held) - set(state))
    if surplus:
        raise UserError(
            f"{path}: holds {surplus[0]!r}, which this model does not have; it was saved from another model"
        )
    dcp.load(
        {name: tensor.detach() for name, tensor in state.items()},
        storage_reader=reader,
        process_group=world.group,
        no_dist=not world.joined,
    )
    return _progress(path)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The metric rows up to the checkpoint's step."""
    return [json.loads(line) for line in (path / ROWS).read_text().splitlines()]


def cause(error: BaseException) -> str:
    """The cause at the bottom of a chain of exceptions, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        return cause(next(iter(error.failures.values()))[0])
    inner = error.__cause__ or error.__context__
    if isinstance(error, OSError) or inner is None:
        return " ".join(str(error).split()) or type(error).__name__
    return cause(inner)


def _failure_of(work: Callable[[], None]) -> str | None:
    """Why the work failed, if it did. Training must survive any failure of a disk. CheckpointException is torch's."""
    try:
        work()
    except (Exception, CheckpointException) as error:
        return cause(error)
    return None


def _validated(path: Path) -> float | None:
    """The validation loss at a checkpoint. None too if it cannot be read, so that an old one cannot fail a new one."""
    try:
        loss: float | None = _progress(path).get("validated")
    except (OSError, ValueError, AttributeError):
        return None
    return loss


def _progress(path: Path) -> dict[str, Any]:
    progress: dict[str, Any] = json.loads((path / PROGRESS).read_text())
    return progress
