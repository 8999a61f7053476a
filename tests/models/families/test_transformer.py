"""The transformer family: a sum and a count, causality, documents, its parts against the paper's attention."""

import pytest
import torch
import torch.nn.functional as F
from model_cases import assert_only_matrices_decay

from reducible.models.families.registry import family
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.layers.activation_checkpointing import set_checkpointing
from reducible.models.layers.attention import attention, causal_mask
from reducible.models.loss import IGNORE


def small(**keys):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(**{"vocabulary": 31, "width": 16, "depth": 2, "heads": 2, **keys}))


def batch(rows=3, length=9, vocabulary=31):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randint(vocabulary, (rows, length), generator=generator) for name in ("inputs", "targets")}


def gradients(model, batch):
    model.zero_grad()
    model(batch).nats.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_the_loss_is_a_sum_and_a_count():
    model, whole = small(), batch()
    whole["targets"][1, 4:] = IGNORE
    loss = model(whole)
    parts = [model({name: value[i : i + 1] for name, value in whole.items()}) for i in range(3)]
    assert loss.units == 9 + 4 + 9 == sum(part.units for part in parts)
    torch.testing.assert_close(loss.nats, torch.stack([part.nats for part in parts]).sum())
    by_hand = 0.0
    logits = model.logits(whole["inputs"]).detach()
    for b, t in (whole["targets"] != IGNORE).nonzero().tolist():
        by_hand += float(logits[b, t].logsumexp(0) - logits[b, t, whole["targets"][b, t]])
    assert loss.nats.item() == pytest.approx(by_hand, rel=1e-5)


def test_a_batch_without_targets_adds_nothing_and_still_has_gradients():
    model, empty = small(), batch()
    empty["targets"][:] = IGNORE
    loss = model(empty)
    assert loss.units == 0 and loss.nats == 0
    assert all(not gradient.any() for gradient in gradients(model, empty).values())


@pytest.mark.parametrize("keys", [{}, {"key_value_heads": 1}, {"activation": "gelu", "tied": False}])
def test_a_position_sees_only_its_past(keys):
    model, tokens = small(**keys).double(), batch()["inputs"]
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 31
    before, after = model.logits(tokens), model.logits(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-12)
    assert ((before - after)[:, 5:].abs().amax(-1) > 1e-6).all()


