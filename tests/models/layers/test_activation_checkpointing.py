"""Every family under every mode of activation checkpointing: the same gradient, less memory, nothing costly twice."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reducible.models.contract import Family
from reducible.models.cost.flop_counter import count_flops
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import FAMILIES
from reducible.models.layers.activation_checkpointing import (
    MODES,
    SAVE,
    over_time,
    parts,
    saves_nothing,
    set_checkpointing,
)
from reducible.models.memory.counted_bytes import peak_bytes

VOCABULARY, B, T = 61, 8, 16
DATA = {"vocabulary": VOCABULARY, "source_vocabulary": VOCABULARY, "shared": True, "channels": 3}
KNOWN = {"A": ((0.9,),), "B": ((1.0,),), "C": ((1.0,), (0.5,), (0.2,)), "D": ((1, 0, 0), (0, 1, 0), (0, 0, 1))}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer", {"depth": 2}),
    "transformer, gelu": ("transformer", {"depth": 2, "activation": "gelu", "key_value_heads": 2, "tied": False}),
    "transformer, one block": ("transformer", {"depth": 1}),
    "encoder-decoder": ("encoder-decoder", {"depth": 1, "label_smoothing": 0.1}),
    "recurrent": ("recurrent", {}),
    "recurrent, gru": ("recurrent", {"cell": "gru"}),
    "recurrent, elman": ("recurrent", {"cell": "elman"}),
    "recurrent, in pieces": ("recurrent", {"truncation": 10}),
    "seq2seq": ("seq2seq", {"depth": 2}),
    "seq2seq, one way, without attention": ("seq2seq", {"attention": "none", "bidirectional": False, "depth": 2}),
    "seq2seq, feeding": ("seq2seq", {"attention": "bahdanau", "depth": 2}),
    "seq2seq, feeding, hard": ("seq2seq", {"attention": "bahdanau", "hard": True}),
    "vae": ("vae", {"word_dropout": 0.3}),
    "vae, two layers": ("vae", {"depth": 2, "samples": 2}),
    "ssm": ("ssm", {}),
    "ssm, structured": ("ssm", {"posterior": "structured", "transition": "gated", "emission": "bernoulli"}),
    "ssm, both ways": ("ssm", {"posterior": "bidirectional", "transition": "linear", "emission": "categorical"}),
    "ssm, elman": ("ssm", {"cell": "elman", "transition": "linear"}),
    "ssm, known": ("ssm", {"width": 16, **KNOWN}),
    "linear-gaussian": ("linear-gaussian", {"width": 4}),
}
BARELY = "transformer, one block"
"""While it is rebuilt, what it holds is there as without checkpointing."""


def made(case: str, dropout: float = 0.3) -> tuple[Family, Any]:
    name, keys = CASES[case]
    family = FAMILIES[name]
    chance = {"dropout": dropout} if "dropout" in family.config.__dataclass_fields__ else {}
    facts = {key: DATA[key] for key in family.batch.decided}
    return family, family.config(**{**facts, "width": 32, **chance, **keys})


def built(family: Family, config: Any, mode: str) -> nn.Module:
    torch.manual_seed(0)
    model = family.build(config).train()
    set_checkpointing(model, mode)
    return model


def batch_for(reads: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    if reads == "series":
        observed = torch.rand(B, T, 3, generator=draw) > 0.2
        values = torch.randint(2, (B, T, 3), generator=draw).float()
        return {"values": values, "observed": observed, "steps": torch.ones(B, T, dtype=torch.bool)}
    tokens = torch.randint(1, VOCABULARY, (B, T), generator=draw)
    batch = {"inputs": tokens, "targets": tokens.roll(-1, 1)}
    if reads == "pairs":
        batch |= {"source": tokens, "source_lengths": torch.randint(T // 2, T + 1, (B,), generator=draw)}
    return batch


def step(model: nn.Module, reads: str) -> Tensor:
    """Forward and backward, piece by piece where the model has pieces: the loss."""
    model.zero_grad()
    torch.manual_seed(5)
    batch, nats = batch_for(reads), []
    for piece, _ in model.pieces(batch) if hasattr(model, "pieces") else [(batch, True)]:  # type: ignore[operator]
        loss = model(piece).nats
        loss.backward()
        nats.append(loss.detach())
    return torch.stack(nats)


def gradients(model: nn.Module, reads: str) -> dict[str, Tensor]:
    found = {"loss": step(model, reads)}
    return found | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_same_to_the_bit_with_dropout_on(case: str) -> None:
    family, config = made(case)
    plain = built(family, config, "none")
    expected = gradients(plain, family.reads)
    for mode in ("full", "selective"):
        model = built(family, config, mode)
        assert list(plain.state_dict()) == list(model.state_dict())
        for name, gradient in gradients(model, family.reads).items():
            assert torch.equal(gradient, expected[name]), (mode, name)


@pytest.mark.parametrize("case", CASES)
def test_rebuilt_chunks_have_the_gradient_of_held_chunks_to_the_bit(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of the whole to rounding, also with dropout between layers: it draws in the order of memory."""
    family, config = made(case)
    whole = gradients(built(family, config, "none"), family.reads)
    rebuilt = gradients(built(family, config, "sqrt-time"), family.reads)
    for place in ("activation_checkpointing", "padded_lstm"):
        monkeypatch.setattr(f"reducible.models.layers.{place}.checkpoint", lambda run, *arguments, **_: run(*arguments))
    held = gradients(built(family, config, "sqrt-time"), family.reads)
    for name, gradient in rebuilt.items():
        assert torch.equal(gradient, held[name]), name
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-5 * whole[name].abs().max().item())


