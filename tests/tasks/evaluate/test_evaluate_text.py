"""Evaluation of text, the default: held to NumPy in float64 target by target, and to a model that is known exactly."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_cases import VOCABULARY, Ragged

from reducible.data.packing import PackedSequences
from reducible.data.shards import tokenise_files
from reducible.data.sources import Source, listing
from reducible.data.tokenizer import byte_tokenizer
from reducible.models.families import recurrent, transformer
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import SampleOptions
from reducible.tasks.evaluate.evaluate_text import TextSettings, evaluate, headline, measure, sample
from reducible.tasks.workflow.record import Record

SEQUENCE = 15
UNIT_BYTES = np.arange(VOCABULARY) % 3 + 1
WORDS = ["a", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "saw", "it", "go", "by"]


class Bigram(nn.Module):
    """p(next | token) from a table: the nats of any text are known without a model."""

    def __init__(self, p_VV: np.ndarray) -> None:
        super().__init__()
        self.log_VV = nn.Parameter(torch.tensor(np.log(p_VV) + 3.0, dtype=torch.float32))  # unnormalised

    def logits(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        return self.log_VV[tokens_BT]


class Target(NamedTuple):
    sequence: int
    position: int
    nats: float
    bytes: int


def expected(targets: list[Target], sequence: int) -> dict[str, Any]:
    """From single targets, one after another; the standard error as the infinitesimal jackknife over sequences: how the
    ratio answers to the weight of each, by a numeric derivative."""
    nats, count = math.fsum(target.nats for target in targets), len(targets)
    total_bytes = sum(target.bytes for target in targets)
    numbers = sorted({target.sequence for target in targets})
    by = {
        n: (math.fsum(t.nats for t in targets if t.sequence == n), sum(t.sequence == n for t in targets))
        for n in numbers
    }

    def ratio(changed: int, by_how_much: float) -> float:
        weights = {n: 1.0 + by_how_much * (n == changed) for n in numbers}
        return math.fsum(weights[n] * by[n][0] for n in numbers) / math.fsum(weights[n] * by[n][1] for n in numbers)

    step = 1e-5
    slopes = [(ratio(n, step) - ratio(n, -step)) / (2 * step) for n in numbers]
    positions = [[t.nats for t in targets if t.position == place] for place in range(sequence)]
    return {
        "loss": nats / count,
        "loss_standard_error": math.sqrt(math.fsum(slope**2 for slope in slopes)),
        "perplexity": math.exp(nats / count),
        "bits_per_byte": nats / math.log(2) / total_bytes,
        "units": count,
        "bytes": total_bytes,
        "loss_by_position": [math.fsum(at) / len(at) if at else 0.0 for at in positions],
    }


def same(measured: dict[str, Any], wanted: dict[str, Any], rel: float) -> None:
    assert measured.keys() == wanted.keys()
    for name, value in wanted.items():
        assert measured[name] == pytest.approx(value, rel=rel, abs=1e-9), name


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# A model that is known ---------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> np.ndarray:
    p_VV = np.random.default_rng(0).dirichlet(np.ones(VOCABULARY), VOCABULARY) + 1e-4
    return p_VV / p_VV.sum(1, keepdims=True)


def known_targets(examples: Ragged, numbers: list[int], p_VV: np.ndarray) -> list[Target]:
    batch = examples.batch(np.array(numbers))
    return [
        Target(row, place, -math.log(p_VV[batch["inputs"][row, place], target]), int(UNIT_BYTES[target]))
        for row in range(len(numbers))
        for place, target in enumerate(batch["targets"][row].tolist())
        if target >= 0
    ]


@pytest.mark.parametrize(("units", "count"), [(None, 23), (9 * 8, 9), (9 * 8 + 7, 9), (10**6, 23)])
def test_masked_targets_count_nowhere_and_units_are_a_limit(table: np.ndarray, units: int | None, count: int) -> None:
    examples = Ragged("validation")
    numbers = [index * len(examples) // count for index in range(count)]
    targets = known_targets(examples, numbers, table)
    assert len(targets) < count * examples.sequence  # some are masked in part, some wholly
    measured = measure(Bigram(table), examples, UNIT_BYTES, units)
    same(measured, expected(targets, examples.sequence), 2e-6)


def test_one_sequence_says_nothing_of_how_sequences_differ(table: np.ndarray) -> None:
    measured = measure(Bigram(table), Ragged("validation"), UNIT_BYTES, 3)  # less than one sequence is one
    assert measured["loss_standard_error"] is None
    assert measured["units"] == len(known_targets(Ragged("validation"), [0], table))
    assert f"{measured['loss']:.4f} ± unknown (one sequence) nats per token" in headline(measured)


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte(table: np.ndarray) -> None:
    measured = measure(Bigram(table), Ragged("validation"), np.zeros(VOCABULARY, int), None)
    assert measured["bits_per_byte"] is None and measured["bytes"] == 0
    assert "bits per byte" not in headline(measured)


# A small transformer on text ---------------------------------------------------------------------------------------


class Corpus(SimpleNamespace):
    def examples(self, reads: str, split: str, sequence: int, mask_documents: bool) -> PackedSequences:
        assert reads == "text"
        tokenizer = self.tokenizer
        return PackedSequences([self.shard], split, sequence, tokenizer.identity, tokenizer.separator, mask_documents)

    def unit_bytes(self) -> np.ndarray:
        return self.tokenizer.token_bytes()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder, random = tmp_path_factory.mktemp("text"), np.random.default_rng(1)
    lines = [" ".join(random.choice(WORDS, random.integers(1, 6))) for _ in range(120)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    source, tokenizer = Source(str(folder / "text.txt"), documents="line"), byte_tokenizer()
    tokenise_files(listing(source), source, tokenizer, folder / "shard", validation=0.3)
    return Corpus(shard=folder / "shard", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Transformer:
    torch.manual_seed(3)
    config = TransformerConfig(vocabulary=corpus.tokenizer.vocabulary, width=16, depth=2, heads=2)
    model = Transformer(config).eval()
    with torch.no_grad():  # as drawn it is next to uniform, which would hide where a target stands
        for parameter in model.parameters():
            parameter.mul_(1.4)
    return model


def stream(corpus: Corpus) -> list[int]:
    """The validation split as one row of tokens."""
    whole = corpus.examples("text", "validation", 1, False)
    batch = whole.batch(np.arange(len(whole)))
    return [*batch["inputs"][:, 0].tolist(), int(batch["targets"][-1, 0])]


def contexts(window: list[int], place: int, separator: int, mask: bool) -> list[int]:
    """What the model may see when it predicts the token after `place`."""
    seen = window[: place + 1]
    if mask:
        opened = [at for at, token in enumerate(seen) if token == separator]
        seen = seen[opened[-1] :] if opened else seen
    return seen


def read_targets(model: Transformer, corpus: Corpus, mask: bool) -> Iterator[Target]:
    """Every target by itself: the model reads what stands before it and nothing else."""
    tokens, separator = stream(corpus), corpus.tokenizer.separator
    for at in range(len(tokens) - 1):
        number, place = divmod(at, SEQUENCE)
        window = tokens[number * SEQUENCE : (number + 1) * SEQUENCE + 1]
        seen = torch.tensor([contexts(window, place, separator, mask)])
        with torch.no_grad():
            log_V = log_softmax(model.logits(seen)[0, -1].numpy())
        target = window[place + 1]
        yield Target(number, place, -float(log_V[target]), int(target != separator))


@pytest.mark.parametrize("mask", [False, True])
def test_every_number_is_that_of_single_targets(corpus: Corpus, model: Transformer, tmp_path: Path, mask: bool) -> None:
    trained = {"sequence": SEQUENCE, "mask_documents": mask, "family": "transformer"}
    record = Record(tmp_path, "x")
    spec = TextSettings(samples=2, sample_tokens=7, units=None)
    found = evaluate(model, corpus, trained, spec, record)
    wanted = expected(list(read_targets(model, corpus, mask)), SEQUENCE)
    same(found.numbers, wanted, 1e-5)
    assert wanted["units"] == len(stream(corpus)) - 1 and wanted["units"] % SEQUENCE  # the last window is partial
    assert wanted["bytes"] < wanted["units"]  # a separator is a token and no byte
    # What a person reads are these numbers.
    assert wanted["loss"] < 12
    error = 1.96 * found.numbers["loss_standard_error"]
    said = f"{found.numbers['loss']:.4f} ± {error:.4f}"
    assert found.headline == (
        f"{said} nats per token, perplexity {found.numbers['perplexity']:.3f}, "
        f"{found.numbers['bits_per_byte']:.4f} bits per byte"
    )
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", found.note, re.MULTILINE))
    assert rows["loss, nats per token"] == f"{said} (95 %)"
    assert rows["perplexity"] == f"{found.numbers['perplexity']:.3f}"
    assert rows["bits per byte"] == f"{found.numbers['bits_per_byte']:.4f}"
    assert rows["evaluated on"] == f"{found.numbers['units']:,} tokens, {found.numbers['bytes']:,} bytes"
    samples = json.loads((record.files / "samples.json").read_text())
    assert len(samples) == 2 and all(f"```\n{text}\n```" in found.note for text in samples if "```" not in text)
    assert (record.figures / "loss_by_position.png").stat().st_size > 5_000


def test_masking_documents_matters_here(corpus: Corpus, model: Transformer) -> None:
    """Otherwise the two cases above would hold the same."""
    losses = [math.fsum(target.nats for target in read_targets(model, corpus, mask)) for mask in (False, True)]
    assert abs(losses[0] / losses[1] - 1) > 1e-3


def test_a_sample_goes_on_from_its_prompt(corpus: Corpus, model: Transformer) -> None:
    written = sample(model, corpus, {}, "the cat", SampleOptions(tokens=5, temperature=0.0))
    assert written.startswith("the cat") and len(written) > len("the cat")
    assert written == sample(model, corpus, {}, "the cat", SampleOptions(tokens=5, temperature=0.0, seed=1))


def test_gradient_flow_is_refused_for_a_family_without_states() -> None:
    class Other(recurrent.Recurrent):
        """Of another family: the contract decides, not the name."""

    asks = TextSettings(gradient_flow=True)
    asks.check(recurrent.FAMILY)
    asks.check(replace(recurrent.FAMILY, name="other", build=Other))
    for family in (transformer.FAMILY, replace(transformer.FAMILY, name="recurrent")):
        with pytest.raises(UserError, match=f"evaluate.gradient_flow: is for .* a state .* with a {family.name}"):
            asks.check(family)
