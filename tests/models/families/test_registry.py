"""A family is known by its row alone: nothing outside models/families asks for the name or the class of one."""

import ast
from collections.abc import Iterator

from asking_code import lines_that_ask, places_that_ask

from reducible.models.families.registry import FAMILIES

CLASSES = {family.build.__name__ for family in FAMILIES.values()}


def asks_for_a_family(tree: ast.AST) -> Iterator[int]:
    return lines_that_ask(tree, FAMILIES.keys(), CLASSES)


def test_what_asks_for_a_family_is_found() -> None:
    lines = [
        "a = family != 'recurrent'",
        "b = kind.name in ('vae', 'ssm')",
        "c = {'transformer': 1}[name]",
        "d = isinstance(model, Transformer)",
        "e = family == DEFAULT or isinstance(model, CarriesState)",
    ]
    assert sorted(asks_for_a_family(ast.parse("\n".join(lines)))) == [1, 2, 3, 4]


def test_nothing_outside_the_families_asks_for_one() -> None:
    layers = ("data", "models", "tasks", "pipelines")
    assert places_that_ask(layers, asks_for_a_family, lambda place: place.startswith("models/families/")) == []
