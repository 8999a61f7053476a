"""The exact likelihood of linear-Gaussian models against statsmodels (and simdkalman): time, and the Nile's optimum.

    PYTHONPATH=. python benchmarks/kalman_speed.py [--peer PEER/bin/python]     # PEER: an environment with simdkalman

The contestants take turns; every ratio is one of medians of the same run. One thread. statsmodels' filter objects are
made beforehand for every series; `with binding` counts what a new series costs it. simdkalman's likelihood leaves out
the 2-pi constant, which is added here, and no offset is asked of it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from statsmodels.datasets import nile
from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother
from statsmodels.tsa.statespace.structural import UnobservedComponents

from reducible.models.kalman.filter import (
    LinearGaussian,
    diffuse,
    kalman_filter,
    kalman_smoother,
    log_likelihood,
)
from reducible.models.kalman.fit import fit_by_em, fit_by_gradient, log_likelihood_with_gradient
from reducible.models.kalman.precision_form import parameters_of, posterior

LATENTS, CHANNELS = 4, 2

PEER = """
import json, sys, time
import numpy, simdkalman
given = numpy.load(sys.argv[1])
filter = simdkalman.KalmanFilter(*(given[name] for name in ("A", "Q", "C", "R")))
took = []
for _ in range(int(sys.argv[2])):
    begun = time.perf_counter()
    found = filter.compute(given["x"], 0, initial_value=given["m"], initial_covariance=given["P"],
                           filtered=True, smoothed=False, log_likelihood=True, observations=False)
    took.append(time.perf_counter() - begun)
