"""The sequence VAE against definitions written out anew: its ELBO, its padding, its schedules, its cost."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_cases import held_bytes
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from reducible.models.cost.flop_counter import count_flops
from reducible.models.cost.ledger import Lengths
from reducible.models.families.vae import Vae, VaeConfig, vae_cost
from reducible.models.generate.sentences import write
from reducible.models.layers.activation_checkpointing import set_checkpointing
from reducible.models.layers.gaussian import Gaussian
from reducible.models.loss import IGNORE

VOCABULARY, SEPARATOR = 13, 12


def model_of(**keys: Any) -> Vae:
    torch.manual_seed(0)
    return Vae(VaeConfig(vocabulary=VOCABULARY, **{"width": 10, "latent": 4, "pooling": "last", **keys}))


def sentences(*rows: list[int], length: int | None = None) -> dict[str, Tensor]:
    """As data/sentences.py pads them; None of a row's ids is the separator."""
    length = length or max(len(row) for row in rows) + 1
    inputs_BT = torch.full((len(rows), length), SEPARATOR)
    targets_BT = torch.full((len(rows), length), IGNORE)
    for number, row in enumerate(rows):
        inputs_BT[number, 1 : len(row) + 1] = torch.tensor(row)
        targets_BT[number, : len(row) + 1] = torch.tensor([*row, SEPARATOR])
    return {"inputs": inputs_BT, "targets": targets_BT}


ROWS = ([3, 1, 4, 1, 5], [9], [2, 6, 5])


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gaussian, "sample", lambda q, count: q.mean_BZ.expand(count, -1, -1))


def cell(layer: torch.nn.LSTM, x_D: Tensor, h_D: Tensor, c_D: Tensor) -> tuple[Tensor, Tensor]:
    """One step of one sentence, equations written out (Hochreiter and Schmidhuber 1997, with a forget gate)."""
    gates = layer.weight_ih_l0 @ x_D + layer.bias_ih_l0 + layer.weight_hh_l0 @ h_D + layer.bias_hh_l0
    i, f, g, o = gates.chunk(4)
    c_D = f.sigmoid() * c_D + i.sigmoid() * g.tanh()
    return o.sigmoid() * c_D.tanh(), c_D


def plain_elbo(model: Vae, row: list[int], noise_Z: Tensor) -> tuple[float, float]:
    """(reconstruction, KL) of one sentence, one layer, token by token in float64."""
    model = model.double()
    noise_Z = noise_Z.double()
    table = model.embedding.weight
    h = c = torch.zeros(model.config.width, dtype=torch.float64)
    states = []
    for token in [*row, SEPARATOR]:
        h, c = cell(model.encoder.layers[0], table[token], h, c)
        states.append(h)
    taken = h if model.config.pooling == "last" else torch.stack(states).amax(0)
    mean_Z, log_sigma_Z = model.encoder.head(taken).chunk(2)
    z_Z = mean_Z + log_sigma_Z.exp() * noise_Z
    kl = kl_divergence(Normal(mean_Z, log_sigma_Z.exp()), Normal(0.0, 1.0)).sum().item()
    c = model.decoder.start(z_Z)
    h, nats = c.tanh(), 0.0
    for token, target in zip([SEPARATOR, *row], [*row, SEPARATOR], strict=True):
        h, c = cell(model.decoder.layers[0], torch.cat([table[token], z_Z]), h, c)
        logits_V = table @ (h * 20 / model.config.width) + model.output_bias
        nats -= logits_V.log_softmax(0)[target].item()
    return nats, kl


@pytest.mark.parametrize("pooling", ["last", "max"])
def test_the_loss_is_the_elbo_written_out_token_by_token(pooling: str) -> None:
    model, row = model_of(pooling=pooling).eval(), [3, 1, 4, 1, 5]
    torch.nn.init.normal_(model.output_bias)
    torch.manual_seed(5)
    loss = model(sentences(row))
    torch.manual_seed(5)
    reconstruction, kl = plain_elbo(model, row, torch.randn(1, 1, 4)[0, 0])
    assert loss.parts["reconstruction"].item() == pytest.approx(reconstruction, rel=1e-5)
    assert loss.parts["kl"].item() == pytest.approx(kl, rel=1e-4)
    assert loss.nats.item() == pytest.approx(reconstruction + kl, rel=1e-5)
    assert loss.units.item() == 6


