"""A trial of a family from outside before it trains: what its forward returns, its units, its parameters, and that it
does not read what it is to predict."""

import math

import torch
from torch import Tensor

from reducible.models.contract import Batch, Family, Model, PairModel, TextModel
from reducible.models.cost.ledger import Cost
from reducible.models.loss import BrokenContract, Loss, broken_loss, total_of

ROWS = 8
DRAWS = 16
"""Of a model that draws random numbers."""


def require_contract(family: Family, model: Model, cost: Cost, sequence: int, micro_batch: int) -> None:
    """Tries a new model on its device.

    It reads made-up batches in evaluation mode, so that nothing in it moves. The random generators are afterwards where
    they were.

    Raises:
        BrokenContract: the model does otherwise than models/contract.py says.
    """
    require_count(cost.parameters, sum(parameter.numel() for parameter in model.parameters()))
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise BrokenContract(f"{name} is {kind}, and must be fp32; train.precision says what products are in")
    device = next(model.parameters()).device
    rows = max(2, min(ROWS, micro_batch))

    def batch(count: int) -> Batch:
        full = family.batch.full_batch(model.config, count, sequence)
        return {name: tensor.to(device) for name, tensor in full.items()}

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model.eval()
        try:
            _require_loss(model, batch(rows), rows * sequence)
            _require_sum(model, batch(1), batch(rows), rows)
            _require_blind(model, batch(1))
        finally:
            model.train()


def require_count(said: int, there: int) -> None:
    """Raises BrokenContract unless cost says the number of parameters that are there: laws read N from the cost."""
    if said != there:
        raise BrokenContract(f"cost says {said:,} parameters, and the module has {there:,}")


def _require_loss(model: Model, batch: Batch, units: int) -> None:
    losses = []
    for piece, _ in model.pieces(batch):
        loss = model(piece)
        if reason := broken_loss(loss):
            raise BrokenContract(reason)
        if not loss.nats.requires_grad:
            raise BrokenContract("forward returns nats without a gradient; something is detached or under no_grad")
        losses.append(Loss(loss.nats.detach(), loss.units, {}))
    counted = int(total_of(losses).units)
    if counted != units:
        raise BrokenContract(f"forward counts {counted} units in a batch that has {units} targets")


@torch.no_grad()
def _require_sum(model: Model, one: Batch, several: Batch, rows: int) -> None:
    """A mean in place of a sum shows where more of the same rows have no more nats."""

    def nats(batch: Batch) -> Tensor:
        draws = DRAWS if model.stochastic else 1
        return torch.stack([sum(model(piece).nats for piece, _ in model.pieces(batch)) for _ in range(draws)]).double()

    alone, together = nats(one), nats(several)
    if not (alone.isfinite().all() and together.isfinite().all()):
        return  # the training says where it is not finite
    if together.mean().abs() + _doubt(together) < math.sqrt(rows) * (alone.mean().abs() - _doubt(alone)):
        raise BrokenContract(
            f"forward returns {together.mean():.4g} nats for {rows} rows and {alone.mean():.4g} for one of them alone: "
            "a mean, and it must be the sum over all targets"
        )


@torch.no_grad()
def _require_blind(model: Model, batch: Batch) -> None:
    """A model that reads the tokens which it is to predict has a loss near 0, and writes nonsense."""
    if not isinstance(model, TextModel | PairModel):
        return
    inputs_BT = batch["inputs"]
    half = inputs_BT.shape[1] // 2
    other_BT = inputs_BT.clone()
    other_BT[:, half:] = (inputs_BT[:, half:] + 1) % int(vars(model.config)["vocabulary"])

    def before(tokens_BT: Tensor) -> Tensor:
        torch.manual_seed(0)
        if isinstance(model, TextModel):
            return model.logits(tokens_BT, batch.get("documents"))[:, :half]
        return model.logits({**batch, "inputs": tokens_BT})[:, :half]

    one, two = before(inputs_BT), before(other_BT)
    rounding = 1e-4 if one.dtype in (torch.float32, torch.float64) else 1e-2
    if half and one.isfinite().all() and float((one - two).abs().max()) > rounding * float(one.abs().max()):
        raise BrokenContract("logits at a place change with the tokens after it: the model reads what it is to predict")


def _doubt(draws: Tensor) -> Tensor:
    """Four standard errors of the mean."""
    return 4 * draws.std(correction=0) / math.sqrt(len(draws))