print(json.dumps([sorted(took)[len(took) // 2], found.log_likelihood.tolist()]))
"""


def system() -> LinearGaussian:
    rng = np.random.default_rng(0)
    A = rng.normal(size=(LATENTS, LATENTS))
    A *= 0.95 / np.abs(np.linalg.eigvals(A)).max()
    B, D = 0.5 * np.eye(LATENTS), 0.5 * np.eye(CHANNELS)
    return LinearGaussian.long_running(A, B, rng.normal(size=(CHANNELS, LATENTS)), D)


def drawn(model: LinearGaussian, series: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    z = rng.multivariate_normal(model.initial_mean, model.initial_covariance, size=series)
    x = []
    for _ in range(steps):
        x.append(z @ model.emission.T + rng.normal(size=(series, CHANNELS)) @ model.emission_noise.T)
        z = z @ model.transition.T + rng.normal(size=z.shape) @ model.transition_noise.T
    return np.stack(x, axis=1)


def peer_of(model: LinearGaussian, x_TC: np.ndarray) -> KalmanSmoother:
    peer = KalmanSmoother(k_endog=CHANNELS, k_states=LATENTS)
    peer.bind(np.ascontiguousarray(x_TC))
    peer["design"], peer["obs_cov"] = model.emission, model.emission_covariance
    peer["transition"], peer["selection"] = model.transition, np.eye(LATENTS)
    peer["state_cov"] = model.transition_covariance
    peer.initialize_known(model.initial_mean, model.initial_covariance)
    return peer


def turns(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Name -> median (seconds by the clock, seconds of CPU)."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()
    for _ in range(repeats):
        for name, contestant in contestants.items():
            clock, processor = time.perf_counter(), time.process_time()
            contestant()
            took[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {name: tuple(np.median(rows, axis=0)) for name, rows in took.items()}  # type: ignore[misc]


def table(title: str, took: dict[str, tuple[float, float]], against: str) -> None:
    print(f"\n| {title} | ms | ms of CPU | {against} takes, by the clock | by CPU |\n|---|---:|---:|---:|---:|")
    for name, (clock, processor) in took.items():
        ratios = (took[against][0] / clock, took[against][1] / processor)
        known = not np.isnan(processor)
        own, ratio = (f"{1e3 * processor:.1f}", f"{ratios[1]:.2f}x") if known else ("-", "-")
        print(f"| {name} | {1e3 * clock:.1f} | {own} | {ratios[0]:.2f}x | {ratio} |")


def speed(series: int, steps: int, missing: float, repeats: int, peer: str | None) -> None:
    model = system()
    x = drawn(model, series, steps)
    observed = np.random.default_rng(2).random(x.shape) >= missing
    with_gaps = np.where(observed, x, np.nan)
    peers = [peer_of(model, one) for one in with_gaps]
    expected = np.array([one.loglike() for one in peers])
    parameters, x_BTC, observed_BTC = parameters_of(model), torch.tensor(x), torch.tensor(observed)
    for found in (
        log_likelihood(model, x, observed),
        posterior(parameters, x_BTC, observed_BTC).log_likelihood_B.numpy(),
    ):
        assert np.abs(found - expected).max() < 1e-6, "the contestants compute different numbers"
    leaf = parameters._replace(transition=parameters.transition.clone().requires_grad_())
    contestants: dict[str, Callable[[], object]] = {
        "statsmodels": lambda: [one.loglike() for one in peers],
        "statsmodels with binding": lambda: [peer_of(model, one).loglike() for one in with_gaps],
        "log_likelihood (models/kalman/filter.py)": lambda: log_likelihood(model, x, observed),
        "posterior (models/kalman/precision_form.py)": lambda: posterior(parameters, x_BTC, observed_BTC),
        "the same with gradient": lambda: log_likelihood_with_gradient(leaf, x_BTC, observed_BTC).backward(),
    }
    gaps = f", {missing:.0%} of the values missing" if missing else ""
    title = f"{series} x {steps} steps{gaps}: likelihood"
    took = turns(contestants, repeats)
    if peer and not missing:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "given.npz"
            Q, R = model.transition_covariance, model.emission_covariance
            # Its first predicted state is that of the first observation, as ours is.
            np.savez(
                file,
                A=model.transition,
                Q=Q,
                C=model.emission,
                R=R,
                x=x,
                m=model.initial_mean,
                P=model.initial_covariance,
            )
            out = subprocess.run(
                [peer, "-c", PEER, str(file), str(repeats)], capture_output=True, text=True, check=True
            )
        seconds, found = json.loads(out.stdout)
        constant = 0.5 * steps * CHANNELS * np.log(2 * np.pi)
        apart = np.abs(np.array(found) - constant - expected).max()
        print(f"simdkalman's likelihood and the constant are {apart:.1g} nats from statsmodels'", file=sys.stderr)
        took["simdkalman"] = (seconds, float("nan"))
    table(title, took, "statsmodels")
    table(
        title.replace("likelihood", "smoothed moments"),
        turns(
            {
                "statsmodels": lambda: [one.smooth() for one in peers],
                "filter and smoother (models/kalman/filter.py)": lambda: kalman_smoother(
                    model, kalman_filter(model, x, observed)
                ),
            },
            max(3, repeats // 3),
        ),
        "statsmodels",
    )


def the_nile() -> None:
    """The local level model: variances of observation and level, and where each method stops."""
    values = nile.load_pandas().data["volume"].to_numpy()
    x = values[None, :, None]
    start = LinearGaussian([[1.0]], [[50.0]], [[1.0]], [[100.0]], [0.0], diffuse(1))
    published = LinearGaussian([[1.0]], [[1469.1**0.5]], [[1.0]], [[15099**0.5]], [0.0], diffuse(1))
    free = ("transition_noise", "emission_noise")
    found: dict[str, LinearGaussian] = {"Durbin and Koopman 2012": published}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observation, level = UnobservedComponents(values, "local level").fit(disp=0).params
    found["statsmodels"] = LinearGaussian([[1.0]], [[level**0.5]], [[1.0]], [[observation**0.5]], [0.0], diffuse(1))
    em = fit_by_em(start, x, free=free, steps=2000, tolerance=1e-10)
    found[f"EM, {len(em.log_likelihoods) - 1} steps"] = em.model
    for skip, name in ((0, "all terms"), (1, "without the first")):
        fit = fit_by_gradient(start, x, free=free, skip=skip, tolerance=1e-9)
        found[f"gradient, {name}, {len(fit.log_likelihoods) - 1} steps"] = fit.model
    print("\n| Nile | observation | level | all terms, P_1 = 1e7 | without the first | statsmodels on the same two |")
    print("|---|---:|---:|---:|---:|---|")
    for name, model in found.items():
        observation, level = model.emission_covariance[0, 0], model.transition_covariance[0, 0]
        ours = [log_likelihood(model, x, skip=skip)[0] for skip in (0, 1)]
        theirs = []
        for skip in (0, 1):
            peer = UnobservedComponents(values, "local level")
            peer.ssm.initialize_known(np.zeros(1), np.array([[1e7]]))
            peer.ssm.loglikelihood_burn = skip
            theirs.append(peer.loglike([observation, level]))
        print(
            f"| {name} | {observation:.2f} | {level:.2f} | {ours[0]:.6f} | {ours[1]:.6f} "
            f"| {theirs[0]:.6f}, {theirs[1]:.6f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peer", help="Python of an environment with simdkalman")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for missing in (0.0, 0.1):
        speed(1, 10_000, missing, options.repeats, options.peer)
        speed(256, 500, missing, max(3, options.repeats // 3), options.peer)
    the_nile()


if __name__ == "__main__":
    main()
