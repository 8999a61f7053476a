"""Made-up pairs of sentences of ids as batches, and the task of writing them backwards."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reducible.models.generate.beam_search import greedy
from reducible.models.loss import IGNORE

SEPARATOR = 0
Ids = list[int]


def sentences(rows: int, lengths: tuple[int, int] = (1, 9), seed: int = 1, vocabulary: int = 19) -> list[Ids]:
    """Ids from 1 on; lengths from the first to below the second."""
    random = np.random.default_rng(seed)
    return [random.integers(1, vocabulary, random.integers(*lengths)).tolist() for _ in range(rows)]


def pairs(sources: Sequence[Ids], targets: Sequence[Ids]) -> dict[str, Tensor]:
    """As data/pairs.py makes a batch of them."""
    S, T = max(map(len, sources)) + 1, max(map(len, targets)) + 1
    batch = {
        "source": torch.full((len(sources), S), SEPARATOR),
        "source_lengths": torch.tensor([len(source) + 1 for source in sources]),
        "inputs": torch.full((len(sources), T), SEPARATOR),
        "targets": torch.full((len(sources), T), IGNORE),
    }
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        batch["source"][row, : len(source)] = torch.tensor(source)
        batch["inputs"][row, 1 : len(target) + 1] = torch.tensor(target)
        batch["targets"][row, : len(target) + 1] = torch.tensor([*target, SEPARATOR])
    return batch


def reversal(rows: int, lengths: tuple[int, int], seed: int, vocabulary: int) -> tuple[list[Ids], list[Ids]]:
    sources = sentences(rows, lengths, seed, vocabulary)
    return sources, [source[::-1] for source in sources]


def written_backwards(model: Any, lengths: tuple[int, int], vocabulary: int) -> int:
    """How many of 100 new sentences the model writes backwards without a mistake."""
    sources, answers = reversal(100, lengths, 10_000, vocabulary)
    found = greedy(model.eval(), pairs(sources, answers), SEPARATOR, 8)
    return sum(hypothesis.tokens == answer for hypothesis, answer in zip(found, answers, strict=True))
