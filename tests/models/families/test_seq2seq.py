"""Seq2seq against NumPy, against itself sentence by sentence, and against the FLOP counter; whether it learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_cases import assert_only_matrices_decay, held_bytes
from pair_cases import SEPARATOR, pairs, reversal, sentences, written_backwards

from reducible.models.cost.flop_counter import count_flops
from reducible.models.cost.ledger import Lengths
from reducible.models.families.seq2seq import Seq2Seq, Seq2SeqConfig, attention, seq2seq_cost
from reducible.models.generate.beam_search import beam_search
from reducible.models.layers.activation_checkpointing import set_checkpointing

SOURCE_VOCABULARY, VOCABULARY = 19, 23

CONFIGS = {
    "luong": {},
    "bahdanau": {"attention": "bahdanau"},
    "none": {"attention": "none"},
    "deep luong": {"depth": 2, "dropout": 0.2, "tied": False},
    "deep bahdanau": {"attention": "bahdanau", "depth": 3, "dropout": 0.2},
    "deep none": {"attention": "none", "depth": 2, "bidirectional": False},
    "one way": {"bidirectional": False, "label_smoothing": 0.1},
    "hard luong": {"hard": True},
    "hard bahdanau": {"attention": "bahdanau", "hard": True},
    "shared": {"shared": True, "source_vocabulary": VOCABULARY},
}


def config_of(name="luong", **changes):
    keys = {"source_vocabulary": SOURCE_VOCABULARY, "vocabulary": VOCABULARY, "width": 16, **CONFIGS[name], **changes}
    return Seq2SeqConfig(**keys)


def built(name="luong", dtype=torch.float64, **changes):
    torch.manual_seed(3)
    model = Seq2Seq(config_of(name, **changes)).to(dtype)
    with torch.no_grad():  # biases that matter
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


# The mathematics --------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def cell(gates, c):
    i, f, g, o = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def numpy_nats(model, source, target):
    """-log p(target | source) by the equations in the head of the file, one position after another."""
    w = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    config = model.config
    table = w.get("source_embedding.weight", w["embedding.weight"])
    suffixes = ("", "_reverse") if config.bidirectional else ("",)
    states, finals = table[[*source, SEPARATOR]], []
    for layer in range(config.depth):
        outputs, last = [], []
        for suffix in suffixes:
            names = [
                f"encoder.recurrence.layers.{layer}.{kind}_l0{suffix}"
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            w_ih, w_hh, b_ih, b_hh = (w[name] for name in names)
            h = c = np.zeros(w_hh.shape[1])
            seen = []
            for x in states[::-1] if suffix else states:
                h, c = cell(w_ih @ x + w_hh @ h + b_ih + b_hh, c)
                seen.append(h)
            outputs.append(np.stack(seen[::-1] if suffix else seen))
            last.append((h, c))
        states = np.concatenate(outputs, axis=1)
        finals.append([np.concatenate(parts) for parts in zip(*last, strict=True)])
    f = states @ w["encoder.transform.weight"].T if config.attention != "none" else None
    hidden, cells = [list(parts) for parts in zip(*finals, strict=True)]

    def look(scores):
        alpha = softmax(scores)
        return f[alpha.argmax()] if config.hard else alpha @ f

    nats = 0.0
    for read, written in zip([SEPARATOR, *target], [*target, SEPARATOR], strict=True):
        x = w["embedding.weight"][read]
        if config.attention == "bahdanau":
            energy = np.tanh(f @ w["encoder.key.weight"].T + w["decoder.query.weight"] @ hidden[-1])
            v = look(energy @ w["decoder.score.weight"][0])
            x = np.concatenate([x, v])
        for layer in range(config.depth):
            if config.attention == "bahdanau":
                weight, bias = w[f"decoder.gates.{layer}.weight"], w[f"decoder.gates.{layer}.bias"]
                gates = weight @ np.concatenate([x, hidden[layer]]) + bias
            else:
                prefix = [
                    f"decoder.layers.{layer}.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                ]
                w_ih, w_hh, b_ih, b_hh = (w[name] for name in prefix)
                gates = w_ih @ x + w_hh @ hidden[layer] + b_ih + b_hh
            hidden[layer], cells[layer] = cell(gates, cells[layer])
            x = hidden[layer]
        if config.attention == "luong":
            v = look(f @ (w["decoder.query.weight"] @ x))
        if config.attention != "none":
            x = np.tanh(w["combine.weight"] @ np.concatenate([v, x]))
        logits = w["embedding.weight" if config.tied else "output.weight"] @ x * 20 / config.width
        nats -= np.log(softmax(logits)[written])
    return nats


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_that_of_the_equations(name):
    model = built(name).eval()
    sources, targets = sentences(4), sentences(4, seed=2)
    loss = model(pairs(sources, targets))
    expected = sum(numpy_nats(model, source, target) for source, target in zip(sources, targets, strict=True))
    assert loss.nats.item() == pytest.approx(expected, rel=1e-6)
    assert loss.units == sum(len(target) + 1 for target in targets)
    assert loss.parts == {}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_batch_gives_each_sentence_the_loss_and_gradient_that_it_has_alone(name):
    model = built(name, dropout=0.0)
    sources, targets = sentences(7), sentences(7, seed=2)

    def gradients(groups):
        model.zero_grad()
        nats = [model(pairs(*zip(*group, strict=True))).nats for group in groups]
        sum(nats).backward()
        return [loss.item() for loss in nats], [parameter.grad.clone() for parameter in model.parameters()]

    examples = list(zip(sources, targets, strict=True))
    [together], gradient = gradients([examples])
    alone, expected = gradients([[example] for example in examples])
    assert together == pytest.approx(sum(alone), rel=1e-6)
    for ours, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    # Sentence by sentence: the targets of all others ignored.
    batch = pairs(sources, targets)
    for row, nats in enumerate(alone):
        targets_BT = batch["targets"].clone()
        targets_BT[torch.arange(7) != row] = -100
        assert model(batch | {"targets": targets_BT}).nats.item() == pytest.approx(nats, rel=1e-6)


def test_a_batch_without_any_target_has_no_loss_and_no_gradient():
    model = built()
    batch = pairs(sentences(2), sentences(2, seed=2))
    batch["targets"].fill_(-100)
    loss = model(batch)
    loss.nats.backward()
    assert (loss.nats.item(), loss.units.item()) == (0, 0)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_label_smoothing_acts_in_training_only_and_leaves_the_plain_loss_beside_it():
    model = built("one way")
    batch = pairs(sentences(4), sentences(4, seed=2))
    smoothed = model(batch)
    plain = model.eval()(batch)
    assert smoothed.parts["cross_entropy"].item() == pytest.approx(plain.nats.item())
    expected = F.cross_entropy(
        model.logits(batch).flatten(0, 1), batch["targets"].flatten(), reduction="sum", label_smoothing=0.1
    )
    assert smoothed.nats.item() == pytest.approx(expected.item(), rel=1e-6)


# Attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["luong", "bahdanau", "hard luong", "hard bahdanau"])
def test_the_attention_map_is_a_distribution_over_the_real_source(name):
    model = built(name).eval()
    batch = pairs(sentences(5), sentences(5, seed=2))
    alpha_BTS = model.attention_map(batch)
    assert alpha_BTS.shape == (*batch["inputs"].shape, batch["source"].shape[1])
    torch.testing.assert_close(alpha_BTS.sum(-1), torch.ones(batch["inputs"].shape, dtype=torch.float64))
    padding_BS = torch.arange(batch["source"].shape[1]) >= batch["source_lengths"][:, None]
    assert not alpha_BTS[padding_BS[:, None].expand_as(alpha_BTS)].any()
    assert torch.equal(alpha_BTS, (alpha_BTS == 1).double()) == name.startswith("hard")


def test_without_attention_there_is_no_map():
    assert built("none").attention_map(pairs([[1]], [[2]])) is None


def test_hard_attention_learns_by_the_gradient_of_the_expected_value():
    """For a value that is linear in alpha, straight-through gives the exact gradient of its mean under the softmax."""
    torch.manual_seed(0)
    scores, values = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, 6, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 5, 2, 1])[:, None]
    alpha = attention(scores, mask, hard=True)
    assert set(alpha.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(alpha.argmax(-1), scores.masked_fill(~mask, -9).argmax(-1))
    (alpha * values).sum().backward()
    p = torch.softmax(scores.detach().masked_fill(~mask, -torch.inf), -1)
    torch.testing.assert_close(scores.grad, p * (values - (p * values).sum(-1, keepdim=True)))


# Decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_search_sees_the_logits_of_teacher_forcing(name):
    model = built(name).eval()
    sources, targets = sentences(4), sentences(4, (6, 7), seed=2)
    batch = pairs(sources, targets)
    expected = model.logits(batch)
    order = torch.tensor([2, 0, 0, 3, 1])
    state = model.select(model.start(batch), order)
    for step in range(7):
        logits_RV, state = model.next(batch["inputs"][order, step], state)
        torch.testing.assert_close(logits_RV, expected[order, step])


@pytest.mark.parametrize("name", ["luong", "bahdanau", "none"])
def test_a_search_finds_answers_of_the_probability_it_says_alone_and_in_a_batch(name):
    model = built(name).eval()
    sources = sentences(6)
    together = beam_search(model, pairs(sources, sources), SEPARATOR, 8, beam=3)
    for source, found in zip(sources, together, strict=True):
        assert [h.tokens for h in beam_search(model, pairs([source], [source]), SEPARATOR, 8, beam=3)[0]] == [
            h.tokens for h in found
        ]
        best = found[0]
        if best.ended:
            nats = model(pairs([source], [best.tokens])).nats.item() if best.tokens else -best.log_probability
            assert -best.log_probability == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("hard", [False, True])
def test_it_learns_to_reverse_what_it_reads(hard):
    """Sequences of 3 to 6 of 11 symbols: after 200 steps nine of ten unseen ones come out whole."""
    torch.manual_seed(1)
    model = Seq2Seq(Seq2SeqConfig(12, 12, width=32, hard=hard))
    groups = model.parameter_groups()
    optimizer = torch.optim.AdamW([{"params": list(group.parameters)} for group in groups], weight_decay=0.0)

    for step in range(200):
        loss = model(pairs(*reversal(32, (3, 7), step, 12)))
        optimizer.zero_grad()
        (loss.nats / loss.units).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, rated in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = 0.01 * rated.rate * min(1, (200 - step) / 80)
        optimizer.step()
    assert written_backwards(model, (3, 7), 12) >= 90


# Cost -------------------------------------------------------------------------------------------------------------

ROWS, SOURCE, TARGET = 3, 11, 7
"""Lengths with their ends; nothing is padded, so that what runs is what counts."""


@pytest.fixture(params=CONFIGS)
def case(request):
    model = built(request.param, torch.float32)
    batch = pairs(sentences(ROWS, (SOURCE - 1, SOURCE)), sentences(ROWS, (TARGET - 1, TARGET), seed=2))
    return model, batch, seq2seq_cost(model.config, Lengths.fixed(TARGET, SOURCE))


def per_unit(run):
    return count_flops(run) / (ROWS * TARGET)


def test_parameters_are_exact(case):
    model, _, cost = case
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.parameters_without_embeddings == cost.parameters - sum(table.weight.numel() for table in model.tables())


def test_flops_are_exact_against_the_counter(case):
    model, batch, cost = case
    with torch.no_grad():
        assert per_unit(lambda: model(batch)) == pytest.approx(cost.forward_flops_per_unit)
    assert per_unit(lambda: model(batch).nats.backward()) == pytest.approx(cost.training_flops_per_unit)


def test_the_cost_of_ragged_pairs_is_the_sum_over_them():
    """Counted one by one, without padding, against the formula for the set."""
    model = built()
    sources, targets = sentences(5), sentences(5, seed=2)
    cost = seq2seq_cost(model.config, Lengths.measured(*[[len(x) + 1 for x in y] for y in (targets, sources)]))
    with torch.no_grad():
        counted = sum(
            count_flops(lambda s=s, t=t: model(pairs([s], [t]))) for s, t in zip(sources, targets, strict=True)
        )
    assert counted == pytest.approx(cost.forward_flops_per_unit * sum(len(target) + 1 for target in targets))


def test_recomputation_under_checkpointing_is_exact_and_apart(case):
    model, batch, cost = case
    set_checkpointing(model, "full")
    total = per_unit(lambda: model(batch).nats.backward())
    assert total - cost.training_flops_per_unit == pytest.approx(cost.checkpointing_flops_per_unit)


def test_activations_are_what_autograd_holds_within_fifteen_percent():
    rows, length = 16, 24
    for name in CONFIGS:
        model = built(name, torch.float32, width=64)
        batch = pairs(sentences(rows, (length - 1, length)), sentences(rows, (length - 1, length), seed=2))
        cost = seq2seq_cost(model.config, Lengths.fixed(length, length))
        held = held_bytes(model, batch)
        assert cost.activation_bytes(rows * length) == pytest.approx(held, rel=0.15), name
        set_checkpointing(model, "full")
        assert held_bytes(model, batch) < cost.activation_bytes(rows * length, checkpointing="full") < held


# The contracts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_in_one_group_and_only_matrices_decay(name):
    model = built(name)
    assert_only_matrices_decay(model)
    assert model.stochastic == ("deep" in name and name != "deep none")


def test_forget_gates_start_open():
    model = Seq2Seq(config_of("bahdanau"))
    for lstm, bias in (
        ("encoder", model.encoder.recurrence.layers[0].bias_ih_l0),
        ("decoder", model.decoder.gates[0].bias),
    ):
        gates = bias.view(4, -1)
        assert torch.equal(gates[1], torch.ones_like(gates[1])), lstm
        assert not gates[[0, 2, 3]].any()


def test_the_ladder_reaches_from_thousands_of_parameters_to_millions():
    config = config_of()
    costs = [seq2seq_cost(config.scaled(width), Lengths.fixed(10, 10)) for width in (8, 16, 128, 256, 512, 1024)]
    assert costs[0].parameters < 5000
    assert [config.scaled(width).depth for width in (8, 128, 256, 512, 1024)] == [1, 1, 2, 3, 4]
    assert costs == sorted(costs, key=lambda cost: cost.parameters)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 0}, "model.width: 0 must be a whole number"),
        ({"width": 15}, "model.width: 15 must be even, or model.bidirectional false"),
        ({"depth": 1.5}, "model.depth: 1.5 must be a whole number"),
        ({"attention": "loung"}, "model.attention: 'loung' must be one of none, luong, bahdanau"),
        ({"attention": "none", "hard": True}, "model.hard: needs attention"),
        ({"bidirectional": 1}, "model.bidirectional: 1 must be true or false"),
        ({"label_smoothing": 1.0}, "model.label_smoothing: 1.0 must be at least 0 and below 1"),
        ({"dropout": -0.1}, "model.dropout: -0.1 must be"),
        ({"shared": True}, "model.shared: one tokenizer has one vocabulary, not 19 and 23"),
    ],
)
def test_a_wrong_config_is_named(keys, message):
    with pytest.raises(ValueError, match=message):
        config_of(**keys)
