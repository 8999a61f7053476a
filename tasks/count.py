"""Counts and numbers as people and YAML write them: 50M for 50000000, 3e-3."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
MOST = 10**18
"""The largest count: sums of a few of them are numbers of 64 bits."""
_DIGITS = "[0-9]+(?:_[0-9]+)*"


def parse_count(value: Any) -> Any:
    """50M -> 50000000. Suffixes k, M, G, T; YAML hands 1e12 and 1_000 over as text, so they are read too."""
    if isinstance(value, str):
        match = re.fullmatch(rf"\s*((?:{_DIGITS}\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([kMGT]?)\s*", value)
        if not match:
            raise ValueError("a count such as 32768, 32k, 50M, 1.5G or 2T")
        value = float(match[1]) * SUFFIXES.get(match[2], 1.0)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1, le=MOST)]


def parse_number(value: Any) -> Any:
    """3e-3 and 1e12 are numbers, though YAML takes them for text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
        try:
            return parse_count(value)
        except ValueError:
            raise ValueError("a number such as 0.003, 3e-3 or 50M") from None
    return value


Number = Annotated[float, BeforeValidator(parse_number)]
Share = Annotated[Number, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take
