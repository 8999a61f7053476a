"""The deep state-space model against stepwise re-derivations, torch.distributions and exact linear-Gaussian answers."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_cases import held_bytes
from ssm_cases import AR, ar_covariance
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from reducible.models.cost.flop_counter import count_flops
from reducible.models.cost.ledger import Lengths
from reducible.models.families.ssm import EMISSIONS, POSTERIORS, TRANSITIONS, SsmConfig, StateSpace, ssm_cost
from reducible.models.layers.gaussian import raw_of
from reducible.models.layers.time_loops import Elman, SamplingLoop


def made(double: bool = True, **keys: object) -> StateSpace:
    torch.manual_seed(0)
    config = SsmConfig(**({"channels": 3, "width": 6, "latent": 4} | keys))  # type: ignore[arg-type]
    model = StateSpace(config).eval()
    return model.double() if double else model


def batch_of(lengths: list[int], config: SsmConfig, missing: float = 0.0, seed: int = 1) -> dict[str, Tensor]:
    """Random values of the emission's kind, ragged, some of them missing."""
    random = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    shape = (rows, longest, config.channels)
    values = {
        "gaussian": torch.randn(shape, generator=random),
        "bernoulli": (torch.rand(shape, generator=random) < 0.4).float(),
        "categorical": torch.randint(config.categories, shape, generator=random).float(),
    }[config.emission].double()
    steps = torch.arange(longest) < torch.tensor(lengths)[:, None]
    observed = steps[..., None] & (torch.rand(shape, generator=random) >= missing)
    return {"values": torch.where(observed, values, 0.0), "observed": observed, "steps": steps}


def noise_of(lengths: list[int], config: SsmConfig) -> Tensor:
    shape = (max(lengths), len(lengths), config.latents)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# The bound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("emission", EMISSIONS)
def test_the_bound_is_what_its_definition_gives_step_by_step(transition: str, posterior: str, emission: str) -> None:
    model = made(transition=transition, posterior=posterior, emission=emission, categories=3)
    lengths = [5, 3]
    batch, noise_TBL = batch_of(lengths, model.config, missing=0.3), noise_of(lengths, model.config)
    loss = model.bound(batch, noise_TBL)
    kl = reconstruction = 0.0
    for row, length in enumerate(lengths):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        read = model.posterior.read(
            model.inputs(alone["values"].transpose(0, 1), alone["observed"].transpose(0, 1)), torch.tensor([length])
        )
        z, state = None, ()
        for step in range(length):
            q = Normal(*model.posterior.step(read[step], z))
            if step == 0:
                mean, deviation, state = model.transition.start(1)
            else:
                mean, deviation, state = model.transition.step(z, state)
            kl += kl_divergence(q, Normal(mean, deviation)).sum()
            z = q.mean + q.stddev * noise_TBL[step, row]
            outputs = model.emission(z)
            p = {
                "gaussian": lambda o: Normal(o[..., 0], torch.nn.functional.softplus(model.emission.raw) + 1e-5),
                "bernoulli": lambda o: Bernoulli(logits=o),
                "categorical": lambda o: Categorical(logits=o),
            }[emission](outputs)
            nats = -p.log_prob(alone["values"][:, step])
            reconstruction += nats[alone["observed"][:, step]].sum()
    torch.testing.assert_close(loss.parts["kl"], kl, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss.parts["reconstruction"], reconstruction, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss.nats, kl + reconstruction, rtol=1e-9, atol=1e-9)
    assert loss.units == sum(lengths)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_padded_batch_gives_each_series_the_gradient_that_it_has_alone(posterior: str) -> None:
    model = made(posterior=posterior)
    lengths = [6, 2, 4]
    batch, noise_TBL = batch_of(lengths, model.config, missing=0.2), noise_of(lengths, model.config)
    model.bound(batch, noise_TBL).nats.backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for row, length in enumerate(lengths):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        model.bound(alone, noise_TBL[:length, row : row + 1]).nats.backward()
    for parameter, expected in zip(model.parameters(), together, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-9)


