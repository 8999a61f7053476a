"""Code that asks for a name which only a registry should know, found in the package's source."""

import ast
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import reducible

PACKAGE = Path(reducible.__file__).parent


def lines_that_ask(tree: ast.AST, names: Collection[str], classes: Collection[str], keys: int = 1) -> Iterator[int]:
    """Lines that compare one of the names, look it up in a table of their own, or ask for one of the classes.

    `keys`: how many of the names make a dictionary such a table.
    """
    for node in ast.walk(tree):
        asks = False
        if isinstance(node, ast.Compare):
            asks = any(strings_in(side) & set(names) for side in (node.left, *node.comparators))
        elif isinstance(node, ast.MatchValue):
            asks = bool(strings_in(node.value) & set(names))
        elif isinstance(node, ast.Dict):
            table = {name for key in node.keys if key is not None for name in strings_in(key)}
            asks = len(table & set(names)) >= keys
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            of_classes = node.func.id in ("isinstance", "issubclass")
            named = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)} if of_classes else set()
            asks = bool(named & set(classes))
        if asks:
            yield node.lineno


def strings_in(node: ast.AST) -> set[str]:
    """Strings that a comparison's side is, or is made of."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def places_that_ask(
    layers: Iterable[str], asks: Callable[[ast.AST], Iterator[int]], may: Callable[[str], bool]
) -> list[str]:
    """`file:line` of those in these layers, except in files that may ask."""
    return [
        f"{place}:{line}"
        for layer in layers
        for path in sorted((PACKAGE / layer).rglob("*.py"))
        if not may(place := path.relative_to(PACKAGE).as_posix())
        for line in asks(ast.parse(path.read_text()))
    ]
