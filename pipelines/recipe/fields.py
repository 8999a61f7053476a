"""The types of a recipe's fields: numbers as YAML writes them, locations, strict sections."""

from typing import Annotated, Any

from pydantic import AfterValidator

from reducible.data import schemes
from reducible.tasks.count import Number as Number
from reducible.tasks.count import Share as Share
from reducible.tasks.count import parse_number as parse_number
from reducible.tasks.workflow.frozen import Frozen


def location(value: str) -> str:
    """The location, unchanged. Raises ValueError if it is not allowed, saying what it must be."""
    wrong = schemes.refusal(value)
    if wrong is not None:
        raise ValueError(wrong)
    return value


def _path(value: str) -> str:
    if not schemes.travels(value):
        raise ValueError("a path: a tokenizer is read from a file")
    return location(value)


Location = Annotated[str, AfterValidator(location)]
"""Where data comes from: a path, a glob, or an address with a scheme (data/schemes.py)."""

TokenizerPath = Annotated[str, AfterValidator(_path)]


def plain_message(message: str) -> str:
    """Pydantic's message as it stands after "must be"."""
    return message.removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable to")[0]


Section = Frozen
"""What each section of a recipe extends."""


def said_alike(section: Frozen, spec: type[Frozen]) -> dict[str, Any]:
    """The fields that a section shares with the spec that it extends."""
    return {name: getattr(section, name) for name in spec.model_fields}
