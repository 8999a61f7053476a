"""A quantised base: bitsandbytes' own numbers, the dense layer's gradients, nothing dense kept, one file."""

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import peft
import pytest
import torch
import torch.distributed as dist
from adapter_cases import cases, loss
from lora_cases import stir
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import reducible.models.quantise.reference as oracle
from reducible.models.finetune.held_matrices import hold
from reducible.models.finetune.lora import (
    Adapter,
    adapter_parameters,
    add_adapter,
    load_adapter,
    save_adapter,
    trainable_state,
)
from reducible.models.finetune.merge import plain_state
from reducible.models.layers.activation_checkpointing import MODES, set_checkpointing
from reducible.models.layers.time_loops import Elman
from reducible.models.memory.counted_bytes import held_bytes, peak_bytes
from reducible.models.quantise.quantised_base import (
    KINDS,
    Blocks,
    Quantisation,
    load_quantised,
    plain_name,
    quantise_model,
    quantised,
    quantised_model,
    save_quantised,
)

CASES = {name: case for name, case in cases(width=64).items() if name != "linear-gaussian"}
NF4 = Quantisation()

RECURRENCES: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm both ways": (nn.LSTM, {"bidirectional": True, "batch_first": True}),
    "gru": (nn.GRU, {}),
    "gru both ways": (nn.GRU, {"bidirectional": True}),
    "tanh": (nn.RNN, {}),
    "relu both ways": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
    "lstm without biases": (nn.LSTM, {"bias": False}),
    "our elman": (Elman, {}),
}


def drawn(name: str, quantisation: Quantisation | None = None) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    build, batch_of = CASES[name]
    model, batch = build(), batch_of()
    if quantisation is not None:
        quantise_model(model, quantisation)
    return model, batch


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_blocks_are_bitsandbytes_own(kind: str, double: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(128, 80), torch.randn(5, 128)
    theirs = bnb.nn.Linear4bit(128, 80, compute_dtype=torch.float32, compress_statistics=double, quant_type=kind)
    theirs.load_state_dict(linear.state_dict())
    theirs = theirs.to("cpu")
    x_theirs, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs(x_theirs).square().sum().backward()
    quantise_model(linear, Quantisation(kind, double))
    blocks = quantised(linear)["weight"]
    assert torch.equal(blocks.codes, theirs.weight.data)
    assert torch.equal(blocks(), bnb.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state))
    assert torch.equal(linear(x), theirs(x))
    linear(x_ours).square().sum().backward()
    assert torch.equal(x_ours.grad, x_theirs.grad)  # type: ignore[arg-type]