def test_what_is_missing_or_behind_the_end_changes_nothing() -> None:
    for emission in EMISSIONS:
        model = made(emission=emission, posterior="bidirectional", categories=3)
        lengths = [5, 2]
        batch, noise_TBL = batch_of(lengths, model.config, missing=0.4), noise_of(lengths, model.config)
        hidden = ~batch["observed"]
        assert hidden[0].any(), "the test needs missing values inside a series"
        filled = batch | {"values": torch.where(hidden, 1.0, batch["values"])}
        if emission == "gaussian":  # which reads values as they are: the data says 0 (docs/state-space.md)
            filled["values"] = batch["values"]
        noise = torch.where(batch["steps"].t()[..., None], noise_TBL, 1e3)
        torch.testing.assert_close(model.bound(filled, noise).nats, model.bound(batch, noise_TBL).nats)


@pytest.mark.parametrize(
    ("posterior", "past", "future"),
    [("causal", True, False), ("bidirectional", True, True), ("structured", False, True)],
)
def test_each_form_of_q_sees_what_its_name_says(posterior: str, past: bool, future: bool) -> None:
    model = made(posterior=posterior)
    values = batch_of([7], model.config)["values"].transpose(0, 1).requires_grad_()
    read = model.posterior.read(model.inputs(values, torch.ones(values.shape, dtype=torch.bool)), torch.tensor([7]))
    read[3].sum().backward()
    seen = values.grad[:, 0].abs().sum(-1) > 0
    assert seen.tolist() == [past] * 3 + [True] + [future] * 3
    mean, _ = model.posterior.step(read[3].detach(), torch.zeros(1, 4, dtype=torch.float64))
    moved, _ = model.posterior.step(read[3].detach(), torch.ones(1, 4, dtype=torch.float64))
    assert bool((mean != moved).any()) == (posterior == "structured")


def test_the_chain_has_the_gradient_of_its_equations() -> None:
    """Its backward is written by hand; the oracle is finite differences in float64."""
    random = torch.Generator().manual_seed(9)
    shapes = [(4, 3, 5), (4, 3, 2), (2,), (5, 2), (5,), (4, 5), (4,)]
    values = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    for index, value in enumerate(values):
        value.requires_grad_(index != 1)
    assert torch.autograd.gradcheck(SamplingLoop.apply, values)


def test_the_elman_network_is_torchs() -> None:
    torch.manual_seed(10)
    ours, x = Elman(3, 4).double(), torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    theirs = torch.nn.RNN(3, 4).double()
    theirs.load_state_dict(ours.state_dict())
    gradients = []
    for network in (ours, theirs):
        h, last = network(x)
        (h.square().sum() + last.sum()).backward()
        gradients.append([h, last, x.grad, *(parameter.grad for parameter in network.parameters())])
        x.grad = None
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_divergence_is_weighted_in_training_alone_and_by_the_step_alone() -> None:
    model = made(kl_start=0.2, kl_rise=0.5)
    batch, noise_TBL = batch_of([4], model.config), noise_of([4], model.config)
    whole = model.bound(batch, noise_TBL)
    model.train()
    for step, weight in ((0, 0.2), (25, 0.6), (50, 1.0), (99, 1.0), (25, 0.6)):
        assert model.at_step(step, 100) == frozenset()
        loss = model.bound(batch, noise_TBL)
        torch.testing.assert_close(loss.nats, loss.parts["reconstruction"] + weight * loss.parts["kl"])
        torch.testing.assert_close(loss.parts["kl"], whole.parts["kl"])
    torch.testing.assert_close(whole.nats, whole.parts["reconstruction"] + whole.parts["kl"])


# Likelihood and forecasts --------------------------------------------------------------------------------------------


def exact_log_likelihood(values: np.ndarray, observed: np.ndarray) -> float:
    """Of one series under AR, by the dense multivariate normal of what is observed."""
    seen = values[observed]
    covariance = ar_covariance(len(values))[np.ix_(observed, observed)]
    _, log_determinant = np.linalg.slogdet(covariance)
    return -0.5 * (seen @ np.linalg.solve(covariance, seen) + log_determinant + len(seen) * math.log(2 * math.pi))


def ar_batch(lengths: list[int], gaps: bool = False, seed: int = 5) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    longest = max(lengths)
    values = random.multivariate_normal(np.zeros(longest), ar_covariance(longest), len(lengths))
    steps = np.arange(longest) < np.array(lengths)[:, None]
    seen = (np.arange(longest) + np.arange(len(lengths))[:, None]) % 3 != 1
    observed = (steps & (seen | (not gaps)))[..., None]
    return {
        "values": torch.from_numpy(np.where(observed, values[..., None], 0.0)),
        "observed": torch.from_numpy(observed),
        "steps": torch.from_numpy(steps),
    }


