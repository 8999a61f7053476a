"""Random linear-Gaussian systems, series drawn from them, and what dense algebra says about both."""

import numpy as np

from reducible.models.kalman.filter import LinearGaussian, stationary


def random_system(latents, channels, seed=0, radius=0.9):
    """A stable system in which no parameter is 0 and no noise is diagonal."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(latents, latents))
    A *= radius / np.abs(np.linalg.eigvals(A)).max()
    B = np.tril(rng.normal(size=(latents, latents)), -1) * 0.3 / latents**0.5 + 0.6 * np.eye(latents)
    D = np.tril(rng.normal(size=(channels, channels)), -1) * 0.3 / channels**0.5 + 0.5 * np.eye(channels)
    return LinearGaussian(
        A,
        B,
        rng.normal(size=(channels, latents)),
        D,
        rng.normal(size=latents),
        stationary(A, B) + 0.1 * np.eye(latents),
        0.1 * rng.normal(size=latents),
        rng.normal(size=channels),
    )


def draw(model, series, steps, seed=0):
    """(B, T, C) values of the model."""
    rng = np.random.default_rng(seed)
    z_BD = rng.multivariate_normal(model.initial_mean, model.initial_covariance, size=series)
    x_TBC = []
    for _ in range(steps):
        noise = rng.normal(size=(series, model.emission_noise.shape[1])) @ model.emission_noise.T
        x_TBC.append(z_BD @ model.emission.T + model.emission_offset + noise)
        moved = rng.normal(size=(series, model.transition_noise.shape[1])) @ model.transition_noise.T
        z_BD = z_BD @ model.transition.T + model.latent_offset + moved
    return np.stack(x_TBC, axis=1)


def missing(series, steps, channels, seed=0):
    """Gaps of every kind: single values, whole steps, a late start, an early end, nothing at all missing."""
    rng = np.random.default_rng(seed)
    observed = rng.random((series, steps, channels)) < 0.7
    observed[0] = True
    observed[1, : steps // 3] = False
    observed[1, steps // 3 :] = True
    observed[2 % series, steps // 2 :] = False
    return observed


class Dense:
    """The joint distribution of z and x of one series as one big Gaussian."""

    def __init__(self, model, steps):
        D, T = model.latents, steps
        means, covariance = [model.initial_mean], model.initial_covariance
        covariances = [covariance]
        for _ in range(1, T):
            means.append(model.transition @ means[-1] + model.latent_offset)
            covariances.append(model.transition @ covariances[-1] @ model.transition.T + model.transition_covariance)
        self.zz = np.zeros((T, D, T, D))
        for s in range(T):
            block = covariances[s]
            for t in range(s, T):
                self.zz[t, :, s], self.zz[s, :, t] = block, block.T
                block = model.transition @ block
        self.zz = self.zz.reshape(T * D, T * D)
        C = np.kron(np.eye(T), model.emission)
        self.xz = C @ self.zz
        self.xx = self.xz @ C.T + np.kron(np.eye(T), model.emission_covariance)
        self.z, self.x = np.concatenate(means), C @ np.concatenate(means) + np.tile(model.emission_offset, T)
        self.shape = (T, D)

    def log_likelihood(self, x_TC, observed_TC):
        from scipy.stats import multivariate_normal

        kept = observed_TC.ravel()
        if not kept.any():
            return 0.0
        return multivariate_normal.logpdf(x_TC.ravel()[kept], self.x[kept], self.xx[np.ix_(kept, kept)])

    def posterior(self, x_TC, observed_TC):
        """Mean (T, D) and covariance (T, D, T, D) of z given x."""
        kept = observed_TC.ravel()
        gain = np.linalg.solve(self.xx[np.ix_(kept, kept)], self.xz[kept]).T
        mean = self.z + gain @ (x_TC.ravel()[kept] - self.x[kept])
        return mean.reshape(self.shape), (self.zz - gain @ self.xz[kept]).reshape(*self.shape, *self.shape)


def statsmodels_filter(model, x_TC):
    """statsmodels' filter of one series; NaN is missing."""
    from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

    peer = KalmanFilter(k_endog=model.channels, k_states=model.latents)
    peer.bind(np.ascontiguousarray(x_TC))
    peer["design"], peer["obs_cov"] = model.emission, model.emission_covariance
    peer["transition"], peer["selection"] = model.transition, np.eye(model.latents)
    peer["state_cov"] = model.transition_covariance
    peer["obs_intercept"], peer["state_intercept"] = model.emission_offset[:, None], model.latent_offset[:, None]
    peer.initialize_known(model.initial_mean, model.initial_covariance)
    return peer