@pytest.mark.parametrize(("depth", "pooling"), [(1, "last"), (1, "max"), (2, "last")])
def test_a_padded_batch_gives_each_sentence_its_own_elbo(depth: int, pooling: str) -> None:
    model = model_of(depth=depth, pooling=pooling).eval()
    batch = sentences(*ROWS, [], length=9)
    z_KBZ = torch.randn(2, 4, 4)
    together, q = model.log_likelihood(batch, z_KBZ), model.posterior(batch)
    for number, row in enumerate([*ROWS, []]):
        alone = sentences(row)
        own = model.posterior(alone)
        torch.testing.assert_close(own.mean_BZ[0], q.mean_BZ[number])
        torch.testing.assert_close(own.log_sigma_BZ[0], q.log_sigma_BZ[number])
        torch.testing.assert_close(
            model.log_likelihood(alone, z_KBZ[:, number : number + 1])[:, 0], together[:, number]
        )


def test_a_sentence_that_was_cut_is_read_to_its_last_token() -> None:
    """It has no end among its targets; the encoder reads targets, not inputs, so nothing is missing."""
    model = model_of().eval()
    batch = sentences([3, 1, 4])
    cut = {name: tensor[:, :3] for name, tensor in batch.items()}
    other = {**cut, "targets": torch.tensor([[3, 1, 7]])}
    assert not torch.equal(model.posterior(cut).mean_BZ, model.posterior(other).mean_BZ)
    assert model(cut).units.item() == 3


def test_rows_without_targets_add_nothing() -> None:
    model = model_of(free_bits=0.5, samples=2)
    batch = sentences(*ROWS)
    silent = {"inputs": batch["inputs"], "targets": batch["targets"].clone()}
    silent["targets"][1] = IGNORE
    for training in (True, False):
        model.train(training)
        loss = model({name: tensor[1:2] for name, tensor in silent.items()})
        assert loss.nats.item() == 0 and loss.units.item() == 0
        assert all(part.item() == 0 for part in loss.parts.values())
        loss.nats.backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
        torch.manual_seed(0)
        full = model(silent)
        assert full.units.item() == 10 and math.isfinite(full.nats.item())


def test_a_batch_is_the_sum_of_its_sentences(no_noise: None) -> None:
    model = model_of(free_bits=0.02)
    model.at_step(3, 10)
    together, alone = model(sentences(*ROWS)), [model(sentences(row)) for row in ROWS]
    torch.testing.assert_close(together.nats, sum(loss.nats for loss in alone))
    for name, part in together.parts.items():
        torch.testing.assert_close(part, sum(loss.parts[name] for loss in alone))


def test_the_weight_of_kl_acts_in_training_alone(no_noise: None) -> None:
    model = model_of(kl_schedule="linear", kl_rise=0.5)
    model.at_step(10, 40)
    loss = model(sentences(*ROWS))
    assert model.kl_weight == 0.5
    torch.testing.assert_close(loss.nats, loss.parts["reconstruction"] + 0.5 * loss.parts["kl"])
    torch.testing.assert_close(loss.parts["kl_weight"], 0.5 * loss.units.float())
    plain = model.eval()(sentences(*ROWS))
    torch.testing.assert_close(plain.nats, plain.parts["reconstruction"] + plain.parts["kl"])


def test_free_bits_hold_each_dimension_of_each_sentence(no_noise: None) -> None:
    """Dimensions below the threshold get no pull from KL, those above get all of it (Kingma et al. 2016)."""
    free = model_of(free_bits=0.3, kl_schedule="none")
    with torch.no_grad():
        free.encoder.head.bias[:2] = 1.0
    batch = sentences(*ROWS)
    q = free.posterior(batch)
    kl_BZ = kl_divergence(Normal(q.mean_BZ, q.log_sigma_BZ.exp()), Normal(0.0, 1.0))
    above_BZ = kl_BZ > 0.3
    assert above_BZ.tolist() == [[True, True, False, False]] * 3
    loss = free(batch)
    expected = loss.parts["reconstruction"] + kl_BZ[above_BZ].sum() + 0.3 * (~above_BZ).sum()
    torch.testing.assert_close(loss.nats, expected)
    torch.testing.assert_close(loss.parts["kl"], kl_BZ.sum())
    pull = torch.autograd.grad(loss.nats - loss.parts["reconstruction"], free.encoder.head.bias)[0]
    assert (pull[:4] != 0).tolist() == [True, True, False, False]


def test_several_samples_average_their_elbos() -> None:
    model = model_of(samples=3).eval()
    batch = sentences(*ROWS)
    torch.manual_seed(1)
    loss = model(batch)
    torch.manual_seed(1)
    z_KBZ = model.posterior(batch).sample(3)
    each = [model.log_likelihood(batch, z_BZ[None]).sum() for z_BZ in z_KBZ]
    torch.testing.assert_close(loss.parts["reconstruction"], -sum(each) / 3)


