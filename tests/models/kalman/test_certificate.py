"""The floors of each form of q: published numbers, dense algebra, and plain numerical optimisation of q."""

import numpy as np
import pytest
import torch
from kalman_cases import Dense, draw, random_system
from scipy.optimize import minimize

from reducible.models.kalman.certificate import FORMS, causal_gaps, certificate
from reducible.models.kalman.filter import LinearGaussian, log_likelihood


def autoregression(a=0.9, q=1.0, r=1.0):
    return LinearGaussian([[a]], [[q]], [[1.0]], [[r]], [0.0], [[q * q / (1 - a * a)]])


def test_the_floors_of_an_autoregression():
    """AR(0.9), q = r = 1, 40 steps: exact 1.887 nats a step, gaps 0.0613 and 0.1851."""
    found = certificate(autoregression(), 40)
    assert found.negative_log_likelihood / 40 == pytest.approx(1.887, abs=5e-4)
    assert found.bidirectional / 40 == pytest.approx(0.0613, abs=5e-5)
    assert found.causal / 40 == pytest.approx(0.1851, abs=5e-5)
    assert found.floor("structured") == found.negative_log_likelihood / 40
    assert found.floor("causal") == pytest.approx(found.negative_log_likelihood / 40 + 0.1851, abs=5e-5)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(("latents", "channels", "steps"), [(1, 1, 5), (2, 3, 6), (3, 1, 4), (2, 2, 1)])
def test_the_floors_are_those_of_dense_algebra(latents, channels, steps, gaps):
    """The causal one by solving for every weight of every past value at once."""
    model = random_system(latents, channels)
    observed_TC = np.ones((steps, channels), bool)
    if gaps:
        observed_TC = np.random.default_rng(steps).random((steps, channels)) < 0.6
    found = certificate(model, steps, observed_TC)
    dense, kept = Dense(model, steps), observed_TC.ravel()
    xx, xz = dense.xx[np.ix_(kept, kept)], dense.xz[kept]
    weights = np.linalg.solve(xx, xz).T
    precision = np.linalg.inv(dense.zz - weights @ xz)
    _, joint = np.linalg.slogdet(precision)
    own = [precision[t : t + latents, t : t + latents] for t in range(0, steps * latents, latents)]
    factorised = 0.5 * (sum(np.linalg.slogdet(block)[1] for block in own) - joint)
    assert found.bidirectional == pytest.approx(factorised, abs=1e-9)
    entropy = 0.5 * (kept.sum() * (1 + np.log(2 * np.pi)) + np.linalg.slogdet(xx)[1])
    assert found.negative_log_likelihood == pytest.approx(entropy, abs=1e-9)

    past = np.repeat(np.arange(steps), channels)[kept][None] <= np.repeat(np.arange(steps), latents)[:, None]
    rows, columns = np.nonzero(past)
    normal = precision[np.ix_(rows, rows)] * xx[np.ix_(columns, columns)]
    causal = np.zeros_like(weights)
    causal[past] = np.linalg.solve(normal, (precision @ weights @ xx)[past])
    left = weights - causal
    excess = 0.5 * np.trace(left.T @ precision @ left @ xx)
    assert found.causal - found.bidirectional == pytest.approx(excess, abs=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("latents", "channels", "diagonal"), [(1, 1, True), (2, 1, False), (2, 1, True), (1, 2, False)]
)
def test_optimising_q_numerically_ends_at_its_floor(form, latents, channels, diagonal):
    """Nothing but the definition: E[log q - log p(x, z)] over linear-Gaussian q of that form, by L-BFGS.

    z_t = sum of weights x values + weights x z_{t-1} (structured) + noise of free covariance, or of independent ones.
    """
    steps = 3
    model = random_system(latents, channels, seed=3)
    dense = Dense(model, steps)
    Z, X = steps * latents, steps * channels
    joint = np.block([[dense.xx, dense.xz], [dense.xz.T, dense.zz]])
    joint_precision, joint_log_determinant = (
        torch.tensor(np.linalg.inv(joint)),
        float(np.linalg.slogdet(joint)[1]),
    )
    xx = torch.tensor(dense.xx)
    of_z, of_x = np.repeat(np.arange(steps), latents), np.repeat(np.arange(steps), channels)
    allowed = {
        "causal": of_x[None] <= of_z[:, None],
        "bidirectional": np.ones((Z, X), bool),
        "structured": of_x[None] >= of_z[:, None],
    }[form]
    chained = (of_z[None] == of_z[:, None] - 1) & (form == "structured")
    inside = np.eye(Z, dtype=bool) if diagonal else (of_z[None] == of_z[:, None]) & np.tri(Z, dtype=bool)
    masks = [torch.tensor(mask) for mask in (allowed, chained, inside)]

    def miss(raw):
        """Nats that the bound misses; means drop out, for every distribution here may be centred."""
        leaf = torch.tensor(raw, requires_grad=True)
        parts = leaf.split([int(mask.sum()) for mask in masks])
        read, chain, noise = (
            torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, part)
            for mask, part in zip(masks, parts, strict=True)
        )
        factor = noise.tril(-1) + noise.diagonal().exp().diag_embed()
        spread = torch.linalg.inv(torch.eye(Z, dtype=torch.float64) - chain)
        weights = spread @ read
        zz = weights @ xx @ weights.T + spread @ factor @ factor.T @ spread.T
        moments = torch.cat([torch.cat([xx, xx @ weights.T], 1), torch.cat([weights @ xx, zz], 1)])
        log_joint = -0.5 * (joint_log_determinant + (joint_precision * moments).sum() + (X + Z) * np.log(2 * np.pi))
        entropy = noise.diagonal().sum() + 0.5 * Z * (1 + np.log(2 * np.pi))
        exact = -0.5 * (X * (1 + np.log(2 * np.pi)) + float(np.linalg.slogdet(dense.xx)[1]))
        value = exact - log_joint - entropy
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    start = np.random.default_rng(0).normal(size=sum(int(mask.sum()) for mask in masks)) * 0.1
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-9}
    reached = minimize(miss, start, jac=True, method="L-BFGS-B", options=options).fun
    assert reached == pytest.approx(getattr(certificate(model, steps, diagonal=diagonal), form), abs=1e-5)


