"""How long does a pipeline of 20 tasks that do nothing take, cold and cached? (Four layers of five, all connected.)

    python benchmarks/pipeline_overhead.py

Against: the same 20 tasks as bare Ray tasks in the same session, without store, identity or manifest.
"""

import tempfile
import time
from contextlib import nullcontext

import ray
from pydantic import BaseModel, ConfigDict

from reducible.pipelines.cluster.ray_session import session
from reducible.tasks.workflow.execute import execute
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Context, Resources, Task


class Nothing(BaseModel):
    model_config = ConfigDict(frozen=True)
    number: int


def run(context: Context) -> None:
    (context.staging / "nothing").write_text(str(context.spec.number))


def layers(first: int, layers: int = 4, each: int = 5) -> list[Task]:
    above: list[Task] = []
    for layer in range(layers):
        above = [
            Task(
                name="nothing",
                version=1,
                run="pipeline_overhead:run",
                spec=Nothing(number=first + layer * each + index),
                inputs={f"input-{i}": task for i, task in enumerate(above)},
                resources=Resources(cpus=1),
            )
            for index in range(each)
        ]
    return above


def bare(layers: int = 4, each: int = 5) -> float:
    remote = ray.remote(lambda *_: 0)
    start = time.perf_counter()
    above: list[ray.ObjectRef] = []
    for _ in range(layers):
        above = [remote.remote(*above) for _ in range(each)]
    ray.get(above)
    return time.perf_counter() - start


def main() -> None:
    def refuse() -> None:
        raise AssertionError("a cached pipeline starts no Ray")

    start = time.perf_counter()
    with session(), tempfile.TemporaryDirectory() as root:
        opened = time.perf_counter() - start
        store = Store(root)
        execute(layers(10_000), store, nullcontext)  # workers started, modules imported
        bare()
        rows = []
        for repeat in range(5):
            tasks = layers(100 * repeat)
            start = time.perf_counter()
            execute(tasks, store, nullcontext)
            cold = time.perf_counter() - start
            start = time.perf_counter()
            execute(tasks, store, refuse)  # type: ignore[arg-type]
            rows.append((cold, time.perf_counter() - start, bare()))
    cold, cached, plain = (sorted(column)[len(column) // 2] for column in zip(*rows, strict=True))
    print("| what | seconds (median of 5) |\n|---|---:|")
    print(f"| opening Ray | {opened:.2f} |")
    print(f"| 20 tasks, cold | {cold:.3f} |")
    print(f"| 20 tasks, cached (Ray not asked) | {cached:.4f} |")
    print(f"| 20 bare Ray tasks | {plain:.3f} |")


if __name__ == "__main__":
    main()
