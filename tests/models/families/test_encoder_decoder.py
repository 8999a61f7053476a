"""The encoder-decoder: padding, masks and caches change nothing; attention is the paper's; its cost is what runs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_cases import assert_only_matrices_decay, held_bytes
from pair_cases import SEPARATOR, pairs, reversal, sentences, written_backwards
from torch.nn.attention import SDPBackend, sdpa_kernel

from reducible.models.cost.flop_counter import count_flops
from reducible.models.cost.ledger import Lengths
from reducible.models.families.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, encoder_decoder_cost
from reducible.models.generate.beam_search import beam_search
from reducible.models.layers.activation_checkpointing import set_checkpointing
from reducible.models.layers.output_loss import output_loss
from reducible.models.loss import IGNORE

CONFIGS = {
    "plain": {},
    "separate": {"shared": False, "source_vocabulary": 23},
    "untied gelu": {"tied": False, "activation": "gelu"},
    "dropout": {"dropout": 0.2, "depth": 1, "feed_forward": 50},
}


def small(**keys) -> EncoderDecoder:
    torch.manual_seed(0)
    base = {"source_vocabulary": 31, "vocabulary": 31, "shared": True, "width": 16, "depth": 2, "heads": 2}
    return EncoderDecoder(EncoderDecoderConfig(**(base | {"dropout": 0.0} | keys)))


def gradients(model, batch):
    model.zero_grad()
    model(batch).nats.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# Exact: padding, masks, targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", CONFIGS.values(), ids=CONFIGS)
def test_a_padded_batch_gives_each_sentence_what_it_has_alone(keys):
    model = small(**keys).eval()
    sources, targets = sentences(6), sentences(6, seed=2)
    together = pairs(sources, targets)
    logits = model.logits(together)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = model.logits(pairs([source], [target]))[0]
        torch.testing.assert_close(logits[row, : len(target) + 1], alone, atol=1e-5, rtol=1e-5)
    parts = [model(pairs([s], [t])) for s, t in zip(sources, targets, strict=True)]
    loss = model(together)
    assert loss.units == sum(len(target) + 1 for target in targets) == sum(part.units for part in parts)
    torch.testing.assert_close(loss.nats, torch.stack([part.nats for part in parts]).sum(), rtol=1e-5, atol=0)


def test_what_stands_behind_a_sentence_reaches_no_gradient():
    """Not only the loss: other rubbish in the padding leaves every gradient as it was."""
    model = small()
    batch = pairs(sentences(4), sentences(4, seed=2))
    expected = gradients(model, batch)
    behind = torch.arange(batch["source"].shape[1]) >= batch["source_lengths"][:, None]
    batch["source"] = batch["source"].masked_fill(behind, 7)
    batch["inputs"] = batch["inputs"].masked_fill(batch["targets"] == IGNORE, 9)
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6, msg=name)


def test_a_target_sees_its_past_and_the_whole_source():
    model, batch = small().double().eval(), pairs([[3, 4, 5, 6]], [[7, 8, 9, 10]])
    before = model.logits(batch)
    later = {**batch, "inputs": batch["inputs"].clone()}
    later["inputs"][0, 3] = 20
    change = (model.logits(later) - before).abs().amax(-1)[0]
    assert (change[:3] == 0).all() and (change[3:] > 1e-9).all()
    for place in range(4):  # any source token, the last one too, is seen by the first target
        other = {**batch, "source": batch["source"].clone()}
        other["source"][0, place] = 20
        assert (model.logits(other) - before).abs().amax(-1)[0].min() > 1e-9


def test_a_batch_without_targets_adds_nothing_and_still_has_gradients():
    model, batch = small(label_smoothing=0.1), pairs(sentences(3), sentences(3))
    batch["targets"][:] = IGNORE
    loss = model(batch)
    assert loss.units == 0 and loss.nats == 0
    assert all(not gradient.any() for gradient in gradients(model, batch).values())


# The loss of the output layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_output_loss_and_its_gradients_are_those_of_cross_entropy(smoothing, dtype):
    """float32 goes through torch's chunked operator, in two chunks here; float64 through the logits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 300, 8, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(11, (3, 300), generator=generator)
    targets[torch.rand(3, 300, generator=generator) < 0.2] = IGNORE
    loss = output_loss(x, weight, targets, smoothing)
    ours = torch.autograd.grad(loss.nats, (x, weight))
    plain = [
        F.cross_entropy(
            (x @ weight.T).flatten(0, 1).double(), targets.flatten(), reduction="sum", label_smoothing=amount
        )
        for amount in (smoothing, 0.0)
    ]
    theirs = torch.autograd.grad(plain[0], (x, weight))
    assert loss.units == (targets != IGNORE).sum()
    assert loss.nats.item() == pytest.approx(plain[0].item(), rel=1e-5)
    assert loss.parts == {} if not smoothing else loss.parts["cross_entropy"].item() == pytest.approx(plain[1].item())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_labels_are_smoothed_in_training_only():
    model, plain = small(label_smoothing=0.2), small()
    batch = pairs(sentences(3), sentences(3, seed=2))
    trained, evaluated = model(batch), model.eval()(batch)
    torch.testing.assert_close(evaluated.nats, plain.eval()(batch).nats)
    log = torch.log_softmax(plain.logits(batch), -1)[batch["targets"] != IGNORE]
    smoothed = 0.8 * evaluated.nats - 0.2 * log.mean(-1).sum()
    torch.testing.assert_close(trained.nats, smoothed)
    torch.testing.assert_close(trained.parts["cross_entropy"], evaluated.nats.detach())


