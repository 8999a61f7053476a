"""Scores of forecasts against closed forms and their definition; evaluations of models that are known exactly."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from series_cases import from_csv, generated, rolls, table_of

from reducible.models.families.linear_gaussian import LinearGaussianConfig, LinearGaussianModel
from reducible.models.families.ssm import SsmConfig, StateSpace
from reducible.models.kalman.certificate import certificate
from reducible.models.kalman.filter import kalman_filter, log_likelihood
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.certified_training import true_model
from reducible.tasks.evaluate.evaluate_series import SeriesSettings, batches_of, evaluate, measure, sample
from reducible.tasks.evaluate.evaluate_spec import SampleOptions
from reducible.tasks.evaluate.forecast_scores import NormalForecast, SampledForecast, coverage
from reducible.tasks.evaluate.forecasts import Baselines, log_scores, scored, windows
from reducible.tasks.workflow.record import Record

PLANE = {"A": ((0.9, 0.1), (-0.1, 0.8)), "B": ((1.0, 0.0), (0.0, 0.5)), "C": ((1.0, 0.5),), "D": ((0.7,),)}


def knowing(dataset):
    """The family's model with the parameters of the source."""
    truth = true_model(dataset)
    model = LinearGaussianModel(LinearGaussianConfig(truth.channels, truth.latents))
    model.set(truth)
    return model.eval()


def evaluated(model, dataset, folder: Path, sequence=30, **settings):
    record = Record(folder / "record", "1")
    return evaluate(model, dataset, {"sequence": sequence}, SeriesSettings(**settings), record), record


# Scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [-2.0, 0.3, 1.0, 4.0])
def test_the_crps_of_a_normal_is_its_definition(y):
    mean, deviation = 0.4, 1.7
    below, _ = quad(lambda x: norm.cdf(x, mean, deviation) ** 2, -30, y)
    above, _ = quad(lambda x: norm.sf(x, mean, deviation) ** 2, y, 30)
    found = NormalForecast(np.full((1, 1, 1), mean), np.full((1, 1, 1), deviation)).crps(np.full((1, 1, 1), y))
    assert found.item() == pytest.approx(below + above, abs=1e-8)


def test_the_crps_of_draws_is_that_of_all_pairs_and_of_two_draws_already_unbiased():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(3, 2, 1))
    draws = rng.normal(size=(7, 3, 2, 1))
    pairs = np.abs(draws[:, None] - draws[None]).sum((0, 1)) / (2 * 7 * 6)
    np.testing.assert_allclose(SampledForecast(draws).crps(y), np.abs(draws - y).mean(0) - pairs, atol=1e-12)

    few = SampledForecast(rng.normal(0.4, 1.7, size=(2, 200_000, 1, 1))).crps(np.full((200_000, 1, 1), 1.0))
    exact = NormalForecast(np.full((1, 1, 1), 0.4), np.full((1, 1, 1), 1.7)).crps(np.full((1, 1, 1), 1.0)).item()
    assert few.mean() == pytest.approx(exact, abs=5 * few.std() / 200_000**0.5)


def test_intervals_cover_as_often_as_they_say_and_missing_values_do_not_count():
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=(20_000, 2, 1)), np.exp(rng.normal(size=(20_000, 2, 1)))
    y = mean + deviation * rng.normal(size=mean.shape)
    counted = np.ones(mean.shape, bool)
    for forecast in (
        NormalForecast(mean, deviation),
        SampledForecast(mean + deviation * rng.normal(size=(99, *mean.shape))),
    ):
        for level, share in coverage(forecast, y, counted).items():
            assert share == pytest.approx(level, abs=4 * (level * (1 - level) / y.size) ** 0.5)
    counted[1:] = False
    y[1:] = 1e9
    y[:1] = mean[:1]
    assert set(coverage(NormalForecast(mean, deviation), y, counted).values()) == {1.0}


# Windows and baselines --------------------------------------------------------------------------------------------


