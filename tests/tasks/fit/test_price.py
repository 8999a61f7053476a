"""What compute costs: hours and money of a known speed, the speed of the runs, and one line where there is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import called
from law_cases import QUICK, isoflop_design, table_of
from page_cases import Page

from reducible.tasks.errors import UserError
from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.predict import predict
from reducible.tasks.fit.price import price_of
from reducible.tasks.fit.result import Estimate, Fit


@pytest.fixture(scope="module")
def fit() -> Fit:
    return fit_runs(table_of(*isoflop_design(), noise=0.003, seed=1), QUICK)


@pytest.fixture(scope="module")
def timed(fit: Fit) -> Fit:
    """Each run at 1e14 FLOP/s, and the three largest models at 2, 3 and 9e14."""
    order = sorted(range(len(fit.runs)), key=lambda i: fit.runs[i].N)
    speeds = dict.fromkeys(order, 1e14) | dict(zip(order[-3:], (9e14, 2e14, 3e14), strict=True))
    return replace(fit, runs=tuple(replace(run, device_flops=speeds[i]) for i, run in enumerate(fit.runs)))


def test_hours_and_money_are_those_of_the_largest_models(timed: Fit) -> None:
    price = price_of(timed, 2.5)
    assert price is not None and price.device_flops == 3e14
    money = price.money(Estimate(3e14 * 3600 * 100, 3e14 * 3600 * 50, 3e14 * 3600 * 400))
    assert money is not None
    assert (money.value, money.low, money.high) == pytest.approx((250, 125, 1000))


def test_a_given_speed_goes_before_a_measured_one(timed: Fit) -> None:
    price = price_of(timed, 2.0, 5e14)
    assert price is not None and price.hours(Estimate(5e14 * 7200)).value == pytest.approx(2)


def test_without_a_speed_a_price_is_refused_in_one_line(fit: Fit) -> None:
    with pytest.raises(
        UserError, match="--price: these runs did not measure the speed of a device; add --device-flops"
    ):
        price_of(fit, 2.5)
    assert price_of(fit, None) is None


def test_the_command_adds_the_cost(timed: Fit, tmp_path: Path) -> None:
    timed.save(tmp_path / "fit.json")
    compute = predict(timed, loss=2.2).compute
    told = called("predict", tmp_path, "--loss", "2.2", "--price", "2.5")
    assert told.exit_code == 0, told.output
    hours = compute.value / 3e14 / 3600
    assert f"cost      {2.5 * hours:.3g} [" in told.output and f"that is {hours:.3g} [" in told.output
    assert "a device reaches 3e+14 FLOP/s, the median of the 3 largest models" in told.output
    found = json.loads(called("predict", tmp_path, "--loss", "2.2", "--price", "2.5", "--json").output)
    assert found["cost"]["value"] == pytest.approx(2.5 * hours) and found["device_flops"] == 3e14
    (tmp_path / "plans.csv").write_text("name,N,D\na,1e9,2e10\n")
    table = called("predict", tmp_path, "--table", tmp_path / "plans.csv", "--price", "3600", "--device-flops", "1e15")
    assert table.output.splitlines()[1].split()[-1] == "1.2e+05"  # 6 x 1e9 x 2e10 / 1e15 seconds


def test_the_report_of_a_table_has_the_cost_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reducible.tasks.report.page.draw", lambda *_: [])
    table_of(*isoflop_design(4, 5), noise=0.003, seed=1).to_csv(tmp_path / "runs.csv", index=False)
    refused = called("fit", tmp_path / "runs.csv", "--price", "2.5")
    assert refused.exit_code == 2 and "--price: a table does not say how fast a device is" in refused.output
    told = called("fit", tmp_path / "runs.csv", "--draws", "100", "--price", "2.5", "--device-flops", "4e14")
    assert told.exit_code == 0, told.output
    page = Page((tmp_path / "runs-fit" / "report.html").read_text())
    assert "on devices that reach 4×10¹⁴ FLOP/s (as given), at 2.50 an hour" in page.text
