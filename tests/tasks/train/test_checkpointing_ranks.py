"""Every mode of activation checkpointing on two ranks: the gradient of no checkpointing, under DDP and under FSDP2."""

import sys
from pathlib import Path

import pytest
import torch
from family_cases import family_spec, settings, training_data
from training_cases import gradients_and_weights, on_ranks

from reducible.models.families.registry import FAMILIES
from reducible.models.layers.activation_checkpointing import MODES
from reducible.tasks.train.train_spec import Execution, TrainSpec

STRATEGIES = ("ddp", "fsdp")
CASES = {name: {} for name in FAMILIES} | {"seq2seq, feeding": {"attention": "bahdanau"}}


def spec_of(case: str) -> TrainSpec:
    name = case.partition(",")[0]
    return family_spec(name, model=settings(name) | CASES[case])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpointing-ranks")
    on_ranks(__file__, 2, str(out))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_gradient_of_two_ranks_without(ranks: Path, case: str, strategy: str) -> None:
    """To the bit; with sqrt-time to rounding."""
    seen = {mode: torch.load(ranks / f"{case}-{strategy}-{mode}.pt") for mode in MODES}
    for mode in MODES[1:]:
        for what, tensors in seen["none"].items():
            for name, tensor in tensors.items():
                difference = (seen[mode][what][name] - tensor).abs().max()
                assert difference <= (1e-3 * tensor.abs().max() if mode == "sqrt-time" else 0.0), (mode, what, name)


def on_this_rank(out: Path) -> None:
    """What each of two gloo processes does for the test above."""
    torch.distributed.init_process_group("gloo")
    for case in CASES:
        spec = spec_of(case)
        for strategy in STRATEGIES:
            for mode in MODES:
                execution = Execution(workers=2, strategy=strategy, checkpointing=mode)  # type: ignore[arg-type]
                work = out / f"{case}-{strategy}-{mode}"
                seen = gradients_and_weights(spec, execution, training_data(spec), work, steps=2)
                if torch.distributed.get_rank() == 0:
                    torch.save(seen, out / f"{work.name}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    on_this_rank(Path(sys.argv[1]))
