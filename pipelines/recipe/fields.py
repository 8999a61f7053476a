"""What the fields of a recipe are made of: numbers as YAML writes them, strict sections."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