def test_word_dropout_hides_words_from_the_decoder_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(word_dropout=0.4)
    read = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda tokens, *rest: read.append(tokens) or logits(tokens, *rest))
    batch = sentences(*([1 + row % 9] * 40 for row in range(50)))
    torch.manual_seed(0)
    z_KBZ = model.posterior(batch).sample(1)
    model.log_likelihood(batch, z_KBZ)
    model.eval().log_likelihood(batch, z_KBZ)
    changed = read[0] != batch["inputs"]
    assert torch.equal(read[1], batch["inputs"])
    assert (read[0][changed] == SEPARATOR).all() and not changed[:, 0].any()
    assert changed[:, 1:].float().mean().item() == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 2000))


def test_the_decoder_sees_no_word_before_it_is_told() -> None:
    """Only z, held fixed here, may carry what comes later."""
    model = model_of(depth=2).eval()
    z_BZ = torch.randn(1, 4)
    before, after = (sentences(row)["inputs"] for row in ([3, 1, 4, 1], [3, 1, 4, 7]))
    one, other = (model.logits(tokens, z_BZ, model.decoder.states(z_BZ))[0] for tokens in (before, after))
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4], other[:, 4])


# Schedules


def test_weight_of_kl_is_a_function_of_the_step() -> None:
    def weights(**keys: Any) -> list[float]:
        config = VaeConfig(vocabulary=2, **keys)
        return [config.kl_weight_at(step, 16) for step in range(17)]

    assert weights(kl_schedule="none", kl_weight=0.7) == [0.7] * 17
    linear = weights(kl_schedule="linear", kl_rise=0.25, kl_from=0.1)
    assert linear == pytest.approx([0.1, 0.325, 0.55, 0.775] + [1.0] * 13)
    cyclical = weights(kl_schedule="cyclical", kl_rise=0.5, kl_cycles=2)
    assert cyclical == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1] * 2 + [1])


def test_an_aggressive_phase_moves_the_encoder_then_the_decoder() -> None:
    model = model_of(aggressive=2, tied=False)
    groups = {group.name: group.parameters for group in model.parameter_groups()}
    encoder = {id(p) for p in model.encoder.parameters()}
    for step, moves in enumerate(["encoder", "encoder", "decoder"] * 2):
        frozen = model.at_step(step, 100)
        moved = {id(p) for name, parameters in groups.items() if name not in frozen for p in parameters}
        assert moved == (encoder if moves == "encoder" else {id(p) for p in model.parameters()} - encoder)


def test_the_aggressive_phase_ends_when_mutual_information_no_longer_rises_and_stays_ended() -> None:
    model = model_of(aggressive=2)
    for step, information in enumerate([0.3, 0.2, 0.8, 0.8, 0.1, 1.2, 1.1, 1.19]):
        assert model.at_step(step, 100)
        model.at_validation({"mutual_information": information, "loss": 9.0})
    assert model.at_step(8, 100)
    model.at_validation({"mutual_information": 1.2, "loss": 9.0})
    assert not model.at_step(9, 100)
    model.at_validation({"mutual_information": 5.0, "loss": 9.0})
    assert not model.at_step(10, 100)
    assert model.train()(sentences(*ROWS)).parts["aggressive"].item() == 0


@pytest.mark.parametrize("since", [2, 3])
def test_a_checkpoint_holds_how_the_aggressive_phase_stands(since: int) -> None:
    model, resumed = model_of(aggressive=2), model_of(aggressive=2)
    for information in [0.8, 0.7, 0.6, 0.5][: since + 1]:
        model.at_validation({"mutual_information": information})
    for name, tensor in resumed.state_dict().items():  # in place, as checkpoints are read
        tensor.copy_(model.state_dict()[name])
    assert bool(resumed.at_step(40, 100)) == (since < 3)
    resumed.at_validation({"mutual_information": 0.75})
    assert not resumed.at_step(41, 100)


# Families' contract


def test_every_parameter_is_in_one_group_of_its_own_name() -> None:
    for keys in ({}, {"tied": False, "depth": 2}):
        model = model_of(**keys)
        groups = model.parameter_groups()
        grouped = [id(parameter) for group in groups for parameter in group.parameters]
        assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
        assert len({group.name for group in groups}) == len(groups)


COSTS = {
    "plain": {},
    "deep": {"depth": 2},
    "untied": {"tied": False},
    "dropout": {"dropout": 0.2, "word_dropout": 0.3},
    "samples": {"samples": 3, "depth": 2},
    "max": {"pooling": "max"},
}


