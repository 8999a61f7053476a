"""The ladder, and the width rule: activations and their changes keep their size at every width."""

import pytest
import torch

from reducible.models.cost.ledger import Lengths
from reducible.models.cost.size_ladder import rungs, sized
from reducible.models.families.registry import family
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.layers.width_rule import BASE_WIDTH, EMBEDDING_RATE

TRANSFORMER = family("transformer")


@pytest.mark.parametrize("wanted", [5e3, 1e4, 3.3e4, 2e5, 1.5e6, 1.24e8, 7e9])
def test_the_ladder_has_a_rung_near_every_size(wanted):
    config = sized(TRANSFORMER, TransformerConfig(vocabulary=257), wanted, Lengths.fixed(128))
    assert TRANSFORMER.cost(config, Lengths.fixed(128)).parameters == pytest.approx(wanted, rel=0.2)


def test_sized_is_the_nearest_of_all_rungs():
    base = TransformerConfig(vocabulary=1000, key_value_heads=2)
    for wanted in (4e4, 9e5):
        ratios = {}
        for width in range(4, 600, 2):
            if width in set(rungs()):
                count = TRANSFORMER.cost(base.scaled(width), Lengths.fixed(128)).parameters
                ratios[width] = max(count / wanted, wanted / count)
        assert sized(TRANSFORMER, base, wanted, Lengths.fixed(128)).width == min(ratios, key=ratios.__getitem__)


def test_one_dial_sets_the_shape_and_leaves_the_rest():
    base = TransformerConfig(vocabulary=50304, heads=4, key_value_heads=2, activation="gelu", dropout=0.1)
    gpt2 = base.scaled(768)
    assert (gpt2.width, gpt2.depth, gpt2.heads, gpt2.key_value_heads, gpt2.hidden) == (768, 12, 12, 6, 3072)
    assert (gpt2.activation, gpt2.dropout, gpt2.vocabulary) == ("gelu", 0.1, 50304)
    for width in rungs():
        assert base.scaled(width).head_size >= min(16, width)
    with pytest.raises(ValueError, match="model.width: 7 must be even"):
        base.scaled(7)


def trained(width, steps, rule=True):
    """A model after some AdamW steps, and its activations on fixed tokens: stream, query-key-value, logits."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocabulary=64, width=width, depth=2, heads=width // 16))
    groups = model.parameter_groups()
    rate = 2**-7
    if not rule:
        model.logit_scale = 1.0
        groups = [group._replace(rate=1.0) for group in groups]
    optimizer = torch.optim.AdamW([{"params": g.parameters, "lr": rate * g.rate} for g in groups], weight_decay=0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (4, 33), generator=generator)
    for _ in range(steps):
        loss = model({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})
        optimizer.zero_grad()
        (loss.nats / loss.units).backward()
        optimizer.step()
    seen = {}
    hooks = [
        model.layers[1].register_forward_hook(lambda m, i, o: seen.__setitem__("stream", o)),
        model.layers[1].attention.qkv.register_forward_hook(lambda m, i, o: seen.__setitem__("qkv", o)),
    ]
    with torch.no_grad():
        seen["logits"] = model.logits(tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    return seen


def growth(rule):
    """Per activation: how the size of its change over 4 steps grows from width 32 to width 256."""
    sizes = {}
    for width in (32, 256):
        before, after = trained(width, 0, rule), trained(width, 4, rule)
        sizes[width] = {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}
    return {name: sizes[256][name] / sizes[32][name] for name in sizes[32]}


def test_coordinate_check_changes_keep_their_size_over_eight_times_the_width():
    """Yang et al. 2022, appendix D.1. The standard parameterisation fails the same check, which shows that it can."""
    ruled, standard = growth(rule=True), growth(rule=False)
    assert all(1 / 2 < ratio < 2 for ratio in ruled.values()), ruled
    assert any(ratio > 3 for ratio in standard.values()), standard


def test_hidden_matrices_and_logits_follow_the_width_and_nothing_else_does():
    base, wide = (
        Transformer(TransformerConfig(vocabulary=64, width=width, depth=2, heads=2))
        for width in (BASE_WIDTH, 4 * BASE_WIDTH)
    )
    rates = {group.name: (group.rate, group.rate * group.decay) for group in base.parameter_groups()}
    assert rates == {"embeddings": (EMBEDDING_RATE, 1), "matrices": (1, 1), "vectors": (1, 0)}
    rates = {group.name: (group.rate, group.rate * group.decay) for group in wide.parameter_groups()}
    assert rates == {"embeddings": (EMBEDDING_RATE, 1), "matrices": (0.25, 1), "vectors": (1, 0)}
    assert wide.logit_scale == base.logit_scale / 4
    deviations = [model.layers[0].attention.qkv.weight.std().item() for model in (base, wide)]
    assert deviations[0] / deviations[1] == pytest.approx(2, rel=0.05)
    tables = [model.embedding.weight.std().item() for model in (base, wide)]
    assert tables[0] / tables[1] == pytest.approx(1, rel=0.05)