def wide_ar(posterior: str) -> StateSpace:
    """The AR model with an encoder that says N(0, 3^2) whatever it reads: a proposal that misses nothing."""
    model = made(channels=1, latent=None, posterior=posterior, **AR)
    with torch.no_grad():
        model.posterior.head.weight.zero_()
        model.posterior.head.bias[1] = raw_of(3.0)
    return model


def exact_of(batch: dict[str, Tensor]) -> np.ndarray:
    rows = zip(batch["values"].numpy(), batch["observed"].numpy(), batch["steps"].numpy(), strict=True)
    return np.array([exact_log_likelihood(v[s, 0], o[s, 0]) for v, o, s in rows])


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("method", ["importance", "particle"])
def test_both_estimates_find_the_exact_likelihood(method: str, posterior: str) -> None:
    """Of ragged series with missing values, although the encoder says the same of all."""
    batch = ar_batch([3, 2, 1], gaps=True)
    torch.manual_seed(4)
    found = wide_ar(posterior).log_likelihood(batch, 40_000, method).numpy()
    np.testing.assert_allclose(found, exact_of(batch), atol=0.06)


def test_more_samples_bring_the_estimate_up_to_the_likelihood_and_the_bound_lies_below() -> None:
    model = wide_ar("causal")
    batch = ar_batch([4] * 64)
    exact = exact_of(batch).mean()
    torch.manual_seed(5)
    bound = -float(np.mean([model(batch).nats.item() for _ in range(20)])) / 64
    means = [model.log_likelihood(batch, count).mean().item() for count in (1, 10, 100, 1000)]
    assert abs(means[0] - bound) < 4.0, "one sample is a draw of the bound"
    assert bound < means[1] < means[2] < means[3] < exact + 0.05
    assert exact - means[3] < 0.1 * (exact - bound)


