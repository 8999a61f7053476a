"""Filter, smoother and forecast against dense algebra, a banded Cholesky factor and statsmodels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kalman_cases import Dense, draw, missing, random_system, statsmodels_filter

from reducible.models.kalman import gains as kalman_gains
from reducible.models.kalman.banded import banded_log_likelihood, inverse_norm
from reducible.models.kalman.block_tridiagonal import block_cholesky
from reducible.models.kalman.filter import (
    LinearGaussian,
    diffuse,
    forecast,
    kalman_filter,
    kalman_smoother,
    log_likelihood,
    stationary,
)
from reducible.models.kalman.linear_recurrence import changing_recurrence, linear_recurrence
from reducible.models.kalman.precision_form import parameters_of, posterior

SIZES = [(1, 1, 30), (4, 2, 40), (2, 5, 25), (3, 1, 1), (2, 2, 2), (3, 2, 90)]
SERIES = 4


@pytest.fixture(params=SIZES, ids=str)
def case(request):
    latents, channels, steps = request.param
    model = random_system(latents, channels, seed=steps)
    x_BTC = draw(model, SERIES, steps, seed=steps)
    return model, x_BTC, missing(SERIES, steps, channels, seed=steps)


def test_independent_computations_of_one_likelihood_agree(case):
    """The filter, a banded Cholesky factor, cyclic reduction, the dense density and statsmodels, to 1e-6."""
    pytest.importorskip("statsmodels")
    model, x_BTC, gaps_BTC = case
    dense = Dense(model, x_BTC.shape[1])
    for observed_BTC in (np.ones_like(gaps_BTC), gaps_BTC):
        ours = kalman_filter(model, x_BTC, observed_BTC).log_likelihood_BT.sum(1)
        np.testing.assert_allclose(log_likelihood(model, x_BTC, observed_BTC), ours, atol=1e-8)
        centred_BTC = np.where(observed_BTC, x_BTC - model.emission_offset, 0.0)
        np.testing.assert_allclose(banded_log_likelihood(model, centred_BTC, observed_BTC), ours, atol=1e-8)
        precision_form = posterior(parameters_of(model), torch.tensor(x_BTC), torch.tensor(observed_BTC))
        np.testing.assert_allclose(precision_form.log_likelihood_B, ours, atol=1e-8)
        for x_TC, observed_TC, value in zip(x_BTC, observed_BTC, ours, strict=True):
            assert value == pytest.approx(dense.log_likelihood(x_TC, observed_TC), abs=1e-6)
            peer = statsmodels_filter(model, np.where(observed_TC, x_TC, np.nan))
            assert value == pytest.approx(peer.loglike(), abs=1e-6)


def test_smoothed_moments_are_those_of_the_dense_posterior(case):
    model, x_BTC, gaps_BTC = case
    dense = Dense(model, x_BTC.shape[1])
    for observed_BTC in (np.ones_like(gaps_BTC), gaps_BTC):
        smoothed = kalman_smoother(model, kalman_filter(model, x_BTC, observed_BTC))
        precision_form = posterior(parameters_of(model), torch.tensor(x_BTC), torch.tensor(observed_BTC))
        np.testing.assert_allclose(precision_form.mean_BTD, smoothed.mean_BTD, atol=1e-8)
        covariance_GTDD, lag_GTDD = precision_form.factor.inverse_blocks()
        for series in range(SERIES):
            mean_TD, covariance_TDTD = dense.posterior(x_BTC[series], observed_BTC[series])
            blocks_TTDD = covariance_TDTD.transpose(0, 2, 1, 3)
            group = smoothed.group_B[series]
            np.testing.assert_allclose(smoothed.mean_BTD[series], mean_TD, atol=1e-8)
            own, lag = (np.diagonal(blocks_TTDD, offset).transpose(2, 0, 1) for offset in (0, -1))
            np.testing.assert_allclose(smoothed.covariance_GTDD[group], own, atol=1e-8)
            np.testing.assert_allclose(smoothed.lag_GTDD[group, 1:], lag, atol=1e-8)
            group = precision_form.group_B[series]
            np.testing.assert_allclose(covariance_GTDD[group], own, atol=1e-8)
            np.testing.assert_allclose(lag_GTDD[group], lag, atol=1e-8)


def test_a_forecast_is_what_the_dense_posterior_says_about_missing_steps(case):
    model, x_BTC, gaps_BTC = case
    horizon, steps = 4, x_BTC.shape[1]
    predicted = forecast(model, kalman_filter(model, x_BTC, gaps_BTC), horizon)
    dense = Dense(model, steps + horizon)
    for series in range(SERIES):
        longer_TC = np.concatenate([x_BTC[series], np.zeros((horizon, model.channels))])
        kept_TC = np.concatenate([gaps_BTC[series], np.zeros((horizon, model.channels), bool)])
        mean_TD, covariance_TDTD = dense.posterior(longer_TC, kept_TC)
        for step in range(horizon):
            at = steps + step
            mean_C = model.emission @ mean_TD[at] + model.emission_offset
            covariance_CC = model.emission @ covariance_TDTD[at, :, at] @ model.emission.T + model.emission_covariance
            np.testing.assert_allclose(predicted.mean_BHC[series, step], mean_C, atol=1e-8)
            group = predicted.group_B[series]
            np.testing.assert_allclose(predicted.covariance_GHCC[group, step], covariance_CC, atol=1e-8)


@pytest.fixture(scope="module")
def nile():
    return pytest.importorskip("statsmodels.datasets").nile.load_pandas().data["volume"].to_numpy()


@pytest.mark.parametrize(("skip", "published"), [(0, -641.586), (1, -632.544)])
def test_the_nile_in_both_conventions(nile, skip, published):
    """Local level, variances 15099 and 1469.1 (Durbin and Koopman 2012, 2.2), P_1 = 1e7."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    model = LinearGaussian([[1.0]], [[1469.1**0.5]], [[1.0]], [[15099**0.5]], [0.0], diffuse(1))
    peer = UnobservedComponents(nile, "local level")
    peer.ssm.initialize_known(np.zeros(1), np.array([[1e7]]))
    peer.ssm.loglikelihood_burn = skip
    ours = log_likelihood(model, nile[None, :, None], skip=skip)[0]
    assert ours == pytest.approx(peer.loglike([15099, 1469.1]), abs=5e-5)
    assert ours == pytest.approx(published, abs=5e-4)


