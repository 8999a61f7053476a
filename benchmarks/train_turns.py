"""Lets several processes train in turns on one core, so that what else the machine does meets all of them alike.

A contestant trains on to a border of so many steps; there it says how long they took and waits to be called.
Standard library only: the peers' environments have nothing of ours.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


class Turns:
    """A contestant's side."""

    def __init__(self, folder: Path, steps: int, core: int, endless: bool = True) -> None:
        """endless: told to stop, the process ends at once; otherwise it goes on to an end of its own."""
        self.folder, self.steps, self.turn, self.endless = folder, steps, -1, endless
        os.sched_setaffinity(0, {core})
        self.started = (0.0, 0.0)

    def at(self, step: int) -> None:
        """Called at the beginning of every step; steps are counted from 0."""
        if step % self.steps:
            return
        if self.turn >= 0:
            wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
            write(self.folder / f"took-{self.turn}", f"{wall} {cpu}")
        self.turn += 1
        write(self.folder / f"ready-{self.turn}", "")
        while not (self.folder / f"go-{self.turn}").exists():
            if (self.folder / "stop").exists():
                if self.endless:
                    os._exit(0)
                return
            time.sleep(0.02)
        self.started = (time.perf_counter(), time.process_time())


class Contestant:
    """The referee's side."""

    def __init__(self, name: str, folder: Path, command: Sequence[str], environment: dict[str, str]) -> None:
        self.name, self.folder = name, folder
        folder.mkdir(parents=True)
        self.log = folder / "log"
        self.process = subprocess.Popen(command, env=environment, stdout=self.log.open("w"), stderr=subprocess.STDOUT)
        self.took: list[tuple[float, float]] = []

    def wait_for(self, file: str, seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while not (self.folder / file).exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.name} ended early:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def play(self, turn: int) -> None:
        self.wait_for(f"ready-{turn}")
        write(self.folder / f"go-{turn}", "")
        self.wait_for(f"took-{turn}")
        wall, cpu = (self.folder / f"took-{turn}").read_text().split()
        self.took.append((float(wall), float(cpu)))

    def end(self) -> None:
        write(self.folder / "stop", "")
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}")
    part.write_text(text)
    part.replace(path)
