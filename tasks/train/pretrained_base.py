"""Imports a pretrained checkpoint into the store: its model and its tokenizer."""

import json
from pathlib import Path

from reducible.tasks.dataset.input_files import FileSpec
from reducible.tasks.errors import UserError
from reducible.tasks.train.folders import MODEL
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.store import sha256_of
from reducible.tasks.workflow.task import Context

VERSION = 1


class PretrainedSpec(Frozen):
    """The files by content, in order."""

    files: tuple[FileSpec, ...]
    vocabulary: int


class Location(Frozen):
    """Execution: where this machine finds the checkpoint."""

    path: str


def make_model(context: Context) -> None:
    """Writes model/ as a training does, and result.json with its size."""
    from reducible.models.cost.ledger import Lengths
    from reducible.models.families.transformer import FAMILY
    from reducible.models.weights.model_folder import save_weights
    from reducible.models.weights.pretrained import checkpoint_files, load_checkpoint

    path = Path(context.execution.path)
    _unchanged(checkpoint_files(path), context.spec)
    try:
        model = load_checkpoint(path)
    except ValueError as error:
        raise UserError(str(error)) from None
    save_weights(model.state_dict(), FAMILY.name, vars(model.config), context.staging / MODEL)
    cost = FAMILY.cost(model.config, Lengths.fixed(1))
    size = {"parameters": cost.parameters, "parameters_without_embeddings": cost.parameters_without_embeddings}
    (context.staging / "result.json").write_text(json.dumps(size, indent=1) + "\n")
    record = Record(context.staging / "record", context.attempt)
    record.describe("checkpoint", context.label, {"path": str(path), **size, **vars(model.config)}, context.tags)
    record.note(f"{path.name}: {cost.parameters:,} parameters, read as family {FAMILY.name}.\n")


def make_tokenizer(context: Context) -> None:
    from reducible.data.pretrained_tokenizer import load_pretrained_tokenizer, tokenizer_files

    path = Path(context.execution.path)
    _unchanged(tokenizer_files(path, context.spec.vocabulary), context.spec)
    load_pretrained_tokenizer(path, context.spec.vocabulary).save(context.staging)


def _unchanged(files: list[Path], spec: PretrainedSpec) -> None:
    """Refuses files that differ from the hashes in the spec, which are the identity."""
    for file, known in zip(files, spec.files, strict=True):
        if sha256_of(file) != known.sha256:
            raise UserError(f"{file}: changed while the command ran; run it again")
