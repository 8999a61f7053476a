"""What a rank of DDP holds, against the plan: buckets are the gradients, accumulated or not, from the first step on."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from reducible.models.batches import BATCHES
from reducible.models.families.registry import FAMILIES
from reducible.models.memory.counted_bytes import Alive
from reducible.models.memory.step_plan import Method, Setting, planned, prepared
from reducible.tasks.train.parallel import Parallel

SMALL = FAMILIES["transformer"].config(vocabulary=2048, width=256, depth=4, heads=4, tied=False)


@pytest.fixture
def alone():
    """A process group of one: DDP holds as much on each rank of any number."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield SimpleNamespace(size=2, joined=True, device=torch.device("cpu"))
    dist.destroy_process_group()


PAIRWISE = {("full", 1, 2), ("full", 16, 1), ("lora", 1, 1), ("lora", 16, 2)}
"""Any two settings meet among these; that all meet is for the slow tests."""
SETTINGS = [
    pytest.param(*case, marks=() if case in PAIRWISE else pytest.mark.slow)
    for case in product(("full", "lora"), (1, 16), (1, 2))
]


@pytest.mark.parametrize(("kind", "rows", "micro_batches"), SETTINGS)
def test_a_rank_of_ddp_takes_what_the_plan_says(alone, kind, rows, micro_batches) -> None:
    method = Method(kind)
    setting = Setting("transformer", SMALL, 64, rows, method, strategy="ddp", world=2, micro_batches=micro_batches)
    batch, plan = BATCHES["text"].full_batch(SMALL, rows, 64), planned(setting)
    with Alive() as alive:
        model = prepared(setting)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]
        parallel = Parallel(model, alone, "ddp", "fp32")
        alive.peak = alive.now
        for _ in range(2):
            for number in range(micro_batches):
                with parallel.reducing(last=number == micro_batches - 1):
                    loss = parallel.call(batch)
                    loss.nats.backward()
                    del loss
            torch._foreach_zero_([parameter.grad for parameter in trained])
    assert moments
    assert plan.peak == pytest.approx(alive.peak, rel=1e-4)