@pytest.mark.parametrize(
    ("case", "dropout"),
    [
        *((case, 0.3) for case in CASES),
        *((case, 0.0) for case in ("transformer", "encoder-decoder", "recurrent", "vae")),
    ],
)
def test_a_mode_saves_memory_or_there_is_a_reason_why_not(case: str, dropout: float) -> None:
    family, config = made(case, dropout)

    def peak(mode: str) -> int:
        model = built(family, config, mode)
        return peak_bytes(lambda: step(model, family.reads))

    none = peak("none")
    assert saves_nothing(family, config, "none") is None
    for mode in MODES[1:]:
        reason = saves_nothing(family, config, mode)
        if reason is None:
            assert peak(mode) < (1.0 if case == BARELY else 0.95) * none, mode
        else:
            assert family.name in reason
            assert peak(mode) == none, mode


def test_what_the_modes_are_for() -> None:
    """The claims of docs/training.md, by family, so that a mode cannot quietly stop being one."""
    claimed = {
        mode: [case for case in CASES if saves_nothing(*made(case), mode) is None]
        for mode in ("selective", "sqrt-time")
    }
    assert claimed["selective"] == [
        case for case in CASES if case.startswith(("transformer", "encoder-decoder")) or "feeding" in case
    ]
    without = ("transformer", "encoder-decoder", "linear-gaussian", "ssm, elman")
    assert claimed["sqrt-time"] == [case for case in CASES if not case.startswith(without)]
    assert [case for case in CASES if saves_nothing(*made(case), "full")] == ["ssm, known", "linear-gaussian"]


class Calls(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func] += 1
        return func(*args, **(kwargs or {}))


def calls(run: Callable[[], Any]) -> Counter[Any]:
    with Calls() as seen:
        run()
    return seen.count


@pytest.mark.parametrize("case", CASES)
def test_selective_computes_nothing_twice_that_it_holds(case: str) -> None:
    family, config = made(case)
    none, selective, full = (
        calls(partial(step, built(family, config, mode), family.reads)) for mode in ("none", "selective", "full")
    )
    for operator in SAVE:
        assert selective[operator] == none[operator], operator
    rebuilt = parts(built(family, config, "none"), "selective")
    assert (sum(selective.values()) > sum(none.values())) == bool(rebuilt)
    if rebuilt:
        assert sum(full[operator] for operator in SAVE) > sum(none[operator] for operator in SAVE)


@pytest.mark.parametrize(
    "case", ["recurrent", "seq2seq", "seq2seq, one way, without attention", "vae", "ssm, both ways"]
)
def test_sqrt_time_rebuilds_every_fused_recurrence_once(case: str) -> None:
    family, config = made(case)

    def steps_read(mode: str) -> int:
        seen = 0

        class Reads(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal seen
                seen += len(args[0]) if func is torch.ops.aten.mkldnn_rnn_layer.default else 0  # (T, B, X)
                return func(*args, **(kwargs or {}))

        with Reads():
            step(built(family, config, mode), family.reads)
        return seen

    assert steps_read("sqrt-time") == 2 * steps_read("none") > 0


# A padded recurrence multiplies padding, which the ledger leaves out: test_seq2seq.py counts pairs without padding.
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(("linear-gaussian", "seq2seq", "enc"))])
def test_the_ledger_knows_what_is_computed_again(case: str) -> None:
    family, config = made(case)
    counted = {mode: count_flops(partial(step, built(family, config, mode), family.reads)) for mode in MODES}
    cost, units = family.cost(config, Lengths.fixed(T)), B * T
    # A latent that depends on the one before alone has no transition into the first step; the ledger has one.
    exact = family.name != "ssm" or config.transition == "lstm"
    again = counted["full"] - counted["none"]
    assert again == pytest.approx(cost.checkpointing_flops_per_unit * units, rel=1e-9 if exact else 0.02)
    assert counted["selective"] == counted["none"]
    if cost.sqrt_time_flops_per_unit is not None:
        assert counted["sqrt-time"] - counted["none"] == cost.sqrt_time_flops_per_unit * units