# The layers, derived again ----------------------------------------------------------------------------------------


def test_cross_attention_is_torchs_multihead_attention():
    layer = small(width=24, heads=4).decoder[0].cross.double()
    theirs = torch.nn.MultiheadAttention(24, 4, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        key, value = layer.key_value.weight.view(2, 24, 24)
        theirs.in_proj_weight.copy_(torch.cat([layer.query.weight, key, value]))
        theirs.out_proj.weight.copy_(layer.out.weight)
    x, memory = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 7, 24, dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    mask = torch.zeros(2, 1, 1, 7, dtype=torch.float64).masked_fill_(padding[:, None, None], -torch.inf)
    expected, weights = theirs(x, memory, memory, key_padding_mask=padding)
    key_value = layer.keys_values(memory)
    torch.testing.assert_close(layer(x, key_value, mask), expected)
    torch.testing.assert_close(layer.weights(x, key_value, mask).mean(1), weights)


def test_the_whole_model_is_its_formulas_in_numpy():
    """One layer a side and one pair, derived again in float64 without torch: norms, rotation, softmaxes, SwiGLU."""
    model = small(depth=1, width=12, heads=2, shared=False, source_vocabulary=23, tied=False).eval()
    weight = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    batch = pairs([[3, 4, 5]], [[7, 8]])

    def normed(x, gain):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight[gain]

    def turned(x_TK):
        pairs_TC = x_TK[:, 0::2] + 1j * x_TK[:, 1::2]
        angle_TC = np.outer(np.arange(len(x_TK)), 10000.0 ** (-np.arange(0, 6, 2) / 6))
        pairs_TC = pairs_TC * np.exp(1j * angle_TC)
        return np.stack([pairs_TC.real, pairs_TC.imag], -1).reshape(len(x_TK), -1)

    def attend(q, k, v, rotate, causal):
        out = []
        for head in (slice(0, 6), slice(6, 12)):
            qh, kh = (turned(q[:, head]), turned(k[:, head])) if rotate else (q[:, head], k[:, head])
            scores = qh @ kh.T / math.sqrt(6)
            if causal:
                scores[np.triu_indices(len(scores), 1)] = -np.inf
            share = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(share / share.sum(-1, keepdims=True) @ v[:, head])
        return np.concatenate(out, -1)

    def self_attention(x, name, causal):
        q, k, v = np.split(normed(x, f"{name}.attention_norm.weight") @ weight[f"{name}.attention.qkv.weight"].T, 3, -1)
        return x + attend(q, k, v, True, causal) @ weight[f"{name}.attention.out.weight"].T

    def feed_forward(x, name):
        up = normed(x, f"{name}.feed_forward_norm.weight") @ weight[f"{name}.feed_forward.up.weight"].T
        gate, up = np.split(up, 2, -1)
        return x + (gate / (1 + np.exp(-gate)) * up) @ weight[f"{name}.feed_forward.down.weight"].T

    source = weight["source_embedding.weight"][batch["source"][0]]
    source = feed_forward(self_attention(source, "encoder.0", causal=False), "encoder.0")
    memory = normed(source, "encoder_norm.weight")
    x = self_attention(weight["embedding.weight"][batch["inputs"][0]], "decoder.0", causal=True)
    k, v = np.split(memory @ weight["decoder.0.cross.key_value.weight"].T, 2, -1)
    q = normed(x, "decoder.0.cross_norm.weight") @ weight["decoder.0.cross.query.weight"].T
    x = x + attend(q, k, v, False, False) @ weight["decoder.0.cross.out.weight"].T
    x = normed(feed_forward(x, "decoder.0"), "norm.weight") * 20 / 12
    np.testing.assert_allclose(model.logits(batch)[0].detach().numpy(), x @ weight["output.weight"].T, atol=2e-5)


# Searching --------------------------------------------------------------------------------------------------------


def test_decoding_with_caches_is_reading_everything_at_once():
    """Also after rows were repeated, dropped and put in another order."""
    model = small(shared=False, source_vocabulary=23).eval()
    sources, targets = sentences(4), sentences(4, (8, 9), seed=2)
    rows = [0, 1, 2, 3]
    state = model.start(pairs(sources, targets))
    tokens = torch.full((4,), SEPARATOR)
    with torch.inference_mode():
        for step in range(8):
            logits, state = model.next(tokens, state)
            batch = pairs([sources[row] for row in rows], [targets[row] for row in rows])
            torch.testing.assert_close(logits, model.logits(batch)[:, step], rtol=1e-5, atol=1e-5)
            kept = {2: [1, 1, 3], 4: [2, 0, 1, 0], 5: [0]}.get(step, list(range(len(rows))))
            rows = [rows[row] for row in kept]
            state = model.select(state, torch.tensor(kept))
            tokens = torch.tensor([targets[row][step] for row in rows])


def test_the_scores_of_hypotheses_are_their_teacher_forced_log_probabilities():
    model = small().eval()
    sources = sentences(3)
    batch = pairs(sources, sources)
    for source, found in zip(sources, beam_search(model, batch, SEPARATOR, 6, beam=3, alpha=0.0), strict=True):
        for hypothesis in found:
            log = torch.log_softmax(model.logits(pairs([source], [hypothesis.tokens])), -1)[0]
            said = [*hypothesis.tokens, SEPARATOR] if hypothesis.ended else hypothesis.tokens
            assert hypothesis.log_probability == pytest.approx(
                sum(log[place, token].item() for place, token in enumerate(said)), abs=1e-4
            )


def test_the_attention_map_is_a_distribution_over_the_real_source():
    model, batch = small(), pairs([[3, 4, 5, 6], [7]], [[8, 9], [10]])
    shares = model.attention_map(batch)
    assert shares.shape == (2, 3, 5)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 3))
    assert not shares[1, :, 2:].any() and (shares[0] > 0).all()


