"""Deep models are carried on from shallow ones, long loops over time from short ones: against the rehearsal itself."""

import pytest

import reducible.models.memory.step_plan as step_plan
from reducible.models.families.registry import FAMILIES
from reducible.models.finetune.lora import Adapter
from reducible.models.layers.activation_checkpointing import MODES
from reducible.models.memory.step_plan import MANY_LAYERS, SHORT, Method, Setting, _rehearse, rehearsed

PAIRS = {"source_vocabulary": 60, "vocabulary": 64, "shared": False, "width": 32}
DEEP = {
    "transformer": {"vocabulary": 64, "width": 32, "heads": 2},
    "recurrent": {"vocabulary": 64, "width": 32},
    "encoder-decoder": PAIRS | {"heads": 2},
    "seq2seq": PAIRS,
    "vae": {"vocabulary": 64, "width": 32},
}
LONG = {
    "gru": ("recurrent", {"vocabulary": 64, "width": 32, "depth": 1, "cell": "gru"}),
    "elman": ("recurrent", {"vocabulary": 64, "width": 32, "depth": 1, "cell": "elman"}),
    "bahdanau": ("seq2seq", PAIRS | {"depth": 1, "attention": "bahdanau"}),
    "linear-gaussian": ("linear-gaussian", {"channels": 2, "width": 3}),
}
OTHERS = [name for name in DEEP if name != "transformer"]


LARGE = {"vocabulary": 4000, "width": 128}
PAIRS_LARGE = PAIRS | {"vocabulary": 4000}
CHANGING = {
    "logits, then gradients": ("transformer", LARGE | {"heads": 2}, 16, 16, "full"),
    "tables, then logits": ("transformer", LARGE | {"heads": 2}, 32, 1, "none"),
    "two stacks, logits, then gradients": ("vae", LARGE, 16, 16, "full"),
    "two stacks, tables, then logits": ("encoder-decoder", PAIRS_LARGE | {"heads": 2}, 16, 1, "none"),
    "fused stacks": ("seq2seq", PAIRS_LARGE, 16, 1, "none"),
}
"""What rules the peak, or the activations, of the shallow models that are rehearsed, and then of the deep one."""


def assert_alike(setting: Setting, tolerance: float) -> None:
    found, exact = rehearsed(setting), _rehearse(setting)
    for name in ("parameters", "trained", "weights", "gradients", "moments"):
        assert getattr(found, name) == getattr(exact, name), name
    assert found.flops == pytest.approx(exact.flops, rel=1e-9)
    for name in ("held", "activations", "peak", "accumulating_peak"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=tolerance), name
    units, whole = found.units, exact.units
    assert sorted(zip(units.blocks, units.blocks_trained, strict=True)) == sorted(
        zip(whole.blocks, whole.blocks_trained, strict=True)
    )
    assert (units.root, units.root_trained) == (whole.root, whole.root_trained)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["transformer", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_deep_model_takes_what_every_further_layer_takes(family: str, mode: str) -> None:
    assert_alike(
        Setting(family, FAMILIES[family].config(**DEEP[family], depth=MANY_LAYERS + 1), 16, 2, Method(), mode), 0.03
    )


@pytest.mark.parametrize(
    "case", [name if at < 2 else pytest.param(name, marks=pytest.mark.slow) for at, name in enumerate(CHANGING)]
)
def test_what_is_largest_in_shallow_models_need_not_be_in_deep_ones(case: str) -> None:
    family, keys, sequence, rows, mode = CHANGING[case]
    config = FAMILIES[family].config(**keys, depth=MANY_LAYERS + 1)
    assert_alike(Setting(family, config, sequence, rows, Method(), mode), 0.03)


def test_layers_of_an_adapter_are_carried_on_too() -> None:
    config = FAMILIES["transformer"].config(**DEEP["transformer"], depth=MANY_LAYERS + 1)
    assert_alike(Setting("transformer", config, 16, 2, Method("qlora")), 0.03)


@pytest.mark.parametrize(
    "target",
    ["layers.5.*", "layers.[0-4].*", "layers.*.qkv", pytest.param("layers.?.*", marks=pytest.mark.slow)],
)
def test_an_adapter_sits_in_the_layers_that_its_targets_name(target: str) -> None:
    config = FAMILIES["transformer"].config(**DEEP["transformer"], depth=MANY_LAYERS + 1)
    assert_alike(Setting("transformer", config, 16, 2, Method("lora", Adapter(targets=(target,)))), 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "sqrt-time"])
@pytest.mark.parametrize("case", LONG)
def test_a_long_loop_over_time_takes_what_short_ones_tell(case: str, mode: str, monkeypatch) -> None:
    monkeypatch.setattr(step_plan, "LONG_LOOP", 0)
    family, keys = LONG[case]
    setting = Setting(family, FAMILIES[family].config(**keys), max(SHORT) + 25, 2, Method(), mode)
    rehearsed.cache_clear()
    assert_alike(setting, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["gru", "elman"])
def test_what_is_largest_in_short_loops_need_not_be_in_long_ones(cell: str, monkeypatch) -> None:
    monkeypatch.setattr(step_plan, "LONG_LOOP", 0)
    rehearsed.cache_clear()
    config = FAMILIES["recurrent"].config(vocabulary=1024, width=80, depth=1, cell=cell)
    assert_alike(Setting("recurrent", config, 600, 1), 0.01)
