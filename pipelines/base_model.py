"""The base of a fine-tuning: the model of an earlier training, or a pretrained checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reducible.data.errors import DataError
from reducible.data.hashes import HashCache
from reducible.data.paths import expanded, scheme_like
from reducible.models.families import transformer
from reducible.models.families.registry import Family
from reducible.pipelines.find import NotFound, find
from reducible.pipelines.training import family_that_trained
from reducible.tasks.dataset.input_files import FileSpec
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.train import pretrained_base as pretrained
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.pretrained_base import Location, PretrainedSpec
from reducible.tasks.train.train_spec import TrainSpec
from reducible.tasks.workflow.store import MANIFEST, Store, read_manifest, read_spec, remedy
from reducible.tasks.workflow.task import Task, finished


@dataclass(frozen=True)
class Base:
    name: str
    family: Family
    config: Any
    model: Task
    """Its artifact holds model/."""
    tokenizers: Mapping[str, Task]
    """By the names that a dataset gives to these inputs; none for series."""
    dataset: Mapping[str, Any]
    """The dataset.json of its training data; empty if it is not known."""
    sequence: int | None = None
    """The length of the examples that it was trained on."""


def base_of(wanted: str, store: Store) -> Base:
    """The base that a recipe's `finetune.base` names: a path, or what `find` finds among the trainings.

    Raises:
        UserError: there is none, it diverged, or it cannot be read; one line.
    """
    from reducible.models.weights.pretrained import ACCEPTED, is_checkpoint

    path = expanded(wanted)
    if path.name == "model" and (path.parent / MANIFEST).is_file():
        return _trained_base(path.parent, store)  # as `reducible run` prints it
    if is_checkpoint(path):
        return _imported_base(path.absolute(), store)
    if path.suffix not in (".bin", ".gguf", ".safetensors") or scheme_like(wanted):
        try:
            return _trained_base(find(store, "train", wanted), store)
        except NotFound:
            if not path.exists():
                raise
    what = "is not a checkpoint" if path.exists() else "no such file"
    raise UserError(f"finetune.base: {path}: {what}; give the name of a run, {ACCEPTED}")


def data_kind(wanted: str, root: str) -> str:
    """The data.kind that a base reads."""
    return kind_named(base_of(wanted, Store(root)).family.reads).data


def _trained_base(folder: Path, store: Store) -> Base:
    manifest = read_manifest(folder)
    if manifest["task"] != "train":
        raise UserError(f"finetune.base: {folder} is a {manifest['task']}, not a training; give the name of a run")
    if not store.committed("train", manifest["identity"]):
        raise UserError(f"finetune.base: {folder} lies outside {store.root}; give its own root with --root")
    if not (folder / MODEL).is_dir():
        if json.loads((folder / "result.json").read_text())["status"] == "finished":
            raise UserError(f"{folder / 'model'}: missing; {remedy(folder)}")
        raise UserError(f"finetune.base: {manifest['label']} left no model (it diverged); give another run")
    spec = read_spec(folder, TrainSpec)
    kind = family_that_trained(spec)
    dataset = store.artifact("dataset", manifest["inputs"]["data"])
    inputs = read_manifest(dataset)["inputs"]
    tokenizers = {
        name: finished("tokenizer", inputs[name], name) for name in ("tokenizer", "source_tokenizer") if name in inputs
    }
    label = str(manifest["label"])
    return Base(
        label.removeprefix("train "),
        kind,
        kind.config(**spec.model),
        finished("train", manifest["identity"], label),
        tokenizers,
        _content(dataset),
        spec.sequence,
    )


def _content(dataset: Path) -> Mapping[str, Any]:
    from reducible.tasks.dataset.dataset import open_dataset

    content: Mapping[str, Any] = open_dataset(dataset).content
    return content


def _imported_base(path: Path, store: Store) -> Base:
    from reducible.data.pretrained_tokenizer import tokenizer_files
    from reducible.models.weights.pretrained import checkpoint_config, checkpoint_files

    try:
        weights = checkpoint_files(path)
        config = checkpoint_config(path)
        tokenizer = tokenizer_files(path, config.vocabulary)
    except (ValueError, DataError) as error:
        raise UserError(f"finetune.base: {error}") from None
    hashes = HashCache(store.root / "hashes")

    def task(name: str, function: str, files: list[Path], label: str) -> Task:
        specs = []
        for file in files:
            size, sha256 = hashes.sha256(file)
            specs.append(FileSpec(name=file.name, size=size, sha256=sha256))
        return Task(
            name=name,
            version=pretrained.VERSION,
            run=f"reducible.tasks.train.pretrained_base:{function}",
            spec=PretrainedSpec(files=tuple(specs), vocabulary=config.vocabulary),
            label=label,
            execution=Location(path=str(path)),
        )

    name = path.stem if path.is_file() else path.name
    model = task("checkpoint", "make_model", weights, f"checkpoint {name}")
    tokenizers = {"tokenizer": task("tokenizer", "make_tokenizer", tokenizer, f"tokenizer of {name}")}
    hashes.save()
    return Base(name, transformer.FAMILY, config, model, tokenizers, {})
