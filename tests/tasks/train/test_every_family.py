"""What every family owes the rest (design: contracts 1 to 4 and 6), for whatever FAMILIES holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_sgd
from family_cases import FACTS, family_spec, settings, training_data
from family_trainings import (
    assert_a_branch_is_a_training_of_its_own,
    assert_a_step_is_the_sum_of_its_micro_batches,
    assert_resumes,
    run,
)
from safetensors.torch import load_file
from training_cases import gradients_and_weights, on_ranks

from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import FAMILIES
from reducible.models.layers.activation_checkpointing import MODES
from reducible.models.weights.model_folder import load_model
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.loop import Training
from reducible.tasks.train.optimizers.registry import OPTIMIZERS
from reducible.tasks.train.train_spec import Execution
from reducible.tasks.workflow.record import Record

EVERY = sorted(FAMILIES)
STRATEGIES = ("ddp", "fsdp")


@pytest.mark.parametrize("name", EVERY)
def test_interrupted_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    assert_resumes(family_spec(name, stop_step=8), tmp_path, stop=5)


@pytest.mark.parametrize("name", EVERY)
def test_a_branch_off_a_trunk_is_a_training_of_its_own(name: str, tmp_path: Path) -> None:
    assert_a_branch_is_a_training_of_its_own(family_spec(name), tmp_path)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("vae", {"kl_schedule": "linear", "kl_rise": 1.0}),
        ("vae", {"kl_schedule": "cyclical", "kl_cycles": 2}),
        ("ssm", {"kl_start": 0.1, "kl_rise": 0.9}),
    ],
)
def test_a_branch_goes_on_with_the_family_s_own_schedule(name: str, schedule: dict[str, Any], tmp_path: Path) -> None:
    """Its shares are of the horizon: those of each stretch would begin anew in every segment."""
    assert FAMILIES[name].has_schedule
    assert_a_branch_is_a_training_of_its_own(family_spec(name, model=settings(name) | schedule), tmp_path)


@pytest.mark.parametrize("name", EVERY)
def test_a_step_is_the_sum_of_its_micro_batches_over_their_units(name: str, tmp_path: Path) -> None:
    assert_a_step_is_the_sum_of_its_micro_batches(family_spec(name), tmp_path)


@pytest.mark.parametrize("name", EVERY)
def test_without_chance_padding_and_grouping_change_nothing(name: str) -> None:
    """All examples in one padded batch have the loss and the gradient that they have one by one."""
    spec = family_spec(name, model=settings(name, dropout=0.0))
    data = training_data(spec)
    torch.manual_seed(0)
    kind = FAMILIES[name]
    model = kind.build(kind.config(**spec.model)).double()
    if model.stochastic:
        pytest.skip(f"{name} draws by micro-batch; its own tests hold padding with the draws given")
    indices = torch.arange(12).numpy()

    def gradients(groups: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = 0.0
        for group in groups:
            arrays = {key: torch.from_numpy(array) for key, array in data.train.fetch(group).items()}
            loss = model({key: x.double() if x.is_floating_point() else x for key, x in arrays.items()})
            loss.nats.backward()
            total += loss.nats.item()
        return total, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    together, alone = gradients([indices]), gradients([indices[i : i + 1] for i in range(12)])
    # The sum of nats is fp32 by contract.
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for key, gradient in alone[1].items():
        torch.testing.assert_close(together[1][key], gradient, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family-ranks")
    on_ranks("family_ranks.py", 2, str(out))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", EVERY)
def test_two_ranks_step_as_one_does(ranks: Path, tmp_path: Path, name: str, strategy: str) -> None:
    spec = family_spec(name)
    expected = gradients_and_weights(spec, Execution(), training_data(spec), tmp_path, steps=2)
    seen = torch.load(ranks / f"{name}-{strategy}.pt")
    for what, tensors in expected.items():
        for parameter, tensor in tensors.items():
            scale = max(float(tensor.abs().max()), 1e-6)
            difference = (seen[what][parameter] - tensor).abs().max() / scale
            assert difference < (1e-3 if what == "weights" else 1e-4), (what, parameter, difference)


@pytest.mark.parametrize("name", EVERY)
def test_checkpointing_changes_no_bit_of_the_gradient(name: str, tmp_path: Path) -> None:
    """Time cut into chunks is another matter (below)."""
    spec = family_spec(name)
    plain, *others = (
        gradients_and_weights(spec, Execution(checkpointing=mode), training_data(spec), tmp_path / mode, steps=2)
        for mode in MODES
        if mode != "sqrt-time"
    )
    for again in others:
        for what, tensors in plain.items():
            for parameter, tensor in tensors.items():
                assert torch.equal(again[what][parameter], tensor), (what, parameter)


@pytest.mark.parametrize("name", EVERY)
def test_time_in_chunks_changes_the_order_of_sums_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over time run chunk by chunk, so that gradients differ by rounding: to 1e-5 of their largest entry.

    By gradient descent, whose weights differ by no more than the gradients times the rate. AdamW divides by the root
    of the squared gradient: where that is rounding itself, an update has nothing in common with the one beside it.
    """
    monkeypatch.setitem(OPTIMIZERS, "toy-sgd", toy_sgd.LINE)
    spec = family_spec(name, optimizer={"kind": "toy-sgd", "learning_rate": 0.05})
    plain, chunks = (
        gradients_and_weights(spec, Execution(checkpointing=mode), training_data(spec), tmp_path / mode, steps=2)
        for mode in ("none", "sqrt-time")
    )
    for what, tensors in plain.items():
        for parameter, tensor in tensors.items():
            difference = (chunks[what][parameter] - tensor).abs().max()
            assert difference <= 1e-5 * tensor.abs().max(), (what, parameter, difference)


@pytest.mark.parametrize("name", EVERY)
def test_the_ledger_counts_the_parameters_that_there_are(name: str) -> None:
    kind = FAMILIES[name]
    base = kind.config(**FACTS[kind.reads])
    counts = []
    for width in (8, 16, 48):
        config = base.scaled(width)
        cost = kind.cost(config, Lengths.fixed(8, 8))
        counts.append(sum(parameter.numel() for parameter in kind.build(config).parameters()))
        assert cost.parameters == counts[-1]
        assert 0 < cost.parameters_without_embeddings <= cost.parameters
        # Three times, but for a family whose gradient takes no backward pass over its recursion (linear-gaussian).
        least = 2.0 if name == "linear-gaussian" else 2.9
        assert cost.training_flops_per_unit >= least * cost.forward_flops_per_unit > 0
    assert counts == sorted(counts)
    assert counts[0] < 10_000  # ladders begin small: a law needs small members
    assert set(FACTS[kind.reads]) == set(kind.batch.decided)


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_model_loads_and_loses_as_much(name: str, tmp_path: Path) -> None:
    spec = family_spec(name)
    data = training_data(spec)
    run(spec, tmp_path)
    loaded = load_model(tmp_path / MODEL)
    assert load_file(tmp_path / MODEL / "model.safetensors").keys() <= loaded.state_dict().keys()
    training = Training(spec, Execution(), data, None, tmp_path / "again", Record(tmp_path / "record-again", "x"), None)
    training.model.load_state_dict(loaded.state_dict())
    found = training.validate()["val/loss"]
    training.checkpoints.close()
    from reducible.tasks.workflow.record import read_rows

    assert read_rows(tmp_path / "record")[-1]["metrics"]["val/loss"] == pytest.approx(found, rel=1e-6)
