"""The parameters of a linear-Gaussian state-space model, in NumPy and float64.

    z_1 = initial_mean + N(0, initial_covariance)
    z_t = A z_{t-1} + b + B e_t          A transition, b latent_offset, B transition_noise
    x_t = C z_t + c + D psi_t            C emission, c emission_offset, D emission_noise

with e and psi standard normal (Kalman 1960; Durbin and Koopman 2012, chapter 4).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

DIFFUSE_VARIANCE = 1e7
"""Initial variance of a latent about which nothing is known, as Durbin and Koopman have it for the Nile."""


@dataclass(frozen=True)
class LinearGaussian:
    """The parameters. Raises ValueError naming one that has a wrong shape or is not a covariance."""

    transition: np.ndarray
    """A (D, D)."""
    transition_noise: np.ndarray
    """B (D, any): the noise of a step has covariance B B'."""
    emission: np.ndarray
    """C (C, D)."""
    emission_noise: np.ndarray
    """D (C, any): what is observed has noise of covariance D D'."""
    initial_mean: np.ndarray
    """(D,) mean of z_1."""
    initial_covariance: np.ndarray
    """(D, D) of z_1: `diffuse` if nothing is known, `stationary` if the process has long been running."""
    latent_offset: np.ndarray | float = 0.0
    """b (D,), or one number for all."""
    emission_offset: np.ndarray | float = 0.0
    """c (C,), or one number for all."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if self.emission.ndim != 2:
            raise ValueError(f"emission: has shape {self.emission.shape}, must be (channels, latents)")
        channels, latents = self.emission.shape
        wanted: dict[str, tuple[int | None, ...]] = {
            "transition": (latents, latents),
            "transition_noise": (latents, None),
            "emission_noise": (channels, None),
            "initial_mean": (latents,),
            "initial_covariance": (latents, latents),
            "latent_offset": (latents,),
            "emission_offset": (channels,),
        }
        for name in ("latent_offset", "emission_offset"):
            if getattr(self, name).ndim == 0:
                object.__setattr__(self, name, np.broadcast_to(getattr(self, name), wanted[name]))  # type: ignore[arg-type]
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value.ndim != len(shape) or any(
                want is not None and have != want for have, want in zip(value.shape, shape, strict=True)
            ):
                raise ValueError(
                    f"{name}: has shape {value.shape}; emission of shape {self.emission.shape} asks for "
                    f"({', '.join('any' if size is None else str(size) for size in shape)})"
                )
        for name in self.__dataclass_fields__:
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name}: holds a number that is not finite")
        spread = np.linalg.eigvalsh(symmetric(self.initial_covariance))
        if spread.min() < -1e-9 * abs(spread).max():
            raise ValueError("initial_covariance: has a negative eigenvalue, so it is not a covariance")

    @classmethod
    def long_running(
        cls,
        transition: ArrayLike,
        transition_noise: ArrayLike,
        emission: ArrayLike,
        emission_noise: ArrayLike,
        emission_offset: ArrayLike = 0.0,
    ) -> "LinearGaussian":
        """The model whose process has long been running: z_1 has mean 0 and the stationary covariance.

        Raises:
            ValueError: as for the parameters one by one; also if the process is not stationary.
        """
        A, B, C, D, c = (
            np.asarray(given, dtype=np.float64)
            for given in (transition, transition_noise, emission, emission_noise, emission_offset)
        )
        return cls(A, B, C, D, np.zeros(len(A)), stationary(A, B), emission_offset=c)

    @property
    def channels(self) -> int:
        return self.emission.shape[0]

    @property
    def latents(self) -> int:
        return self.emission.shape[1]

    @property
    def transition_covariance(self) -> np.ndarray:
        """Q = B B'."""
        return self.transition_noise @ self.transition_noise.T

    @property
    def emission_covariance(self) -> np.ndarray:
        """R = D D'."""
        return self.emission_noise @ self.emission_noise.T


def diffuse(latents: int, variance: float = DIFFUSE_VARIANCE) -> np.ndarray:
    """An initial covariance that says next to nothing.

    Two conventions for the likelihood that follows: all terms, or without those of the first steps (`skip`), which
    say little but how large the variance was chosen.
    """
    return variance * np.eye(latents)


def stationary(transition: np.ndarray, transition_noise: np.ndarray) -> np.ndarray:
    """The covariance P = A P A' + B B' of a process that has long been running; ValueError if there is none."""
    from scipy.linalg import solve_discrete_lyapunov

    radius = abs(np.linalg.eigvals(transition)).max()
    if radius >= 1:
        raise ValueError(f"transition: its largest eigenvalue is {radius:.6g}; a process is stationary below 1")
    return symmetric(solve_discrete_lyapunov(transition, transition_noise @ transition_noise.T))


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """Its symmetric part: rounding must not add up."""
    return 0.5 * (matrix + matrix.swapaxes(-1, -2))
