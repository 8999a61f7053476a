"""The learning rate at a step. It is a pure function, so nothing about it is saved."""

import math

from reducible.tasks.train.train_spec import ScheduleSpec


def rate_at(step: int, schedule: ScheduleSpec, stop_step: int) -> float:
    """Share of the peak learning rate for the update of `step`, 0 to stop_step - 1.

    Warm-up is linear and its first update is not zero. constant stays at 1. wsd stays at 1 and falls
    linearly over the last cooldown_steps (Hägele et al. 2024), cosine over everything after the warm-up
    (Loshchilov and Hutter 2017); both would reach final_fraction at stop_step, one update after the last.
    Up to the cooldown, wsd equals constant: a branch continues its trunk exactly.
    """
    warmup = min(1.0, (step + 1) / (schedule.warmup_steps + 1))
    if schedule.kind == "constant":
        return warmup
    if schedule.kind == "wsd":
        length = schedule.cooldown_steps
        falling = min(1.0, (stop_step - step) / (length + 1))
    else:
        length = max(1, stop_step - schedule.warmup_steps)
        done = max(0.0, (step - schedule.warmup_steps) / length)
        falling = 0.5 * (1 + math.cos(math.pi * done))
    return min(warmup, schedule.final_fraction + (1 - schedule.final_fraction) * falling)
