"""What would make a step fit: everything that is listed does, and the ranking is by time."""

from dataclasses import replace

from reducible.models.families.registry import FAMILIES
from reducible.models.finetune.lora import Adapter
from reducible.models.memory.remedies import remedies
from reducible.models.memory.step_plan import Method, Setting, largest_micro_batch, planned

KIND = FAMILIES["transformer"]
SETTING = Setting("transformer", KIND.config(vocabulary=64, width=64, depth=1, heads=2), 32, 8, strategy="ddp", world=2)


def test_what_is_listed_fits_and_is_ranked_by_time() -> None:
    memory = 0.6 * planned(SETTING).peak
    ways = remedies(SETTING, memory, rows=8)
    assert [way.time for way in ways] == sorted(way.time for way in ways)
    for way in ways:
        assert way.plan.peak <= memory
    full = [way.changes for way in ways if way.plan.setting.method.kind == "full"]
    # A smaller micro-batch computes nothing twice, so it comes before checkpointing.
    assert any("micro_batch" in change for change in full[0])


def test_the_largest_micro_batch_fits_and_one_row_more_does_not() -> None:
    for strategy in ("ddp", "fsdp"):
        setting = replace(SETTING, strategy=strategy, checkpointing="full")
        memory = planned(replace(setting, micro_batch=11)).peak + 1
        assert largest_micro_batch(setting, memory, 50) == 11


def test_an_adapter_is_advised_to_have_its_base_in_few_bits() -> None:
    adapter = Adapter(rank=3)
    setting = replace(SETTING, method=Method("lora", adapter))
    methods = [way.plan.setting.method for way in remedies(setting, 0.97 * planned(setting).peak, rows=8)]
    assert Method("qlora", adapter) in methods and Method("qlora") not in methods


def test_a_model_too_small_to_quantise_is_advised_without_it() -> None:
    small = Setting("transformer", KIND.config(vocabulary=64, width=8, depth=1, heads=2), 32, 4)
    ways = remedies(small, 0.6 * planned(small).peak, rows=4)
    assert ways and not any("qlora" in change for way in ways for change in way.changes)