def test_the_ladder_exact_structured_bidirectional_causal():
    for seed in range(10):
        model = random_system(1 + seed % 4, 1 + seed % 3, seed=seed)
        narrow = certificate(model, 20, diagonal=True)
        assert 0.0 <= narrow.structured < narrow.bidirectional < narrow.causal
        assert (narrow.structured < 1e-12) == (model.latents == 1)
        found = certificate(model, 20)
        assert narrow.bidirectional >= found.bidirectional - 1e-12
        assert found.structured == pytest.approx(0, abs=1e-12) and found.structured < found.bidirectional < found.causal
        floors = [found.floor(form) for form in FORMS]
        assert found.negative_log_likelihood / 20 <= floors[0] < floors[1] < floors[2]


def test_the_exact_likelihood_is_what_drawn_series_average():
    model = random_system(2, 2)
    nats = -log_likelihood(model, draw(model, 2000, 15))
    expected = certificate(model, 15).negative_log_likelihood
    assert abs(nats.mean() - expected) < 4 * nats.std() / len(nats) ** 0.5


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_best_causal_q_misses_as_much_on_drawn_series_as_on_average(diagonal):
    model = random_system(2, 2)
    gaps = causal_gaps(model, draw(model, 4000, 8), diagonal)
    found = certificate(model, 8, diagonal=diagonal)
    assert abs(gaps.mean() - found.causal) < 4 * gaps.std() / len(gaps) ** 0.5
    assert gaps.min() >= found.bidirectional
    assert gaps.std() > 0.1
    # No causal means do better: moving the values of the future, and those alone, moves no mean of the past.
    alone = causal_gaps(model, draw(model, 3, 1), diagonal)[0]
    assert certificate(model, 1, diagonal=diagonal).causal == pytest.approx(alone, abs=1e-12)


def test_without_memory_every_form_is_tight():
    model = LinearGaussian([[0.0]], [[1.0]], [[2.0]], [[0.5]], [0.0], [[1.0]])
    found = certificate(model, 10)
    assert found.bidirectional == pytest.approx(0, abs=1e-12)
    assert found.causal == pytest.approx(0, abs=1e-12)


def test_the_gap_of_a_long_series_grows_by_the_same_every_step():
    model = random_system(3, 2)
    assert certificate(model, 200).causal - certificate(model, 199).causal == pytest.approx(
        certificate(model, 300).causal - certificate(model, 299).causal, abs=1e-9
    )


def test_a_model_that_learns_its_own_p_can_come_below_the_floor_of_the_true_one():
    """Another autoregression costs likelihood and gains more in the gap: floors bind encoders, not generators."""
    steps, true = 40, autoregression()
    other = LinearGaussian([[0.819]], [[1.388]], [[1.0]], [[0.642]], [0.0], [[5.84]])
    drawn, seen = Dense(true, steps).xx, Dense(other, steps).xx
    nats = 0.5 * (steps * np.log(2 * np.pi) + np.linalg.slogdet(seen)[1] + np.trace(np.linalg.solve(seen, drawn)))
    loss = (nats + certificate(other, steps).bidirectional) / steps
    exact = certificate(true, steps).negative_log_likelihood / steps
    assert loss - exact == pytest.approx(0.0241, abs=2e-4)
    assert loss < certificate(true, steps).floor("bidirectional")


def test_a_latent_without_noise_has_no_floor():
    with pytest.raises(ValueError, match="transition_noise: does not have full rank"):
        certificate(LinearGaussian(np.eye(1), np.zeros((1, 1)), np.eye(1), np.eye(1), np.zeros(1), np.eye(1)), 3)
