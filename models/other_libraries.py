"""What other libraries do besides: imports that chatter, errors of many lines."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_quietly() -> Iterator[None]:
    """Inside, bitsandbytes neither fetches kernels from a hub, where it could, nor complains that it cannot."""
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


def first_line(error: Exception) -> str:
    """The first line of an error that says something: torch begins with a title, some libraries say nothing."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Error(s) in loading")), type(error).__name__)