def test_forecasts_are_given_what_came_before_and_nothing_after(tmp_path):
    """A table whose value is its row number, cut in time: 75 rows to train, 25 to validate."""
    values = np.arange(100.0)[:, None]
    values[80] = np.nan
    dataset = from_csv(tmp_path, table_of(values), standardise=False)
    given = windows(dataset, "validation", 16, 6)
    assert given.future_NHC.shape == (4, 6, 1)
    for row, origin in enumerate((75, 81, 87, 93)):
        past = given.batch["values"][row, :, 0]
        expected = np.where(np.isnan(values[origin - 16 : origin, 0]), 0.0, values[origin - 16 : origin, 0])
        np.testing.assert_array_equal(past, expected)
        assert (given.batch["observed"][row, :, 0] == ~np.isnan(values[origin - 16 : origin, 0])).all()
        counted = given.counted_NHC[row, :, 0]
        np.testing.assert_array_equal(given.future_NHC[row, counted, 0], (origin + np.arange(6))[counted])
        assert counted.sum() == (5 if origin == 75 else 6)


def test_short_series_are_told_from_long_ones(tmp_path):
    """By series: nothing stands before one, so that a forecast begins only after some steps of it."""
    lines = [
        "name,x",
        *(f"{name},{step}" for name, length in (("a", 40), ("b", 3), ("c", 41), ("d", 39)) for step in range(length)),
    ]
    dataset = from_csv(tmp_path, "\n".join(lines) + "\n", split="series", series="name", standardise=False)
    given = windows(dataset, "validation", 16, 24)
    length = dataset.content["splits"]["validation"]["steps"]
    horizon = max(1, length // 4)
    assert given is None or given.future_NHC.shape[1] == min(24, horizon)
    for row in range(len(given.names)):
        known = int(given.batch["steps"][row].sum())
        assert known >= 1
        assert given.future_NHC[row, 0, 0] == given.batch["values"][row, known - 1, 0] + 1


def test_baselines_are_what_they_say(tmp_path):
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(size=(400, 1)), axis=0)
    values[299] = np.nan
    dataset = from_csv(tmp_path, table_of(values), standardise=False)
    baselines = Baselines(dataset, 20)
    train = values[:299]
    assert baselines.mean_C[0] == pytest.approx(train.mean(), rel=1e-5)
    assert baselines.deviation_C[0] == pytest.approx(train.std(), rel=1e-5)
    step = np.sqrt((np.diff(train, axis=0) ** 2).mean())
    assert baselines.step_C[0] == pytest.approx(step, rel=1e-5)

    given = windows(dataset, "validation", 20, 5)
    walk = baselines.last_value(given)
    # The last row of the first window is missing: its forecast starts two steps behind the last value.
    np.testing.assert_allclose(walk.mean_NHC[0, :, 0], values[298, 0], rtol=1e-5)
    np.testing.assert_allclose(walk.deviation_NHC[0, :, 0], step * np.sqrt([2, 3, 4, 5, 6]), rtol=1e-5)
    np.testing.assert_allclose(walk.deviation_NHC[1, :, 0], step * np.sqrt([1, 2, 3, 4, 5]), rtol=1e-5)
    nats = -norm.logpdf(np.diff(values[304:310, 0]), scale=step).sum()
    assert baselines.last_value_log_scores(given)[1] == pytest.approx(nats, rel=1e-4)
    nats = -norm.logpdf(values[305:310, 0], train.mean(), train.std()).sum()
    assert baselines.train_mean_log_scores(given)[1] == pytest.approx(nats, rel=1e-4)


