"""Sampling with a cache of keys and values equals sampling without."""

import pytest
import torch

from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.generate.sample import choose, generate


def small(**keys):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(**{"vocabulary": 29, "width": 16, "depth": 2, "heads": 2, **keys}))


def without_cache(model, prompt, tokens, temperature=0.0, top_k=None, seed=0):
    """The whole text again for every token."""
    generator, text = torch.Generator().manual_seed(seed), list(prompt)
    model.eval()
    with torch.no_grad():
        for _ in range(tokens):
            text.append(choose(model.logits(torch.tensor([text]))[0, -1], temperature, top_k, generator))
    return text[len(prompt) :]


@pytest.mark.parametrize("keys", [{}, {"key_value_heads": 1}, {"activation": "gelu", "tied": False}])
@pytest.mark.parametrize("prompt", [[3], [5, 1, 20, 7]])
@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 1.3, "top_k": 7, "seed": 4}])
def test_the_cache_changes_nothing(keys, prompt, how):
    model = small(**keys)
    assert generate(model, prompt, 25, **how) == without_cache(model, prompt, 25, **how)


def test_chance_comes_from_the_seed_alone_and_training_mode_survives():
    model = small(dropout=0.5).train()
    torch.manual_seed(1)
    first = generate(model, [3], 20, seed=9)
    torch.manual_seed(2)
    assert generate(model, [3], 20, seed=9) == first != generate(model, [3], 20, seed=10)
    assert model.training


def test_draws_follow_the_softmax_over_the_top_k():
    logits, generator = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.Generator().manual_seed(0)
    drawn = torch.tensor([choose(logits, 2.0, 2, generator) for _ in range(4000)]).bincount(minlength=4) / 4000
    expected = torch.tensor([0.0, 0.0, *torch.softmax(torch.tensor([1.0, 1.5]), 0)])
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.03)
    assert choose(logits, 0.0, None, generator) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt: must hold"),
        ({"temperature": -1.0}, "temperature: -1.0 must be"),
        ({"top_k": 0}, "top_k: 0 must be"),
    ],
)
def test_wrong_wishes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(small(), **{"prompt": [1], "tokens": 1, **arguments})
