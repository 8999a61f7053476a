"""The estimators against a linear-Gaussian model: marginal likelihood, posterior and mutual information are exact."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from reducible.models.layers.gaussian import Gaussian, log_standard_normal
from reducible.models.layers.latent_estimators import active_units, importance_weighted, mutual_information

LATENT, OBSERVED, NOISE = 3, 5, 0.4


@dataclass
class LinearGaussian:
    """z ~ N(0, I), x = W z + b + NOISE e; q(z|x) = N(mixing (x - b), diag(sigma^2)). Everything in float64."""

    weight_XZ: Tensor
    bias_X: Tensor
    mixing_ZX: Tensor
    sigma_Z: Tensor

    def posterior(self, batch: dict[str, Tensor]) -> Gaussian:
        mean_BZ = (batch["x"] - self.bias_X) @ self.mixing_ZX.T
        return Gaussian(mean_BZ, self.sigma_Z.log().expand_as(mean_BZ))

    def log_likelihood(self, batch: dict[str, Tensor], z_KBZ: Tensor) -> Tensor:
        return Normal(z_KBZ @ self.weight_XZ.T + self.bias_X, NOISE).log_prob(batch["x"]).sum(-1)

    # What is exact ----------------------------------------------------------------------------------------------------

    @property
    def covariance_XX(self) -> Tensor:
        return self.weight_XZ @ self.weight_XZ.T + NOISE**2 * torch.eye(OBSERVED, dtype=torch.float64)

    def log_marginal(self, x_BX: Tensor) -> np.ndarray:
        return multivariate_normal(self.bias_X.numpy(), self.covariance_XX.numpy()).logpdf(x_BX.numpy())

    def exact_posterior(self, x_BX: Tensor) -> MultivariateNormal:
        precision_ZZ = torch.eye(LATENT, dtype=torch.float64) + self.weight_XZ.T @ self.weight_XZ / NOISE**2
        covariance_ZZ = precision_ZZ.inverse()
        mean_BZ = (x_BX - self.bias_X) @ (covariance_ZZ @ self.weight_XZ.T / NOISE**2).T
        return MultivariateNormal(mean_BZ, covariance_ZZ)

    def information(self) -> float:
        """I(x; z) under q where x is distributed as the model says: the aggregate posterior is normal too."""
        spread_ZZ = torch.diag(self.sigma_Z**2)
        aggregate_ZZ = self.mixing_ZX @ self.covariance_XX @ self.mixing_ZX.T + spread_ZZ
        return 0.5 * float(torch.logdet(aggregate_ZZ) - torch.logdet(spread_ZZ))

    def draw(self, count: int) -> dict[str, Tensor]:
        z_BZ = torch.randn(count, LATENT, dtype=torch.float64)
        noise_BX = torch.randn(count, OBSERVED, dtype=torch.float64)
        return {"x": z_BZ @ self.weight_XZ.T + self.bias_X + NOISE * noise_BX}


def model_with_a_diagonal_posterior() -> LinearGaussian:
    """Columns of W are orthogonal, so the exact posterior is diagonal, and q is it."""
    torch.manual_seed(0)
    columns_XZ = torch.linalg.qr(torch.randn(OBSERVED, LATENT, dtype=torch.float64)).Q
    weight_XZ = columns_XZ * torch.tensor([1.5, 0.8, 0.3], dtype=torch.float64)
    bias_X = torch.randn(OBSERVED, dtype=torch.float64)
    variance_Z = 1 / (1 + weight_XZ.square().sum(0) / NOISE**2)
    return LinearGaussian(weight_XZ, bias_X, variance_Z[:, None] * weight_XZ.T / NOISE**2, variance_Z.sqrt())


def model_with_a_wrong_posterior() -> LinearGaussian:
    """W is anything, and q has other means and is too wide: it covers the exact posterior, and misses it."""
    torch.manual_seed(1)
    weight_XZ = torch.randn(OBSERVED, LATENT, dtype=torch.float64)
    model = LinearGaussian(weight_XZ, torch.randn(OBSERVED, dtype=torch.float64), torch.zeros(0), torch.zeros(0))
    covariance_ZZ = model.exact_posterior(torch.zeros(1, OBSERVED, dtype=torch.float64)).covariance_matrix[0]
    model.mixing_ZX = 0.9 * covariance_ZZ @ weight_XZ.T / NOISE**2
    model.sigma_Z = 1.5 * covariance_ZZ.diagonal().sqrt()
    return model


def test_divergence_is_torchs_own() -> None:
    torch.manual_seed(0)
    q = Gaussian(torch.randn(7, 4), torch.randn(7, 4))
    expected_BZ = kl_divergence(Normal(q.mean_BZ, q.log_sigma_BZ.exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(q.divergence(), expected_BZ)


def test_densities_are_torchs_own() -> None:
    torch.manual_seed(0)
    q = Gaussian(torch.randn(7, 4), torch.randn(7, 4))
    z_KBZ = q.sample(3)
    expected_KB = Independent(Normal(q.mean_BZ, q.log_sigma_BZ.exp()), 1).log_prob(z_KBZ)
    torch.testing.assert_close(q.log_density(z_KBZ), expected_KB)
    torch.testing.assert_close(log_standard_normal(z_KBZ), Independent(Normal(torch.zeros(4), 1.0), 1).log_prob(z_KBZ))


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_with_the_exact_posterior_every_weight_is_the_marginal_likelihood(samples: int) -> None:
    model = model_with_a_diagonal_posterior()
    batch = model.draw(20)
    found = importance_weighted(model, batch, samples, at_once=3)
    np.testing.assert_allclose(found.log_likelihood_B, model.log_marginal(batch["x"]), rtol=1e-12)
    np.testing.assert_allclose(found.effective_B, samples, rtol=1e-9)


def test_with_a_wrong_posterior_the_estimate_rises_to_the_marginal_likelihood() -> None:
    model = model_with_a_wrong_posterior()
    batch = model.draw(40)
    exact = float(model.log_marginal(batch["x"]).mean())
    torch.manual_seed(0)
    found = {
        samples: np.mean(
            [float(importance_weighted(model, batch, samples, 1000).log_likelihood_B.mean()) for _ in range(5)]
        )
        for samples in (1, 10, 100, 10_000)
    }
    gaps = [exact - estimate for estimate in found.values()]
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0
    assert gaps[-1] == pytest.approx(0, abs=2e-3)


def test_the_elbo_misses_the_marginal_likelihood_by_the_divergence_from_the_posterior() -> None:
    """One importance sample is the ELBO on average; the gap is KL(q || p(z|x)) in closed form."""
    model = model_with_a_wrong_posterior()
    batch = model.draw(10)
    q = model.posterior(batch)
    gap_B = kl_divergence(
        MultivariateNormal(q.mean_BZ, torch.diag_embed((2 * q.log_sigma_BZ).exp())), model.exact_posterior(batch["x"])
    )
    expected_B = torch.from_numpy(model.log_marginal(batch["x"])) - gap_B
    torch.manual_seed(0)
    draws = 20_000
    elbo_KB = model.log_likelihood(batch, q.sample(draws)) - q.divergence().sum(-1)
    error_B = elbo_KB.std(0) / math.sqrt(draws)
    assert ((elbo_KB.mean(0) - expected_B).abs() < 4 * error_B).all()
    assert float(gap_B.min()) > 20 * float(error_B.max())
    several_KB = importance_weighted(model, {"x": batch["x"].repeat(draws, 1)}, 1, 1).log_likelihood_B.view(draws, -1)
    assert ((several_KB.mean(0) - expected_B).abs() < 4 * several_KB.std(0) / math.sqrt(draws)).all()


def test_many_samples_at_a_time_and_few_are_one_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with_a_wrong_posterior()
    batch = model.draw(5)
    noise_KBZ = torch.randn(50, 5, LATENT, dtype=torch.float64)
    found = []
    for at_once in (1, 4, 50):
        rest = iter(noise_KBZ)

        def sample(q: Gaussian, count: int, rest: Iterator[Tensor] = rest) -> Tensor:
            return q.mean_BZ + q.log_sigma_BZ.exp() * torch.stack([next(rest) for _ in range(count)])

        monkeypatch.setattr(Gaussian, "sample", sample)
        found.append(importance_weighted(model, batch, 50, at_once))
    weight_KB = (
        model.log_likelihood(batch, z_KBZ := model.posterior(batch).mean_BZ + model.sigma_Z * noise_KBZ)
        + log_standard_normal(z_KBZ)
        - model.posterior(batch).log_density(z_KBZ)
    ).numpy()
    for one in found:
        np.testing.assert_allclose(one.log_likelihood_B, np.log(np.exp(weight_KB).mean(0)))
        np.testing.assert_allclose(one.effective_B, np.exp(weight_KB).sum(0) ** 2 / np.exp(2 * weight_KB).sum(0))


@pytest.mark.parametrize("model", [model_with_a_diagonal_posterior(), model_with_a_wrong_posterior()])
def test_mutual_information_lies_between_its_two_estimates(model: LinearGaussian) -> None:
    exact = model.information()
    torch.manual_seed(0)
    batch = model.draw(3000)
    q = model.posterior(batch)
    found = mutual_information(q, q.sample(1)[0])
    lower, upper = float(found.lower_N.mean()), float(found.upper_N.mean())
    error = float(found.upper_N.std()) / math.sqrt(3000)
    assert exact > 1.5
    assert lower < upper
    assert lower - 4 * error < exact < upper + 4 * error
    assert lower == pytest.approx(exact, abs=0.1) and upper == pytest.approx(exact, abs=0.1)


def test_few_examples_bound_the_lower_estimate_by_their_logarithm() -> None:
    torch.manual_seed(0)
    apart = Gaussian(100.0 * torch.arange(8.0)[:, None], torch.zeros(8, 1))
    found = mutual_information(apart, apart.sample(1)[0])
    torch.testing.assert_close(found.lower_N, torch.full((8,), math.log(8), dtype=torch.float64))
    assert float(found.upper_N.min()) > 1000


def test_posteriors_that_are_all_alike_tell_nothing() -> None:
    torch.manual_seed(0)
    alike = Gaussian(torch.full((50, 4), 0.3), torch.full((50, 4), -0.2))
    for found in mutual_information(alike, alike.sample(1)[0]):
        torch.testing.assert_close(found, torch.zeros(50, dtype=torch.float64), atol=1e-12, rtol=0)


def test_mutual_information_of_many_examples_is_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the definition, pair by pair."""
    torch.manual_seed(0)
    q = Gaussian(torch.randn(11, 3), 0.3 * torch.randn(11, 3))
    z_NZ = q.sample(1)[0]
    monkeypatch.setattr("reducible.models.layers.latent_estimators.PAIRS_AT_ONCE", 25)
    found = mutual_information(q, z_NZ)
    density_NN = np.array(
        [
            [
                sum(
                    -0.5 * ((z - m) / np.exp(s)) ** 2 - s - 0.5 * np.log(2 * np.pi)
                    for z, m, s in zip(z_NZ[i].tolist(), q.mean_BZ[j].tolist(), q.log_sigma_BZ[j].tolist(), strict=True)
                )
                for j in range(11)
            ]
            for i in range(11)
        ]
    )
    own = density_NN.diagonal()
    np.testing.assert_allclose(found.lower_N, own - np.log(np.exp(density_NN).mean(1)), rtol=1e-6)
    others = np.exp(density_NN)
    np.fill_diagonal(others, 0)
    np.testing.assert_allclose(found.upper_N, own - np.log(others.sum(1) / 10), rtol=1e-6)


def test_active_units_are_those_whose_means_vary() -> None:
    """A wide posterior around one mean is no active unit, though it differs from the prior."""
    torch.manual_seed(0)
    mean_NZ = torch.stack([torch.randn(1000), 0.05 * torch.randn(1000), 0.2 * torch.randn(1000) + 3, torch.ones(1000)])
    assert active_units(mean_NZ.T).tolist() == [True, False, True, False]
