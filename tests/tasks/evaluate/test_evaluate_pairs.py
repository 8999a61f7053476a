"""Evaluation of pairs: scores held to sacreBLEU and to brute force, perplexities to a model that is known exactly."""

import json
import math
from collections import deque
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
import torch
from torch import nn

from reducible.data.pair_files import Pair
from reducible.data.pairs import Division, Pairs, write_pairs
from reducible.data.vocabulary import whole
from reducible.models.contract import PairModel
from reducible.models.families.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from reducible.models.families.seq2seq import Seq2Seq, Seq2SeqConfig
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_pairs import PairsSettings, cell, evaluate, sample
from reducible.tasks.evaluate.evaluate_spec import SampleOptions
from reducible.tasks.evaluate.pair_scores import edit_distance, score_texts
from reducible.tasks.workflow.record import Record


def test_edit_distance_is_the_shortest_path_of_single_edits():
    """Brute force: breadth first over all strings of two letters up to a length."""
    letters, longest = "ab", 5
    strings = ["".join(s) for n in range(longest + 1) for s in product(letters, repeat=n)]

    def neighbours(s):
        for i in range(len(s) + 1):
            yield from (s[:i] + c + s[i:] for c in letters if len(s) < longest)
            if i < len(s):
                yield s[:i] + s[i + 1 :]
                yield from (s[:i] + c + s[i + 1 :] for c in letters)

    for start in ("", "ab", "abba", "babab"):
        steps, queue = {start: 0}, deque([start])
        while queue:
            s = queue.popleft()
            for t in neighbours(s):
                if t not in steps:
                    steps[t] = steps[s] + 1
                    queue.append(t)
        assert all(edit_distance(start, t) == edit_distance(t, start) == steps[t] for t in strings)


def test_scores_are_those_of_the_definitions():
    outputs = ["the cat sat on the mat", "a dog barks", "yes  indeed"]
    references = ["the cat sat on a mat", "the dog barks loudly", "yes indeed"]
    scores = score_texts(outputs, references, "13a", 0)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [references]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(outputs, [references]).score)
    assert scores["exact_match"] == pytest.approx(100 / 3)
    assert scores["any_error_rate"] == pytest.approx(200 / 3)
    assert scores["edit_rate"] == pytest.approx(100 * (1 + 2 + 0) / (6 + 4 + 2))
    # BLEU of the first by hand: 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; no brevity penalty.
    alone = score_texts(outputs[:1], references[:1], "13a", 0)
    assert alone["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert "tok:13a" in scores["bleu_signature"] and sacrebleu.__version__ in scores["chrf_signature"]


def test_tokenisation_is_a_setting():
    outputs, references = ["it's done, here"], ["it 's done , here"]
    assert score_texts(outputs, references, "none", 0)["bleu"] < 20
    assert score_texts(["it 's done , here"], references, "none", 0)["bleu"] == pytest.approx(100)
    assert "tok:none" in score_texts(outputs, references, "none", 0)["bleu_signature"]


def test_intervals_are_the_binomials_and_sacrebleus_and_come_again():
    right = np.random.default_rng(0).random(400) < 0.3
    outputs = ["a b c d" if is_right else "x" for is_right in right]
    scores = score_texts(outputs, ["a b c d"] * 400, "13a", 1)
    p = right.mean()
    half = 196 * math.sqrt(p * (1 - p) / 400)
    assert scores["exact_match_low"] == pytest.approx(100 * p - half, abs=0.2 * half)
    assert scores["exact_match_high"] == pytest.approx(100 * p + half, abs=0.2 * half)
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        theirs = metric.corpus_score(outputs, [["a b c d"] * 400], n_bootstrap=1000)
        width = scores[f"{name}_high"] - scores[f"{name}_low"]
        assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]
        assert width == pytest.approx(2 * theirs._ci, rel=0.2)
    assert score_texts(outputs, ["a b c d"] * 400, "13a", 1) == scores
    assert score_texts(outputs, ["a b c d"] * 400, "13a", 2) != scores


def test_outputs_that_are_all_wrong_or_empty_have_scores_too():
    scores = score_texts(["", "x", ""], ["a b", "c d", "e f"], "13a", 0)
    assert scores["bleu"] == scores["chrf"] == scores["exact_match"] == 0 and scores["edit_rate"] == 100
    assert score_texts(["x"], ["a b c"], "13a", 0)["edit_rate"] == 100


WORDS = ["one", "two", "three", "four", "five"]


class Counting(PairModel):
    """Begins with the first word of the source, finds the word after the last one likeliest, ends after `five`: with
    probability 0.9. Another end has 0.001, the other words share the rest."""

    def __init__(self, first: int, separator: int) -> None:
        super().__init__(SimpleNamespace(vocabulary=separator + 1))
        self.first, self.separator = first, separator
        self.weight = nn.Parameter(torch.zeros(1))

    def after(self, tokens, start):
        following = torch.where(tokens == self.separator, start, tokens + 1)
        p = torch.zeros(*tokens.shape, self.separator + 1)
        p[..., self.separator] = 0.001
        p.scatter_(-1, following[..., None], 0.9)
        other = p == 0
        return p.masked_scatter(other, ((1 - p.sum(-1)) / other.sum(-1))[..., None].expand_as(p)[other]).log()

    def logits(self, batch):
        return self.after(batch["inputs"], batch["source"][:, :1].expand_as(batch["inputs"]))

    def start(self, batch):
        return batch["source"][:, 0]

    def next(self, tokens_R, state):
        return self.after(tokens_R, state), state

    def select(self, state, rows_R):
        return state[rows_R]

    def attention_map(self, batch):
        return torch.full((1, batch["inputs"].shape[1], batch["source"].shape[1]), 1 / batch["source"].shape[1])


