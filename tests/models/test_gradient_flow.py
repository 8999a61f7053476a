"""The gradient through time against every step in one graph, against closed forms, and what it is there to show."""

import math

import pytest
import torch

from reducible.models.families.recurrent import Recurrent, RecurrentConfig
from reducible.models.gradient_flow import gradient_flow, lags_of

LENGTH, ROWS = 30, 4


def batch_of(length=LENGTH, rows=ROWS):
    torch.manual_seed(2)
    return {name: torch.randint(11, (rows, length)) for name in ("inputs", "targets")}


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_norms_are_those_of_one_graph_over_every_step(cell):
    torch.manual_seed(1)
    model = Recurrent(RecurrentConfig(11, 8, 2, cell, dropout=0.4)).double()
    batch = batch_of()
    batch["targets"][1, -1] = -100  # left out
    flow = gradient_flow(model, batch)
    assert flow.lags == [1, 2, 3, 4, 6, 8, 12, 16, 24] and model.training
    assert set(flow.norms) == {f"{part}_{n}" for part in (("hidden", "cell")[: 1 + (cell == "lstm")]) for n in (1, 2)}

    rows = [0, 2, 3]
    states, reached = [None, None], []
    for tokens in batch["inputs"][rows].T:
        h, states = model.advance(tokens[None], states)
        reached.append(states)
    nats = torch.nn.functional.cross_entropy(model.predict(h[-1]), batch["targets"][rows, -1], reduction="sum")
    for part, norms in flow.norms.items():
        kind, layer = part.split("_")
        for lag, norm in zip(flow.lags, norms, strict=True):
            state = reached[LENGTH - lag - 1][int(layer) - 1][kind == "cell"]
            (gradient,) = torch.autograd.grad(nats, state, retain_graph=True)
            assert norm == pytest.approx(gradient.norm(dim=-1).mean().item(), rel=1e-6), (part, lag)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.2])
def test_a_linear_state_multiplies_by_the_size_of_its_matrix(factor):
    """Where inputs are 0 tanh is the identity, and an orthogonal matrix times a factor changes every norm by it."""
    model = Recurrent(RecurrentConfig(11, 8, 1, "elman")).double()
    torch.nn.init.zeros_(model.layers[0].weight_ih_l0)
    torch.nn.init.orthogonal_(model.layers[0].weight_hh_l0, gain=factor)
    flow = gradient_flow(model, batch_of())
    first = flow.norms["hidden_1"][0]
    expected = [first * factor ** (lag - 1) for lag in flow.lags]
    assert flow.norms["hidden_1"] == pytest.approx(expected, rel=1e-6)
    assert flow.factor("hidden_1") == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("bias", [0.0, 1.0, 4.0])
def test_a_cell_keeps_what_its_forget_gate_keeps(bias):
    """With all weights 0 dL/dc goes back through sigma(forget bias) alone."""
    model = Recurrent(RecurrentConfig(11, 8, 1)).double()
    layer = model.layers[0]
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(layer.bias_ih_l0[8:16], bias)
    flow = gradient_flow(model, batch_of())
    kept = 1 / (1 + math.exp(-bias))
    assert flow.norms["cell_1"][-1] / flow.norms["cell_1"][0] == pytest.approx(kept**23, rel=1e-6)
    assert flow.norms["hidden_1"] == [0.0] * len(flow.lags) and math.isnan(flow.factor("hidden_1"))


def test_lags_are_two_an_octave_below_the_length():
    assert lags_of(2) == [1]
    assert lags_of(9) == [1, 2, 3, 4, 6, 8]
    assert lags_of(1) == []
    with pytest.raises(ValueError, match="whole sequences of at least two steps"):
        gradient_flow(Recurrent(RecurrentConfig(11, 8)), batch_of(length=1))


def test_an_elman_network_vanishes_where_an_lstm_does_not():
    """To be told at each of 30 steps: the first token; all after it is noise. Both learn it, by other means.

    What a tanh network holds fast it holds by saturation, and then its gradient must vanish (Bengio et al. 1994,
    theorem 4); an LSTM's cell holds by a forget gate near 1.
    """

    def recall(rows, generator):
        inputs = torch.randint(2, 6, (rows, 30), generator=generator)
        inputs[:, 0] = torch.randint(0, 2, (rows,), generator=generator)
        return {"inputs": inputs, "targets": inputs[:, :1].expand(-1, 30).contiguous()}

    test, right, flows = recall(256, torch.Generator().manual_seed(9)), {}, {}
    for cell in ("elman", "lstm"):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        model = Recurrent(RecurrentConfig(6, 16, 1, cell))
        groups = [{"params": list(g.parameters), "lr": 0.03 * g.rate} for g in model.parameter_groups()]
        optimizer = torch.optim.AdamW(groups, weight_decay=0, betas=(0.9, 0.95))
        for _ in range(300):
            optimizer.zero_grad()
            loss = model(recall(32, generator))
            (loss.nats / loss.units).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            right[cell] = (model.logits(test["inputs"])[:, -1].argmax(-1) == test["targets"][:, -1]).float().mean()
        flows[cell] = gradient_flow(model, test)
    assert right["lstm"] > 0.99 and right["elman"] > 0.99
    assert flows["lstm"].factor("cell_1") > 0.95
    assert flows["elman"].factor("hidden_1") < 0.7
