"""Environment variables that are set for a while: libraries read them as they start, and are then as before."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(settings: Mapping[str, str], restored: Iterable[str] = ()) -> Iterator[None]:
    """Sets these variables for the length of a `with`, then restores them, and those that others change meanwhile."""
    before = {name: os.environ.get(name) for name in (*settings, *restored)}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
