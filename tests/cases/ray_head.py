"""A Ray head for tests, as a cluster has one: with a dashboard that takes jobs, and a token of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil


@contextmanager
def head() -> Iterator[tuple[str, str, Path]]:
    """A head on loopback with two CPUs: (dashboard's URL, address to join, token file)."""
    with TemporaryDirectory(prefix="head-") as folder:  # short: Ray puts sockets in it
        token = Path(folder, "token")
        token.write_text("0123456789abcdef" * 4)
        gcs, dashboard, agent, client = (free_port() for _ in range(4))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # true loopback
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": folder,  # a driver that is killed removes nothing
        }
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            f"--temp-dir={folder}/ray",
        ]
        command += [f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
        command += ["--node-ip-address=127.0.0.1", f"--object-store-memory={100 * 2**20}"]
        started = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            wait(lambda: _listens(dashboard) and _listens(agent), "the head to start")
            yield f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", token
        finally:
            children = psutil.Process(started.pid).children(recursive=True)
            started.terminate()
            started.wait(30)
            for process in psutil.wait_procs(children, timeout=10)[1]:
                process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait(until: Callable[[], Any], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