@pytest.mark.parametrize("particles", [1, 3])
def test_forecasts_have_the_exact_mean_and_spread(particles: int) -> None:
    model = wide_ar("structured")
    batch = ar_batch([7, 4], gaps=True)
    torch.manual_seed(6)
    drawn = model.forecast(batch, 3, 20_000, particles).numpy()
    assert drawn.shape == (20_000, 2, 3, 1)
    for row, length in enumerate((7, 4)):
        seen = np.append(batch["observed"][row, :length, 0].numpy(), [False] * 3)
        covariance = ar_covariance(length + 3)
        behind = np.arange(length + 3) >= length
        gain = covariance[np.ix_(behind, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        mean = gain @ batch["values"][row, :length, 0].numpy()[seen[:length]]
        spread = covariance[np.ix_(behind, behind)] - gain @ covariance[np.ix_(seen, behind)]
        np.testing.assert_allclose(drawn[:, row, :, 0].mean(0), mean, atol=0.08)
        np.testing.assert_allclose(np.cov(drawn[:, row, :, 0].T), spread, atol=0.25)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_one_particle_of_either_kind_is_one_draw_of_the_same_weight(transition: str) -> None:
    """Without resampling the step-by-step weights are those of whole series: same draws, same sum."""
    model = made(transition=transition, posterior="structured")
    batch = batch_of([4], model.config, missing=0.2)
    torch.manual_seed(7)
    whole = model.log_likelihood(batch, 1, "importance")
    torch.manual_seed(7)
    noise = torch.randn(4, 1, 4, dtype=torch.float64)
    draws: list[Tensor] = list(noise)
    # The filter asks for its noise step by step: hand it that of `importance`.
    original: Callable[..., Tensor] = torch.randn_like
    torch.randn_like = lambda tensor: draws.pop(0)  # type: ignore[assignment]
    try:
        stepwise = model.log_likelihood(batch, 1, "particle")
    finally:
        torch.randn_like = original  # type: ignore[assignment]
    torch.testing.assert_close(stepwise, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("emission", EMISSIONS)
def test_emissions_sample_what_they_say(emission: str) -> None:
    model = made(emission=emission, categories=3, channels=2)
    outputs = model.emission(torch.randn(1, 4, dtype=torch.float64).expand(40_000, -1))
    torch.manual_seed(8)
    drawn = model.emission.sample(outputs)
    assert drawn.shape == (40_000, 2)
    for value in (0.0, 1.0) if emission != "gaussian" else ():
        share = (drawn == value).double().mean(0)
        chance = model.emission.log_prob(outputs[:1], torch.full((1, 2), value, dtype=torch.float64)).exp()[0]
        torch.testing.assert_close(share, chance.detach(), atol=0.02, rtol=0)
    if emission == "gaussian":
        entropy = Independent(Normal(outputs[0, :, 0], drawn.std(0)), 1).entropy()
        torch.testing.assert_close(-model.emission.log_prob(outputs, drawn).sum(-1).mean(), entropy, atol=0.05, rtol=0)


# The contract of a family --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("cell", ["lstm", "elman"])
def test_cost_is_what_a_counter_counts(transition: str, posterior: str, cell: str) -> None:
    model = made(False, channels=5, width=12, latent=7, transition=transition, posterior=posterior, cell=cell)
    batch = {name: t.float() if t.dtype == torch.float64 else t for name, t in batch_of([9, 9], model.config).items()}
    cost = ssm_cost(model.config, Lengths.fixed(9))
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    counted = count_flops(lambda: model(batch)) / 18
    # A Markov transition has no step before the first one.
    markov = 0.0 if transition == "lstm" else model.transition.flops / 9
    assert counted == pytest.approx(cost.forward_flops_per_unit - markov, rel=1e-9)


@pytest.mark.parametrize(("emission", "value"), [("bernoulli", 0.5), ("categorical", 3.0), ("categorical", -1.0)])
def test_values_that_an_emission_cannot_say_are_named(emission: str, value: float) -> None:
    model = made(emission=emission, categories=3)
    batch = batch_of([4], model.config)
    model(batch)
    again = made(emission=emission, categories=3)
    batch["values"][0, 2, 1] = value
    with pytest.raises(ValueError, match=f"model.emission: {emission} takes .* the data hold {value:g}; set data"):
        again(batch)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_activations_are_about_what_autograd_holds(transition: str, posterior: str) -> None:
    model = made(False, channels=5, width=40, latent=24, transition=transition, posterior=posterior).train()
    batch = {name: t.float() if t.dtype == torch.float64 else t for name, t in batch_of([60] * 3, model.config).items()}
    counted = held_bytes(model, batch) / 4 / int(model(batch).units)
    assert ssm_cost(model.config, Lengths.fixed(60)).activation_elements_per_unit == pytest.approx(counted, rel=0.1)


def test_every_parameter_is_in_one_group_and_one_block() -> None:
    for transition in TRANSITIONS:
        model = made(transition=transition)
        everything = {id(parameter) for parameter in model.parameters()}
        grouped = [id(parameter) for group in model.parameter_groups() for parameter in group.parameters]
        inside = [id(parameter) for block in model.blocks() for parameter in block.parameters()]
        assert sorted(grouped) == sorted(inside) == sorted(everything)


def test_the_ladder_keeps_proportions() -> None:
    config = SsmConfig(channels=3, width=100, latent=25, emission_width=50)
    assert config.scaled(8) == replace(config, width=8, latent=2, emission_width=4)
    assert ssm_cost(SsmConfig(channels=1).scaled(8), Lengths.fixed(10)).parameters < 2500


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"posterior": "both"}, "model.posterior: 'both' must be one of causal, bidirectional, structured"),
        ({"latent": 0}, "model.latent: 0"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"kl_start": -0.1}, "model.kl_start"),
        ({"A": ((0.9,),)}, "model.B: is missing; a known model needs all"),
        ({**AR, "A": ((1.0,),), "channels": 1, "latent": None}, "model.A: its largest eigenvalue is 1"),
        ({**AR, "B": ((-1.0,),), "channels": 1, "latent": None}, "model.B: must be diagonal"),
        ({**AR, "channels": 2, "latent": None}, "model.C: must be 2 x 1"),
        ({**AR, "channels": 1, "latent": 3}, "leave both out"),
    ],
)
def test_keys_that_make_no_model_are_named(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match="model") as error:
        SsmConfig(**({"channels": 3} | keys))  # type: ignore[arg-type]
    assert said in str(error.value)
