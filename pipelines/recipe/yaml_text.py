"""Reads YAML as its author sees it, and refuses a key that stands twice and a key that is not text.

PyYAML follows YAML 1.1, where 20:30 is 1230 (in base 60), 012 is ten (octal) and 1_000 a thousand, on, yes and no are
booleans and 2026-11-28 is a date. Here, as nearly in YAML 1.2, only true, false, null and decimal numbers are not text.
The fields of a recipe read numbers from text (tasks/count.py), so 012 is twelve there and 20:30 is refused.
"""

import re
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"
TEXT = "tag:yaml.org,2002:str"


class WrongKey(yaml.MarkedYAMLError):
    """The text is YAML, and has a key that no recipe can have."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # instead of those of YAML 1.1  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.checked: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Copies in what `<<: *other` brings, whose keys may stand again. So the node is checked before, and once."""
        if node not in self.checked:
            self.checked.add(node)
            _check_keys([key for key, _ in node.value if key.tag != MERGE])
        super().flatten_mapping(node)


_FLOAT = r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"

for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def _check_keys(keys: list[yaml.Node]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key.tag != TEXT:
            shown = key.value if isinstance(key, yaml.ScalarNode) and key.value else "a key"
            raise WrongKey(
                problem=f"{shown} is not text; write keys as words, or in quotes", problem_mark=key.start_mark
            )
        if key.value in seen:
            raise WrongKey(problem=f"the key {key.value} stands twice; keep one", problem_mark=key.start_mark)
        seen.add(key.value)


def load(text: str) -> Any:
    """The content of a recipe, or of one value on the command line.

    Raises:
        yaml.YAMLError: the text is not YAML, or (WrongKey) a key is wrong; `mistake` says it in one line.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("lists or sections are nested too deeply") from None


def mistake(error: yaml.YAMLError) -> str:
    """`, line 3: is not YAML (...)`: what follows the name of the file."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"{where}: {problem}" if isinstance(error, WrongKey) else f"{where}: is not YAML ({problem})"