SHAPES = [(64, 32), (64, 96), (320, 80), (64, 48), (96, 128), (64, 172), (100, 130)]
ODD = (33, 33)
"""bitsandbytes compiles its kernel for an odd number of weights."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "stance"),
    [
        *((shape, "default") for shape in SHAPES),
        (ODD, "force_eager"),
        pytest.param(ODD, "default", marks=pytest.mark.slow),
    ],
)
def test_blocks_that_go_over_the_ends_of_rows_are_what_the_mathematics_says(
    kind: str, shape: tuple[int, int], stance: str
) -> None:
    """bitsandbytes itself takes wrong constants where a row is no whole number of blocks (0.50.2, with AVX-512)."""
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, shape[1])
    levels = {"nf4": oracle.NF4, "fp4": oracle.FP4, "int8": oracle.INT8}[kind]
    expected = oracle.dequantise(oracle.quantise(dense, levels))
    with torch.compiler.set_stance(stance):
        found = Blocks.of(dense, Quantisation(kind, double=False))()
    assert found.shape == dense.shape
    wrong = (found - expected).abs() > 1e-6 * expected.abs()
    # Its CPU kernel for 8 bits finds levels through a table: a few numbers lie one level off.
    assert wrong.float().mean() <= (0.01 if kind == "int8" else 0)


def test_int8_is_evenly_spaced_and_suits_weights_drawn_uniformly() -> None:
    """Relative errors of uniform weights: 0.0039 and 0.092 were measured elsewhere."""
    torch.manual_seed(0)
    weight = torch.rand(512, 512) * 2 - 1
    blocks = Blocks.of(weight, Quantisation("int8", double=False))
    by_hand = weight.view(-1, 64)
    largest = by_hand.abs().amax(1, keepdim=True)
    steps = (blocks().view(-1, 64) - (by_hand / largest * 127).round() / 127 * largest) / largest * 127
    assert steps.abs().max() < 1.01 and (steps.abs() > 0.01).double().mean() < 0.002  # halves go either way
    errors = {kind: (Blocks.of(weight, Quantisation(kind))() - weight).norm() / weight.norm() for kind in KINDS}
    assert errors["int8"] == pytest.approx(0.0039, rel=0.02) and errors["nf4"] == pytest.approx(0.092, rel=0.02)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_as_announced(kind: str, double: bool) -> None:
    quantisation = Quantisation(kind, double)
    blocks = Blocks.of(torch.randn(512, 512), quantisation)
    stored = sum(parameter.nbytes for parameter in blocks.parameters())
    announced = (1.0 if kind == "int8" else 0.5) + (1 + 4 / 256 if double else 4) / 64
    assert stored == pytest.approx(512 * 512 * announced, abs=4)
    if double:
        assert announced == pytest.approx({"int8": 1.0159}.get(kind, 0.5159), abs=1e-4)


# Layers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrence_computes_what_the_dense_one_does_and_its_gradients(name: str, kind: str) -> None:
    torch.manual_seed(0)
    make, keys = RECURRENCES[name]
    layer, x = make(32, 48, **keys), torch.randn(6, 5, 32)
    dense = copy.deepcopy(layer)
    names = [at for at, p in layer.named_parameters() if p.ndim == 2]
    quantise_model(layer, Quantisation(kind))
    assert isinstance(layer, make) and set(quantised(layer)) == set(names)
    with torch.no_grad():
        for at in names:
            getattr(dense, at).copy_(quantised(layer)[at]())
    # Biases are trained here, so that their gradients are compared too.
    updates: dict[str, tuple[Tensor, Tensor]] = {}
    for at, matrix in zip(names, hold(layer, names), strict=True):
        matrix.add("a", 3, 6.0)
        matrix.use("a")
        nn.init.normal_(matrix.lora_B["a"], std=0.1)
        updates[at] = (
            matrix.lora_A["a"].detach().clone().requires_grad_(),
            matrix.lora_B["a"].detach().clone().requires_grad_(),
        )
    weights = {at: getattr(dense, at).detach() + 2.0 * (B @ A) for at, (A, B) in updates.items()}
    biases = {at: p for at, p in dense.named_parameters() if p.ndim == 1}
    inputs = [x.clone().requires_grad_(), *(p for pair in updates.values() for p in pair), *biases.values()]
    expected = torch.func.functional_call(dense, {**weights, **biases}, (inputs[0],))[0]
    wanted = torch.autograd.grad(expected.square().sum(), inputs)

    own_biases = [p for p in layer.parameters() if p.ndim == 1 and p.requires_grad]
    pairs = [p for matrix in hold(layer, names) for p in (matrix.lora_A["a"], matrix.lora_B["a"])]
    own = [x.clone().requires_grad_(), *pairs, *own_biases]
    output = layer(own[0])[0]
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
    for got, want in zip(torch.autograd.grad(output.square().sum(), own), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.fixture
def dense_tensors() -> Iterator[Callable[[], set[int]]]:
    """Finds what is as wide as the matrices. What was there before is frozen: to look through it takes seconds."""
    gc.freeze()

    def found() -> set[int]:
        gc.collect()
        return {id(t) for t in gc.get_objects() if isinstance(t, Tensor) and t.ndim == 2 and t.shape[1] == 64}

    yield found
    gc.unfreeze()


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", RECURRENCES)
def test_autograd_keeps_no_dense_matrix(name: str, adapter: bool, dense_tensors: Callable[[], set[int]]) -> None:
    """What a dense layer keeps for backward, and a few bytes of A and B: the weights are as large as all the rest."""
    make, keys = RECURRENCES[name]
    torch.manual_seed(0)
    layer, x = make(64, 64, **keys), torch.randn(6, 2, 64, requires_grad=True)
    kept = held_bytes(lambda: layer(x), [x, *layer.parameters()])
    dense = sum(p.nbytes for p in layer.parameters() if p.ndim == 2)
    quantise_model(layer, NF4)
    if adapter:
        for matrix in hold(layer, list(quantised(layer))):
            matrix.add("a", 2, 2.0)
            matrix.use("a")
    assert held_bytes(lambda: layer(x), [x, *layer.parameters()]) <= kept
    assert kept < 2 * dense or "lstm" in name
    before = dense_tensors()
    layer(x)[0].sum().backward()
    assert dense_tensors() <= before and not layer._flat_weights


@pytest.mark.parametrize("name", ["seq2seq none", "seq2seq bahdanau"])
def test_nor_where_a_model_takes_the_matrices_of_its_layers_itself(name: str) -> None:
    """The padded encoder and the decoder with input feeding."""
    held = {}
    for quantisation in (None, NF4):
        model, batch = drawn(name, quantisation)
        model.requires_grad_(False)
        model.embedding.requires_grad_(True)  # type: ignore[union-attr]
        seen: set[int] = set()

        def pack(tensor: Tensor, seen: set[int] = seen) -> Tensor:
            if tensor.ndim == 2 and max(tensor.shape) >= 128 and not isinstance(tensor, nn.Parameter):
                seen.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = loss(model, batch)
        held[quantisation] = seen
        del kept
    assert held[None] and not held[NF4]


@pytest.mark.parametrize("half", [False, True])
def test_autograd_keeps_no_dense_matrix_of_a_linear_layer_in_either_precision(half: bool) -> None:
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(2, 64, requires_grad=True)
    quantise_model(layer, NF4)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert held_bytes(lambda: layer(x), [x]) <= 2 * x.nbytes
        output = layer(x)
    assert output.dtype == (torch.bfloat16 if half else torch.float32)
    output.sum().backward()
    expected = quantised(layer)["weight"]().to(output.dtype).float().sum(0).expand(2, 64)
    torch.testing.assert_close(x.grad, expected, rtol=1e-2 if half else 1e-6, atol=1e-2 if half else 1e-6)


@pytest.mark.parametrize("name", ["transformer", "recurrent lstm"])
def test_adapters_are_put_in_without_making_a_matrix_dense(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft reads each matrix a dozen times for its size, type and device."""
    model, batch = drawn(name, NF4)
    expected = loss(model, batch)
    with monkeypatch.context() as patched:
        patched.setattr(Blocks, "forward", None)
        add_adapter(model, Adapter(rank=2))
        add_adapter(model, Adapter(rank=3), "another")
    assert torch.equal(loss(model, batch), expected)


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_model_trains_adapters_on_its_dequantised_base(name: str, tmp_path: Path) -> None:
    plain, batch = drawn(name)
    model, _ = drawn(name, NF4)
    plain.load_state_dict(plain_state(model))
    for each in (plain, model):
        torch.manual_seed(1)
        add_adapter(each, Adapter(rank=2))
        stir(each, size=0.02)
    codes = {at: blocks.codes.clone() for at, blocks in quantised(model).items()}
    expected, got = loss(plain, batch), loss(model, batch)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    expected.backward()
    got.backward()
    wanted = {plain_name(at): p.grad for at, p in adapter_parameters(plain)}
    for at, parameter in adapter_parameters(model):
        torch.testing.assert_close(parameter.grad, wanted[plain_name(at)], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(blocks.codes, codes[at]) for at, blocks in quantised(model).items())
    # The same adapter on the dequantised base in stock peft: files know nothing of the base.
    save_adapter(model, tmp_path)
    fresh, _ = drawn(name)
    fresh.load_state_dict(plain_state(model))
    with torch.no_grad():
        stock = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).train()
        torch.testing.assert_close(loss(stock, batch), got, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", ["transformer", "vae", "recurrent lstm", "recurrent gru", "seq2seq bahdanau"])
def test_gradients_are_the_same_with_activation_checkpointing(name: str, mode: str) -> None:
    gradients = []
    for used in ("none", mode):
        model, batch = drawn(name, NF4)
        torch.manual_seed(1)
        add_adapter(model, Adapter(rank=2))
        stir(model, size=0.02)
        set_checkpointing(model, used)
        loss(model, batch).backward()
        gradients.append({at: p.grad for at, p in adapter_parameters(model)})
    for at, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][at], gradient, rtol=1e-4, atol=1e-5, msg=at)


