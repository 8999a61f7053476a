"""True is no number: wherever a spec or a recipe holds numbers and no booleans, yes and true are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from reducible.pipelines.dataset.kinds import KINDS, section_named
from reducible.pipelines.recipe.recipe import Recipe
from reducible.tasks.workflow.frozen import NUMBER, Frozen, is_number

SECTIONS = [section_named(kind) for kind in KINDS]  # imports them


def every(kind: type[Frozen]) -> list[type[Frozen]]:
    return [kind, *(deeper for below in kind.__subclasses__() for deeper in every(below))]


def problems(kind: type[Frozen], field: str, value: Any) -> list[str]:
    try:
        kind.model_validate({field: value})
    except ValidationError as error:
        return [problem["msg"] for problem in error.errors() if problem["loc"][:1] == (field,)]
    return []


def test_every_number_refuses_true_and_every_boolean_takes_it() -> None:
    fields = [(kind, name, field.annotation) for kind in every(Frozen) for name, field in kind.model_fields.items()]
    plain = (int, float, int | None, float | None)
    numbers = [(kind, name) for kind, name, annotation in fields if annotation in plain]
    booleans = [(kind, name) for kind, name, annotation in fields if annotation is bool]
    assert len(numbers) > 60 and len(booleans) > 5
    for kind, name in numbers:
        assert any(NUMBER in problem for problem in problems(kind, name, True)), (kind, name)
    for kind, name in booleans:
        assert problems(kind, name, True) == [], (kind, name)


@pytest.mark.parametrize("wrong", [[True], [8, True], [[8], [False]]])
def test_a_list_of_numbers_holds_no_boolean(wrong: Any) -> None:
    with pytest.raises(ValidationError, match=NUMBER):
        Recipe.model_validate({"data": {"source": "builtin:stdlib"}, "sweep": {"tokens": [1000], "widths": wrong}})


def test_what_holds_booleans_too_is_no_number() -> None:
    assert [is_number(t) for t in (int, float | None, tuple[int, ...], bool, bool | int, str, dict[str, Any])] == [
        *(True, True, True),
        *(False, False, False, False),
    ]
