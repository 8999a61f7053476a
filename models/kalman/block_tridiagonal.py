"""Symmetric positive definite block-tridiagonal matrices in batches: solve, determinant, inverse's inner blocks.

Cyclic reduction (Golub and Hockney 1965; Heller 1976): eliminating every second block by Cholesky leaves a
block-tridiagonal matrix of half the length. A series of T steps therefore takes log2 T rounds of batched products on
any device and no loop over time. Every block is eliminated once. Axes: G matrices, T blocks, D rows of a block, K
right-hand sides.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class _Round:
    """Elimination of the blocks at odd places: z_i = N(L^-T (y_i - left z_{i-1} - right z_{i+1}), (L L')^-1)."""

    lower_GTDD: Tensor
    """L, Cholesky factor of the eliminated blocks."""
    left_GTDD: Tensor
    """L^-1 times the coupling to the block before."""
    right_GTDD: Tensor
    """L^-1 times the coupling to the block after; 0 where there is none."""
    length: int
    """Blocks before this round."""


@dataclass(frozen=True)
class BlockCholesky:
    """A factorised matrix."""

    rounds: list[_Round]
    last_GDD: Tensor
    """Cholesky factor of the last remaining block."""

    def select(self, matrices: Tensor) -> "BlockCholesky":
        """The factors of these matrices, in this order."""
        rounds = [
            _Round(r.lower_GTDD[matrices], r.left_GTDD[matrices], r.right_GTDD[matrices], r.length) for r in self.rounds
        ]
        return BlockCholesky(rounds, self.last_GDD[matrices])

    def log_determinant(self) -> Tensor:
        """(G,)"""
        factors = [round_.lower_GTDD for round_ in self.rounds] + [self.last_GDD[:, None]]
        return sum(2 * factor.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1)) for factor in factors)  # type: ignore[return-value]

    def solve(self, h_GTDK: Tensor) -> Tensor:
        """z with matrix z = h, (G, T, D, K)."""
        reduced = []
        for round_ in self.rounds:
            y_GTDK = torch.linalg.solve_triangular(round_.lower_GTDD, h_GTDK[:, 1::2], upper=False)
            reduced.append(y_GTDK)
            h_GTDK = _spread(
                h_GTDK[:, 0::2], -(round_.left_GTDD.mT @ y_GTDK), -(round_.right_GTDD.mT @ y_GTDK), round_.length
            )
        z_GTDK = torch.cholesky_solve(h_GTDK[:, 0], self.last_GDD)[:, None]
        for round_, y_GTDK in zip(reversed(self.rounds), reversed(reduced), strict=True):
            before_GTDK, after_GTDK = _neighbours(z_GTDK, round_.length)
            rest_GTDK = y_GTDK - round_.left_GTDD @ before_GTDK - round_.right_GTDD @ after_GTDK
            odd_GTDK = torch.linalg.solve_triangular(round_.lower_GTDD.mT, rest_GTDK, upper=True)
            z_GTDK = _interleave(z_GTDK, odd_GTDK)
        return z_GTDK

    def inverse_blocks(self) -> tuple[Tensor, Tensor]:
        """Blocks of the inverse: diagonal (G, T, D, D), and (t, t-1) for t = 2 .. T (G, T-1, D, D)."""
        diagonal_GTDD = torch.cholesky_inverse(self.last_GDD)[:, None]
        below_GTDD = diagonal_GTDD[:, :0]
        for round_ in reversed(self.rounds):
            both = torch.cat([round_.left_GTDD, round_.right_GTDD], dim=-1)
            left_GTDD, right_GTDD = torch.linalg.solve_triangular(round_.lower_GTDD.mT, both, upper=True).chunk(2, -1)
            before_GTDD, after_GTDD = _neighbours(diagonal_GTDD, round_.length)
            # What couples the two neighbours, (i+1, i-1); where there is no neighbour after, `right` is 0.
            across_GTDD = F.pad(below_GTDD, (0, 0, 0, 0, 0, left_GTDD.shape[1] - below_GTDD.shape[1]))
            to_before_GTDD = -(left_GTDD @ before_GTDD + right_GTDD @ across_GTDD)
            to_after_GTDD = -(left_GTDD @ across_GTDD.mT + right_GTDD @ after_GTDD)
            odd_GTDD = (
                torch.cholesky_inverse(round_.lower_GTDD)
                - to_before_GTDD @ left_GTDD.mT
                - to_after_GTDD @ right_GTDD.mT
            )
            diagonal_GTDD = _interleave(diagonal_GTDD, odd_GTDD)
            below_GTDD = _interleave(to_before_GTDD, to_after_GTDD.mT)[:, : round_.length - 1]
        return diagonal_GTDD, below_GTDD


def block_cholesky(diagonal_GTDD: Tensor, below_GTDD: Tensor) -> BlockCholesky:
    """Factorises the matrix with these diagonal blocks and blocks (t, t-1) below them (G, T-1, D, D).

    A matrix that is not positive definite has NaN as determinant and solution.
    """
    rounds = []
    while (length := diagonal_GTDD.shape[1]) > 1:
        lower_GTDD = cholesky_or_nan(diagonal_GTDD[:, 1::2])
        after_GTDD = below_GTDD[:, 1::2]
        after_GTDD = F.pad(after_GTDD, (0, 0, 0, 0, 0, length // 2 - after_GTDD.shape[1]))
        couplings = torch.cat([below_GTDD[:, 0::2], after_GTDD.mT], dim=-1)
        left_GTDD, right_GTDD = torch.linalg.solve_triangular(lower_GTDD, couplings, upper=False).chunk(2, dim=-1)
        diagonal_GTDD = _spread(
            diagonal_GTDD[:, 0::2], -(left_GTDD.mT @ left_GTDD), -(right_GTDD.mT @ right_GTDD), length
        )
        below_GTDD = -(right_GTDD.mT @ left_GTDD)[:, : (length - 1) // 2]
        rounds.append(_Round(lower_GTDD, left_GTDD, right_GTDD, length))
    return BlockCholesky(rounds, cholesky_or_nan(diagonal_GTDD[:, 0]))


def cholesky_or_nan(matrix: Tensor) -> Tensor:
    """Cholesky factors, NaN if there is none. It does not make the host wait and raises no error."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where((failed == 0)[..., None, None], factor, torch.nan)


def _spread(even_GTIJ: Tensor, to_before: Tensor, to_after: Tensor, length: int) -> Tensor:
    """Adds the contributions of every eliminated block to its two neighbours. The last block may have none after it."""
    odd = length // 2
    after = F.pad(to_after[:, : (length - 1) // 2], (0, 0, 0, 0, 1, 0))
    return (
        even_GTIJ
        + F.pad(to_before, (0, 0, 0, 0, 0, even_GTIJ.shape[1] - odd))
        + F.pad(after, (0, 0, 0, 0, 0, even_GTIJ.shape[1] - after.shape[1]))
    )


def _neighbours(even_GTIJ: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The blocks before and after every odd place; 0 after the last one, if there is none."""
    after = even_GTIJ[:, 1:]
    return even_GTIJ[:, : length // 2], F.pad(after, (0, 0, 0, 0, 0, length // 2 - after.shape[1]))


def _interleave(even_GTIJ: Tensor, odd_GTIJ: Tensor) -> Tensor:
    """Even and odd places in turn."""
    G, even, rows, columns = even_GTIJ.shape
    odd = odd_GTIJ.shape[1]
    out = even_GTIJ.new_empty(G, even + odd, rows, columns)
    out[:, 0::2], out[:, 1::2] = even_GTIJ, odd_GTIJ
    return out
