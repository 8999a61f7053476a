"""Which task starts next: longest chain first, and never before its inputs."""

import dag

from reducible.tasks.workflow.order import Order
from reducible.tasks.workflow.task import Task


def anything(task: Task) -> bool:
    return True


def makespan(tasks: list[Task], workers: int) -> float:
    """Seconds until all have ended, if a task takes as long as it weighs."""
    order, now, running = Order(tasks), 0.0, list[tuple[float, Task]]()
    while order.waiting or running:
        while len(running) < workers and (task := order.take(anything)) is not None:
            running.append((now + task.weight, task))
        now, ended = min(running, key=lambda pair: pair[0])
        running.remove((now, ended))
        order.done(ended)
    return now


def test_the_longest_chain_comes_first_and_a_part_of_it_overtakes_what_waits() -> None:
    """A long trunk beside ten short cells: on two workers it must never wait for them."""
    trunk: list[Task] = []
    for part in range(4):
        trunk.append(dag.task(f"trunk {part}", part, tuple(trunk[-1:]), weight=3.0))
    cells = [dag.task(f"cell {n}", 100 + n, weight=1.2) for n in range(10)]
    assert makespan([*cells, *trunk], workers=2) == 12.0
    order = Order([*cells, *trunk])
    assert order.take(anything) is trunk[0]
    assert order.take(anything) is cells[0], "trunk 1 waits for trunk 0"
    order.done(trunk[0])
    assert order.take(anything) is trunk[1]


def test_a_task_that_does_not_fit_lets_others_pass() -> None:
    large, small = dag.task("large", 1, weight=5), dag.task("small", 2, weight=1)
    order = Order([large, small])
    assert order.take(lambda task: task.label != "large") is small
    assert order.take(lambda task: task.label != "large") is None
    assert order.take(anything) is large
    assert not order.waiting


def test_what_needs_a_dropped_task_waits_no_longer() -> None:
    a, other = dag.task("a", 1), dag.task("other", 2)
    b = dag.task("b", 3, (a, other))
    c = dag.task("c", 4, (b,))
    order = Order([a, other, b, c])
    assert order.take(anything) is a
    assert order.drop(a) == [b, c]
    assert order.take(anything) is other
    order.done(other)
    assert order.take(anything) is None and not order.waiting
