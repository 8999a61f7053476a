"""A family is known by its row alone: nothing outside models/families asks for the name or the class of one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import reducible
from reducible.models.families.registry import FAMILIES

PACKAGE = Path(reducible.__file__).parent
LAYERS = ("data", "models", "tasks", "pipelines")
CLASSES = {family.build.__name__ for family in FAMILIES.values()}


def names(node: ast.AST) -> set[str]:
    """Strings that a comparison's side is, or is made of."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def asks_for_a_family(tree: ast.AST) -> Iterator[int]:
    """Lines that compare a family's name, look it up in a table of their own, or ask for its model's class."""
    for node in ast.walk(tree):
        asks = False
        if isinstance(node, ast.Compare):
            asks = any(names(side) & FAMILIES.keys() for side in (node.left, *node.comparators))
        elif isinstance(node, ast.MatchValue):
            asks = bool(names(node.value) & FAMILIES.keys())
        elif isinstance(node, ast.Dict):
            asks = any(names(key) & FAMILIES.keys() for key in node.keys if key is not None)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            of_classes = node.func.id in ("isinstance", "issubclass")
            asks = of_classes and bool({n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)} & CLASSES)
        if asks:
            yield node.lineno


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
    found = []
    for layer in LAYERS:
        for path in sorted((PACKAGE / layer).rglob("*.py")):
            place = path.relative_to(PACKAGE).as_posix()
            if not place.startswith("models/families/"):
                found += [f"{place}:{line}" for line in asks_for_a_family(ast.parse(path.read_text()))]
    assert found == []
