"""Activation checkpointing, every family and mode: memory at its highest and processor time, against none and a bound.

    PYTHONPATH=. python benchmarks/checkpointing.py        # about three minutes on one core

Memory: the most bytes alive at once that forward and backward make (models/memory/counted_bytes.py), parameters and
their sums of gradients apart; scratch inside a kernel is not in it. Time: processor time of forward and backward, one
thread; the modes take turns, and the ratio is the median over turns of the ratio to `none` in the same turn.

The bound is what the mode cannot do without. Between forward and backward that is all that autograd saves, but of the
parts that are rebuilt only what enters them, with selective the results that it holds, with sqrt-time the states
between chunks. While a part is rebuilt it is the same of this part and those before it, and what this part (with
sqrt-time: one chunk of it) saves. The larger of the two counts; what is measured above it are gradients on their way.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Container, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reducible.models.families.registry import FAMILIES
from reducible.models.layers.activation_checkpointing import (
    MODES,
    SAVE,
    chunk_length,
    parts,
    recurrences,
    saves_nothing,
    set_checkpointing,
)
from reducible.models.memory.counted_bytes import peak_bytes

TEXT, PAIRS = {"vocabulary": 512}, {"vocabulary": 512, "source_vocabulary": 512, "shared": True}
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    # name: family, configuration, rows, steps
    "transformer": ("transformer", {**TEXT, "width": 256, "depth": 6, "dropout": 0.1}, 4, 256),
    "encoder-decoder": ("encoder-decoder", {**PAIRS, "width": 256, "depth": 3, "dropout": 0.1}, 8, 96),
    "recurrent, LSTM": ("recurrent", {**TEXT, "width": 256, "dropout": 0.1}, 8, 256),
    "recurrent, GRU": ("recurrent", {**TEXT, "width": 256, "dropout": 0.1, "cell": "gru"}, 8, 256),
    "seq2seq, luong": ("seq2seq", {**PAIRS, "width": 256, "depth": 2, "dropout": 0.1}, 16, 64),
    "seq2seq, bahdanau": ("seq2seq", {**PAIRS, "width": 256, "attention": "bahdanau", "dropout": 0.1}, 16, 64),
    "vae": ("vae", {**TEXT, "width": 256, "depth": 2, "dropout": 0.1}, 16, 64),
    "ssm": ("ssm", {"channels": 16, "width": 128, "posterior": "bidirectional"}, 16, 128),
    "ssm, gated": ("ssm", {"channels": 16, "width": 128, "posterior": "structured", "transition": "gated"}, 16, 128),
    "linear-gaussian": ("linear-gaussian", {"channels": 16, "width": 8}, 16, 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}\n")
    print("| family | mode | memory, MiB | of none | of the bound | time of none |\n|---|---|---:|---:|---:|---:|")
    for case, (name, keys, rows, steps) in CASES.items():
        family = FAMILIES[name]
        config, batch = family.config(**keys), batch_of(family.reads, rows, steps)
        modes = [mode for mode in MODES if saves_nothing(family, config, mode) is None]
        models = {}
        for mode in modes:
            torch.manual_seed(0)
            models[mode] = family.build(config).train()
            set_checkpointing(models[mode], mode)
        memory = {mode: highest(model, batch) for mode, model in models.items()}
        torch.manual_seed(0)
        bounds = {mode: bound(family.build(config).train(), mode, batch, steps) for mode in modes}
        seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        for _ in range(turns):
            for mode, model in models.items():
                began = time.process_time()
                step(model, batch)
                seconds[mode].append(time.process_time() - began)
        for mode in MODES:
            if mode not in modes:
                print(f"| {case} | {mode} | saves nothing | | | |")
                continue
            ratio = statistics.median(a / b for a, b in zip(seconds[mode], seconds["none"], strict=True))
            of_none = memory[mode] / memory["none"]
            # What holds nothing for backward has no bound to speak of.
            of_bound = f"{memory[mode] / bounds[mode]:.2f}" if len(modes) > 1 else "-"
            print(f"| {case} | {mode} | {memory[mode] / 2**20:.1f} | {of_none:.2f} | {of_bound} | {ratio:.2f} |")


def batch_of(reads: str, rows: int, steps: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if reads == "series":
        shape = (rows, steps, 16)
        present = torch.ones(rows, steps, dtype=torch.bool)
        return {"values": torch.randn(shape), "observed": torch.rand(shape) > 0.1, "steps": present}
    tokens = torch.randint(1, 512, (rows, steps))
    batch = {"inputs": tokens, "targets": tokens.roll(-1, 1)}
    if reads == "pairs":
        batch |= {"source": tokens, "source_lengths": torch.full((rows,), steps)}
    return batch


def step(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Adds to the gradients that there are."""
    model(batch).nats.backward()


