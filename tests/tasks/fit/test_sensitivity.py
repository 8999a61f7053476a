"""The same runs fitted another way: each variant equals the fit that one would ask for by itself."""

import numpy as np
import pytest
from law_cases import QUICK, isoflop_design, table_of

from reducible.tasks.fit.fit import fit_runs
from reducible.tasks.fit.fit_spec import FitOptions
from reducible.tasks.fit.fit_summary import summary
from reducible.tasks.fit.predict import predict


def asked(**options: object) -> FitOptions:
    return FitOptions.model_validate({**QUICK.model_dump(), **options})


def test_variants_are_the_fits_that_one_would_ask_for() -> None:
    table = table_of(*isoflop_design(4, 5), noise=0.003)
    table["name"] = [f"cell {i}" for i in range(20)]
    table.loc[13, "loss"] *= 1.2
    table["N_without_embeddings"] = table.N * (1 - 0.3 * (table.N / table.N.min()) ** -0.4)
    fit = fit_runs(table, QUICK)
    alone = {
        "as fitted": fit_runs(table, QUICK),
        "least absolute deviations": fit_runs(table, asked(objective="l1")),
        "least squares": fit_runs(table, asked(objective="least-squares")),
        "without the smallest budget": fit_runs(table[table.C > 2e17], QUICK),
        "N without embeddings": fit_runs(table, asked(counts="parameters_without_embeddings")),
    }
    rows = {row.label: row for row in fit.sensitivity}
    outlier = next(label for label in rows if label.startswith("without cell 13 (+"))
    alone[outlier] = fit_runs(table.drop(index=13), QUICK)
    assert rows.keys() == alone.keys()
    for label, other in alone.items():
        assert other.law is not None
        assert pytest.approx(other.law.E.value, abs=2e-3) == rows[label].E, label
        best = predict(other, compute=10 * float(table.C.max()))
        assert pytest.approx(best.N.value, rel=0.03) == rows[label].N, label
        assert rows[label].loss == pytest.approx(best.loss.value, rel=1e-3), label
    assert "under other choices: E from " in summary(fit)


def test_variants_that_cannot_be_fitted_are_left_out() -> None:
    fit = fit_runs(table_of(*isoflop_design(2, 4), noise=0.003), QUICK)
    assert [row.label for row in fit.sensitivity] == ["as fitted", "least absolute deviations", "least squares"]
    assert all(np.isfinite(row.E) for row in fit.sensitivity)
