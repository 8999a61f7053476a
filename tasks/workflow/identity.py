"""Identity of a task: SHA-256 over canonical JSON, which refuses whatever it cannot write exactly."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def canonical(value: Any, path: str = "") -> Any:
    """The value as plain JSON data: sorted string keys, finite numbers, lists.

    Raises:
        TypeError: naming the path of anything that has no canonical form (a callable, a path, an object,
            NaN). Writing it as `str(value)` instead would give two machines two identities.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{path or 'value'}: {value} has no canonical form; use a finite number or null")
        return value
    if isinstance(value, BaseModel):
        return canonical(value.model_dump(mode="python"), path)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path or 'value'}: the key {key!r} is no string")
        return {key: canonical(value[key], f"{path}.{key}".lstrip(".")) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{path or 'value'}: {type(value).__name__} has no canonical form and cannot be part of an identity"
    )


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
