"""What the fields of a recipe are made of: numbers as YAML writes them, locations, strict sections."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from reducible.data import schemes
from reducible.tasks.count import parse_count


def parse_number(value: Any) -> Any:
    """3e-3 and 1e12 are numbers, though YAML takes them for text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return parse_count(value)
    return value


Number = Annotated[float, BeforeValidator(parse_number)]
Share = Annotated[Number, Field(ge=0, lt=1)]


def location(value: str) -> str:
    """The value, if it can be one. Raises ValueError saying what it must be."""
    wrong = schemes.refusal(value)
    if wrong is not None:
        raise ValueError(wrong)
    return value


def _path(value: str) -> str:
    if not schemes.travels(value):
        raise ValueError("a path: a tokenizer is read from a file")
    return location(value)


Location = Annotated[str, AfterValidator(location)]
"""Where data comes from: a path, a glob, or what begins with a scheme (data/schemes.py)."""

TokenizerPath = Annotated[str, AfterValidator(_path)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
