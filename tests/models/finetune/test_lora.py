"""LoRA in every family: what it computes, what it trains, its files beside peft's, several on one base."""

import copy
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from adapter_cases import CASES, VOCABULARY, WIDTH, loss, seq2seq
from lora_cases import drawn, stir
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy_families import TextConfig, ToyText

from reducible.models.families.linear_gaussian import LinearGaussianConfig, LinearGaussianModel
from reducible.models.families.recurrent import Recurrent, RecurrentConfig
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.families.vae import Vae, VaeConfig
from reducible.models.finetune.lora import (
    Adapter,
    adapter_groups,
    adapter_parameters,
    add_adapter,
    candidates,
    chosen,
    load_adapter,
    save_adapter,
    trainable_state,
    use_adapter,
)
from reducible.models.layers.activation_checkpointing import MODES, set_checkpointing
from reducible.models.quantise.quantised_base import Quantisation, quantise_model, quantised


def set_by_hand(plain: nn.Module, model: nn.Module, scaling: float) -> None:
    """W0 + (alpha / r) B A into the plain model, from the names of parameters alone."""
    named = dict(model.named_parameters())
    weights = dict(plain.named_parameters())
    for name, B in named.items():
        if ".lora_B" in name or name.startswith("lora_B"):
            A = named[name.replace("lora_B", "lora_A")]
            stem = name.partition(".lora_B")[0]
            target = stem.replace("matrices.", "") if "matrices." in stem else f"{stem}.weight"
            weights[target].data += scaling * B.data @ A.data


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_a_new_adapter_changes_nothing_and_every_part_of_it_learns(name: str) -> None:
    plain, batch = drawn(name)
    model = copy.deepcopy(plain)
    add_adapter(model, Adapter(rank=2))
    assert type(model).__name__ == type(plain).__name__ and isinstance(model, type(plain))
    torch.testing.assert_close(loss(model, batch), loss(plain, batch), rtol=1e-6, atol=0)
    stir(model)
    loss(model, batch).backward()
    trained = dict(adapter_parameters(model))
    assert len(trained) == 2 * len(chosen(plain, ())) > 0
    for at, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, at
    bases = {at: parameter for at, parameter in model.named_parameters() if at not in trained}
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in bases.values())
    kept = {tensor.data_ptr() for tensor in bases.values()}
    assert len(kept) == len(dict(plain.named_parameters()))
    for old, new in zip(sorted_tensors(plain.named_parameters()), sorted_tensors(bases.items()), strict=True):
        assert torch.equal(old, new)


def sorted_tensors(named: object) -> list[Tensor]:
    return sorted((p.detach() for _, p in named), key=lambda p: (p.numel(), p.flatten().tolist()))  # type: ignore


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_weights_set_by_hand(name: str, double: None) -> None:
    if name == "vae":  # its latent is fp32 whatever the weights are
        torch.set_default_dtype(torch.float32)
    plain, batch = drawn(name)
    model = copy.deepcopy(plain)
    add_adapter(model, Adapter(rank=3, alpha=5.0))
    stir(model)
    before = loss(plain, batch).item()
    set_by_hand(plain, model, 5.0 / 3)
    # linear-gaussian's loss is rounded to fp32 at its end
    tolerance = {"linear-gaussian": 1e-6, "vae": 1e-5}.get(name, 1e-12)
    torch.testing.assert_close(loss(model, batch), loss(plain, batch), rtol=tolerance, atol=0)
    assert abs(loss(plain, batch).item() - before) > 1e-3 * abs(before)