def test_latents_may_move_without_noise(nile):
    """A linear trend whose slope never changes: the transition's covariance is singular, statsmodels agrees."""
    noise = np.array([[40.0], [0.0]])
    model = LinearGaussian([[1, 1], [0, 1]], noise, [[1, 0]], [[120.0]], [1000, 0], np.diag([1e5, 10.0]))
    x_TC = np.where(np.arange(100) % 7 == 3, np.nan, nile)[:, None]
    filtered = kalman_filter(model, x_TC[None])
    peer = statsmodels_filter(model, x_TC)
    assert filtered.log_likelihood_BT.sum() == pytest.approx(peer.loglike(), abs=1e-7)
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    smoother = KalmanSmoother(k_endog=1, k_states=2)
    smoother.bind(x_TC)
    for name in ("design", "obs_cov", "transition", "selection", "state_cov"):
        smoother[name] = peer[name]
    smoother.initialize_known(model.initial_mean, model.initial_covariance)
    expected = smoother.smooth()
    smoothed = kalman_smoother(model, filtered)
    np.testing.assert_allclose(smoothed.mean_BTD[0], expected.smoothed_state.T, rtol=1e-8)
    np.testing.assert_allclose(smoothed.covariance_GTDD[0], expected.smoothed_state_cov.transpose(2, 0, 1), rtol=1e-6)


