"""From many sources to answers: sources of like length are searched together (models/generate/beam_search.py)."""

from collections.abc import Sequence
from typing import Any

import torch

from reducible.models.contract import PairModel
from reducible.models.generate.beam_search import Hypothesis, beam_search

HELD = 2**24
"""Logits held at once: 64 MiB."""
MOST_ROWS = 512
"""Hypotheses at once: more gain nothing, and a search is over when its longest is."""


def translate(
    model: PairModel,
    sources: Sequence[Sequence[int]],
    source_separator: int,
    separator: int,
    length: int,
    beam: int = 5,
    alpha: float = 1.0,
) -> list[list[Hypothesis]]:
    """For each source, ids without its end, up to `beam` hypotheses, the best first; `model` as beam_search takes it.

    Raises:
        ValueError: for a beam or a length below 1, or a negative alpha.
    """
    device = next(model.parameters()).device
    rows = max(1, min(MOST_ROWS, HELD // model.vocabulary) // max(1, beam))
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    found: list[list[Hypothesis]] = [[] for _ in sources]
    for at in range(0, len(order), rows):
        indices = order[at : at + rows]
        batch = source_batch([sources[index] for index in indices], source_separator, device)
        hypotheses = beam_search(model, batch, separator, length, beam, alpha)
        for index, of_one in zip(indices, hypotheses, strict=True):
            found[index] = of_one
    return found


def source_batch(sources: Sequence[Sequence[int]], separator: int, device: Any = None) -> dict[str, torch.Tensor]:
    """source (B, S): each with the separator as end, padded with it; source_lengths (B,), the end included."""
    lengths = [len(source) + 1 for source in sources]
    source_BS = torch.full((len(sources), max(lengths)), separator)
    for row, source in enumerate(sources):
        source_BS[row, : len(source)] = torch.as_tensor(source, dtype=torch.int64)
    return {"source": source_BS.to(device), "source_lengths": torch.tensor(lengths, device=device)}