@pytest.mark.parametrize("name", [name for name in CASES if name != "linear-gaussian"])
def test_files_go_to_stock_peft_and_come_from_it(name: str, tmp_path: Path) -> None:
    plain, batch = drawn(name)
    model = copy.deepcopy(plain)
    add_adapter(model, Adapter(rank=2, alpha=3.0))
    stir(model)
    expected = loss(model, batch)
    save_adapter(model, tmp_path / "ours")
    with torch.no_grad():
        stock = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / "ours")).train()
        torch.testing.assert_close(loss(stock, batch), expected, rtol=1e-5, atol=0)

    config = peft.LoraConfig.from_pretrained(str(tmp_path / "ours"))
    config.inference_mode = False
    made_by_peft = peft.get_peft_model(copy.deepcopy(plain), config)
    stir(made_by_peft, seed=4)
    made_by_peft.save_pretrained(str(tmp_path / "theirs"))
    again = copy.deepcopy(plain)
    load_adapter(again, tmp_path / "theirs", "theirs")
    with torch.no_grad():
        torch.testing.assert_close(loss(again, batch), loss(made_by_peft, batch), rtol=1e-5, atol=0)
        assert loss(again, batch) != expected


@pytest.mark.parametrize("name", ["transformer", "recurrent lstm"])
def test_stock_pefts_rank_stabilised_scale_is_understood(name: str, tmp_path: Path) -> None:
    """alpha / sqrt(r), at a rank where that is no alpha / r."""
    plain, batch = drawn(name)
    add_adapter(model := copy.deepcopy(plain), Adapter(rank=4))
    save_adapter(model, tmp_path / "ours")
    config = peft.LoraConfig.from_pretrained(str(tmp_path / "ours"))
    config.inference_mode, config.use_rslora = False, True
    made_by_peft = peft.get_peft_model(copy.deepcopy(plain), config)
    stir(made_by_peft, seed=4)
    made_by_peft.save_pretrained(str(tmp_path / "theirs"))
    load_adapter(plain, tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(loss(plain, batch), loss(made_by_peft, batch), rtol=1e-5, atol=0)


def test_a_model_that_owns_its_matrices_has_files_of_the_same_kind_that_peft_refuses(tmp_path: Path) -> None:
    plain, batch = drawn("linear-gaussian")
    model = copy.deepcopy(plain)
    add_adapter(model, Adapter(rank=1))
    stir(model)
    save_adapter(model, tmp_path)
    again = copy.deepcopy(plain)
    load_adapter(again, tmp_path)
    assert torch.equal(loss(again, batch), loss(model, batch))
    with pytest.raises(ValueError, match="top-level module"):
        peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path))


@pytest.mark.parametrize("name", ["transformer", "recurrent lstm", "seq2seq luong"])
def test_adapters_are_swapped_on_one_base(name: str, tmp_path: Path) -> None:
    plain, batch = drawn(name)
    model = copy.deepcopy(plain)
    base = [parameter.data_ptr() for parameter in model.parameters()]
    losses: dict[str | None, Tensor] = {None: loss(plain, batch)}
    for number, other in enumerate(("first", "second"), start=1):
        single = copy.deepcopy(plain)
        # Of different ranks, and for different matrices.
        targets = () if number == 1 else ("*weight_hh*", "*qkv")[name == "transformer" :][:1]
        torch.manual_seed(number)
        add_adapter(single, Adapter(rank=number, targets=targets))
        stir(single)
        save_adapter(single, tmp_path / other)
        losses[other] = loss(single, batch)
        load_adapter(model, tmp_path / other, other)
    assert len({value.item() for value in losses.values()}) == 3
    for chosen_one in ("first", None, "second", "first"):
        use_adapter(model, chosen_one)
        assert torch.equal(loss(model, batch), losses[chosen_one])
        assert all(chosen_one is not None and chosen_one in at for at, _ in adapter_parameters(model))
    assert set(base) <= {parameter.data_ptr() for parameter in model.parameters()}
    with pytest.raises(ValueError, match="'third': the model has first, second"):
        use_adapter(model, "third")


