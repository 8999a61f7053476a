"""Which code made an artifact: the git commit of this checkout, marked when it has uncommitted changes."""

import os
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> str:
    """`<commit>` or `<commit>+changes`; outside a checkout the package version.

    A job on a cluster runs from an upload without .git, so its driver passes the answer on in REDUCIBLE_CODE.
    """
    if given := os.environ.get("REDUCIBLE_CODE"):
        return given
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        try:
            return f"reducible {version('reducible')}"
        except PackageNotFoundError:
            return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
