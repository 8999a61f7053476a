"""Evaluation of latent variable models of sentences: numbers against a model whose likelihood is exact, and text."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reducible.data.sentences import target_rows
from reducible.data.tokenizer import byte_tokenizer
from reducible.models.families.vae import Vae, VaeConfig
from reducible.models.layers.gaussian import Gaussian
from reducible.models.loss import IGNORE
from reducible.tasks.evaluate.evaluate_sentences import SentencesSettings, evaluate, measure, sample
from reducible.tasks.evaluate.evaluate_spec import SampleOptions
from reducible.tasks.workflow.record import Record

TOKENIZER = byte_tokenizer()
TEXTS = ["a|b*c", "two words", "x", "", "tabs\tand\nlines", "über", "longer than the others by far", "y"]


class Examples:
    """What data/sentences.py offers of a split."""

    sequence = 64

    def __init__(self, texts: list[str]) -> None:
        self.rows = TOKENIZER.encode_batch(texts)
        self.lengths = self.sizes = np.array([len(row) + 1 for row in self.rows])
        self.split = "validation"

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, index: int) -> np.ndarray:
        return self.rows[index]

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return target_rows([self.rows[index] for index in indices], self.sequence, TOKENIZER.separator)


class Potential(torch.nn.Module):
    """p(x|z) is a normal density of a number a(x) with mean z_0 and variance NOISE: p(x) and p(z|x) are normal.

    No distribution over sentences, but the estimators do not know. The second dimension is the prior's. With
    `widening` 1 q is the exact posterior.
    """

    NOISE = 0.2

    def __init__(self, widening: float = 1.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocabulary=257)
        self.latents = 2
        self.widening = torch.nn.Parameter(torch.tensor(widening))

    @staticmethod
    def number(batch: dict[str, Tensor]) -> Tensor:
        counted_BT = batch["targets"] != IGNORE
        return torch.sin((batch["targets"] * counted_BT).sum(1).double()) * 2

    def posterior(self, batch: dict[str, Tensor]) -> Gaussian:
        number_B = self.number(batch)
        mean_BZ = torch.stack([number_B / (1 + self.NOISE), torch.zeros_like(number_B)], dim=1)
        variance = torch.tensor([self.NOISE / (1 + self.NOISE) * float(self.widening.detach()), 1.0])
        return Gaussian(mean_BZ, (0.5 * variance.log()).double().expand_as(mean_BZ))

    def log_likelihood(self, batch: dict[str, Tensor], z_KBZ: Tensor) -> Tensor:
        deviation = (self.number(batch) - z_KBZ[..., 0]) ** 2
        return -0.5 * deviation / self.NOISE - 0.5 * math.log(2 * math.pi * self.NOISE)


MANY = [f"sentence {number * number}" for number in range(300)]


def exact_nats(examples: Examples) -> np.ndarray:
    number_N = Potential.number(
        {name: torch.as_tensor(array) for name, array in examples.batch(np.arange(len(examples))).items()}
    ).numpy()
    variance = 1 + Potential.NOISE
    return 0.5 * number_N**2 / variance + 0.5 * np.log(2 * np.pi * variance)


def test_with_the_exact_posterior_the_likelihood_is_exact_for_any_number_of_samples() -> None:
    examples = Examples(MANY)
    nats_N = exact_nats(examples)
    torch.manual_seed(0)
    found, by_sentence = measure(Potential(), examples, TOKENIZER.token_bytes(), None, samples=3)
    assert np.mean(by_sentence["loss"]) == pytest.approx(found["loss_per_sentence"])
    assert sorted(by_sentence["importance_weighted"]) == pytest.approx(sorted(nats_N.tolist()), rel=1e-6)
    tokens, bytes_ = sum(examples.lengths), sum(examples.lengths) - 300
    assert found["importance_weighted"] == pytest.approx(nats_N.sum() / tokens, rel=1e-6)
    assert found["importance_weighted_per_sentence"] == pytest.approx(nats_N.mean(), rel=1e-6)
    error = nats_N.std(ddof=1) / math.sqrt(300)
    assert found["importance_weighted_per_sentence_standard_error"] == pytest.approx(error, rel=1e-6)
    ratio_error = math.sqrt(np.sum((nats_N - nats_N.sum() / tokens * examples.lengths) ** 2)) / tokens
    assert found["importance_weighted_standard_error"] == pytest.approx(ratio_error, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats_N.sum() / math.log(2) / bytes_, rel=1e-6)
    assert found["effective_samples"] == pytest.approx(3, rel=1e-6)
    assert (found["sentences"], found["units"], found["bytes"]) == (300, tokens, bytes_)
    assert found["loss_per_sentence"] == pytest.approx(
        found["reconstruction_per_sentence"] + found["kl_per_sentence"], rel=1e-9
    )
    # E log q / p(z, x) is the marginal likelihood in every draw only as a whole; its two terms scatter.
    assert found["loss_per_sentence"] == pytest.approx(nats_N.mean(), abs=4 * 0.71 / math.sqrt(300))


def test_a_dimension_that_is_the_priors_is_not_active() -> None:
    torch.manual_seed(0)
    found, _ = measure(Potential(), Examples(MANY), TOKENIZER.token_bytes(), None, samples=1)
    assert (found["active_units"], found["latent"]) == (1, 2)
    assert found["kl_by_dimension"][1] == pytest.approx(0, abs=1e-9) and found["kl_by_dimension"][0] > 0.5
    information = found["mutual_information_per_sentence"]
    assert 0.5 < information < found["mutual_information_upper_per_sentence"] < information + 0.2
    assert information < found["kl_per_sentence"]


def test_a_wrong_posterior_costs_the_elbo_more_than_the_weighted_estimate() -> None:
    examples = Examples(MANY)
    torch.manual_seed(0)
    found, _ = measure(Potential(widening=4.0), examples, TOKENIZER.token_bytes(), None, samples=200)
    exact = exact_nats(examples).mean()
    assert found["importance_weighted_per_sentence"] == pytest.approx(exact, abs=0.01)
    # KL(q || posterior) = (4 - 1 - log 4) / 2
    assert found["loss_per_sentence"] == pytest.approx(exact + 0.807, abs=0.3)
    assert 20 < found["effective_samples"] < 150


def test_units_limit_how_many_sentences_are_measured() -> None:
    found, _ = measure(Potential(), examples := Examples(MANY), TOKENIZER.token_bytes(), 1000, samples=1)
    assert found["sentences"] == int(1000 / examples.lengths.mean()) < 100


def small_model() -> Vae:
    torch.manual_seed(0)
    return Vae(VaeConfig(vocabulary=257, width=12, latent=3)).eval()


def dataset() -> Any:
    return SimpleNamespace(
        tokenizer=TOKENIZER,
        unit_bytes=TOKENIZER.token_bytes,
        examples=lambda reads, split, sequence: Examples(TEXTS),
    )


def test_the_note_shows_numbers_and_sentences_as_markdown_tables(tmp_path: Path) -> None:
    record = Record(tmp_path, "x")
    spec = SentencesSettings(samples=3, sample_tokens=8, importance_samples=2)
    found = evaluate(small_model(), dataset(), {"sequence": 64}, spec, record)
    assert evaluate(small_model(), dataset(), {"sequence": 64}, spec, record).numbers == found.numbers
    json.dumps(found.numbers, allow_nan=False)
    header, *rows = (tmp_path / "files" / "by_sentence.csv").read_text().splitlines()
    assert header == "tokens,loss,importance_weighted,kl" and len(rows) == len(TEXTS)
    shown = json.loads((tmp_path / "files" / "sentences.json").read_text())
    assert [len(rows) for rows in shown.values()] == [3, 3, 3]
    assert [len(row) for row in shown["reconstructions"]] == [3, 3, 3]
    assert all(row[0] in TEXTS and row[-1] in TEXTS and len(row) == 9 for row in shown["interpolations"])
    assert all(
        row[1] == again for row, (_, again, _) in zip(shown["interpolations"], shown["reconstructions"], strict=True)
    )
    for line in found.note.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (3, 4)
    assert f"| reconstruction | {found.numbers['reconstruction_per_sentence']:.2f} ±" in found.note
    assert (tmp_path / "figures" / "latent_dimensions.png").stat().st_size > 5000
    assert "of 3 units active" in found.headline


def test_a_sample_is_from_the_prior_or_around_a_prompt() -> None:
    options = SampleOptions(tokens=6)
    prior = sample(small_model(), dataset(), {"sequence": 64}, "", options)
    assert prior == sample(small_model(), dataset(), {"sequence": 64}, "", options)
    assert prior != sample(small_model(), dataset(), {"sequence": 64}, "", SampleOptions(tokens=6, seed=1))
    first, again, *near = sample(small_model(), dataset(), {"sequence": 64}, "a prompt", options).split("\n")[:3]
    assert first == "a prompt" and again.startswith("again: ") and near[0].startswith("near: ")
