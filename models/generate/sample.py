"""Text from a model, token by token, with the keys and values of what was read kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reducible.models.contract import TextModel


@torch.inference_mode()
def generate(
    model: TextModel,
    prompt: Sequence[int],
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[int]:
    """The `tokens` ids that follow the prompt; temperature 0 takes the likeliest each time.

    Chance comes from `seed` alone and is drawn on the CPU, so the device changes the text only by its rounding.
    """
    if not len(prompt):
        raise ValueError("prompt: must hold at least one token")
    if temperature < 0:
        raise ValueError(f"temperature: {temperature} must be at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: {top_k} must be at least 1, or left out")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    caches = model.caches(1, len(prompt) + tokens)
    new, written = torch.tensor([list(prompt)], device=device), []
    for _ in range(tokens):
        logits_V = model.read_on(new, caches)[0, -1]
        written.append(choose(logits_V.float().cpu(), temperature, top_k, generator))
        new = torch.tensor([[written[-1]]], device=device)
    model.train(was_training)
    return written


def choose(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """One id: the likeliest at temperature 0, else drawn from the softmax over the top_k largest logits."""
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -torch.inf)
    return int(torch.multinomial(torch.softmax(logits_V / temperature, dim=-1), 1, generator=generator))
