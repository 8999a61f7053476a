"""Pyro's contestant of ssm_speed.py: the deep Markov model of its examples, written anew from its description.

Runs in an environment that has pyro-ppl and torch and nothing of ours. The sizes, the ReLU RNN over packed reversed
series, the model and guide with one sample statement per step, KL annealing by a scale, raggedness by a mask,
Trace_ELBO and ClippedAdam are those of the example; normalising flows are left out, as by its default.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from train_turns import Turns


class Emitter(nn.Module):
    def __init__(self, latent: int, width: int, keys: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, keys)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(z))


class Transition(nn.Module):
    """Gate and proposed mean have networks of their own; the deviation reads the proposed mean."""

    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, latent), nn.Sigmoid())
        self.proposed = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, latent))
        self.linear = nn.Linear(latent, latent)
        self.deviation = nn.Linear(latent, latent)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, proposed = self.gate(z), self.proposed(z)
        return (1 - gate) * self.linear(z) + gate * proposed, nn.functional.softplus(self.deviation(proposed.relu()))


class Combiner(nn.Module):
    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.before, self.mean, self.raw = nn.Linear(latent, width), nn.Linear(width, latent), nn.Linear(width, latent)

    def forward(self, z: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = 0.5 * (torch.tanh(self.before(z)) + h)
        return self.mean(both), nn.functional.softplus(self.raw(both))


class DeepMarkovModel(nn.Module):
    def __init__(self, keys: int, latent: int, transition: int, emission: int, recurrence: int) -> None:
        super().__init__()
        self.emitter, self.transition = Emitter(latent, emission, keys), Transition(latent, transition)
        self.combiner = Combiner(latent, recurrence)
        self.rnn = nn.RNN(keys, recurrence, nonlinearity="relu", batch_first=True)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.zeros(latent))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, recurrence))

    def model(self, x, x_reversed, mask, lengths, annealing=1.0):  # type: ignore[no-untyped-def]
        pyro.module("dmm", self)
        z = self.z_0.expand(len(x), -1)
        with pyro.plate("rows", len(x)):
            for t in pyro.markov(range(1, x.shape[1] + 1)):
                mean, deviation = self.transition(z)
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(mean, deviation).mask(mask[:, t - 1 : t]).to_event(1))
                seen = dist.Bernoulli(self.emitter(z)).mask(mask[:, t - 1 : t]).to_event(1)
                pyro.sample(f"x_{t}", seen, obs=x[:, t - 1, :])

    def guide(self, x, x_reversed, mask, lengths, annealing=1.0):  # type: ignore[no-untyped-def]
        pyro.module("dmm", self)
        h, _ = self.rnn(x_reversed, self.h_0.expand(1, len(x), self.rnn.hidden_size).contiguous())
        h, _ = pad_packed_sequence(h, batch_first=True)
        h = reversed_in_time(h, lengths)
        z = self.z_q_0.expand(len(x), -1)
        with pyro.plate("rows", len(x)):
            for t in pyro.markov(range(1, x.shape[1] + 1)):
                mean, deviation = self.combiner(z, h[:, t - 1, :])
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(mean, deviation).mask(mask[:, t - 1 : t]).to_event(1))


def reversed_in_time(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    turned = torch.zeros_like(x)
    for row, length in enumerate(lengths.tolist()):
        turned[row, :length] = x[row, :length].flip(0)
    return turned


def main(arguments: dict) -> None:  # type: ignore[type-arg]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DeepMarkovModel(**arguments["sizes"])
    optimizer = ClippedAdam(
        {"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0}
    )
    svi = SVI(model.model, model.guide, optimizer, Trace_ELBO())
    batches = [dict(np.load(file)) for file in sorted(Path(arguments["batches"]).glob("*.npz"))]
    turns = Turns(Path(arguments["folder"]), arguments["steps"], arguments["core"])
    step = 0
    while True:
        turns.at(step)
        arrays = batches[step % len(batches)]
        x, lengths = torch.from_numpy(arrays["values"]), torch.from_numpy(arrays["steps"].sum(1))
        lengths, order = lengths.sort(descending=True)  # packing wants it so
        x, mask = x[order], torch.from_numpy(arrays["steps"])[order]
        packed = pack_padded_sequence(reversed_in_time(x, lengths), lengths, batch_first=True)
        nats = svi.step(x, packed, mask, lengths, 0.2)
        assert np.isfinite(nats)
        if step < 3:
            print(step, nats / int(lengths.sum()), sum(p.numel() for p in model.parameters()), flush=True)
        step += 1


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
