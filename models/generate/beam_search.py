"""Beam search, batched over sentences, for any model that writes an answer token by token.

A row is one hypothesis. The search keeps `beam` rows a sentence side by side in one batch, so every step is one call of
the model however many sentences there are; sentences that are done leave the batch. beam=1 is greedy search.

Hypotheses are ranked by log p(y|x) / ((5 + |y|) / 6)^alpha (Wu et al. 2016, equation 14), |y| counting the end.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Decoder(Protocol):
    """What a model offers to be searched. A state is the model's own: whatever lets it go on with some rows.

    R is the number of rows at that moment. `next` and `select` return new states; they may use up the old one, which
    the search does not touch again.
    """

    def start(self, batch: dict[str, Tensor]) -> Any:
        """Reads the sources (source, source_lengths); a state of one row a sentence, nothing written yet."""

    def next(self, tokens_R: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (R, vocabulary) of the token after `tokens_R`, and the state after reading it."""

    def select(self, state: Any, rows_R: Tensor) -> Any:
        """The state whose row r is row rows_R[r] of `state`: rows may be repeated, dropped and put in another order."""


@dataclass(frozen=True)
class Hypothesis:
    tokens: list[int]
    """Without separators."""
    log_probability: float
    """Nats; of the tokens and, if it ended, of the end."""
    score: float
    """log_probability over the length penalty: what the search ranks by."""
    ended: bool
    """False: cut at the maximum length."""


def length_penalty(length: int, alpha: float) -> float:
    """GNMT's ((5 + length) / 6)^alpha: alpha 0 ranks by probability alone, larger ones favour longer answers."""
    return ((5 + length) / 6) ** alpha


@torch.inference_mode()
def beam_search(
    model: Decoder,
    batch: dict[str, Tensor],
    separator: int,
    length: int,
    beam: int = 5,
    alpha: float = 0.6,
) -> list[list[Hypothesis]]:
    """For each sentence of the batch up to `beam` hypotheses, the best first.

    Each is at most `length` tokens long, its end counted; what has not ended by then is cut there. The search of a
    sentence stops once `beam` of its hypotheses have ended, or none that goes on can overtake the best.

    Args:
        batch: what the model's `start` reads; a row of `source` is a sentence. Put the model into eval mode before.
        separator: id that starts every answer and ends it.

    Raises:
        ValueError: for a beam or a length below 1, or a negative alpha.
    """
    if beam < 1:
        raise ValueError(f"beam: {beam} must be at least 1")
    if length < 1:
        raise ValueError(f"length: {length} must be at least 1")
    if alpha < 0:
        raise ValueError(f"length_penalty: {alpha} must be at least 0")
    device, sentences = batch["source"].device, len(batch["source"])
    found: list[list[Hypothesis]] = [[] for _ in range(sentences)]
    searched = list(range(sentences))
    """Which sentence each group of `beam` rows belongs to."""
    state = model.start(batch)
    state = model.select(state, torch.arange(sentences, device=device).repeat_interleave(beam))
    tokens_RT = torch.full((sentences * beam, 1), separator, device=device)
    # All rows of a sentence begin alike: only the first may be extended, or the beam would hold copies.
    total_BK = torch.full((sentences, beam), -torch.inf, device=device)
    total_BK[:, 0] = 0.0
    for step in range(1, length + 1):
        logits_RV, state = model.next(tokens_RT[:, -1], state)
        log_RV = torch.log_softmax(logits_RV, dim=-1, dtype=precise(logits_RV.dtype))
        candidates_BC = (total_BK.view(-1, 1) + log_RV).view(len(searched), -1)
        # At most one candidate a row ends, so of twice as many as there are rows enough go on.
        best_BC, place_BC = candidates_BC.topk(2 * beam)
        token_BC, row_BC = place_BC % log_RV.shape[-1], place_BC // log_RV.shape[-1]
        row_BC = row_BC + beam * torch.arange(len(searched), device=device)[:, None]
        ends_BC = token_BC == separator

        complete_BC = (ends_BC if step < length else torch.ones_like(ends_BC)) & best_BC.isfinite()
        complete_BC[:, beam:] = False
        rows_H = row_BC[complete_BC]
        answers = zip(
            complete_BC.nonzero()[:, 0].tolist(),
            torch.cat([tokens_RT[rows_H, 1:], token_BC[complete_BC][:, None]], dim=1).tolist(),
            best_BC[complete_BC].tolist(),
            strict=True,
        )
        for place, tokens, total in answers:
            ended = tokens[-1] == separator
            score = total / length_penalty(step, alpha)
            found[searched[place]].append(Hypothesis(tokens[:-1] if ended else tokens, total, score, ended))
        if step == length:
            break

        # What goes on: the best `beam` that do not end, in their order.
        going_BK = ends_BC.to(torch.int8).sort(dim=-1, stable=True).indices[:, :beam]
        total_BK = best_BC.gather(1, going_BK)
        row_BK, token_BK = row_BC.gather(1, going_BK), token_BC.gather(1, going_BK)
        furthest = length_penalty(length, alpha)
        open_ = [
            place
            for place, best in enumerate(total_BK[:, 0].tolist())
            if not decided(found[searched[place]], best / furthest, beam)
        ]
        if not open_:
            break
        if len(open_) < len(searched):
            kept = torch.tensor(open_, device=device)
            total_BK, row_BK, token_BK = total_BK[kept], row_BK[kept], token_BK[kept]
            searched = [searched[place] for place in open_]
        state = model.select(state, row_BK.flatten())
        tokens_RT = torch.cat([tokens_RT[row_BK.flatten()], token_BK.view(-1, 1)], dim=1)
    return [sorted(hypotheses, key=lambda h: -h.score)[:beam] for hypotheses in found]


def greedy(model: Decoder, batch: dict[str, Tensor], separator: int, length: int) -> list[Hypothesis]:
    """The likeliest token at every step: one hypothesis a sentence."""
    return [hypotheses[0] for hypotheses in beam_search(model, batch, separator, length, beam=1, alpha=0.0)]


def decided(found: list[Hypothesis], bound: float, beam: int) -> bool:
    """Whether a sentence's search is over; no hypothesis that goes on can score above `bound`.

    A log probability only falls, and the penalty that it may yet be divided by is at most that of the maximum length.
    """
    return len(found) >= beam or (bool(found) and max(h.score for h in found) >= bound)


def precise(dtype: torch.dtype) -> torch.dtype:
    """Sums of log probabilities are kept in at least single precision."""
    return torch.promote_types(dtype, torch.float32)
