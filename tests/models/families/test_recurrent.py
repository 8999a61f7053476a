"""The recurrent family against its equations in float64 NumPy, pieces against the whole, cost against counters."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from reducible.models.cost.flop_counter import count_flops
from reducible.models.cost.ledger import Lengths
from reducible.models.families.recurrent import GATES, Recurrent, RecurrentConfig, recurrent_cost
from reducible.models.generate.sample import choose, generate
from reducible.models.layers.activation_checkpointing import chunk_length, over_time, set_checkpointing
from reducible.models.loss import total_of
from reducible.models.memory.counted_bytes import held_bytes, peak_bytes

VOCABULARY, B, T, WIDTH = 13, 3, 9, 8

CELLS = {
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "elman": {"cell": "elman"},
    "rectified elman": {"cell": "elman", "nonlinearity": "relu"},
}


def model_of(cell="lstm", **keys):
    torch.manual_seed(1)
    model = Recurrent(RecurrentConfig(**{"vocabulary": VOCABULARY, "width": WIDTH, **CELLS[cell], **keys}))
    with torch.no_grad():
        for layer in model.layers:  # biases that are all 0 would hide a mistake
            for parameter in layer.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.output_bias.normal_()
    return model


def batch_of(length=T, rows=B, vocabulary=VOCABULARY):
    torch.manual_seed(2)
    batch = {name: torch.randint(vocabulary, (rows, length)) for name in ("inputs", "targets")}
    batch["targets"][0, length // 2 :] = -100
    return batch


# The equations -------------------------------------------------------------------------------------------------------


def sigma(x):
    return 1 / (1 + np.exp(-x))


def step(cell, weights, x, h, c):
    """One step of one layer, from the equations; weights as torch stores them: W_x, W_h, b_x, b_h, gates stacked."""
    w_x, w_h, b_x, b_h = weights
    below, before = w_x @ x + b_x, w_h @ h + b_h
    if cell == "lstm":
        i, f, g, o = np.split(below + before, 4)
        c = sigma(f) * c + sigma(i) * np.tanh(g)
        return sigma(o) * np.tanh(c), c
    if cell == "gru":
        (r, u, n), (r_h, u_h, m) = np.split(below, 3), np.split(before, 3)
        n = np.tanh(n + sigma(r + r_h) * m)
        u = sigma(u + u_h)
        return (1 - u) * n + u * h, c
    return (np.tanh if cell == "elman" else lambda y: np.maximum(y, 0))(below + before), c


def logits_by_the_equations(model, cell, tokens):
    """Loops over sequences, steps and layers, in float64."""
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    table = weights.get("output.weight", weights["embedding.weight"])
    logits = np.empty((*tokens.shape, VOCABULARY))
    for row, sequence in enumerate(tokens.tolist()):
        states = [(np.zeros(WIDTH), np.zeros(WIDTH)) for _ in model.layers]
        for t, token in enumerate(sequence):
            x = weights["embedding.weight"][token]
            for number in range(len(states)):
                names = [f"layers.{number}.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                states[number] = step(cell, [weights[name] for name in names], x, *states[number])
                x = states[number][0]
            logits[row, t] = table @ x * model.logit_scale + weights["output_bias"]
    return logits


def nats_by_the_equations(model, cell, batch):
    logits = logits_by_the_equations(model, cell, batch["inputs"])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = batch["targets"].numpy()
    rows, steps = np.nonzero(targets >= 0)
    return -logs[rows, steps, targets[rows, steps]].sum()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_is_the_equations(cell, tied):
    model, batch = model_of(cell, tied=tied), batch_of()
    expected = logits_by_the_equations(model, cell, batch["inputs"])
    for kernel, tolerance in ((model, 1e-5), (model.double(), 1e-12)):  # on a CPU an LSTM has another kernel in fp32
        np.testing.assert_allclose(kernel.logits(batch["inputs"]).detach().numpy(), expected, rtol=0, atol=tolerance)
    loss = model(batch)
    assert loss.nats.item() == pytest.approx(nats_by_the_equations(model, cell, batch), rel=1e-6)
    assert loss.units.item() == (batch["targets"] >= 0).sum()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_differences_of_the_equations(cell):
    """Every parameter along a random direction, central differences in float64."""
    model, batch = model_of(cell, tied=False).double(), batch_of(rows=1)
    model(batch).nats.backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        ends = []
        for distance in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(direction, alpha=distance)
                ends.append(nats_by_the_equations(model, cell, batch))
                parameter.sub_(direction, alpha=distance)
        slope = (ends[0] - ends[1]) / 2e-5
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-6), name


def test_a_new_lstm_keeps_what_it_holds():
    model = Recurrent(RecurrentConfig(VOCABULARY, WIDTH))
    for layer in model.layers:
        gates = (layer.bias_ih_l0 + layer.bias_hh_l0).view(4, WIDTH)
        assert torch.equal(gates, torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None].expand(4, WIDTH))  # i, f, g, o
    assert model.layers[0].weight_hh_l0.std().item() == pytest.approx(WIDTH**-0.5, rel=0.2)


def test_dropout_is_one_mask_for_all_steps():
    model = model_of("elman", dropout=0.5, depth=1).train()
    masks = model._masks(4)
    assert len(masks) == 2 and set(torch.stack(masks).unique().tolist()) == {0.0, 2.0}
    inputs = torch.zeros(T, 4, dtype=torch.int64)
    with torch.no_grad():
        h_TBD, _ = model.advance(inputs, [None], masks)
    assert (h_TBD[:, masks[1] == 0] == 0).all() and (h_TBD[:, masks[1] > 0] != 0).all()
    assert model.eval()._masks(4) == []


# Pieces: truncated back-propagation ----------------------------------------------------------------------------------


def gradient_in_pieces(model, batch):
    """As the train step runs them: forward and backward of one piece after another."""
    model.zero_grad()
    losses = []
    for piece, _ in model.pieces(batch):
        losses.append(model(piece))
        losses[-1].nats.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), total_of(losses)


def gradient_of_the_whole(model, batch):
    model.zero_grad()
    loss = model(batch)
    loss.nats.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss


@pytest.mark.parametrize("cell", CELLS)
def test_a_piece_as_long_as_the_sequence_is_no_truncation(cell):
    batch = batch_of()
    for steps in (None, T, T + 5):
        model = model_of(cell, truncation=steps, dropout=0.3)
        torch.manual_seed(3)
        ours, loss = gradient_in_pieces(model, batch)
        torch.manual_seed(3)
        expected, whole = gradient_of_the_whole(model, batch)
        assert torch.equal(ours, expected) and torch.equal(loss.nats, whole.nats)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_state_goes_on_so_pieces_lose_what_the_whole_loses(cell, steps):
    """Also with dropout: one mask serves all pieces."""
    model, batch = model_of(cell, truncation=steps, dropout=0.3).double(), batch_of()
    torch.manual_seed(3)
    _, loss = gradient_in_pieces(model, batch)
    torch.manual_seed(3)
    whole = model(batch)
    assert loss.nats.item() == pytest.approx(whole.nats.item(), rel=1e-6)
    assert loss.units.item() == whole.units.item()
    pieces = [last for _, last in model.pieces(batch)]
    assert pieces == [False] * (-(-T // steps) - 1) + [True]


@pytest.mark.parametrize("cell", CELLS)
def test_a_piece_s_gradient_is_that_of_a_state_that_is_given(cell):
    """Oracle: the whole sequence in one graph with the state detached at every border."""
    model, batch = model_of(cell, truncation=4).double(), batch_of()
    ours, _ = gradient_in_pieces(model, batch)
    model.zero_grad()
    states = [None] * model.config.depth
    logits = []
    for tokens in batch["inputs"].T.split(4):
        h, states = model.advance(tokens, states)
        states = [tuple(part.detach() for part in state) for state in states]
        logits.append(model.predict(h))
    nn.functional.cross_entropy(
        torch.cat(logits).flatten(0, 1), batch["targets"].T.flatten(), ignore_index=-100, reduction="sum"
    ).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())  # nats are fp32


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_the_gradient_s_bias_falls_to_nothing_as_pieces_grow(cell):
    batch = batch_of(length=64, rows=8)
    whole, _ = gradient_of_the_whole(model_of(cell).double(), batch)
    bias = {}
    for steps in (1, 2, 4, 8, 16, 32, 64):
        ours, _ = gradient_in_pieces(model_of(cell, truncation=steps).double(), batch)
        bias[steps] = ((ours - whole).norm() / whole.norm()).item()
    found = list(bias.values())
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.1 and found[-1] < 1e-12


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_memory_goes_with_the_piece(cell):
    """What autograd holds at once: half the piece, half the bytes, whatever the length of the sequence."""
    held = {}
    for length, steps in ((64, 64), (64, 32), (64, 16), (128, 32)):
        model, batch = model_of(cell, truncation=steps, width=32), batch_of(length=length)
        model(batch)  # the kernels' first call makes copies of the weights
        most = 0
        for piece, _ in model.pieces(batch):
            outside = [*model.parameters(), *batch.values(), *model.left.get("states", [])]
            most = max(most, held_bytes(partial(model, piece), outside))
        held[length, steps] = most
    assert held[64, 32] == pytest.approx(held[64, 64] / 2, rel=0.1)
    assert held[64, 16] == pytest.approx(held[64, 64] / 4, rel=0.2)
    assert held[128, 32] == held[64, 32]


# Work and cost -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_parameters_and_flops_are_exact(cell, dropout, tied):
    config = RecurrentConfig(VOCABULARY, 16, 2, cell, dropout=dropout, tied=tied)
    cost, model, batch = recurrent_cost(config, Lengths.fixed(T)), Recurrent(config), batch_of()
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    tables = model.embedding.weight.numel() * (1 if tied else 2)
    assert cost.parameters_without_embeddings == cost.parameters - tables
    assert count_flops(lambda: model.logits(batch["inputs"])) == cost.forward_flops_per_unit * B * T
    training = count_flops(lambda: model(batch).nats.backward())
    # torch's loop asks for no gradient towards the zeros that a sequence starts from; oneDNN's LSTM always computes it.
    start = 0 if cell == "lstm" else 2 * B * config.depth * GATES[cell] * 16**2
    assert training == cost.training_flops_per_unit * B * T - start
    set_checkpointing(model, "sqrt-time")
    again = count_flops(lambda: model(batch).nats.backward())
    assert again - training == cost.sqrt_time_flops_per_unit * B * T


def test_the_formula_is_the_one_in_the_books():
    """8 h (h + x) per LSTM layer and token, GRU three quarters, Elman a quarter; softmax 2 h V."""
    for cell, share in (("lstm", 1.0), ("gru", 0.75), ("elman", 0.25)):
        cost = recurrent_cost(RecurrentConfig(1000, 64, 3, cell), Lengths.fixed(100))
        assert cost.forward_flops_per_unit == 3 * share * 8 * 64 * (64 + 64) + 2 * 64 * 1000


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_activation_bytes_are_what_autograd_holds(cell, dropout):
    config = RecurrentConfig(VOCABULARY, 64, 2, cell, dropout=dropout)
    model, batch = Recurrent(config), batch_of(length=100)
    held = held_bytes(lambda: model(batch), [*model.parameters(), *batch.values()])
    cost = recurrent_cost(config, Lengths.fixed(100))
    assert held == pytest.approx(cost.activation_bytes(B * 100), rel=0.03)


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_the_bytes_of_pieces_and_chunks_follow_the_formula(cell):
    """At the highest, gradients of the weights included; what backward makes on its way comes on top."""
    for truncation in (None, 36):
        config = RecurrentConfig(VOCABULARY, 32, 1, cell, truncation=truncation)
        cost, model, batch = recurrent_cost(config, Lengths.fixed(144)), Recurrent(config), batch_of(144)
        for checkpointing in ("none", "sqrt-time"):
            model.rebuilds = checkpointing == "sqrt-time"
            expected = cost.activation_bytes(B * 144, checkpointing=checkpointing) + 4 * cost.parameters
            seen = peak_bytes(lambda: gradient_in_pieces(model, batch))  # noqa: B023
            assert expected < seen < 2.2 * expected, (truncation, checkpointing)


# Checkpointing in chunks of time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_rebuilt_chunks_have_the_gradient_of_held_chunks_to_the_bit(cell, monkeypatch):
    """With dropout; the oracle runs the same chunks and holds everything."""
    batch, gradients = batch_of(length=23), []
    for rebuild in (True, False):
        model = model_of(cell, dropout=0.3)
        set_checkpointing(model, "sqrt-time")
        if not rebuild:
            monkeypatch.setattr(
                "reducible.models.layers.activation_checkpointing.checkpoint",
                lambda run, *arguments, **_: run(*arguments),
            )
        torch.manual_seed(3)
        gradients.append(gradient_of_the_whole(model, batch)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("truncation", [None, 10])
@pytest.mark.parametrize("cell", CELLS)
def test_chunks_have_the_gradient_of_the_whole_to_rounding(cell, truncation):
    batch, gradients = batch_of(length=23), []
    for chunks in (True, False):
        model = model_of(cell, dropout=0.3, truncation=truncation).double()
        model.rebuilds = chunks
        torch.manual_seed(3)
        gradients.append(gradient_in_pieces(model, batch)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6 * gradients[0].abs().max().item())  # nats are fp32


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_rebuilding_holds_the_root_of_the_time(cell):
    config = RecurrentConfig(VOCABULARY, 32, 1, cell)
    gradients = 4 * recurrent_cost(config, Lengths.fixed(64)).parameters

    def peak(length, chunks):
        model, batch = Recurrent(config), batch_of(length)
        model.rebuilds = chunks
        return peak_bytes(lambda: model(batch).nats.backward())

    rebuilt = {length: peak(length, True) - gradients for length in (64, 256)}
    assert 1.5 < rebuilt[256] / rebuilt[64] < 2.7
    assert peak(256, False) > 5 * rebuilt[256]


def test_chunks_cover_time_once_and_carry_the_state():
    x = torch.arange(1.0, 24.0, requires_grad=True)
    seen = []

    def advance(stretch, total):
        seen.append(len(stretch))
        return stretch.square().sum(), total + stretch.sum()

    outputs, total = over_time(advance, (x,), torch.zeros(()), rebuild=True)
    assert seen == [5, 5, 5, 5, 3] and total.item() == x.sum().item()
    torch.stack(outputs).sum().backward()
    assert torch.equal(x.grad, 2 * x) and len(seen) == 10
    assert len(over_time(advance, (x,), torch.zeros(()), rebuild=False)[0]) == 1
    assert [chunk_length(steps) for steps in (1, 2, 4, 5, 9, 10, 1024)] == [1, 2, 2, 3, 3, 4, 32]


# Sampling, and what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 1.3, "top_k": 7, "seed": 4}])
def test_reading_bit_by_bit_writes_the_same_text(cell, how):
    model, text = model_of(cell).eval(), [5, 1, 7]
    ours = generate(model, text, 20, **how)
    generator = torch.Generator().manual_seed(how.get("seed", 0))
    with torch.no_grad():
        for _ in range(20):
            logits = model.logits(torch.tensor([text]))[0, -1]
            text.append(choose(logits, how["temperature"], how.get("top_k"), generator))
    assert ours == text[3:]


def test_the_ladder_begins_small_and_grows():
    sizes = []
    for width in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
        config = RecurrentConfig(257, dropout=0.1, truncation=32).scaled(width)
        assert (config.width, config.dropout, config.truncation) == (width, 0.1, 32)
        sizes.append(recurrent_cost(config, Lengths.fixed(128)).parameters)
    assert sizes == sorted(sizes) and sizes[0] < 2000 and sizes[-1] > 1e7
    groups = {group.name: group for group in model_of().parameter_groups()}
    assert set(groups) == {"embeddings", "matrices", "vectors"}
    assert all(p.ndim == 2 for p in groups["matrices"].parameters)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cell": "lsmt"}, "model.cell: 'lsmt' must be one of lstm, gru, elman"),
        ({"depth": 0}, "model.depth: 0 must be a whole number of at least 1"),
        ({"width": True}, "model.width: True must be"),
        ({"nonlinearity": "sigmoid", "cell": "elman"}, "model.nonlinearity: 'sigmoid' must be tanh or relu"),
        ({"nonlinearity": "relu"}, "model.nonlinearity: is for elman cells; leave it out with lstm"),
        ({"dropout": 1.0}, "model.dropout: 1.0 must be"),
        ({"truncation": 0}, "model.truncation: 0 must be a whole number of at least 1, or left out"),
        ({"tied": "no"}, "model.tied: 'no' must be true or false"),
    ],
)
def test_wrong_wishes_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(**{"vocabulary": VOCABULARY, **keys})
    with pytest.raises(ValueError, match="model.width: 1 must be at least 2"):
        RecurrentConfig(VOCABULARY).scaled(1)


def test_documents_are_refused():
    model, batch = model_of(), batch_of() | {"documents": torch.zeros(B, T, dtype=torch.int64)}
    with pytest.raises(ValueError, match="documents: a recurrent model carries its state over their borders"):
        model(batch)
    with pytest.raises(ValueError, match="documents"):
        model.logits(batch["inputs"], batch["documents"])
