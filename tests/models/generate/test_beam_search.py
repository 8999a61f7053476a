"""Beam search against every answer there is, on a made-up model whose next token hangs on the whole past."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from reducible.models.generate.beam_search import beam_search, greedy, length_penalty

SEPARATOR = 0


class State(NamedTuple):
    seed_R: Tensor
    past_R: Tensor
    """A number that stands for source and everything read so far."""


class Remembering:
    """Logits that are a pseudo-random function of the source and of all tokens before: no two pasts alike."""

    def __init__(self, vocabulary: int, sharpness: float = 2.0) -> None:
        self.vocabulary, self.sharpness = vocabulary, sharpness
        self.calls: list[int] = []

    def start(self, batch: dict[str, Tensor]) -> State:
        seed_B = batch["source"][:, 0].double()
        return State(seed_B, torch.zeros_like(seed_B))

    def next(self, tokens_R: Tensor, state: State) -> tuple[Tensor, State]:
        self.calls.append(len(tokens_R))
        past_R = torch.frac(state.past_R * 3.7 + tokens_R * 0.317 + 0.1)
        columns_V = torch.arange(self.vocabulary) * 1.9 + 1.0
        logits_RV = self.sharpness * torch.sin((past_R * 31 + state.seed_R * 7.7)[:, None] * columns_V)
        return logits_RV, State(state.seed_R, past_R)

    def select(self, state: State, rows_R: Tensor) -> State:
        return State(state.seed_R[rows_R], state.past_R[rows_R])


def sources(*seeds: int) -> dict[str, Tensor]:
    return {"source": torch.tensor(seeds)[:, None], "source_lengths": torch.ones(len(seeds), dtype=torch.int64)}


def exhaustive(model: Remembering, seed: int, length: int, alpha: float) -> list[tuple[float, list[int], float]]:
    """Every answer with (score, tokens, log probability), the best first: those that end, and those that are cut."""
    words = [token for token in range(model.vocabulary) if token != SEPARATOR]
    answers = [(*body, SEPARATOR) for size in range(length) for body in itertools.product(words, repeat=size)]
    answers += list(itertools.product(words, repeat=length))
    ranked = []
    for answer in answers:
        state, total, last = model.start(sources(seed)), 0.0, SEPARATOR
        for token in answer:
            logits_RV, state = model.next(torch.tensor([last]), state)
            total += torch.log_softmax(logits_RV[0], dim=0)[token].item()
            last = token
        tokens = [token for token in answer if token != SEPARATOR]
        ranked.append((total / ((5 + len(answer)) / 6) ** alpha, tokens, total))
    return sorted(ranked, key=lambda entry: -entry[0])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_a_beam_as_wide_as_the_tree_is_exhaustive_search(alpha: float) -> None:
    model, length = Remembering(3), 4
    for seed in range(5):
        truth = exhaustive(model, seed, length, alpha)
        [found] = beam_search(model, sources(seed), SEPARATOR, length, beam=3**length, alpha=alpha)
        # The search may stop early, once nothing can overtake the best: so the best is certain, and all is in order.
        score, tokens, total = truth[0]
        assert found[0].tokens == tokens
        assert found[0].score == pytest.approx(score, abs=1e-12)
        assert found[0].log_probability == pytest.approx(total, abs=1e-12)
        known = {tuple(tokens): score for score, tokens, _ in truth}
        assert all(hypothesis.score == pytest.approx(known[tuple(hypothesis.tokens)]) for hypothesis in found)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_the_probabilities_of_all_answers_add_up_to_one() -> None:
    """Whatever ends and whatever is cut, nothing is counted twice or lost: the beam holds each hypothesis once."""
    model = Remembering(3, sharpness=0.1)
    answers = exhaustive(model, 1, 3, 0.0)
    [found] = beam_search(model, sources(1), SEPARATOR, 3, beam=200, alpha=50.0)  # long answers first: no early stop
    assert len(found) == len(answers)
    assert sum(math.exp(h.log_probability) for h in found) == pytest.approx(1.0, abs=1e-9)


def test_greedy_takes_the_likeliest_token_each_time_and_is_beam_one() -> None:
    model = Remembering(5)
    for seed in range(20):
        state, last = model.start(sources(seed)), SEPARATOR
        tokens: list[int] = []
        while len(tokens) < 6:
            logits_RV, state = model.next(torch.tensor([last]), state)
            last = int(logits_RV[0].argmax())
            if last == SEPARATOR:
                break
            tokens.append(last)
        [found] = greedy(model, sources(seed), SEPARATOR, 6)
        assert found.tokens == tokens
        assert found.ended == (len(tokens) < 6)
        assert beam_search(model, sources(seed), SEPARATOR, 6, beam=1, alpha=0.7)[0][0].tokens == tokens


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_a_batch_finds_what_each_sentence_finds_alone(beam: int) -> None:
    model, seeds = Remembering(6), range(12)
    together = beam_search(model, sources(*seeds), SEPARATOR, 8, beam=beam)
    alone = [beam_search(model, sources(seed), SEPARATOR, 8, beam=beam)[0] for seed in seeds]
    assert together == alone


def test_sentences_that_are_done_leave_the_batch() -> None:
    model = Remembering(6)
    beam_search(model, sources(*range(12)), SEPARATOR, 8, beam=2)
    assert model.calls == sorted(model.calls, reverse=True)
    assert model.calls[0] == 24 and model.calls[-1] < 24


def test_a_wider_beam_finds_an_answer_that_greedy_search_misses() -> None:
    wins = 0
    for seed in range(20):
        model = Remembering(4)
        best = beam_search(model, sources(seed), SEPARATOR, 6, beam=8, alpha=0.0)[0][0]
        wins += best.log_probability > greedy(model, sources(seed), SEPARATOR, 6)[0].log_probability + 1e-9
    assert wins > 5


class EndsHalfTheTime:
    """Token 1 or the end, with probability p and 1 - p: an answer of n tokens has p^n (1 - p)."""

    def __init__(self, going: float) -> None:
        self.logits_V = torch.tensor([1 - going, going]).log()

    def start(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["source"][:, 0]

    def next(self, tokens_R: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits_V.expand(len(tokens_R), -1), state

    def select(self, state: Tensor, rows_R: Tensor) -> Tensor:
        return state[rows_R]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_the_length_penalty_moves_the_best_length_to_where_its_formula_says(alpha: float) -> None:
    going, longest = 0.7, 12
    [found] = beam_search(EndsHalfTheTime(going), sources(0), SEPARATOR, longest, beam=longest + 1, alpha=alpha)
    score = {n: (n * math.log(going) + math.log(1 - going)) / length_penalty(n + 1, alpha) for n in range(longest)}
    score[longest] = longest * math.log(going) / length_penalty(longest, alpha)
    assert len(found[0].tokens) == max(score, key=lambda n: score[n])
    assert found[0].score == pytest.approx(max(score.values()), abs=1e-5)
    assert length_penalty(1, alpha) == 1


def test_what_does_not_end_is_cut_and_says_so() -> None:
    [found] = greedy(EndsHalfTheTime(0.9), sources(0), SEPARATOR, 3)
    assert (found.tokens, found.ended) == ([1, 1, 1], False)
    assert found.log_probability == pytest.approx(3 * math.log(0.9))


@pytest.mark.parametrize(
    "changes, named", [({"beam": 0}, "beam"), ({"length": 0}, "length"), ({"alpha": -1.0}, "length_penalty")]
)
def test_a_search_that_makes_no_sense_is_refused(changes: dict[str, float], named: str) -> None:
    arguments = {"length": 3, "beam": 2, "alpha": 0.6} | changes
    with pytest.raises(ValueError, match=f"^{named}: "):
        beam_search(Remembering(3), sources(0), SEPARATOR, **arguments)  # type: ignore[arg-type]
