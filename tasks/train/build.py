"""Builds the model, the same on every rank; then its copies or shards; then the optimizer over those."""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch

from reducible.models.config import ModelConfig
from reducible.models.contract import Family, Model
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.families.outside import blaming
from reducible.models.families.registry import family
from reducible.models.families.trial import require_contract
from reducible.models.layers.activation_checkpointing import saves_nothing, set_checkpointing
from reducible.models.layers.width_rule import one_rate
from reducible.models.quantise.number_formats import DTYPES
from reducible.tasks.errors import UserError
from reducible.tasks.train import finetuning
from reducible.tasks.train.optimizers.optimizer import Optimizer
from reducible.tasks.train.optimizers.registry import optimizer_kind
from reducible.tasks.train.parallel import Parallel, World
from reducible.tasks.train.train_spec import Execution, TrainSpec

log = logging.getLogger(__name__)


class Trainee(NamedTuple):
    """The model on this rank, how training calls it, its optimizer, and its entry in the cost ledger."""

    model: Model
    parallel: Parallel
    optimizer: Optimizer
    cost: Cost


def build(spec: TrainSpec, execution: Execution, world: World, lengths: Lengths, base: Path | None) -> Trainee:
    """Builds all of it. `base` is what spec.method adapts. Without a method the weights are drawn from spec.seed."""
    if spec.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if spec.deterministic != torch.are_deterministic_algorithms_enabled():  # asking imports the compiler: seconds
        torch.use_deterministic_algorithms(spec.deterministic)
    kind = family(spec.family)
    refuse_other_code(kind, spec)
    config = kind.config(**spec.model)
    cost = finetuning.cost(kind, config, spec.method, lengths)
    torch.manual_seed(spec.seed)
    if spec.method is None:
        model = new_model(kind, config, cost, spec, world.device)
    else:
        model = finetuning.adapted_model(spec, spec.method, required_base(base)).to(world.device).train()
    set_checkpointing(model, execution.checkpointing)
    if reason := saves_nothing(kind, config, execution.checkpointing):
        log.info("train.checkpointing: %s saves nothing: %s", execution.checkpointing, reason)
    if execution.compile and not model.compiles:
        log.info(
            "compute.compile: a %s is not compiled: torch.compile makes it no faster, or changes its random draws",
            kind.name,
        )
    elif execution.compile:
        model.compile(dynamic=False)
    parallel = Parallel(model, world, execution.strategy, spec.precision)
    chosen = optimizer_kind(spec.optimizer.kind)
    # The width rule is for weights drawn by it. In fine-tuning every group has the recipe's learning rate.
    groups = (one_rate if spec.method else chosen.width_rule)(model.parameter_groups())
    # DDP's gradients are its buckets.
    optimizer = chosen.build(model, groups, spec.optimizer, parallel.strategy == "ddp")
    return Trainee(model, parallel, optimizer, cost)


def refuse_other_code(kind: Family, spec: TrainSpec) -> None:
    """Of a family from outside: what is trained must be what the training's identity says."""
    if spec.family_code is not None and kind.code != spec.family_code:
        raise UserError(f"model.family: the code of {kind.name} changed after the command had read it; run it again")


def new_model(kind: Family, config: ModelConfig, cost: Cost, spec: TrainSpec, device: torch.device) -> Model:
    """A model with weights drawn from spec.seed. A family from outside shows first that it keeps its contract, which
    the tests of this package show of the others."""
    half = spec.precision != "fp32"
    try:
        with blaming(kind, "building the model"):
            model: Model = kind.build(config).to(device).train()
        if kind.code is not None:
            with blaming(kind, "forward"), torch.autocast(device.type, DTYPES[spec.precision], enabled=half):
                require_contract(kind, model, cost, spec.sequence, spec.micro_batch)
    except ValueError as error:
        if kind.code is None:
            raise
        raise UserError(str(error)) from error
    return model


def required_base(base: Path | None) -> Path:
    if base is None:
        raise UserError("method: fine-tuning needs the input `base`, an artifact with the model it begins with")
    return base