def test_patterns_choose_matrices() -> None:
    model = Transformer(TransformerConfig(VOCABULARY, WIDTH, 2, 2, tied=False))
    assert [p.name for p in chosen(model, ("layers.*.attention.qkv",))] == [
        "layers.0.attention.qkv",
        "layers.1.attention.qkv",
    ]
    assert {"embedding", "output"} & {p.name for p in chosen(model, ())} == set()
    assert {"embedding", "output"} <= set(candidates(model))
    recurrent = Recurrent(RecurrentConfig(VOCABULARY, WIDTH, 2, cell="gru"))
    assert [p.name for p in chosen(recurrent, ("*weight_hh*",))] == ["layers.0.weight_hh_l0", "layers.1.weight_hh_l0"]
    with pytest.raises(ValueError, match=r"adapter.targets: '\*qvk' matches no matrix; nearest are .*qkv"):
        chosen(model, ("*qvk",))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda tied: Transformer(TransformerConfig(VOCABULARY, WIDTH, 2, 2, tied=tied)),
        lambda tied: Recurrent(RecurrentConfig(VOCABULARY, WIDTH, 1, tied=tied)),
        lambda tied: seq2seq(tied=tied),
        lambda tied: Vae(VaeConfig(VOCABULARY, WIDTH, 4, tied=tied)),
    ],
    ids=["transformer", "recurrent", "seq2seq", "vae"],
)
def test_tables_are_adapted_where_they_are_used_once(build: object, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(tied)  # type: ignore[operator]
    if tied:
        with pytest.raises(ValueError, match="adapter.targets: embedding is the output table too"):
            add_adapter(model, Adapter(targets=("embedding",)))
        return
    batch = CASES["seq2seq luong"][1]()
    plain = copy.deepcopy(model)
    add_adapter(model, Adapter(rank=2, targets=("embedding", "output")))
    stir(model)
    expected = loss(model, batch)
    expected.backward()
    assert all(parameter.grad.abs().max() > 0 for _, parameter in adapter_parameters(model))  # type: ignore[union-attr]
    save_adapter(model, tmp_path)
    with torch.no_grad():
        stock = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).train()
        torch.testing.assert_close(loss(stock, batch), expected)
        load_adapter(plain, tmp_path)
        torch.testing.assert_close(loss(plain, batch), expected)


def test_dropout_acts_on_linear_layers_makes_the_model_stochastic_and_is_refused_elsewhere() -> None:
    model, batch = drawn("transformer")
    assert not model.stochastic
    add_adapter(model, Adapter(rank=2, dropout=0.5))
    assert model.stochastic
    stir(model)
    first = model(batch).nats
    assert first != model(batch).nats
    model.eval()
    assert model(batch).nats == model(batch).nats
    recurrent, _ = drawn("recurrent lstm")
    with pytest.raises(ValueError, match="adapter.dropout: 0.5 cannot act on the input of layers.0.weight_ih_l0"):
        add_adapter(recurrent, Adapter(dropout=0.5))
    feeding, pairs = drawn("seq2seq bahdanau")
    add_adapter(feeding, Adapter(dropout=0.5, targets=("decoder.gates.*",)))
    with pytest.raises(ValueError, match="adapter.dropout: must be 0"):
        feeding(pairs)


@pytest.mark.parametrize(
    "name", ["transformer", "vae", "recurrent lstm", "recurrent gru", "seq2seq luong", "ssm gated"]
)
def test_gradients_are_the_same_with_activation_checkpointing(name: str, double: None) -> None:
    if name == "vae":
        torch.set_default_dtype(torch.float32)
    plain, batch = drawn(name)
    gradients = []
    for mode in MODES:
        model = copy.deepcopy(plain)
        torch.manual_seed(1)
        add_adapter(model, Adapter(rank=2))
        stir(model)
        set_checkpointing(model, mode)
        loss(model, batch).backward()
        gradients.append({at: parameter.grad for at, parameter in adapter_parameters(model)})
    for mode, again in zip(MODES[1:], gradients[1:], strict=True):
        for at, gradient in gradients[0].items():
            # Chunks of time add up in another order, and the sum of nats is fp32.
            allowed = 1e-5 * gradient.abs().max().item() if mode == "sqrt-time" else 0.0
            torch.testing.assert_close(again[at], gradient, rtol=0, atol=allowed, msg=f"{mode} {at}")


