"""The certificate: on data from a known linear-Gaussian model, a trained encoder is held against the best of its form.

The floors are computed here from dense matrices, by least squares, on their own (models/kalman/certificate.py has
formulas).
"""

import math

import numpy as np
import pytest
import torch
from ssm_cases import AR, ar_covariance

from reducible.models.families.ssm import SsmConfig, StateSpace

STEPS = 20
ROWS = 64
UPDATES = 1500


def posterior_precision() -> np.ndarray:
    """Of the latents of one AR series given its values: the prior's precision plus that of the noise."""
    return np.linalg.inv(ar_covariance(STEPS, noise=False)) + np.eye(STEPS)


def factorised_floor() -> float:
    """Nats per step by which the best factorised q misses log p(x): its variances are 1 / L_tt."""
    L = posterior_precision()
    return 0.5 * (np.log(np.diag(L)).sum() - np.linalg.slogdet(L)[1]) / STEPS


def causal_floor() -> float:
    """The same where the means may only read the past: plus the least E |m - mu|^2_L / 2, m_t linear in x_<=t."""
    L, covariance = posterior_precision(), ar_covariance(STEPS)
    smooth = np.linalg.inv(L)  # mu = L^-1 x, for the noise has variance 1
    left, right = np.linalg.cholesky(L).T, np.linalg.cholesky(covariance)
    # |left (M - smooth) right|^2 over lower triangular M, one unknown for each entry.
    entries = np.argwhere(np.tri(STEPS, dtype=bool))
    design = np.stack([np.outer(left[:, row], right[column]).ravel() for row, column in entries], axis=1)
    target = (left @ smooth @ right).ravel()
    found, *_ = np.linalg.lstsq(design, target, rcond=None)
    return factorised_floor() + 0.5 * float(np.square(design @ found - target).sum()) / STEPS


def drawn(random: np.random.Generator, rows: int) -> dict[str, torch.Tensor]:
    root = np.linalg.cholesky(ar_covariance(STEPS))
    values = (random.standard_normal((rows, STEPS)) @ root.T)[..., None].astype(np.float32)
    seen = torch.ones(values.shape, dtype=torch.bool)
    return {"values": torch.from_numpy(values), "observed": seen, "steps": seen[..., 0]}


def exact_per_step(batch: dict[str, torch.Tensor]) -> float:
    """Mean -log p(x) per step, by the dense multivariate normal."""
    x, covariance = batch["values"][..., 0].double().numpy(), ar_covariance(STEPS)
    squares = np.einsum("bt,bt->b", x, np.linalg.solve(covariance, x.T).T).mean()
    return 0.5 * (squares + np.linalg.slogdet(covariance)[1] + STEPS * math.log(2 * math.pi)) / STEPS


def trained(posterior: str) -> StateSpace:
    """Only the encoder has parameters; fresh series in every step."""
    torch.manual_seed(0)
    model = StateSpace(SsmConfig(channels=1, width=32, posterior=posterior, **AR)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    random = np.random.default_rng(1)
    for step in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 50) * (1 - step / UPDATES)
        loss = model(drawn(random, ROWS))
        (loss.nats / loss.units).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.slow
def test_a_trained_encoder_comes_near_the_floor_of_its_form_and_never_below() -> None:
    """exact >= structured >= bidirectional >= causal, each by about what theory says."""
    floors = {"structured": 0.0, "bidirectional": factorised_floor(), "causal": causal_floor()}
    batch = drawn(np.random.default_rng(2), 4096)
    exact = exact_per_step(batch)
    gaps = {}
    for posterior, floor in floors.items():
        torch.manual_seed(3)
        model = trained(posterior)
        with torch.no_grad():
            gaps[posterior] = float(np.mean([model(batch).nats.item() for _ in range(4)])) / (4096 * STEPS) - exact
        # 0.002: four deviations of the mean of 16,384 draws of the bound.
        assert floor - 0.002 < gaps[posterior] < floor + 0.03, (posterior, floor, gaps[posterior])
        few = {name: tensor[:256] for name, tensor in batch.items()}
        for method, allowed in (("importance", 0.25), ("particle", 0.1)):
            nats = -model.log_likelihood(few, 500, method).sum().item() / (256 * STEPS)
            # Biased upwards in nats, far less than the bound; 0.002 is for chance.
            assert -0.002 < nats - exact_per_step(few) < allowed * gaps[posterior] + 0.002, (posterior, method)
    assert gaps["structured"] < gaps["bidirectional"] < gaps["causal"]