def highest(model: nn.Module, batch: dict[str, Tensor]) -> int:
    step(model, batch)  # makes the gradients that the next one adds to
    return peak_bytes(lambda: step(model, batch))


# The bound ------------------------------------------------------------------------------------------------------------


class Bytes(dict[int, int]):
    """Storages and their sizes; every one is kept alive, or another could take its place."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[Tensor] = []

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self[storage._cdata] = storage.nbytes()
        self.alive.append(tensor)


class Results(TorchDispatchMode):
    """What the operators gave that selective checkpointing holds."""

    def __init__(self, found: Bytes) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in SAVE:
            for leaf in tree_leaves(result):
                self.found.add(leaf)
        return result


class Call:
    """One call of a part: what enters it, what selective checkpointing holds of it, what autograd saves inside."""

    def __init__(self, share: float) -> None:
        self.share = share
        """Of the inside, what is rebuilt at once."""
        self.entering, self.results, self.inside = Bytes(), Bytes(), Bytes()


def bound(model: nn.Module, mode: str, batch: dict[str, Tensor], steps: int) -> float:
    """Bytes that the mode cannot do without; the model has no checkpointing set."""
    rows = next(iter(batch.values())).shape[0]
    chosen = [(module, method, 1.0) for module, method in parts(model, mode)]
    states = 0.0
    for recurrence in recurrences(model) if mode == "sqrt-time" else ():
        layers = [each for each in recurrence.modules() if isinstance(each, nn.RNNBase)]
        if any(layer.bidirectional for layer in layers):  # rebuilt whole, one by one
            chosen.append((recurrence, "forward", 1 / len(layers)))
        else:
            chunk = chunk_length(steps)
            chosen.append((recurrence, "forward", chunk / steps))
            width = sum((2 if isinstance(layer, nn.LSTM) else 1) * layer.hidden_size for layer in layers)
            states += 4.0 * rows * width * (steps // chunk)
    outside, calls = Bytes(), []

    def watched(method: Callable[..., Any], share: float) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            call = Call(share)
            calls.append(call)
            for leaf in tree_leaves((given, named)):
                if isinstance(leaf, Tensor):
                    call.entering.add(leaf)
            with saving(call.inside), Results(call.results) if mode == "selective" else nullcontext():
                return method(*given, **named)

        return run

    for module, name, share in chosen:
        setattr(module, name, watched(getattr(module, name), share))
    with saving(outside):
        loss = model(batch)
    del loss
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), *batch.values())}

    def total(storages: Mapping[int, int], without: Container[int] = ()) -> int:
        return sum(size for key, size in storages.items() if key not in known and key not in without)

    waiting: dict[int, int] = {}
    rebuilding = [0.0]
    for call in calls:  # the last is rebuilt first, while what the ones before it hold still waits
        waiting |= call.entering | call.results
        rebuilding.append(total(waiting) + states + call.share * total(call.inside, without=waiting))
    return max(total(waiting | outside) + states, *rebuilding)


def saving(place: Bytes) -> Any:
    """Notes what autograd saves."""

    def pack(tensor: Tensor) -> Tensor:
        place.add(tensor)
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


if __name__ == "__main__":
    main()
