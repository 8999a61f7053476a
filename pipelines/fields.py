"""What the fields of a recipe are made of: counts with suffixes, numbers as YAML writes them, strict sections."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_count(value: Any) -> Any:
    """50M -> 50000000. Suffixes k, M, G, T; YAML hands 1e12 over as text, so that is read too."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*([kMGT]?)\s*", value)
        if not match:
            raise ValueError("a count such as 32768, 32k, 50M, 1.5G or 2T")
        value = float(match[1]) * SUFFIXES.get(match[2], 1.0)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def parse_number(value: Any) -> Any:
    """3e-3 and 1e12 are numbers, though YAML takes them for text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return parse_count(value)
    return value


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
Number = Annotated[float, BeforeValidator(parse_number)]
Share = Annotated[Number, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
