"""Learning linear-Gaussian models: EM, gradients, and the family that trains on series."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from kalman_cases import draw, missing, random_system
from torch.utils.flop_counter import FlopCounterMode

from reducible.models.cost.ledger import Lengths
from reducible.models.families.linear_gaussian import LinearGaussianConfig, LinearGaussianModel, linear_gaussian_cost
from reducible.models.families.registry import family
from reducible.models.kalman.filter import LinearGaussian, diffuse, forecast, kalman_filter, log_likelihood
from reducible.models.kalman.fit import TENSORS, fit_by_em, fit_by_gradient, log_likelihood_with_gradient
from reducible.models.kalman.precision_form import factor_of, packed_of, parameters_of, posterior

EVERYTHING = tuple(TENSORS)


def batch_of(x_BTC, observed_BTC=None, lengths=None):
    """A batch as data hands it over: 0 where missing or behind the end."""
    B, T, C = x_BTC.shape
    steps = np.arange(T) < np.array(lengths or [T] * B)[:, None]
    observed = (np.ones_like(x_BTC, bool) if observed_BTC is None else observed_BTC) & steps[..., None]
    values = np.where(observed, x_BTC, 0.0).astype(np.float32)
    return {"values": torch.tensor(values), "observed": torch.tensor(observed), "steps": torch.tensor(steps)}


@pytest.fixture(scope="module")
def system():
    return random_system(3, 2)


@pytest.fixture(scope="module")
def drawn(system):
    return draw(system, 5, 24), missing(5, 24, 2)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", EVERYTHING)
def test_the_gradient_is_the_numeric_one(system, drawn, name, gaps):
    """Central differences of the filter's likelihood, which shares nothing with the gradient's code."""
    x_BTC, observed_BTC = drawn
    observed_BTC = observed_BTC if gaps else np.ones_like(observed_BTC)
    parameters = parameters_of(system)
    leaf = getattr(parameters, TENSORS[name]).clone().requires_grad_()
    value = log_likelihood_with_gradient(
        parameters._replace(**{TENSORS[name]: leaf}), torch.tensor(x_BTC), torch.tensor(observed_BTC)
    )
    value.backward()
    assert value.item() == pytest.approx(log_likelihood(system, x_BTC, observed_BTC).sum(), abs=1e-8)

    way = np.random.default_rng(0).normal(size=leaf.shape)
    way = np.tril(way) if TENSORS[name].endswith("factor") else way

    def along(step):
        moved = leaf.detach().numpy() + step * way
        fields = {field: getattr(system, field) for field in system.__dataclass_fields__}
        fields[name] = moved @ moved.T if name == "initial_covariance" else moved
        return log_likelihood(LinearGaussian(**fields), x_BTC, observed_BTC).sum()

    step = 1e-5
    numeric = (along(step) - along(-step)) / (2 * step)
    assert (leaf.grad.numpy() * way).sum() == pytest.approx(numeric, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(
    "free", [EVERYTHING, ("transition_noise", "emission_noise"), ("transition", "emission_offset")]
)
def test_no_step_of_em_lowers_the_likelihood(system, drawn, free, gaps):
    x_BTC, observed_BTC = drawn
    observed_BTC = observed_BTC if gaps else None
    start = random_system(3, 2, seed=7)
    fit = fit_by_em(start, x_BTC, observed_BTC, free=free, steps=40, tolerance=0.0)
    assert all(after >= before - 1e-9 for before, after in pairwise(fit.log_likelihoods))
    assert fit.log_likelihoods[-1] > fit.log_likelihoods[0] + 5
    reached = log_likelihood(fit.model, x_BTC, observed_BTC).sum()
    assert fit.log_likelihoods[-1] == pytest.approx(reached, abs=1e-7)
    for name in set(EVERYTHING) - set(free):
        np.testing.assert_allclose(getattr(fit.model, name), getattr(start, name), atol=1e-12)


def test_em_and_gradient_meet_at_an_optimum_for_several_series_with_gaps():
    system = random_system(1, 2, radius=0.8)
    x_BTC, observed_BTC = draw(system, 10, 40), missing(10, 40, 2)
    free = ("transition", "latent_offset", "emission_noise")
    by_em = fit_by_em(system, x_BTC, observed_BTC, free=free, steps=500, tolerance=1e-7)
    by_gradient = fit_by_gradient(system, x_BTC, observed_BTC, free=free, tolerance=1e-9)
    assert by_em.converged and by_gradient.converged
    assert by_em.log_likelihoods[-1] == pytest.approx(by_gradient.log_likelihoods[-1], abs=1e-4)
    np.testing.assert_allclose(by_em.model.transition, by_gradient.model.transition, atol=5e-3)


@pytest.mark.parametrize("skip", [0, 1])
def test_the_optimum_of_the_nile_is_a_published_one(skip):
    """Durbin and Koopman 2012, 2.10: 15099 and 1469.1; flat, so that the variances are found less sharply."""
    nile = pytest.importorskip("statsmodels.datasets").nile.load_pandas().data["volume"].to_numpy()[None, :, None]
    start = LinearGaussian([[1.0]], [[50.0]], [[1.0]], [[100.0]], [0.0], diffuse(1))
    free = ("transition_noise", "emission_noise")
    fits = [fit_by_gradient(start, nile, free=free, skip=skip, tolerance=1e-8)]
    if not skip:
        fits.append(fit_by_em(start, nile, free=free, steps=600, tolerance=1e-9))
    published = log_likelihood(
        LinearGaussian([[1.0]], [[1469.1**0.5]], [[1.0]], [[15099**0.5]], [0.0], diffuse(1)), nile, skip=skip
    )[0]
    for fit in fits:
        assert fit.converged
        assert fit.log_likelihoods[-1] == pytest.approx(published, abs=1e-6)
        assert fit.log_likelihoods[-1] >= published
        assert fit.model.emission_covariance[0, 0] == pytest.approx(15099, rel=2e-3)
        assert fit.model.transition_covariance[0, 0] == pytest.approx(1469.1, rel=2e-3)


def test_what_cannot_be_learnt_is_said():
    model = random_system(2, 1)
    with pytest.raises(ValueError, match="free: 'noise' is not a parameter; the parameters are transition"):
        fit_by_em(model, draw(model, 1, 9), free=["noise"])
    still = LinearGaussian(np.eye(1), np.zeros((1, 1)), np.eye(1), np.eye(1), np.zeros(1), np.eye(1))
    with pytest.raises(ValueError, match="transition_covariance: does not have full rank"):
        fit_by_em(still, np.zeros((1, 9, 1)))
    deaf = LinearGaussian(np.eye(1), np.eye(1), np.zeros((1, 1)), np.eye(1), np.zeros(1), np.eye(1))
    with pytest.raises(ValueError, match="emission_noise: these series leave no noise"):
        fit_by_em(deaf, np.ones((1, 9, 1)), free=["emission_offset", "emission_noise"])


# The family -------------------------------------------------------------------------------------------------------


@pytest.fixture
def module(system):
    model = LinearGaussianModel(LinearGaussianConfig(channels=2, width=3))
    model.set(system)
    return model


def test_the_loss_is_the_exact_likelihood_whatever_is_missing_or_padded(system, drawn, module):
    x_BTC, observed_BTC = drawn
    lengths = [24, 24, 1, 7, 20]
    batch = batch_of(x_BTC, observed_BTC, lengths)
    alone = [
        log_likelihood(
            module.known(), batch["values"][row : row + 1, :length], batch["observed"][row : row + 1, :length]
        )
        for row, length in enumerate(lengths)
    ]
    with torch.no_grad():
        loss = module(batch)
    assert loss.units.item() == sum(lengths)
    assert loss.nats.item() == pytest.approx(-np.sum(alone), rel=1e-6)
    assert module(batch).nats.item() == pytest.approx(loss.nats.item(), rel=1e-7)
    np.testing.assert_allclose(module.log_likelihood(batch), np.concatenate(alone), atol=1e-9)
    np.testing.assert_allclose(module.known().transition, system.transition, rtol=1e-6)


def test_the_loss_of_parts_is_the_loss_of_the_whole(drawn, module):
    """Sums and counts: gradients of two micro-batches add up to that of the batch."""
    batch = batch_of(*drawn)
    module(batch).nats.backward()
    whole = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    for rows in (slice(0, 2), slice(2, 5)):
        module({name: tensor[rows] for name, tensor in batch.items()}).nats.backward()
    for parameter, gradient in zip(module.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-4)


def test_training_comes_down_to_what_the_source_allows(system):
    x_BTC = draw(system, 64, 40)
    batch = batch_of(x_BTC)
    torch.manual_seed(0)
    model = family("linear-gaussian").build(LinearGaussianConfig(channels=2, width=4))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.06)
    for _ in range(80):
        optimiser.zero_grad()
        loss = model(batch)
        (loss.nats / loss.units).backward()
        optimiser.step()
    exact = -log_likelihood(system, x_BTC).sum() / loss.units.item()
    assert exact - 0.05 < loss.nats.item() / loss.units.item() < exact + 0.05


def test_forecasts_have_the_exact_moments(system, drawn, module):
    x_BTC, observed_BTC = drawn
    lengths = [24, 11, 24, 3, 24]
    batch = batch_of(x_BTC, observed_BTC, lengths)
    torch.manual_seed(0)
    drawn_SBHC = module.forecast(batch, horizon=3, samples=20_000).double()
    assert drawn_SBHC.shape == (20_000, 5, 3, 2)
    predicted_BHC, deviation_BHC = module.predict(batch, horizon=3)
    for row, length in enumerate(lengths):
        one = (batch["values"][row : row + 1, :length].numpy(), batch["observed"][row : row + 1, :length].numpy())
        exact = forecast(system, kalman_filter(system, *one), 3)
        deviation = np.sqrt(np.diagonal(exact.covariance_GHCC[0], axis1=1, axis2=2))
        np.testing.assert_allclose(predicted_BHC[row], exact.mean_BHC[0], atol=1e-5)
        np.testing.assert_allclose(deviation_BHC[row], deviation, rtol=1e-5)
        error = (drawn_SBHC[:, row].mean(0).numpy() - exact.mean_BHC[0]) / deviation
        assert np.abs(error).max() < 5 / 20_000**0.5
        np.testing.assert_allclose(drawn_SBHC[:, row].std(0).numpy(), deviation, rtol=0.03)


def test_parameters_that_make_no_model_give_a_loss_that_is_not_finite(drawn, module):
    """The train loop stops such a run as diverged; an exception would look like a defect."""
    with torch.no_grad():
        module.transition.fill_(1e30)
    assert not module(batch_of(*drawn)).nats.isfinite()


@pytest.mark.gpu
def test_a_gpu_computes_the_same(drawn, module):
    batch = batch_of(*drawn)
    module(batch).nats.backward()
    expected = [p.grad.clone() for p in module.parameters()]
    there = LinearGaussianModel(module.config).cuda()
    there.load_state_dict(module.state_dict())
    moved = {name: tensor.cuda() for name, tensor in batch.items()}
    there(moved).nats.backward()
    for parameter, gradient in zip(there.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), gradient, rtol=1e-5, atol=1e-4)
    assert there.forecast(moved, 3, 10).shape == (10, 5, 3, 2)


def test_a_factor_is_packed_and_unpacked():
    factor = torch.tensor([[2.0, 0, 0], [0.3, 1.5, 0], [-1, 0.2, 0.1]], dtype=torch.float64)
    assert len(packed_of(factor)) == 6
    torch.testing.assert_close(factor_of(packed_of(factor)), factor)
    torch.testing.assert_close(factor_of(torch.zeros(3)), torch.eye(2))


def test_every_parameter_is_in_one_group_and_none_decays():
    model = LinearGaussianModel(LinearGaussianConfig(channels=2, width=16))
    groups = model.parameter_groups()
    grouped = [id(p) for group in groups for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert {group.name: group.rate for group in groups} == {"matrices": 0.5, "vectors": 1.0}
    assert all(group.decay == 0 for group in groups)


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_a_fresh_model_is_stable(width):
    model = LinearGaussianModel(LinearGaussianConfig(channels=3, width=width))
    assert torch.linalg.eigvals(model.transition.detach()).abs().max() < 1
    assert model(batch_of(np.random.default_rng(0).normal(size=(2, 30, 3)))).nats.isfinite()


@pytest.mark.parametrize(("key", "value"), [("width", 0), ("width", 2.0), ("channels", True)])
def test_a_bad_key_is_named(key, value):
    with pytest.raises(ValueError, match=f"model.{key}: {value!r} must be a whole number of at least 1"):
        LinearGaussianConfig(**{"channels": 2, "width": 3, key: value})


@pytest.mark.parametrize(("channels", "width"), [(1, 1), (2, 3), (5, 4)])
@pytest.mark.parametrize("training", [False, True])
def test_the_cost_is_what_torch_counts(channels, width, training):
    """Between two lengths, so that what a batch needs once drops out. Factors and solves count nothing in either."""
    config = LinearGaussianConfig(channels, width)
    model = LinearGaussianModel(config)
    assert linear_gaussian_cost(config, Lengths.fixed(9)).parameters == sum(p.numel() for p in model.parameters())

    def counted(steps):
        batch = batch_of(np.random.default_rng(0).normal(size=(1, steps, channels)))
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
            nats = model(batch).nats
            if training:
                nats.backward()
        return counter.get_total_flops()

    def expected(steps):
        cost = linear_gaussian_cost(config, Lengths.fixed(steps))
        return steps * (cost.training_flops_per_unit if training else cost.forward_flops_per_unit)

    for short, long in ((2, 100), (16, 48), (7, 30)):
        assert counted(long) - counted(short) == pytest.approx(expected(long) - expected(short), rel=1e-12)


def test_series_that_miss_the_same_share_their_factor(system):
    observed_BTC = np.repeat(missing(2, 16, 2), 4, axis=0)
    x_BTC = draw(system, 8, 16)
    given = posterior(parameters_of(system), torch.tensor(x_BTC), torch.tensor(observed_BTC))
    assert len(given.factor.last_GDD) == 2
    np.testing.assert_allclose(given.log_likelihood_B, log_likelihood(system, x_BTC, observed_BTC), atol=1e-9)
