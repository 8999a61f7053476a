"""An autoregressive process whose covariance is known."""

import numpy as np

AR = {"A": ((0.9,),), "B": ((1.0,),), "C": ((1.0,),), "D": ((1.0,),)}
"""AR(0.9), seen through noise as large as its own steps."""


def ar_covariance(length: int, noise: bool = True) -> np.ndarray:
    """Covariance of the values of AR: stationary AR(0.9) of variance 1 / (1 - 0.81), plus 1 on the diagonal."""
    steps = np.arange(length)
    return 0.9 ** abs(steps[:, None] - steps) / (1 - 0.81) + (np.eye(length) if noise else 0.0)
