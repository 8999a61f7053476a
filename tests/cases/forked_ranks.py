"""Runs files on several processes that are forked when all that the files import is there.

To a file it looks as under torchrun, which imports torch once for itself and everything again for every rank. Here one
process, which the first test starts that needs ranks, imports for all that follow (`run` is for tests, `serve` is that
process).
"""

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LIMIT = 300
"""The most seconds of a run."""


def run(ranks: int, command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit status of the first rank that failed, as subprocess has it, or 0; and what all ranks said."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.NamedTemporaryFile() as output:
        asked = {"ranks": ranks, "command": command, "environment": dict(environment), "output": output.name}
        server.stdin.write(json.dumps(asked | {"folder": os.getcwd()}) + "\n")
        server.stdin.flush()
        status = server.stdout.readline()
        return int(status), Path(output.name).read_text()


@cache
def _server() -> subprocess.Popen[str]:
    """Ends when this process does, which closes its input."""
    cases = Path(__file__).parent
    command = [sys.executable, __file__]
    variables = os.environ | {"PYTHONPATH": f"{cases.parents[1]}:{cases}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    import family_cases  # noqa: F401, and with it all of a training
    import torch.distributed.fsdp  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            start(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def start(ranks: int, command: list[str], environment: dict[str, str], output: str, folder: str) -> None:
    """Becomes the process that starts the ranks, and ends as they do."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, os.path.dirname(os.path.abspath(command[0])))
    status = 1
    try:
        status = run_ranks(ranks, command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if status < 0:
            os.kill(os.getpid(), -status)
        os._exit(status)


def run_ranks(ranks: int, command: list[str]) -> int:
    """The status of the first rank that failed, or 0. The others are ended then: they would wait for it."""
    from torch.distributed import TCPStore

    runpy.run_path(command[0], run_name="imports")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os._exit(run_rank(rank, ranks, store.port, command))
        running.add(pid)
    failed = 0
    signal.signal(signal.SIGALRM, lambda *_: end(running))
    signal.alarm(LIMIT)
    while running:
        pid, waited = os.wait()
        running.discard(pid)
        status = os.waitstatus_to_exitcode(waited)
        if status and not failed:
            failed = status
            end(running)
    return failed


def end(running: set[int]) -> None:
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def run_rank(rank: int, ranks: int, port: int, command: list[str]) -> int:
    """The exit code of the file."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 joins the store that is there
    }
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve()