def test_a_mode_without_a_formula_is_an_error_that_names_family_and_mode() -> None:
    for case in CASES:
        family, config = made(case)
        cost = family.cost(config, Lengths.fixed(T, T))
        assert cost.activation_bytes(10) >= 0
        with pytest.raises(ValueError, match=f"checkpointing: the activations of a {family.name} under 'selective'"):
            cost.activation_bytes(10, checkpointing="selective")
    family, config = made("ssm")
    with pytest.raises(ValueError, match="of a ssm under 'full' have no formula .there is one for none.; measure"):
        family.cost(config, Lengths.fixed(T)).activation_bytes(10, checkpointing="full")


def test_a_mode_that_there_is_not_is_refused() -> None:
    family, config = made("transformer")
    with pytest.raises(ValueError, match="checkpointing: 'blocks' must be one of none, full, selective, sqrt-time"):
        built(family, config, "blocks")


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("case", ["transformer", "seq2seq", "seq2seq, feeding", "vae", "ssm"])
def test_the_same_under_autocast(case: str, mode: str) -> None:
    """bf16 as training casts; its backward runs inside the cast, as in the train step."""
    family, config = made(case)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(built(family, config, "none"), family.reads)
        found = gradients(built(family, config, mode), family.reads)
    for name, gradient in found.items():
        allowed = 0.2 * expected[name].abs().max().item() if mode == "sqrt-time" else 0.0
        assert (gradient - expected[name]).abs().max().item() <= allowed, name


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(
    ("case", "adapted"),
    [
        ("transformer", {"target_modules": ["qkv", "down"]}),
        ("vae", {"target_modules": [], "target_parameters": ["layers.0.weight_ih_l0", "layers.0.weight_hh_l0"]}),
    ],
)
def test_the_same_with_adapters_inside(case: str, adapted: dict[str, list[str]], mode: str) -> None:
    """peft replaces modules inside blocks, or wraps a recurrence whose weights exist only while the wrapper runs."""
    peft = pytest.importorskip("peft")
    family, config = made(case)
    found = []
    for each in ("none", mode):
        model = built(family, config, "none")
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, init_lora_weights=False, **adapted), model)
        set_checkpointing(model, each)
        found.append(gradients(model, family.reads))
    expected, again = found
    assert any("lora" in name for name in expected)
    for name, gradient in again.items():
        allowed = 1e-5 * expected[name].abs().max().item() if mode == "sqrt-time" else 0.0
        assert (gradient - expected[name]).abs().max().item() <= allowed, name


def test_selective_holds_activations_and_no_weights_put_together_from_factors() -> None:
    class Adapted(nn.Module):
        stochastic = False

        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Parameter(torch.randn(50, 50), requires_grad=False)
            self.B, self.A = nn.Parameter(torch.randn(50, 2)), nn.Parameter(torch.randn(2, 50))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ torch.addmm(self.base, self.B, self.A)).relu() @ self.A.T

        def selective_parts(self) -> list[tuple[nn.Module, str]]:
            return [(self, "forward")]

    model = Adapted()
    set_checkpointing(model, "selective")
    seen = calls(lambda: model(torch.randn(3, 50)).sum().backward())
    products = seen[torch.ops.aten.mm.default] + seen[torch.ops.aten.addmm.default]
    # Forward: the sum, and two products. Again: the sum. Backward: two for the last, one into the sum, two into it.
    assert (seen[torch.ops.aten.addmm.default], products) == (2, 3 + 1 + 5)


def test_a_recurrence_is_never_rebuilt_selectively() -> None:
    """nn.GRU on a CPU adds to the results of its products in place, which torch does not notice."""

    class Wrong(nn.Module):
        stochastic = False

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 4)

        def selective_parts(self) -> list[tuple[nn.Module, str]]:
            return [(self.layer, "forward")]

    with pytest.raises(ValueError, match="selective_parts: a GRU holds a recurrence"):
        set_checkpointing(Wrong(), "selective")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_the_same_in_a_compiled_model(mode: str) -> None:
    family, config = made("transformer")
    expected, found = (built(family, config, each) for each in ("none", mode))
    for model in (expected, found):
        model.compile(dynamic=False)
    plain = gradients(expected, family.reads)
    for name, gradient in gradients(
        found, family.reads
    ).items():  # what the compiler fuses differs, and so does rounding
        torch.testing.assert_close(gradient, plain[name], rtol=0, atol=1e-5 * plain[name].abs().max().item(), msg=name)


def test_chunks_that_draw_draw_what_the_whole_draws() -> None:
    x = torch.randn(30, 4, requires_grad=True)

    def advance(x_TB: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        for x_B in x_TB.unbind():
            state = torch.dropout(state + x_B, 0.5, True)
        return state, state

    found = []
    for rebuild in (False, True):
        torch.manual_seed(0)
        _, last = over_time(advance, (x,), torch.zeros(4), rebuild, draws=True)
        found.append(torch.autograd.grad(last.sum(), x)[0])
    assert torch.equal(*found)
    assert found[0].any()