PAIRS = [("one", "one two three four five"), ("three", "three four five"), ("two", "two four five")]


@pytest.fixture
def dataset(tmp_path: Path):
    tokenizer = whole(WORDS, "words")
    pairs = [Pair(str(number), *pair) for number, pair in enumerate(PAIRS)]
    write_pairs(pairs, tokenizer, tokenizer, tmp_path / "shard", Division(split="validation"))

    class Dataset:
        name, content, source_tokenizer = "counting", {"truth": {"validation": {"loss": 0.25}}}, tokenizer

        def examples(self, reads: str, split: str, sequence: int) -> Pairs:
            return Pairs([tmp_path / "shard"], split, sequence, tokenizer, tokenizer)

        def unit_bytes(self) -> np.ndarray:
            return tokenizer.token_bytes()

        lowercase = False

    Dataset.tokenizer = tokenizer
    return Dataset()


def test_both_perplexities_and_the_texts_of_a_model_known_exactly(dataset, tmp_path: Path):
    tokenizer = dataset.tokenizer
    assert [tokenizer.decode([id_]) for id_ in range(1, 6)] == WORDS and tokenizer.separator == 6
    record = Record(tmp_path / "record", "x")
    model = Counting(1, tokenizer.separator)
    found = evaluate(model, dataset, {"sequence": 8}, PairsSettings(beam=2), record)
    numbers = found.numbers
    # 6 + 4 + 4 targets. Teacher forced, `four` after `two` alone is a surprise.
    likely, rare, end = -math.log(0.9), -math.log(0.099 / 5), -math.log(0.001)
    assert numbers["units"] == 14
    assert numbers["loss"] == pytest.approx((13 * likely + rare) / 14)
    assert numbers["teacher_forced_perplexity"] == pytest.approx(math.exp((13 * likely + rare) / 14))
    # Free running, the third text is two three four five: what comes after its `two` meets three, four and five.
    assert numbers["free_running_perplexity"] == pytest.approx(math.exp((11 * likely + 2 * rare + end) / 14))
    assert numbers["exact_match"] == pytest.approx(200 / 3) and numbers["any_error_rate"] == pytest.approx(100 / 3)
    assert numbers["edit_rate"] == pytest.approx(100 * 1 / 11)
    lines = [json.loads(line) for line in (record.files / "outputs.jsonl").read_text().splitlines()]
    assert {line["source"]: line["output"] for line in lines} == {
        "one": "one two three four five",
        "three": "three four five",
        "two": "two three four five",
    }
    assert {line["source"]: line["nats"] for line in lines}["three"] == pytest.approx(4 * likely)
    assert (record.figures / "attention.png").stat().st_size > 5000
    assert "BLEU" in found.headline
    assert "The loss of the source that made these pairs is 0.2500 nats per token" in found.note
    assert "| two | two four five | two three four five |" in found.note


def test_fewer_units_and_fewer_texts_are_spread_over_the_split(dataset, tmp_path: Path):
    spec = PairsSettings(units=5, decoded=2, beam=1)
    record = Record(tmp_path / "record", "x")
    numbers = evaluate(Counting(1, 6), dataset, {"sequence": 8}, spec, record).numbers
    assert numbers["sentences"] == 1 and numbers["decoded"] == 2
    assert len((record.files / "outputs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("family", ["encoder-decoder", "seq2seq", "without attention"])
def test_both_families_are_evaluated_and_sampled(family: str, dataset, tmp_path: Path):
    torch.manual_seed(0)
    facts = {"source_vocabulary": 7, "vocabulary": 7, "shared": True, "width": 8}
    if family == "encoder-decoder":
        model = EncoderDecoder(EncoderDecoderConfig(**facts, depth=1, heads=2)).eval()
    else:
        model = Seq2Seq(Seq2SeqConfig(**facts, attention="none" if family != "seq2seq" else "luong")).eval()
    record = Record(tmp_path / "record", "x")
    examples = dataset.examples("pairs", "validation", 8)
    numbers = evaluate(model, dataset, {"sequence": 8}, PairsSettings(), record).numbers
    batch = {name: torch.as_tensor(array) for name, array in examples.batch(np.arange(3)).items()}
    assert numbers["loss"] == pytest.approx(model(batch).nats.item() / 14, rel=1e-5)
    assert (record.figures / "attention.png").exists() == (family != "without attention")
    text = sample(model, dataset, {"sequence": 8}, "two", SampleOptions(tokens=6, beam=3))
    scores = [float(line.split()[0]) for line in text.splitlines()[1:]]
    assert 1 <= len(scores) <= 3 and scores == sorted(scores, reverse=True)


def test_a_sample_reads_its_source_as_training_did(dataset):
    """Case of letters and white space around are no part of it where the data were made lower case."""
    torch.manual_seed(0)
    facts = {"source_vocabulary": 7, "vocabulary": 7, "shared": True, "width": 8}
    model = Seq2Seq(Seq2SeqConfig(**facts)).eval()
    dataset.lowercase = True
    given, shouted = (sample(model, dataset, {"sequence": 8}, text, SampleOptions()) for text in ("two", " TWO\n"))
    assert given == shouted
    dataset.lowercase = False
    assert sample(model, dataset, {"sequence": 8}, "two ", SampleOptions()) == given
    assert sample(model, dataset, {"sequence": 8}, "TWO", SampleOptions()) != given


def test_a_sample_needs_a_source(dataset):
    with pytest.raises(UserError, match="--prompt: .* give it a source text"):
        sample(Counting(1, 6), dataset, {"sequence": 8}, "  ", SampleOptions())


def test_any_text_stays_inside_its_cell():
    assert cell("a|b\n`c` $d$") == "a\\|b \\`c\\` \\$d\\$"