def test_groups_hold_what_is_trained_apart_where_a_schedule_leaves_one_side_alone() -> None:
    model, _ = drawn("vae")
    add_adapter(model, Adapter(rank=2))
    groups = {group.name: group for group in adapter_groups(model)}
    assert set(groups) == {"encoder matrices", "decoder matrices"}
    assert all((group.rate, group.decay) == (1.0, 1.0) for group in groups.values())
    listed = [parameter for group in model.parameter_groups() for parameter in group.parameters]
    assert {id(p) for p in listed} == {id(p) for _, p in adapter_parameters(model)}
    state = trainable_state(model)
    next(iter(state.values())).fill_(7.0)
    assert adapter_parameters(model)[0][1].eq(7.0).all() and len(state) == len(listed)


def test_a_model_says_itself_which_tables_it_has_and_which_group_trains_an_adapter() -> None:
    """None of these is told by the name of a module."""

    class Renamed(ToyText):
        def __init__(self) -> None:
            super().__init__(TextConfig(40, 32))  # tables large enough to be quantised
            self.words, self.readout = self.embedding, self.output
            del self.embedding, self.output

        def tables(self) -> list[nn.Module]:
            return [self.words, self.readout]

        def adapter_group(self, matrix: str) -> str:
            return f"group of {matrix}"

    model = Renamed()
    assert [place.name for place in chosen(model, ())] == ["hidden"]
    for table in ("words", "readout"):  # one parameter, which an adapter would change in one of its two places
        with pytest.raises(ValueError, match=f"adapter.targets: {table} is the output table too"):
            chosen(model, [table])
    add_adapter(model, Adapter(rank=2))
    assert [group.name for group in adapter_groups(model)] == ["group of hidden"]
    assert [place.name for place in chosen(model, ())] == ["hidden"]
    model = Renamed()
    quantise_model(model, Quantisation())
    assert list(quantised(model)) == ["hidden.weight"]

    class OnlyTables(Renamed):
        def tables(self) -> list[nn.Module]:
            return [*super().tables(), self.hidden]

    with pytest.raises(ValueError, match="adapter.targets: the model has no matrix to adapt"):
        add_adapter(OnlyTables(), Adapter())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rank": 0}, "adapter.rank: 0 must be a whole number of at least 1"),
        ({"alpha": 0}, "adapter.alpha: 0 must be above 0"),
        ({"dropout": 1.0}, "adapter.dropout: 1.0"),
        ({"targets": "qkv"}, "adapter.targets: 'qkv' must be a list"),
    ],
)
def test_mistakes_name_the_key(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adapter(**keys)


def test_files_that_do_not_fit_name_what_does_not(tmp_path: Path) -> None:
    model, _ = drawn("recurrent lstm")
    add_adapter(model, Adapter(rank=2))
    with pytest.raises(ValueError, match="'default': the model has one of that name already"):
        add_adapter(model, Adapter())
    save_adapter(model, tmp_path)
    wider = Recurrent(RecurrentConfig(VOCABULARY, 2 * WIDTH, 2))
    with pytest.raises(
        ValueError, match="layers.0.weight_ih_l0 is 128 x 32 in this model, and the file's .* 64 x 16 of rank 2"
    ):
        load_adapter(wider, tmp_path)
    with pytest.raises(ValueError, match="belongs to no matrix of this model"):
        load_adapter(LinearGaussianModel(LinearGaussianConfig(2, 4)), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if ".layers.1." not in name}, file)
    with pytest.raises(ValueError, match="lacks the update of layers.1.weight_ih_l0, which adapter_config.json lists"):
        load_adapter(drawn("recurrent lstm")[0], tmp_path)
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match="holds no adapter"):
        load_adapter(wider, tmp_path)