def test_series_of_different_scales_together_say_what_each_says_alone():
    """A small and slow latent beside a large and quick one has not arrived when that one has."""

    def alone(a, b, d, start):
        return LinearGaussian(*(np.array([[entry]]) for entry in (a, b, 1.0, d)), np.zeros(1), np.array([[start]]))

    quick, slow = alone(0.5, 1e4, 1e4, 1e8 / 0.75), alone(0.999, 1e-4, 1e-2, 1e-2)
    both = LinearGaussian(
        *(
            np.diag([float(getattr(model, name).item()) for model in (quick, slow)])
            for name in ("transition", "transition_noise", "emission", "emission_noise")
        ),
        np.zeros(2),
        np.diag([1e8 / 0.75, 1e-2]),
    )
    x_BTC = draw(both, 2, 500)
    together = kalman_filter(both, x_BTC)
    ones = [kalman_filter(model, x_BTC[..., [channel]]) for channel, model in enumerate((quick, slow))]
    np.testing.assert_allclose(
        together.log_likelihood_BT, sum(one.log_likelihood_BT for one in ones), rtol=1e-10, atol=1e-10
    )
    smoothed = kalman_smoother(both, together)
    for channel, (model, one) in enumerate(zip((quick, slow), ones, strict=True)):
        expected = kalman_smoother(model, one)
        np.testing.assert_allclose(smoothed.mean_BTD[..., [channel]], expected.mean_BTD, rtol=1e-9)
        np.testing.assert_allclose(
            smoothed.covariance_GTDD[..., channel, channel], expected.covariance_GTDD[..., 0, 0], rtol=1e-9
        )