def test_it_learns_to_write_backwards():
    torch.manual_seed(1)
    model = small(source_vocabulary=8, vocabulary=8, width=32, depth=1)
    groups = [{"params": list(group.parameters), "lr": 0.003 * group.rate} for group in model.parameter_groups()]
    optimizer = torch.optim.AdamW(groups, fused=True)
    for step in range(200):
        loss = model(pairs(*reversal(32, (1, 5), step, 8)))
        optimizer.zero_grad()
        (loss.nats / loss.units).backward()
        for group, rated in zip(optimizer.param_groups, model.parameter_groups(), strict=True):
            group["lr"] = 0.003 * rated.rate * min(1, (200 - step) / 80)
        optimizer.step()
    assert written_backwards(model, (1, 5), 8) >= 90


# Cost -------------------------------------------------------------------------------------------------------------

ROWS, SOURCE, TARGET = 3, 11, 7
"""Lengths with their ends; nothing is padded, so that what runs is what counts."""


@pytest.fixture(params=CONFIGS)
def case(request):
    model = small(**CONFIGS[request.param])
    batch = pairs(sentences(ROWS, (SOURCE - 1, SOURCE)), sentences(ROWS, (TARGET - 1, TARGET), seed=2))
    return model, batch, encoder_decoder_cost(model.config, Lengths.fixed(TARGET, SOURCE))


def per_unit(run):
    return count_flops(run) / (ROWS * TARGET)


def test_parameters_are_exact(case):
    model, _, cost = case
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.parameters_without_embeddings == cost.parameters - sum(table.weight.numel() for table in model.tables())


