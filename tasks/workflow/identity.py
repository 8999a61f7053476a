"""Identity of a task: SHA-256 over canonical JSON, which refuses any value that it cannot write exactly.

Only the fields of a spec that differ from their defaults count (essence). So a field that is added later leaves every
finished artifact valid, provided its default is the old behaviour. A default that changes must raise the task's
version, because it is not seen here.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args, get_origin, runtime_checkable

from pydantic import BaseModel
from pydantic.fields import FieldInfo

CLASS = "<class>"
"""The key that names a nested model's class, if another class is usual there and the model has no tag."""


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
        _require_text_keys(value, path)
        return {key: canonical(value[key], f"{path}.{key}".lstrip(".")) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{path or 'value'}: {type(value).__name__} has no canonical form and cannot be part of an identity"
    )


def _require_text_keys(value: Mapping[Any, Any], path: str) -> None:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{path or 'value'}: the key {key!r} is not a string")


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@runtime_checkable
class KnowsMore(Protocol):
    """A spec that knows more about its fields than their types say, such as the defaults of a dict's entries."""

    def entering(self) -> Mapping[str, Any]:
        """What enters an identity in place of a field's value, by the name of the field."""
        ...


def essence(spec: BaseModel) -> dict[str, Any]:
    """The fields of a spec that differ from their defaults, as canonical data.

    A nested model enters in the same way, with the defaults of its own class. A field's usual class is that of its
    default, or else the first one in its annotation; it needs no name. Any other class is recorded by its tags (the
    fields that can hold only one Literal) or, if it has none, by its name. So a union can grow at its end.
    """
    return _fields(spec, type(spec), "")


def equal(one: Any, other: Any) -> bool:
    """Whether two canonical values are equal: 1 equals 1.0, and neither equals true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _fields(spec: BaseModel, usual: type | None, path: str) -> dict[str, Any]:
    known = spec.entering() if isinstance(spec, KnowsMore) else {}
    fields = {name: field for name, field in type(spec).model_fields.items() if not field.exclude}
    tags = {name for name, field in fields.items() if _is_tag(field)} if type(spec) is not usual else set()
    entered: dict[str, Any] = {CLASS: type(spec).__name__} if type(spec) is not usual and not tags else {}
    for name, field in fields.items():
        where = f"{path}.{name}".lstrip(".")
        default, has_default = _default(field)
        expected = type(default) if isinstance(default, BaseModel) else _first_model(field.annotation)
        value = _value(known.get(name, getattr(spec, name)), expected, where)
        if name in tags or not has_default or not equal(value, _value(default, expected, where)):
            entered[name] = value
    return entered | {name: _value(value, None, f"{path}.{name}") for name, value in (spec.model_extra or {}).items()}


def _value(value: Any, usual: type | None, path: str) -> Any:
    if isinstance(value, BaseModel):
        return _fields(value, usual, path)
    if isinstance(value, list | tuple):
        return [_value(item, usual, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        _require_text_keys(value, path)
        return {key: _value(item, usual, f"{path}.{key}") for key, item in value.items()}
    return canonical(value, path)


def _default(field: FieldInfo) -> tuple[Any, bool]:
    """(default, whether there is one). A default that is computed from other fields does not count."""
    if field.is_required() or field.default_factory_takes_validated_data:
        return None, False
    return field.get_default(call_default_factory=True), True


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _first_model(annotation: Any) -> type | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation) or get_args(getattr(annotation, "__value__", None)):
        if found := _first_model(argument):
            return found
    return None