@pytest.mark.parametrize(("name", "mode"), [("vae", "full"), ("recurrent lstm", "sqrt-time"), ("transformer", "full")])
def test_checkpointing_still_forgets_what_lies_between_matrices(name: str, mode: str) -> None:
    """What a recurrence saves besides its matrices goes to checkpointing's hooks, which stand outside of ours."""
    tokens = torch.randint(1, 11, (4, 256))
    peaks = []
    for used in ("none", mode):
        model, _ = drawn(name, NF4)
        add_adapter(model, Adapter(rank=2))
        set_checkpointing(model, used)
        peaks.append(peak_bytes(lambda model=model: model({"inputs": tokens, "targets": tokens}).nats.backward()))  # type: ignore[misc]
    assert peaks[1] < 0.75 * peaks[0]


def test_a_quantised_model_copies_and_moves() -> None:
    model, batch = drawn("seq2seq luong", NF4)
    add_adapter(model, Adapter(rank=2))
    stir(model)
    again = copy.deepcopy(model).to("cpu")
    assert torch.equal(loss(again, batch), loss(model, batch))
    state = {at: tensor.clone() for at, tensor in trainable_state(model).items()}
    stir(model, seed=9)
    assert not torch.equal(loss(again, batch), loss(model, batch))
    for at, tensor in trainable_state(model).items():
        tensor.copy_(state[at])
    assert torch.equal(loss(again, batch), loss(model, batch))


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["transformer", "recurrent lstm"])
def test_ddp_takes_codes_for_what_they_are(name: str, alone: None) -> None:
    model, batch = drawn(name, NF4)
    add_adapter(model, Adapter(rank=2))
    stir(model)
    loss(model, batch).backward()
    expected = [parameter.grad for _, parameter in adapter_parameters(model)]
    model.zero_grad()
    parallel = DistributedDataParallel(model)
    loss(parallel, batch).backward()
    for (at, parameter), gradient in zip(adapter_parameters(model), expected, strict=True):
        assert torch.equal(parameter.grad, gradient), at  # type: ignore[arg-type]
    assert not list(model.buffers()), "DDP would send them around in every step"


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_what_is_loaded_is_what_was_saved(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "base.safetensors"
    model, batch = drawn(name, Quantisation(kind, double=kind != "fp4"))
    save_quantised(model, name.split()[0], Quantisation(kind, double=kind != "fp4"), file)
    monkeypatch.setattr(Blocks, "of", None)  # nothing is quantised on the way
    monkeypatch.setattr(Blocks, "forward", None)  # and nothing made dense
    described, plain = quantised_model(file).train(), CASES[name][0]()
    load_quantised(plain, file)
    with torch.device("meta"):
        empty = CASES[name][0]()
    load_quantised(empty, file)
    monkeypatch.undo()
    for other in (described, plain, empty):
        assert torch.equal(loss(other, batch), loss(model, batch))


def test_a_base_with_adapters_is_saved_without_them(tmp_path: Path) -> None:
    model, batch = drawn("seq2seq bahdanau", NF4)
    expected = loss(model, batch)
    add_adapter(model, Adapter(rank=2, targets=("*weight_hh*", "decoder.*")))
    stir(model)
    save_quantised(model, "seq2seq", NF4, tmp_path / "base.safetensors")
    save_adapter(model, tmp_path / "adapter")
    again = quantised_model(tmp_path / "base.safetensors").train()
    assert torch.equal(loss(again, batch), expected)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(loss(again, batch), loss(model, batch))


def test_a_file_that_is_damaged_or_anothers_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    model, _ = drawn("recurrent lstm", NF4)
    save_quantised(model, "recurrent", NF4, file)
    whole = file.read_bytes()
    with pytest.raises(ValueError, match="base.safetensors: is of another model: .* does not fit this one"):
        load_quantised(CASES["transformer"][0](), file)
    for position in (len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="base.safetensors: was altered after it was saved"):
            quantised_model(file)
    for torn in (whole[:-100], whole[:50], b""):
        file.write_bytes(torn)
        with pytest.raises(ValueError, match="base.safetensors: holds no quantised base"):
            quantised_model(file)
    file.write_bytes(whole)
    tensors = load_file(file)
    save_file(tensors, str(file))
    with pytest.raises(ValueError, match="holds no quantised base, or one of another version"):
        quantised_model(file)
    with pytest.raises(ValueError, match="holds no quantised base"):
        quantised_model(tmp_path / "nowhere")


def test_mistakes_name_the_key() -> None:
    with pytest.raises(ValueError, match="quantisation.kind: 'nf8' must be one of nf4, fp4, int8"):
        Quantisation("nf8")
    small = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="no matrix of 1024 numbers or more"):
        quantise_model(small, NF4)
    model, _ = drawn("transformer")
    add_adapter(model, Adapter())
    with pytest.raises(ValueError, match="quantised before it gets adapters"):
        quantise_model(model, NF4)