def test_covariances_that_stand_still_change_nothing(monkeypatch):
    model = random_system(4, 2)
    x_BTC = draw(model, 3, 400)
    short = kalman_filter(model, x_BTC)
    assert short.gains.gain_GSDC.shape[1] < 100
    monkeypatch.setattr(kalman_gains, "STEADY", -1.0)
    long = kalman_filter(model, x_BTC)
    assert long.gains.gain_GSDC.shape[1] == 400
    np.testing.assert_allclose(short.log_likelihood_BT, long.log_likelihood_BT, atol=1e-12)
    for one, other in zip(kalman_smoother(model, short), kalman_smoother(model, long), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_the_band_answers_only_where_it_can_be_trusted(monkeypatch):
    model = random_system(3, 2)
    x_BTC, observed_BTC = draw(model, 3, 80), missing(3, 80, 2)
    centred_BTC = np.where(observed_BTC, x_BTC - model.emission_offset, 0.0)
    monkeypatch.setattr("reducible.models.kalman.banded.HELD", 1)  # one series at a time
    expected = kalman_filter(model, x_BTC, observed_BTC).log_likelihood_BT.sum(1)
    np.testing.assert_allclose(banded_log_likelihood(model, centred_BTC, observed_BTC), expected, atol=1e-8)
    for noise in (np.zeros((3, 3)), 1e-7 * np.eye(3), np.diag([1.0, 1.0, 1e-9])):
        stiff = replace(model, transition_noise=noise)
        assert banded_log_likelihood(stiff, centred_BTC, observed_BTC) is None
        peer = statsmodels_filter(stiff, np.where(observed_BTC, x_BTC, np.nan)[2])
        assert log_likelihood(stiff, x_BTC, observed_BTC)[2] == pytest.approx(peer.loglike(), rel=1e-9)


def test_the_norm_of_an_inverse_is_estimated_from_below_and_closely():
    from scipy.linalg.lapack import dpbtrf

    rng = np.random.default_rng(0)
    for size in (1, 2, 40):
        band = np.stack([rng.uniform(1.0, 3.0, size), rng.uniform(-0.5, 0.5, size)])
        dense = np.diag(band[0]) + np.diag(band[1, :-1], -1) + np.diag(band[1, :-1], 1)
        exact = np.abs(np.linalg.inv(dense)).sum(0).max()
        assert exact / 3 <= inverse_norm(dpbtrf(band, lower=1)[0]) <= exact * (1 + 1e-12)


def test_series_that_miss_the_same_values_share_their_covariances():
    model = random_system(3, 2)
    observed_BTC = np.repeat(missing(3, 20, 2), 5, axis=0)
    x_BTC = draw(model, 15, 20)
    filtered = kalman_filter(model, x_BTC, observed_BTC)
    assert len(filtered.covariance_GTDD) == 3
    alone = [kalman_filter(model, x[None], o[None]) for x, o in zip(x_BTC, observed_BTC, strict=True)]
    np.testing.assert_allclose(filtered.log_likelihood_BT, [a.log_likelihood_BT[0] for a in alone], atol=1e-12)
    np.testing.assert_allclose(filtered.mean_BTD, [a.mean_BTD[0] for a in alone], atol=1e-12)


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("series", [1, 3, 20])
@pytest.mark.parametrize("steps", [1, 7, 8, 9, 100, 700])
def test_a_recursion_without_a_loop_is_the_loop(series, steps, changing):
    rng = np.random.default_rng(steps)
    F_TDD, u_TBD, y_BD = 0.4 * rng.normal(size=(steps, 3, 3)), rng.normal(size=(steps, series, 3)), np.ones((series, 3))
    F_TDD = F_TDD if changing else np.repeat(F_TDD[:1], steps, axis=0)
    y_TBD = np.empty_like(u_TBD)
    if changing:
        changing_recurrence(F_TDD, u_TBD, y_BD, y_TBD)
    else:
        linear_recurrence(F_TDD[0], u_TBD, y_BD, y_TBD)
    for F, u, y in zip(F_TDD, u_TBD, y_TBD, strict=True):
        y_BD = y_BD @ F.T + u
        np.testing.assert_allclose(y, y_BD, atol=1e-10)


@pytest.mark.parametrize("initial", [1.0, 1e7])
@pytest.mark.parametrize(("latents", "channels"), [(1, 1), (4, 2), (3, 5)])
def test_covariances_of_blocks_side_by_side_are_those_step_by_step(monkeypatch, latents, channels, initial):
    model = replace(random_system(latents, channels), initial_covariance=initial * np.eye(latents))
    x_BTC, observed_BTC = draw(model, 3, 200), missing(3, 200, channels)
    observed_BTC[1, -1] = False
    monkeypatch.setattr(kalman_gains, "FEW_STEPS", 10**6)
    one_by_one = kalman_filter(model, x_BTC, observed_BTC)
    monkeypatch.setattr(kalman_gains, "FEW_STEPS", 1)
    monkeypatch.setattr(kalman_gains, "FEW_GROUPS", 0)
    in_blocks = kalman_filter(model, x_BTC, observed_BTC)
    np.testing.assert_allclose(in_blocks.log_likelihood_BT, one_by_one.log_likelihood_BT, atol=1e-9)
    np.testing.assert_allclose(in_blocks.covariance_GTDD, one_by_one.covariance_GTDD, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(in_blocks.mean_BTD, one_by_one.mean_BTD, atol=1e-8)
    smoothed, expected = (kalman_smoother(model, filtered) for filtered in (in_blocks, one_by_one))
    np.testing.assert_allclose(smoothed.mean_BTD, expected.mean_BTD, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(smoothed.lag_GTDD, expected.lag_GTDD, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(smoothed.covariance_GTDD, expected.covariance_GTDD, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 13])
def test_a_block_tridiagonal_matrix_is_what_dense_algebra_says(length):
    generator = torch.Generator().manual_seed(length)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    G, D = 2, 3
    root, below = 0.4 * normal(G, length, D, D), 0.2 * normal(G, length - 1, D, D)
    diagonal = root @ root.mT + 3 * torch.eye(D)
    dense = torch.zeros(G, length, D, length, D, dtype=torch.float64)
    for t in range(length):
        dense[:, t, :, t] = diagonal[:, t]
        if t:
            dense[:, t, :, t - 1], dense[:, t - 1, :, t] = below[:, t - 1], below[:, t - 1].mT
    dense = dense.reshape(G, length * D, length * D)
    factor, h = block_cholesky(diagonal, below), normal(G, length, D, 2)
    torch.testing.assert_close(factor.log_determinant(), torch.logdet(dense))
    torch.testing.assert_close(factor.solve(h).flatten(1, 2), torch.linalg.solve(dense, h.flatten(1, 2)))
    inverse = torch.linalg.inv(dense).reshape(G, length, D, length, D)
    own, lag = factor.inverse_blocks()
    for t in range(length):
        torch.testing.assert_close(own[:, t], inverse[:, t, :, t])
        if t:
            torch.testing.assert_close(lag[:, t - 1], inverse[:, t, :, t - 1])


def test_a_long_run_ends_in_the_stationary_covariance():
    model = random_system(3, 2)
    covariance = stationary(model.transition, model.transition_noise)
    moved = model.transition @ covariance @ model.transition.T + model.transition_covariance
    np.testing.assert_allclose(moved, covariance, atol=1e-12)
    with pytest.raises(ValueError, match=r"transition: its largest eigenvalue is 1\.2"):
        stationary(np.diag([0.5, 1.2]), np.eye(2))


def test_a_long_running_model_starts_as_it_goes_on():
    drawn = random_system(3, 2)
    model = LinearGaussian.long_running(
        drawn.transition, drawn.transition_noise, drawn.emission, drawn.emission_noise, drawn.emission_offset
    )
    values = np.random.default_rng(0).normal(size=(4, 9, 2))
    ahead = forecast(model, kalman_filter(model, np.full((1, 40, 2), np.nan)), 1)
    covariance = model.emission @ model.initial_covariance @ model.emission.T + model.emission_covariance
    np.testing.assert_allclose(ahead.mean_BHC[0, 0], drawn.emission_offset, atol=1e-12)
    np.testing.assert_allclose(ahead.covariance_GHCC[0, 0], covariance, atol=1e-12)
    # Time shifts of such a process change nothing: steps that nobody has seen before the series say nothing.
    unseen = np.concatenate([np.full((4, 5, 2), np.nan), values], axis=1)
    np.testing.assert_allclose(log_likelihood(model, unseen), log_likelihood(model, values), atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emission": [1.0]}, r"emission: has shape \(1,\), must be \(channels, latents\)"),
        ({"transition": [[1.0]]}, r"transition: has shape \(1, 1\); emission of shape \(1, 2\) asks for \(2, 2\)"),
        ({"transition_noise": [[1.0]]}, r"transition_noise: .* asks for \(2, any\)"),
        ({"emission_noise": [[np.nan]]}, "emission_noise: holds a number that is not finite"),
        ({"initial_covariance": np.diag([1.0, -1.0])}, "initial_covariance: has a negative eigenvalue"),
    ],
)
def test_parameters_that_fit_no_model_are_named(changes, message):
    fine = {
        "transition": 0.5 * np.eye(2),
        "transition_noise": np.eye(2),
        "emission": [[1.0, 0.0]],
        "emission_noise": [[1.0]],
        "initial_mean": [0.0, 0.0],
        "initial_covariance": np.eye(2),
    }
    LinearGaussian(**fine)
    with pytest.raises(ValueError, match=message):
        LinearGaussian(**{**fine, **changes})


def test_values_that_do_not_fit_are_named():
    model = random_system(2, 2)
    with pytest.raises(ValueError, match=r"values: have shape \(1, 5, 3\), must be \(series, steps, 2\)"):
        kalman_filter(model, np.zeros((1, 5, 3)))
    with pytest.raises(ValueError, match="values: hold a number that is not finite and that `observed` marks"):
        kalman_filter(model, np.full((1, 5, 2), np.nan), np.ones((1, 5, 2), bool))
    still = LinearGaussian(
        np.eye(1), np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1))
    )
    with pytest.raises(ValueError, match="emission_noise: some observed values have no noise"):
        kalman_filter(still, np.zeros((1, 3, 1)))
