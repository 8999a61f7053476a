"""Deep models are carried on from shallow ones, long loops over time from short ones: against the rehearsal itself."""

import pytest

import models.memory_plan as memory_plan
from models.checkpointing import MODES
from models.families import FAMILIES
from models.memory_plan import MANY_LAYERS, SHORT, Method, Setting, _rehearse, rehearsed

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


def assert_alike(setting: Setting) -> None:
    found, exact = rehearsed(setting), _rehearse(setting)
    for name in ("parameters", "trained", "weights", "gradients", "moments"):
        assert getattr(found, name) == getattr(exact, name), name
    assert found.flops == pytest.approx(exact.flops, rel=1e-9)
    for name, tolerance in {"held": 0.05, "activations": 0.1, "peak": 0.05, "accumulating_peak": 0.05}.items():
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=tolerance), name
    units, whole = found.units, exact.units
    assert sorted(zip(units.blocks, units.blocks_trained, strict=True)) == sorted(
        zip(whole.blocks, whole.blocks_trained, strict=True)
    )
    assert (units.root, units.root_trained) == (whole.root, whole.root_trained)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["transformer", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_deep_model_takes_what_every_further_layer_takes(family: str, mode: str) -> None:
    assert_alike(Setting(family, FAMILIES[family].config(**DEEP[family], depth=MANY_LAYERS + 1), 16, 2, Method(), mode))


def test_layers_of_an_adapter_are_carried_on_too() -> None:
    config = FAMILIES["transformer"].config(**DEEP["transformer"], depth=MANY_LAYERS + 1)
    assert_alike(Setting("transformer", config, 16, 2, Method("qlora")))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "sqrt-time"])
@pytest.mark.parametrize("case", LONG)
def test_a_long_loop_over_time_takes_what_short_ones_tell(case: str, mode: str, monkeypatch) -> None:
    monkeypatch.setattr(memory_plan, "LONG_LOOP", 0)
    family, keys = LONG[case]
    setting = Setting(family, FAMILIES[family].config(**keys), max(SHORT) + 25, 2, Method(), mode)
    rehearsed.cache_clear()
    assert_alike(setting)
