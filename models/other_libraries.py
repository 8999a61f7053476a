"""Quiet imports of other libraries, and their errors in one line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_quietly() -> Iterator[None]:
    """Import bitsandbytes inside without its fetching kernels from a hub and without its warnings."""
    log = logging.getLogger("bitsandbytes")
    level, offline = log.level, os.environ.get("HF_HUB_OFFLINE")
    log.setLevel(logging.ERROR)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        log.setLevel(level)
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = offline


def first_line(error: BaseException) -> str:
    """The first informative line of an error. torch begins with a title; if no line says anything, the error's type."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Error(s) in loading")), type(error).__name__)
