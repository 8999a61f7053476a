"""Fine-tuning keeps the contracts of training: resumed equals never stopped, and any world size gives the same."""

from pathlib import Path

import pytest
import torch
from family_cases import training_data
from finetuning_cases import HALF, METHODS, base_of, tuning_spec
from resume_cases import assert_identical, newest_state
from safetensors.torch import load_file
from training_cases import Interrupted, gradients_and_weights, interrupted_at, on_ranks, ragged_examples

from reducible.models.finetune.lora import load_adapter
from reducible.models.weights.model_folder import load_model
from reducible.tasks.errors import UserError
from reducible.tasks.train.folders import ADAPTER, MODEL
from reducible.tasks.train.loop import train
from reducible.tasks.train.progress import TrainResult
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record


def run(spec: TrainSpec, base: Path, work: Path, stop: int = -1, attempt: str = "x") -> TrainResult:
    examples = ragged_examples(spec) if spec.family == "transformer" else training_data(spec)
    execution = Execution(checkpoint_every=3, log_every=1)
    record = Record(work / "record", attempt)
    data = interrupted_at(examples, stop)
    return train(spec, execution, data=data, start=None, work=work, record=record, base=base)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family_name", ["transformer", "recurrent", "vae"])
def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path, family_name: str, method: str) -> None:
    """Adapter, optimizer and metrics to the bit, with dropout on the way into the adapter."""
    spec = tuning_spec(method, family_name)
    base = base_of(spec, tmp_path / "bases")
    straight = run(spec, base, tmp_path / "straight")
    with pytest.raises(Interrupted):
        run(spec, base, tmp_path / "broken", 5, "first")
    resumed = run(spec, base, tmp_path / "broken", attempt="second")
    assert_identical(tmp_path / "straight", tmp_path / "broken")
    assert straight.base_loss == resumed.base_loss
    for name in ("model", "adapter"):
        file = f"{name}/{'adapter_' if name == 'adapter' else ''}model.safetensors"
        assert (tmp_path / "straight" / name).is_dir() == (name == "model" or method != "full")
        if (tmp_path / "straight" / name).is_dir():
            assert (tmp_path / "straight" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_checkpoint_holds_the_adapter_and_nothing_of_the_base(tmp_path: Path, method: str) -> None:
    spec = tuning_spec(method)
    run(spec, base_of(spec, tmp_path / "bases"), tmp_path / "work")
    names = [name for name in newest_state(tmp_path / "work") if name.startswith("model.")]
    assert names and all("lora_" in name for name in names)


def test_the_merged_model_is_the_base_with_the_adapter(tmp_path: Path) -> None:
    spec = tuning_spec("lora")
    base = base_of(spec, tmp_path / "bases")
    run(spec, base, tmp_path / "work")
    adapted = load_model(base / MODEL)
    load_adapter(adapted, tmp_path / "work" / ADAPTER)
    merged = load_model(tmp_path / "work" / MODEL)
    plain = load_model(base / MODEL)
    tokens = torch.randint(17, (3, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(merged.logits(tokens), adapted.eval().logits(tokens), rtol=1e-4, atol=1e-4)
        assert (merged.logits(tokens) - plain.logits(tokens)).abs().max() > 0.1


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    for family_name in ("transformer", "recurrent"):
        base_of(tuning_spec("lora", family_name), out / "bases")
    on_ranks("finetuning_ranks.py", 2, str(out))
    return out


TOGETHER = [(method, strategy) for method in METHODS for strategy in ("ddp", "fsdp")]


@pytest.mark.parametrize(("method", "strategy"), TOGETHER)
@pytest.mark.parametrize("family_name", ["transformer", "recurrent"])
def test_two_ranks_train_what_one_does(
    ranks: Path, tmp_path: Path, family_name: str, method: str, strategy: str
) -> None:
    spec = tuning_spec(method, family_name)
    data = ragged_examples(spec) if family_name == "transformer" else training_data(spec)
    base = base_of(spec, ranks / "bases")
    alone = gradients_and_weights(spec, Execution(), data, tmp_path, steps=2, base=base)
    together = torch.load(ranks / f"{family_name}-{method}-{strategy}.pt")
    for kind, tensors in alone.items():
        assert tensors.keys() == together[kind].keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(together[kind][name], tensor, rtol=2e-4, atol=2e-5, msg=f"{kind} {name}")


@pytest.mark.parametrize(("method", "strategy"), TOGETHER)
def test_two_ranks_leave_a_model_and_an_adapter(ranks: Path, method: str, strategy: str) -> None:
    work = ranks / f"transformer-{method}-{strategy}"
    load_model(work / MODEL)
    assert (work / ADAPTER / "adapter_model.safetensors").is_file() == (method != "full")
    one = load_file(work / MODEL / "model.safetensors")
    other = load_file(ranks / f"transformer-{method}-ddp" / MODEL / "model.safetensors")
    assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)


@pytest.mark.skipif(not HALF, reason="this CPU has no bf16")
def test_shards_of_a_quantised_base_are_not_rounded_to_16_bits(ranks: Path, tmp_path: Path) -> None:
    """Codes and constants arrive as they were saved, and autocast computes in bf16: the same numbers as in one process.

    Constants in 16 bits would change them as much as computing in 16 bits does.
    """
    half, exact = (tuning_spec("qlora", precision=precision) for precision in ("bf16", "fp32"))
    base, data = base_of(half, ranks / "bases"), ragged_examples(half)
    alone, otherwise = (
        gradients_and_weights(spec, Execution(), data, tmp_path / spec.precision, 1, base=base)["gradient 0"]
        for spec in (half, exact)
    )
    together = torch.load(ranks / "half.pt")["gradient 0"]
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=2e-4, atol=2e-5, msg=name)
    assert any(not torch.allclose(otherwise[name], tensor, rtol=2e-4, atol=2e-5) for name, tensor in alone.items())


def test_fine_tuning_without_a_base_is_one_line(tmp_path: Path) -> None:
    spec, record = tuning_spec("lora"), Record(tmp_path / "record", "x")
    with pytest.raises(UserError, match=r"fine-tuning needs the input `base`"):
        train(spec, Execution(), data=ragged_examples(spec), start=None, work=tmp_path, record=record)


def test_a_fine_tuning_that_gets_worse_than_its_base_has_diverged(tmp_path: Path) -> None:
    spec = tuning_spec("full", optimizer={"learning_rate": 30.0, "clip": None})
    result = run(spec, base_of(spec, tmp_path / "bases"), tmp_path / "work")
    assert result.status == "diverged" and "above the base's" in str(result.reason)
    assert not (tmp_path / "work" / MODEL).exists()