@pytest.mark.parametrize("keys", COSTS.values(), ids=COSTS)
def test_cost_is_what_the_counter_counts(keys: dict[str, Any]) -> None:
    model = model_of(width=32, **keys)
    batch = {name: torch.randint(VOCABULARY, (6, 20)) for name in ("inputs", "targets")}
    cost = vae_cost(model.config, Lengths.fixed(20))
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    tables = model.embedding.weight.numel() * (1 if model.output is None else 2)
    assert cost.parameters_without_embeddings == cost.parameters - tables
    training = count_flops(lambda: model(batch).nats.backward()) / 120
    assert training == pytest.approx(cost.training_flops_per_unit, rel=1e-12)
    with torch.no_grad():
        assert count_flops(lambda: model(batch)) / 120 == pytest.approx(cost.forward_flops_per_unit, rel=1e-12)
    set_checkpointing(model, "full")
    again = count_flops(lambda: model(batch).nats.backward()) / 120 - training
    assert again == pytest.approx(cost.checkpointing_flops_per_unit, rel=1e-9)


@pytest.mark.parametrize("keys", COSTS.values(), ids=COSTS)
def test_activations_are_about_what_autograd_holds(keys: dict[str, Any]) -> None:
    model = model_of(width=32, **keys)
    batch = {name: torch.randint(VOCABULARY, (8, 24)) for name in ("inputs", "targets")}
    expected = vae_cost(model.config, Lengths.fixed(24)).activation_bytes(8 * 24)
    assert model(batch).units.item() == 8 * 24
    assert held_bytes(model, batch) == pytest.approx(expected, rel=0.15)


def test_the_ladder_has_a_rung_for_every_size() -> None:
    counts = []
    for width in (4, 16, 64, 128, 512, 1024):
        config = VaeConfig(vocabulary=257, dropout=0.3).scaled(width)
        assert config.width == width and config.dropout == 0.3
        counts.append(vae_cost(config, Lengths.fixed(20)).parameters)
    assert counts == sorted(counts) and counts[0] < 2000 and counts[-1] > 2e7
    assert config.latent == 32


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 0),
        ("latent", 2.5),
        ("samples", True),
        ("dropout", 1.0),
        ("word_dropout", -0.1),
        ("pooling", "mean"),
        ("kl_schedule", "cosine"),
        ("kl_weight", math.nan),
        ("kl_rise", 0.0),
        ("kl_cycles", 0),
        ("free_bits", -1.0),
        ("aggressive", -1),
    ],
)
def test_a_value_that_makes_no_model_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{key}: "):
        VaeConfig(**{"vocabulary": 5, key: value})


# What it learns and writes


def test_it_learns_a_latent_and_writes_sentences_back() -> None:
    """One word of six said three times: only z can tell it beforehand."""
    model = model_of(width=24, latent=2, kl_schedule="linear", kl_rise=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(120):
        model.at_step(step, 300)
        model(sentences(*([word] * 3 for word in torch.randint(6, (32,)).tolist()))).nats.backward()
        optimizer.step()
        optimizer.zero_grad()
    shown = [[word] * 3 for word in range(6)]
    z_BZ = model.eval().posterior(sentences(*shown)).mean_BZ
    assert write(model, z_BZ, SEPARATOR, 10) == shown


def test_writing_is_greedy_or_drawn_by_seed_and_ends_at_the_separator() -> None:
    model = model_of().eval()
    z_BZ = torch.randn(3, 4)
    for row, ids in enumerate(write(model, z_BZ, SEPARATOR, 6)):
        read, expected = [SEPARATOR], []
        while len(expected) < 6:
            logits, _ = model.logits(
                torch.tensor([read]), z_BZ[row : row + 1], model.decoder.states(z_BZ[row : row + 1])
            )
            if (chosen := int(logits[0, -1].argmax())) == SEPARATOR:
                break
            expected.append(chosen)
            read.append(chosen)
        assert ids == expected
    drawn = [write(model, z_BZ, SEPARATOR, 50, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(SEPARATOR not in ids and len(ids) <= 50 for ids in drawn[0])
    assert any(len(ids) < 50 for ids in drawn[0])


def test_half_precision_reads_the_same_model() -> None:
    model = model_of(depth=2).eval()
    batch = sentences(*ROWS)
    torch.manual_seed(0)
    full = model(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    assert half.nats.dtype == torch.float32
    assert half.nats.item() == pytest.approx(full.nats.item(), rel=0.02)


def test_logits_agree_with_a_full_softmax() -> None:
    model = model_of().eval()
    batch = sentences(*ROWS)
    z_BZ = torch.randn(3, 4)
    logits_BTV, _ = model.logits(batch["inputs"], z_BZ, model.decoder.states(z_BZ))
    expected = -F.cross_entropy(
        logits_BTV.transpose(1, 2).double(), batch["targets"], ignore_index=IGNORE, reduction="none"
    ).sum(1)
    torch.testing.assert_close(model.log_likelihood(batch, z_BZ[None])[0].double(), expected, rtol=1e-5, atol=1e-5)