def test_flops_are_exact_against_the_counter(case):
    model, batch, cost = case
    assert per_unit(lambda: model.logits(batch)) == pytest.approx(cost.forward_flops_per_unit)
    total = cost.training_flops_per_unit + cost.attention_recompute_flops_per_unit
    assert per_unit(lambda: model(batch).nats.backward()) == pytest.approx(total)
    with sdpa_kernel(SDPBackend.MATH):
        assert per_unit(lambda: model.double()(batch).nats.backward()) == pytest.approx(cost.training_flops_per_unit)


def test_the_cost_of_ragged_pairs_is_the_sum_over_them():
    """Counted one by one, without padding, against the formula for the set."""
    model = small()
    sources, targets = sentences(5), sentences(5, seed=2)
    cost = encoder_decoder_cost(model.config, Lengths.measured(*[[len(x) + 1 for x in y] for y in (targets, sources)]))
    counted = sum(
        count_flops(lambda s=s, t=t: model.logits(pairs([s], [t]))) for s, t in zip(sources, targets, strict=True)
    )
    assert counted == pytest.approx(cost.forward_flops_per_unit * sum(len(target) + 1 for target in targets))


def test_recomputation_under_checkpointing_is_exact_and_apart(case):
    model, batch, cost = case
    set_checkpointing(model, "full")
    with sdpa_kernel(SDPBackend.MATH):
        total = per_unit(lambda: model(batch).nats.backward())
    assert total - cost.training_flops_per_unit == pytest.approx(cost.checkpointing_flops_per_unit)


def test_activation_checkpointing_changes_no_gradient():
    plain, again = small(dropout=0.3), small(dropout=0.3)
    set_checkpointing(again, "full")
    batch = pairs(sentences(4), sentences(4, seed=2))
    torch.manual_seed(7)
    expected = gradients(plain, batch)
    torch.manual_seed(7)
    for name, gradient in gradients(again, batch).items():
        assert torch.equal(gradient, expected[name]), name


def test_activation_bytes_are_what_autograd_holds(case):
    model, batch, cost = case
    """In float64, which goes through the logits as a GPU does; their softmax is in fp32 all the same."""
    held, units = held_bytes(model.double(), batch), ROWS * TARGET
    expected = cost.activation_bytes(units, element=8) - 4 * units * model.config.vocabulary
    small = 8 * ROWS * (SOURCE + 4 * TARGET) + 8 * (SOURCE + TARGET) * model.config.stack.head_size
    assert expected <= held <= expected + small
    set_checkpointing(model, "full")
    assert held_bytes(model, batch) < held


# The contracts ----------------------------------------------------------------------------------------------------


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    model = small(tied=False, shared=False, source_vocabulary=23)
    assert_only_matrices_decay(model)


def test_the_ladder_reaches_from_thousands_of_parameters_to_the_papers_base():
    config = EncoderDecoderConfig(100, 100, True)
    costs = [encoder_decoder_cost(config.scaled(width), Lengths.fixed(10, 10)).parameters for width in (8, 16, 64, 512)]
    assert costs[0] < 5000 and costs == sorted(costs)
    assert (config.scaled(512).depth, config.scaled(512).heads) == (6, 8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 0}, "model.width: 0 must be a whole number of at least 1"),
        ({"heads": 3}, "model.heads: width 16 cannot be divided into 3 heads"),
        ({"label_smoothing": 1.0}, "model.label_smoothing: 1.0 must be at least 0 and below 1"),
        ({"dropout": -0.1}, "model.dropout: -0.1 must be"),
        ({"source_vocabulary": 0}, "model.source_vocabulary: 0 must be a whole number"),
        ({"source_vocabulary": 30}, "model.shared: one tokenizer has one vocabulary, not 30 and 31"),
        ({"shared": 1}, "model.shared: 1 must be true or false"),
    ],
)
def test_a_wrong_config_is_named(keys, message):
    with pytest.raises(ValueError, match=message):
        small(**keys)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_compiles_as_one_graph_with_the_same_gradients(smoothing):
    """No graph break; aot_eager traces forward and backward without generating code."""
    model, batch = small(label_smoothing=smoothing).double(), pairs(sentences(4), sentences(4, seed=2))
    expected = gradients(model, batch)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    compiled(batch).nats.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