# Whole evaluations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardise", [False, True])
def test_the_source_itself_lies_on_its_certificate_and_its_forecasts_are_calibrated(tmp_path, standardise):
    dataset = generated(tmp_path, standardise, series=160, length=60, **PLANE)
    model = knowing(dataset)
    evaluation, record = evaluated(model, dataset, tmp_path, horizon=10)
    numbers = evaluation.numbers
    truth = true_model(dataset)
    batches = batches_of(dataset.examples("series", "validation", 30), None)
    nats = sum(-log_likelihood(truth, batch["values"], batch["observed"]).sum() for batch in batches)
    assert numbers["loss"] == pytest.approx(nats / numbers["units"], rel=1e-6)
    assert numbers["units"] == 40 * 60
    assert numbers["gap"] == pytest.approx(0, abs=1e-6)
    expected = certificate(truth, 30, diagonal=True)
    assert numbers["exact_loss_expected"] == pytest.approx(expected.negative_log_likelihood / 30, rel=1e-6)
    assert numbers["floor_causal_expected"] == pytest.approx(expected.causal / 30, rel=1e-6)
    assert numbers["floor_causal"] == pytest.approx(expected.causal / 30, rel=0.1)
    assert numbers["floor_bidirectional"] == pytest.approx(expected.bidirectional / 30, rel=1e-6)
    assert abs(numbers["exact_loss"] - numbers["exact_loss_expected"]) < 4 * numbers["exact_loss_standard_error"]
    scale = math.log(dataset.content["deviation"][0])
    assert numbers["loss_in_own_units"] == pytest.approx(numbers["loss"] + scale, rel=1e-6)

    for level in (50, 80, 95):
        assert numbers[f"forecast_coverage_{level}"] == pytest.approx(level / 100, abs=0.06)
    assert numbers["forecast_crps"] < numbers["last_value_crps"]
    assert numbers["forecast_crps"] < numbers["train_mean_crps"]
    assert numbers["forecast_log_score"] < min(numbers["last_value_log_score"], numbers["train_mean_log_score"])
    assert {path.name for path in record.figures.iterdir()} == {"forecasts.png", "crps_by_step.png"}
    assert json.loads((record.files / "evaluation.json").read_text())["gap"] == numbers["gap"]
    assert "### Certificate" in evaluation.note and "### Forecasts" in evaluation.note
    assert "above the true model" in evaluation.headline


def test_log_scores_are_what_the_filter_says_of_the_steps_ahead(tmp_path):
    dataset = generated(tmp_path, series=16, length=40, **PLANE)
    model, given = knowing(dataset), windows(dataset, "validation", 12, 5)
    scores = log_scores(model, given, 1, 0)
    truth = true_model(dataset)
    for row in range(0, len(scores), 5):
        length = int(given.batch["steps"][row].sum())
        both = np.concatenate([given.batch["values"][row, :length], given.future_NHC[row]])[None]
        terms = kalman_filter(truth, both).log_likelihood_BT[0]
        assert scores[row] == pytest.approx(-terms[length:].sum(), rel=1e-5)


def test_a_deep_model_is_evaluated_against_the_floor_of_its_form(tmp_path):
    dataset = generated(tmp_path, series=24, length=30)
    torch.manual_seed(0)
    known = {name: ((value,),) for name, value in zip("ABCD", (0.9, 1.0, 1.0, 1.0), strict=True)}
    model = StateSpace(SsmConfig(channels=1, width=8, posterior="causal", **known)).eval()
    evaluation, _ = evaluated(model, dataset, tmp_path, importance_samples=20, horizon=5, samples=1)
    numbers = evaluation.numbers
    assert numbers["loss"] == pytest.approx(numbers["kl"] + numbers["reconstruction"], rel=1e-6)
    assert numbers["gap"] == pytest.approx(numbers["loss"] - numbers["exact_loss"])
    assert numbers["above_floor"] == pytest.approx(numbers["gap"] - numbers["floor_causal"])
    # An untrained encoder lies far above its floor; estimates of the likelihood lie between.
    assert numbers["above_floor"] > 0.1
    assert numbers["exact_loss"] < numbers["particle"] < numbers["loss"]
    assert "(this one)" in evaluation.note
    # Its p is the true one: its forecasts are worse than the source's only by what poor draws of the latents cost.
    best = scored(knowing(dataset), dataset, windows(dataset, "validation", 30, 5), 30, 1, 0)
    assert best["forecast_crps"] < numbers["forecast_crps"] < 1.5 * best["forecast_crps"]
    assert numbers["forecast_log_score"] > best["forecast_log_score"] - 0.05

    another = StateSpace(SsmConfig(channels=1, width=8, posterior="causal", **known | {"D": [[2.0]]})).eval()
    evaluation, _ = evaluated(another, dataset, tmp_path / "another", importance_samples=5, horizon=5, samples=0)
    assert "above_floor" not in evaluation.numbers
    assert "are not those that the series were drawn from" in evaluation.note

    learnt = StateSpace(SsmConfig(channels=1, width=8)).eval()
    evaluation, _ = evaluated(learnt, dataset, tmp_path / "learnt", importance_samples=5, horizon=5, samples=0)
    assert "above_floor" not in evaluation.numbers
    assert "Its p was learnt too" in evaluation.note


