"""What a family promises: minimal families from outside work, and what lacks a part is refused by one line."""

from dataclasses import replace

import pytest
import torch
import toy_families

from reducible.models.contract import Family, SentenceModel, TextModel
from reducible.models.families.registry import FAMILIES, family, register
from reducible.models.families.vae import Vae, VaeConfig
from reducible.models.generate.beam_search import greedy
from reducible.models.generate.sample import generate
from reducible.models.memory.step_plan import step_plan

FACTS = {"vocabulary": 11, "source_vocabulary": 11, "shared": False, "channels": 3}


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reducible.models.families.registry.FAMILIES", dict(FAMILIES))
    return lambda kind: family(f"toy_families:{kind.upper()}")


@pytest.mark.parametrize("kind", ["text", "sentences", "pairs", "series"])
def test_a_minimal_family_from_outside_is_found_planned_and_trained(kind: str, outside) -> None:
    found = outside(kind)
    assert (found.reads, found.name) == (kind, f"toy_families:{kind.upper()}")
    assert found.code is not None and found.code.startswith("sha256 ")
    config = found.config(**{key: FACTS[key] for key in found.batch.decided})
    model = found.build(config)
    ((piece, last),) = model.pieces(found.batch.full_batch(config, 3, 5))
    loss = model(piece)
    loss.nats.backward()
    assert last and loss.units == 15
    grouped = [id(parameter) for group in model.parameter_groups() for parameter in group.parameters]
    assert sorted(grouped) == sorted(map(id, model.parameters()))


def test_what_cannot_be_imported_is_one_line() -> None:
    with pytest.raises(
        ValueError, match="^model.family: no_such_package:FAMILY cannot be imported: no no_such_package"
    ):
        family("no_such_package:FAMILY")
    with pytest.raises(
        ValueError, match="^model.family: toy_families:ToyText is the class ToyText, and must be a Family"
    ):
        family("toy_families:ToyText")


class Lacking(TextModel):
    pass


class Plain(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"build": Lacking}, "Lacking lacks logits"),
        ({"build": Plain}, "build must be a class that extends TextModel"),
        ({"config": dict}, "config must be a class that extends ModelConfig"),
        ({"config": toy_families.SeriesConfig}, "SeriesConfig lacks vocabulary"),
        ({"cost": lambda config: None}, "cost must be a function of 2 arguments"),
        ({"build": toy_families.ToySeries}, "SeriesConfig|TextConfig lacks channels"),
    ],
)
def test_what_breaks_the_contract_is_refused_by_one_line(changes: dict, reason: str) -> None:
    broken: Family = replace(toy_families.TEXT, **changes)
    with pytest.raises(ValueError, match=f"^model.family: toy: .*({reason})"):
        register(broken)
    assert "toy" not in FAMILIES


def test_a_model_without_caches_writes_what_its_logits_say() -> None:
    torch.manual_seed(0)
    model, ids = toy_families.ToyText(toy_families.TextConfig(11)), [3]
    for _ in range(6):
        ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, [3], 6, temperature=0) == ids[1:]


def test_a_search_that_reads_everything_again_writes_what_logits_say() -> None:
    torch.manual_seed(0)
    model = toy_families.ToyPairs(toy_families.PairConfig(11, 11))
    source, written = {"source": torch.tensor([[4, 5, 0]]), "source_lengths": torch.tensor([3])}, [0]
    for _ in range(5):
        written.append(int(model.logits(source | {"inputs": torch.tensor([written])})[0, -1].argmax()))
    expected = written[1 : written.index(0, 1) if 0 in written[1:] else None]
    assert greedy(model, source, 0, 5)[0].tokens == expected


def test_likelihood_token_by_token_is_the_fused_one() -> None:
    torch.manual_seed(0)
    model = Vae(VaeConfig(vocabulary=11, width=8, latent=3)).eval()
    batch = {"inputs": torch.randint(11, (4, 6)), "targets": torch.randint(11, (4, 6))}
    batch["targets"][1, 3:] = -100
    z_KBZ = torch.randn(2, 4, 3)
    expected = model.log_likelihood(batch, z_KBZ)
    assert torch.allclose(SentenceModel.log_likelihood(model, batch, z_KBZ), expected, atol=1e-4)


def test_the_planner_takes_a_family_that_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", toy_families.TEXT)
    plan = step_plan("toy", toy_families.TextConfig(11), micro_batch=2, sequence=8)
    assert plan.parameters == 11 * 8 + 8 * 8 + 8 + 11  # a table that is used twice counts once
