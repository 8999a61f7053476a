"""The kinds of data that a recipe knows, and how its section `data` is matched to one of them."""

from importlib import import_module
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from reducible.pipelines.dataset.data_section import DataSection

KINDS = {
    "text": "reducible.pipelines.dataset.text_data:TextData",
    "pairs": "reducible.pipelines.dataset.pairs_data:PairData",
    "series": "reducible.pipelines.dataset.series_data:SeriesData",
}
"""The section of each `data.kind`. The first is the default."""


def section_named(kind: str) -> type[DataSection]:
    module, _, name = KINDS[kind].partition(":")
    found: type[DataSection] = getattr(import_module(module), name)
    return found


def section_in(data: Any) -> type[DataSection] | None:
    """The section that this content of `data` is meant for; None if there is no such kind."""
    first = next(iter(KINDS))
    kind = data.get("kind", first) if isinstance(data, dict) else first
    return section_named(kind) if isinstance(kind, str) and kind in KINDS else None


def data_paths() -> tuple[str, ...]:
    """Keys of a recipe that name files, for every kind of data."""
    keys = [f"data.{key}" for kind in KINDS for key in section_named(kind).paths]
    return tuple(dict.fromkeys(keys))


def _checked(data: Any) -> Any:
    if isinstance(data, DataSection):
        return data
    section = section_in(data)
    if section is None:
        wrong = PydanticCustomError("data_kind", "{known}", {"known": ", ".join(KINDS)})
        details = InitErrorDetails(type=wrong, loc=("kind",), input=data["kind"])
        raise ValidationError.from_exception_data("data", [details])
    return section.model_validate(data)


Data = Annotated[SerializeAsAny[DataSection], BeforeValidator(_checked)]
"""The field `data` of a recipe: the section of its kind."""
