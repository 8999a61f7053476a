"""y_t = F_t y_{t-1} + u_t for all t at once: matrix products over many steps instead of a loop over steps."""

import numpy as np

BLOCK = 8
"""The steps that one matrix product covers if F is constant. A larger number means more work and fewer calls."""

MANY_SERIES = 16
"""From this number of series on, each step is one product for all of them."""


def linear_recurrence(F_DD: np.ndarray, u_TBD: np.ndarray, start_BD: np.ndarray, y_TBD: np.ndarray) -> None:
    """Writes y_1 .. y_T of one F, from y_0 = start, for each of B series.

    Inside a block y is a product with the block's Toeplitz matrix of powers of F; the values at the ends of blocks
    follow the same recurrence with F^BLOCK, so that the depth is logarithmic in T.
    """
    T, B, D = u_TBD.shape
    if T <= BLOCK or B >= MANY_SERIES:
        y_BD, turned_DD = start_BD, np.ascontiguousarray(F_DD.T)
        for t in range(T):
            y_BD = np.matmul(y_BD, turned_DD, out=y_TBD[t])
            y_BD += u_TBD[t]
        return
    powers = [np.eye(D)]
    for _ in range(BLOCK):
        powers.append(powers[-1] @ F_DD)
    toeplitz = np.zeros((BLOCK, D, BLOCK, D))
    for source in range(BLOCK):
        for target in range(source, BLOCK):
            toeplitz[source, :, target] = powers[target - source].T
    blocks = -(-T // BLOCK)
    padded_BTD = np.zeros((B, blocks * BLOCK, D))
    padded_BTD[:, :T] = u_TBD.swapaxes(0, 1)
    inside = padded_BTD.reshape(B * blocks, BLOCK * D) @ toeplitz.reshape(BLOCK * D, BLOCK * D)
    inside = inside.reshape(B, blocks, BLOCK * D)
    before_NBD = np.empty((blocks + 1, B, D))
    before_NBD[0] = start_BD
    linear_recurrence(powers[-1], inside[:, :, -D:].swapaxes(0, 1), start_BD, before_NBD[1:])
    inside += before_NBD[:-1].swapaxes(0, 1) @ np.concatenate([power.T for power in powers[1:]], axis=1)
    y_TBD[...] = inside.reshape(B, blocks * BLOCK, D)[:, :T].swapaxes(0, 1)


def changing_recurrence(F_TDD: np.ndarray, u_TBD: np.ndarray, start_BD: np.ndarray, y_TBD: np.ndarray) -> None:
    """The same if every step has its own F: pairs of steps are merged, these are solved, and the rest is filled in."""
    T, B, _ = u_TBD.shape
    if T <= BLOCK or B >= MANY_SERIES:
        y_BD = start_BD
        for t in range(T):
            y_BD = np.matmul(y_BD, F_TDD[t].T, out=y_TBD[t])
            y_BD += u_TBD[t]
        return
    odd, turned_TDD = T // 2, F_TDD.swapaxes(1, 2)
    pairs_TDD = F_TDD[1::2] @ F_TDD[0 : 2 * odd : 2]
    pairs_TBD = u_TBD[0 : 2 * odd : 2] @ turned_TDD[1::2] + u_TBD[1::2]
    changing_recurrence(pairs_TDD, pairs_TBD, start_BD, y_TBD[1::2])
    y_TBD[0] = start_BD @ turned_TDD[0] + u_TBD[0]
    y_TBD[2::2] = y_TBD[1 : T - 1 : 2] @ turned_TDD[2::2] + u_TBD[2::2]
