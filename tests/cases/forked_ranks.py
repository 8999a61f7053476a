"""Runs a file on several processes, forked when all that it imports is there: forked_ranks.py RANKS FILE ARGUMENTS.

To the file it looks as under torchrun, which imports torch once for itself and everything again for every rank.
"""

import os
import runpy
import signal
import sys
import traceback

from torch.distributed import TCPStore


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


def main(ranks: int, *command: str) -> int:
    """0 if all ranks end well. If one does not, the others are ended: they would wait for it."""
    runpy.run_path(command[0], run_name="imports")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os._exit(run_rank(rank, ranks, store.port, list(command)))
        running.add(pid)
    failed = False
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGKILL)
    return int(failed)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[2])))
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
