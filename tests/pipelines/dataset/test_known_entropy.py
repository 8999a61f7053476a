"""What recipes say of the best possible loss on generated data, and whether a fit agrees with it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reducible.data.generated_texts import TEXTS
from reducible.data.known_entropy import KnownEntropy
from reducible.data.linear_gaussian import LinearGaussianSeries
from reducible.pipelines.dataset.generated_section import SECTIONS
from reducible.pipelines.dataset.series_data import SeriesData
from reducible.pipelines.dataset.text_data import TextData, source_of
from reducible.pipelines.recipe.load import load_recipe
from reducible.tasks.dataset.tokenise import InputsSpec, Reading, described, inputs_of
from reducible.tasks.errors import UserError
from reducible.tasks.fit.result import Estimate
from reducible.tasks.known_entropy import agreement
from reducible.tasks.report.report_spec import ReportSpec
from reducible.tasks.workflow.identity import canonical, fingerprint


@pytest.mark.parametrize("kind", TEXTS)
def test_a_recipe_names_every_source_and_its_task_makes_the_same(kind: str) -> None:
    """The settings go from the recipe to the task's spec and back to the source, with the source's own defaults."""
    data = TextData.model_validate({"kind": "text", "generated": {"kind": kind, "documents": 9, "seed": 3}})
    source = source_of(data).generated
    assert source == TEXTS[kind](documents=9, seed=3)
    spec = InputsSpec(files=(), generated=described(source))
    read = InputsSpec.model_validate_json(spec.model_dump_json())
    assert inputs_of(read, Reading(location="", paths={}, generated_documents=9))[1].generated == source
    assert list(SECTIONS) == list(TEXTS)


def test_a_markov_chain_keeps_its_identity() -> None:
    """Its kind is no part of the spec, as it was when there was no other."""
    source = TEXTS["markov"](documents=9)
    assert described(source) == {"length": 1024, "order": 2, "symbols": 16, "sharpness": 2.0, "seed": 0}


def test_mistakes_in_the_section_are_named(tmp_path: Path) -> None:
    recipe = tmp_path / "toy.yaml"
    for generated, message in (
        ("{kind: gramar}", "data.generated.kind: 'gramar' is not allowed; it must be markov, hidden-markov, grammar"),
        ("{kind: grammar, nestin: 0.5}", "data.generated.nestin: unknown key; did you mean nesting?"),
        ("{kind: rules, order: 2}", "data.generated.order: unknown key; allowed here: .*digits"),
    ):
        recipe.write_text(f"data: {{generated: {generated}}}\n")
        with pytest.raises(UserError, match=message):
            load_recipe(recipe)


def test_only_a_token_for_each_symbol_has_a_known_loss() -> None:
    generated = {"kind": "text", "generated": {}}
    assert TextData.model_validate(generated | {"tokenizer": {"kind": "bpe"}}).known_entropy(None) is None
    known = TextData.model_validate(generated | {"tokenizer": {"kind": "bytes"}, "sequence": 32}).known_entropy(None)
    assert known == TEXTS["markov"](documents=1).known_entropy(32)
    assert known is not None and known.best_loss is not None and known.best_loss > known.rate


def test_standardised_series_have_the_entropy_of_their_own_units() -> None:
    """Values divided by 2 are those of a model whose C and D are half as large."""
    data = SeriesData.model_validate({"kind": "series", "generated": {}, "sequence": 10, "standardise": True})
    assert data.known_entropy(None) is None  # the deviations are not known yet
    known = data.known_entropy({"deviation": [2.0]})
    half = LinearGaussianSeries(C=((0.5,),), D=((0.5,),)).known_entropy(10)
    assert known is not None
    assert (known.rate, known.best_loss) == pytest.approx((half.rate, half.best_loss))


def test_agreement_says_whether_the_interval_contains_the_truth() -> None:
    def said(low: float, high: float, identified: bool = True, best: float | None = 1.5) -> str:
        fit: Any = SimpleNamespace(
            law=SimpleNamespace(E=Estimate((low + high) / 2, low, high)), health=SimpleNamespace(bounded=identified)
        )
        return agreement(KnownEntropy(1.4, 0.01, best), fit)

    assert "contains it" in said(1.45, 1.55) and "contains it" in said(1.505, 1.55)
    assert "does not contain it" in said(1.52, 1.6) and "does not contain it" in said(1.3, 1.4)
    assert "do not identify E" in said(0, 2, identified=False)
    assert "E lies above 1.4" in said(1.5, 1.6, best=None)


def test_a_report_that_knows_the_truth_has_an_identity() -> None:
    spec = ReportSpec.model_validate({"known": vars(KnownEntropy(1.4, 0.01, 1.5))})
    assert fingerprint(canonical(spec)) != fingerprint(canonical(ReportSpec()))
    assert spec.known is not None and spec.known.entropy == KnownEntropy(1.4, 0.01, 1.5)
