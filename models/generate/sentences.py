"""Sentences from latents, written token by token."""

import torch
from torch import Tensor

from reducible.models.contract import SentenceModel
from reducible.models.generate.sample import choose


@torch.inference_mode()
def write(
    model: SentenceModel,
    z_BZ: Tensor,
    separator: int,
    tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """A sentence for each latent, its end left out: at most `tokens` ids; temperature 0 takes the likeliest each time.

    Chance comes from `seed` alone and is drawn on the CPU, sentence by sentence in each step.
    """
    generator = torch.Generator().manual_seed(seed)
    written: list[list[int]] = [[] for _ in z_BZ]
    open_rows, state = set(range(len(z_BZ))), model.start(z_BZ)
    new_B = torch.full((len(z_BZ),), separator, device=z_BZ.device)
    for _ in range(tokens):
        logits_BV, state = model.next(new_B, state)
        logits_BV = logits_BV.float().cpu()
        for row in sorted(open_rows):
            chosen = choose(logits_BV[row], temperature, top_k, generator)
            new_B[row] = chosen
            if chosen == separator:
                open_rows.remove(row)
            else:
                written[row].append(chosen)
        if not open_rows:
            break
    return written