def test_documents_do_not_see_each_other_and_positions_need_no_restart():
    model = small(key_value_heads=1).double()
    tokens = batch(rows=1)["inputs"]
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]], dtype=torch.int32)
    masked = model.logits(tokens, documents)
    for cut in (slice(0, 3), slice(3, 7), slice(7, 9)):
        torch.testing.assert_close(masked[:, cut], model.logits(tokens[:, cut]), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(masked, model.logits(tokens), atol=1e-3)
    # The mask of a single document is the causal one.
    one = model.logits(tokens, torch.zeros_like(documents))
    torch.testing.assert_close(one, model.logits(tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("key_value_heads", [None, 1, 2])
def test_the_attention_layer_is_the_papers_with_rotary_positions(key_value_heads):
    """Rotation by explicit 2 x 2 matrices, heads shared by repetition, attention by its definition, in float64."""
    config = TransformerConfig(vocabulary=7, width=24, heads=4, key_value_heads=key_value_heads, rope_theta=50.0)
    torch.manual_seed(0)
    layer = Transformer(config).layers[0].attention.double()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    q, k, v = (x @ layer.qkv.weight.T).split((24, 6 * config.kv_heads, 6 * config.kv_heads), -1)

    def turn(y):
        y = y.unflatten(-1, (-1, 3, 2)).clone()
        for t in range(5):
            for i in range(3):
                angle = torch.tensor(t * 50.0 ** (-2 * i / 6), dtype=torch.float64)
                cos, sin = angle.cos(), angle.sin()
                y[:, t, :, i] = y[:, t, :, i] @ torch.stack((cos, -sin, sin, cos)).view(2, 2).T
        return y.flatten(-2).transpose(1, 2)

    share = config.heads // config.kv_heads
    k_BHTK = turn(k).repeat_interleave(share, 1)
    v_BHTK = v.unflatten(-1, (-1, 6)).transpose(1, 2).repeat_interleave(share, 1)
    y = attention(turn(q), k_BHTK, v_BHTK, causal_mask(5)).transpose(1, 2).flatten(-2) @ layer.out.weight.T
    torch.testing.assert_close(layer(x), y, rtol=1e-6, atol=1e-6)


def test_both_feed_forward_layers_are_their_formulas():
    x = torch.randn(3, 16)
    swiglu = small().layers[0].feed_forward
    gate, up = swiglu.up.weight.chunk(2)
    expected = (x @ gate.T * torch.sigmoid(x @ gate.T) * (x @ up.T)) @ swiglu.down.weight.T
    torch.testing.assert_close(swiglu(x), expected)
    gelu = small(activation="gelu").layers[0].feed_forward
    inside = x @ gelu.up.weight.T
    expected = (inside * 0.5 * (1 + torch.erf(inside / 2**0.5))) @ gelu.down.weight.T
    torch.testing.assert_close(gelu(x), expected)


@pytest.mark.parametrize("keys", [{}, {"dropout": 0.3}, {"activation": "gelu", "tied": False}])
def test_activation_checkpointing_changes_no_gradient(keys):
    plain, again = small(**keys), small(**keys)
    set_checkpointing(again, "full")
    assert list(plain.state_dict()) == list(again.state_dict())
    torch.manual_seed(7)
    expected = gradients(plain, batch())
    torch.manual_seed(7)
    for name, gradient in gradients(again, batch()).items():
        assert torch.equal(gradient, expected[name]), name


def test_dropout_is_drawn_in_training_only_and_says_so():
    model = small(dropout=0.5)
    assert model.stochastic and not small().stochastic
    assert not torch.equal(model(batch()).nats, model(batch()).nats)
    model.eval()
    assert torch.equal(model(batch()).nats, model(batch()).nats)


def test_the_real_and_the_complex_rotation_agree(monkeypatch):
    """Compilers get the form without complex numbers."""
    model, tokens = small(), batch()["inputs"]
    eager = model.logits(tokens)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(model.logits(tokens), eager)


def test_bf16_weights_keep_the_loss_in_fp32():
    loss = small().bfloat16()(batch())
    assert loss.nats.dtype == torch.float32
    assert loss.nats.item() == pytest.approx(small()(batch()).nats.item(), rel=0.02)


def test_a_position_table_made_while_sampling_serves_training():
    model = small()
    with torch.inference_mode():
        model.logits(batch(length=20)["inputs"])
    model(batch(length=12)).nats.backward()


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    assert_only_matrices_decay(small(tied=False))


def test_the_same_seed_builds_the_same_model_also_from_the_meta_device():
    config = TransformerConfig(vocabulary=31, width=16, depth=2, heads=2, tied=False)
    with torch.device("meta"):
        model = Transformer(config)
    model.to_empty(device="cpu")
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model.reset_parameters()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    deviation = {name: float(value.std()) for name, value in states[0].items() if value.ndim == 2}
    assert deviation["layers.0.attention.qkv.weight"] == pytest.approx(16**-0.5, rel=0.1)
    assert deviation["layers.1.feed_forward.down.weight"] == pytest.approx(config.hidden**-0.5 / 2, rel=0.1)
    assert torch.isfinite(model(batch()).nats)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 0}, "model.width: 0 must be a whole number of at least 1"),
        ({"heads": 3}, "model.heads: width 16 cannot be divided into 3 heads"),
        ({"heads": 4, "key_value_heads": 3}, r"model.key_value_heads: 3 must divide model.heads \(4\)"),
        ({"activation": "relu"}, "model.activation: 'relu' must be swiglu or gelu"),
        ({"dropout": 1.0}, "model.dropout: 1.0 must be"),
        ({"rope_theta": -1.0}, "model.rope_theta: -1.0 must be above 0"),
        ({"norm_epsilon": 0.0}, "model.norm_epsilon: 0.0 must be above 0"),
        ({"feed_forward": 2.5}, "model.feed_forward: 2.5 must be a whole number"),
    ],
)
def test_a_wrong_config_is_named(keys, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"vocabulary": 31, "width": 16, "heads": 2, **keys})


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(ValueError, match="no family 'tranformer'; nearest is 'transformer'"):
        family("tranformer")


def test_gradients_are_those_of_finite_differences():
    model = small(key_value_heads=1).double()
    tokens = batch(rows=1, length=4)
    weight = model.layers[0].attention.qkv.weight
    gradient = gradients(model, tokens)["layers.0.attention.qkv.weight"]

    def loss():
        return F.cross_entropy(model.logits(tokens["inputs"])[0], tokens["targets"][0], reduction="sum").item()

    for place in ((0, 0), (17, 3), (30, 15)):
        with torch.no_grad():
            weight[place] += 1e-6
            above = loss()
            weight[place] -= 2e-6
            below = loss()
            weight[place] += 1e-6
        # The rotation is done in fp32 tables, hence the tolerance.
        assert (above - below) / 2e-6 == pytest.approx(float(gradient[place]), rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_it_compiles_as_one_graph_with_the_same_gradients():
    """No graph break; aot_eager traces forward and backward without generating code."""
    model, rows = small(key_value_heads=1).double(), batch()
    rows["documents"] = (torch.arange(9) // 4).expand(3, -1).contiguous()
    expected = gradients(model, rows)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    compiled(rows).nats.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