def test_measuring_is_a_function_of_the_seed(tmp_path):
    dataset = generated(tmp_path, series=12, length=20)
    torch.manual_seed(0)
    model = StateSpace(SsmConfig(channels=1, width=8)).eval()
    batches = batches_of(dataset.examples("series", "validation", 20), None)
    first, again, other = (measure(model, dataset, batches, 5, seed) for seed in (1, 1, 2))
    assert first == again
    assert first["loss"] != other["loss"]


def test_piano_rolls_get_a_picture_and_notes(tmp_path):
    rng = np.random.default_rng(0)
    piece = lambda: [sorted({int(note) for note in rng.integers(50, 70, 3)}) for _ in range(12)]  # noqa: E731
    content = {"train": [piece() for _ in range(3)], "valid": [piece(), piece()]}
    dataset = rolls(tmp_path, json.dumps(content))
    torch.manual_seed(0)
    model = StateSpace(SsmConfig(channels=88, width=8, emission="bernoulli")).eval()
    evaluation, record = evaluated(model, dataset, tmp_path, sequence=12, importance_samples=3, samples=2, horizon=4)
    assert evaluation.numbers["units"] == 24
    assert "forecast_crps" not in evaluation.numbers and "loss_in_own_units" not in evaluation.numbers
    assert [path.name for path in record.figures.iterdir()] == ["rolls.png"]
    text = sample(model, dataset, {"sequence": 12}, "valid-0", SampleOptions(tokens=3)).splitlines()
    assert text[0].startswith("valid-0") and len(text) == 4
    assert set(text[1].replace("#", "").split()[0][0]) <= set("ABCDEFG-")


def test_a_sample_is_a_table_of_quantiles_in_the_data_s_own_units(tmp_path):
    rng = np.random.default_rng(0)
    values = 1000 + 50 * rng.normal(size=(120, 2))
    dataset = from_csv(tmp_path, table_of(values))
    model = LinearGaussianModel(LinearGaussianConfig(2, 2)).eval()
    text = sample(model, dataset, {"sequence": 20}, "", SampleOptions(tokens=7)).splitlines()
    assert len(text) == 9
    assert "x0 10 %" in text[1] and "x1 90 %" in text[1]
    low, median, high = (float(cell) for cell in text[2].split()[1:4])
    assert 700 < low < median < high < 1300
    with pytest.raises(UserError, match="--prompt: there is no series 'other' in made; it names one of table"):
        sample(model, dataset, {"sequence": 20}, "other", SampleOptions(tokens=7))


def test_series_too_short_for_a_forecast_are_said_so(tmp_path):
    dataset = generated(tmp_path, series=8, length=1)
    evaluation, _ = evaluated(knowing(dataset), dataset, tmp_path)
    assert "No forecasts: every series of the validation split is too short." in evaluation.note
    assert evaluation.numbers["units"] == 2
