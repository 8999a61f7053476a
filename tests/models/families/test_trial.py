"""A trial refuses what trains silently wrong, by one line, and refuses no family of this package."""

from dataclasses import replace

import pytest
import torch
import toy_families
from torch import Tensor
from torch.nn.functional import cross_entropy

from reducible.models.contract import Family
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import FAMILIES
from reducible.models.families.trial import require_contract
from reducible.models.loss import BrokenContract, Loss

FACTS = {"vocabulary": 11, "source_vocabulary": 11, "shared": False, "channels": 3}
TOYS = [toy_families.TEXT, toy_families.SENTENCES, toy_families.PAIRS, toy_families.SERIES]


def tried(family: Family, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = family.config(**{key: FACTS[key] for key in family.batch.decided}).scaled(16)
    model = family.build(config)
    require_contract(family, model, family.cost(config, Lengths.fixed(12)), sequence=12, micro_batch=8)
    return model


@pytest.mark.parametrize("family", [*FAMILIES.values(), *TOYS], ids=lambda family: f"{family.name}-{family.reads}")
def test_no_family_that_keeps_the_contract_is_refused(family: Family) -> None:
    for seed in range(3):
        tried(family, seed)


def test_a_trial_leaves_no_trace() -> None:
    model = toy_families.ToySentences(toy_families.TextConfig(11))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    cost = toy_families.SENTENCES.cost(model.config, Lengths.fixed(6))
    require_contract(toy_families.SENTENCES, model.train(), cost, sequence=6, micro_batch=1)
    assert model.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def mean(model: toy_families.ToyText, batch: dict[str, Tensor]) -> Tensor:
    return cross_entropy(model.logits(batch["inputs"]).flatten(0, 1), batch["targets"].flatten())


def count(batch: dict[str, Tensor]) -> Tensor:
    return torch.tensor(batch["targets"].numel())


FORWARDS = {
    "a mean, with the right count": (lambda m, b: Loss(mean(m, b), count(b), {}), "a mean, and it must be the sum"),
    "a mean, counted as one": (lambda m, b: Loss(mean(m, b), torch.tensor(1), {}), "counts 1 units .* has 96 targets"),
    "a tensor": (mean, "returns one float32 number in a tensor, and must return a Loss"),
    "a tuple": (lambda m, b: (mean(m, b), count(b), {}), "returns an object of type tuple, and must return a Loss"),
    "nothing": (lambda m, b: None, "returns an object of type NoneType"),
    "a vector": (
        lambda m, b: Loss(mean(m, b).expand(3), count(b), {}),
        r"nats that are a float32 tensor of shape \(3,\)",
    ),
    "half nats": (lambda m, b: Loss(mean(m, b).half(), count(b), {}), "nats that are one float16 number"),
    "units as an int": (lambda m, b: Loss(mean(m, b), 96, {}), "units that are an object of type int"),
    "units as a float": (lambda m, b: Loss(mean(m, b), count(b).float(), {}), "units that are one float32 number"),
    "no parts": (lambda m, b: Loss(mean(m, b), count(b), None), "parts that are an object of type NoneType"),
    "a part as a float": (
        lambda m, b: Loss(mean(m, b), count(b), {"kl": 1.0}),
        "part 'kl' that is an object of type float",
    ),
    "no gradient": (lambda m, b: Loss(mean(m, b).detach(), count(b), {}), "nats without a gradient"),
}


@pytest.mark.parametrize("what", FORWARDS)
def test_what_forward_must_not_return(what: str) -> None:
    returned, reason = FORWARDS[what]
    broken = type("Broken", (toy_families.ToyText,), {"forward": lambda self, batch: returned(self, batch)})
    with pytest.raises(BrokenContract, match=reason):
        tried(replace(toy_families.TEXT, build=broken))


def test_a_mean_of_a_random_bound_is_seen_too() -> None:
    """One row and eight differ by chance as well, so that only an average tells."""

    class Mean(toy_families.ToySentences):
        def forward(self, batch: dict[str, Tensor]) -> Loss:
            nats, units, parts = super().forward(batch)
            return Loss(nats / units, units, parts)

    for seed in range(5):
        with pytest.raises(BrokenContract, match="a mean"):
            tried(replace(toy_families.SENTENCES, build=Mean), seed)


def test_weights_in_another_format_and_another_count_of_parameters() -> None:
    with pytest.raises(BrokenContract, match="embedding.weight is float64, and must be fp32"):
        tried(replace(toy_families.TEXT, build=lambda config: toy_families.ToyText(config).double()))
    cost = toy_families.TEXT.cost
    short = replace(toy_families.TEXT, cost=lambda config, lengths: replace(cost(config, lengths), parameters=5))
    with pytest.raises(BrokenContract, match="cost says 5 parameters, and the module has"):
        tried(short)


@pytest.mark.parametrize(("key", "value"), [("parameters", 0), ("training_flops_per_unit", float("nan"))])
def test_a_number_that_is_no_cost(key: str, value: float) -> None:
    cost = toy_families.TEXT.cost(toy_families.TextConfig(11), Lengths.fixed(6))
    with pytest.raises(ValueError, match=f"^model.family: the cost of a toy says {value}"):
        replace(cost, **{key: value})


def test_a_model_that_reads_what_it_is_to_predict_is_refused() -> None:
    """By a whole look ahead, and by as little of it as an attention without a mask has."""

    class Text(toy_families.ToyText):
        def logits(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
            return super().logits(tokens_BT.roll(-1, 1), documents_BT)

    class Slightly(toy_families.ToyText):
        def logits(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
            return super().logits(tokens_BT) + 0.1 * self.output(self.embedding(tokens_BT).mean(1, keepdim=True))

    class Pairs(toy_families.ToyPairs):
        def logits(self, batch: dict[str, Tensor]) -> Tensor:
            return super().logits(batch | {"inputs": batch["inputs"].roll(-1, 1)})

    for family, build in ((toy_families.TEXT, Text), (toy_families.TEXT, Slightly), (toy_families.PAIRS, Pairs)):
        with pytest.raises(BrokenContract, match="the model reads what it is to predict"):
            tried(replace(family, build=build))
