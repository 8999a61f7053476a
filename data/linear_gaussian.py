"""Series from a linear-Gaussian model with known parameters: the best possible likelihood is known exactly."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from reducible.data.errors import DataError
from reducible.data.known_entropy import KnownEntropy
from reducible.data.series_files import NumericSeries

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LinearGaussianSeries:
    """z_t = A z_t-1 + B e_t, x_t = C z_t + D psi_t, with e and psi standard normal.

    The first latent comes from the stationary distribution. The default is an AR(1) process with coefficient 0.9,
    observed with noise as large as its own steps. Raises DataError naming the field of `data.generated`.
    """

    A: Matrix = ((0.9,),)
    B: Matrix = ((1.0,),)
    C: Matrix = ((1.0,),)
    D: Matrix = ((1.0,),)
    series: int = 512
    length: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("A", "B", "C", "D"):
            rows = getattr(self, name)
            if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
                raise DataError(f"data.generated.{name}: not a matrix; write [[0.9, 0], [0.1, 0.5]], one list a row")
            if not np.isfinite(rows).all():
                raise DataError(f"data.generated.{name}: every number must be finite")
        states, channels = len(self.A), len(self.C)
        for name, shape in (("A", (states, states)), ("B", (states, None)), ("C", (channels, states))):
            rows = getattr(self, name)
            if len(rows) != shape[0] or (shape[1] is not None and len(rows[0]) != shape[1]):
                right = f"{shape[0]} x {shape[1] if shape[1] is not None else 'any'}"
                raise DataError(f"data.generated.{name}: {len(rows)} x {len(rows[0])}; with A and C it must be {right}")
        if len(self.D) != channels:
            raise DataError(f"data.generated.D: {len(self.D)} rows; C has {channels}")
        radius = float(np.abs(np.linalg.eigvals(np.array(self.A))).max())
        if radius >= 1:
            raise DataError(
                f"data.generated.A: its largest eigenvalue is {radius:.4g} in size; it must be below 1 for the series "
                "to have a stationary start"
            )
        if np.linalg.matrix_rank(np.array(self.D)) < channels:
            raise DataError("data.generated.D: without noise in every channel the values have no density")
        if self.series < 2 or self.length < 1:
            raise DataError("data.generated: series must be at least 2 and length at least 1")

    @property
    def channels(self) -> int:
        return len(self.C)

    @property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def first_covariance(self) -> np.ndarray:
        """The covariance P of z_1, whose mean is 0: P = A P A' + B B'."""
        A, B = np.array(self.A), np.array(self.B)
        from scipy.linalg import solve_discrete_lyapunov  # half a second that other kinds of data need not wait

        return np.asarray(solve_discrete_lyapunov(A, B @ B.T))

    def known_entropy(self, sequence: int, length: int | None = None) -> KnownEntropy:
        """Nats per step in the data's units, in the long run and in windows of `sequence` steps of series of `length`.

        Given the past, a step is normal with the Kalman filter's covariance S of the innovations, whose differential
        entropy is log det(2 pi e S) / 2. The rate has the stationary S, by the discrete Riccati equation (Anderson &
        Moore, Optimal Filtering, 1979, section 4.4). A window starts without a past, so S begins at its largest; the
        windows of a series begin every `sequence` steps and the last may be shorter.

        Raises:
            DataError: the matrices are too ill-conditioned to compute it.
        """
        steps = self.length if length is None else length
        with _doubting():
            each, rate = self._step_entropies(min(sequence, steps)), self.entropy_rate
        whole, rest = divmod(steps, len(each))
        best = (whole * each.sum() + each[:rest].sum()) / steps
        return KnownEntropy(rate=rate, best_loss=float(best))

    @property
    def entropy_rate(self) -> float:
        """Nats per step that remain given the whole past. A density's entropy can be negative."""
        A, B, C, D = (np.array(getattr(self, name)) for name in "ABCD")
        from scipy.linalg import solve_discrete_are

        return _nats(C @ np.asarray(solve_discrete_are(A.T, C.T, B @ B.T, D @ D.T)) @ C.T + D @ D.T)

    def _step_entropies(self, steps: int) -> np.ndarray:
        """(steps,) nats of the first, second ... step of a window, given those before it."""
        A, B, C, D = (np.array(getattr(self, name)) for name in "ABCD")
        P, nats = self.first_covariance(), np.empty(steps)
        for step in range(steps):
            S = C @ P @ C.T + D @ D.T
            nats[step] = _nats(S)
            gain = np.linalg.solve(S, C @ P).T
            P = A @ (P - gain @ C @ P) @ A.T + B @ B.T
        return nats

    def draw(self) -> Iterator[NumericSeries]:
        """All series, each a function of the seed and its number."""
        A, B, C, D = (np.array(getattr(self, name)) for name in "ABCD")
        # P is positive semidefinite and may be singular: a square root by eigenvectors always exists.
        values, vectors = np.linalg.eigh(self.first_covariance())
        root = vectors * np.sqrt(values.clip(min=0))
        for number in range(self.series):
            random = np.random.default_rng([self.seed, number])
            z = root @ random.standard_normal(len(A))
            shocks = random.standard_normal((self.length, B.shape[1])) @ B.T
            latents = np.empty((self.length, len(A)))
            for step in range(self.length):
                z = z if step == 0 else A @ z + shocks[step]
                latents[step] = z
            noise = random.standard_normal((self.length, D.shape[1])) @ D.T
            yield NumericSeries(f"drawn-{number:06d}", latents @ C.T + noise)


@contextmanager
def _doubting() -> Iterator[None]:
    """Refuses to go on with what LAPACK, or an overflow, makes doubtful."""
    try:
        with np.errstate(over="raise", invalid="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except (np.linalg.LinAlgError, ArithmeticError, Warning):
        raise DataError(
            "data.generated: the numbers in A, B, C and D lie so many orders of magnitude apart that the entropy "
            "cannot be computed; bring them nearer to each other"
        ) from None


def _nats(S: np.ndarray) -> float:
    """Differential entropy of a normal distribution with this covariance."""
    return float(np.linalg.slogdet(2 * np.pi * np.e * S)[1] / 2)
