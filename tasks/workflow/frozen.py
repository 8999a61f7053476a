"""What every spec and every section of a recipe extends: it does not change, and knows no key but its own."""

from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

NUMBER = "a number"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take true for 1, so that `seed: yes` would be a seed."""
        if holds_boolean(value) and _is_number(cls, str(info.field_name)):
            raise ValueError(NUMBER)
        return value


def holds_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(holds_boolean, value)))


def is_number(annotation: Any) -> bool:
    """Whether a type holds numbers and no booleans: int, float | None, tuple[int, ...]."""
    held = set(_inside(annotation))
    return bool(held & {int, float}) and bool not in held


@cache
def _is_number(model: type[BaseModel], field: str) -> bool:
    return is_number(model.model_fields[field].annotation)


def _inside(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [kind for argument in arguments for kind in _inside(argument)] if arguments else [annotation]
