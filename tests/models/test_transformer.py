"""The transformer family: sums and counts, causality, documents, the width rule's groups."""

import torch

from models.families import family
from models.loss import IGNORE


def small(**keys):
    torch.manual_seed(0)
    config = family("transformer").config(**{"vocabulary": 31, "width": 16, "depth": 2, "heads": 2, **keys})
    return family("transformer").build(config)


def batch(rows=3, length=9, vocabulary=31):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randint(vocabulary, (rows, length), generator=generator) for name in ("inputs", "targets")
    }


def test_the_loss_is_a_sum_and_a_count():
    model, whole = small(), batch()
    whole["targets"][1, 4:] = IGNORE
    loss = model(whole)
    parts = [model({name: value[i : i + 1] for name, value in whole.items()}) for i in range(3)]
    assert loss.units == 9 + 4 + 9 == sum(part.units for part in parts)
    torch.testing.assert_close(loss.nats, torch.stack([part.nats for part in parts]).sum())
