"""Reads a recipe: YAML, its base, overrides from the command line. A mistake becomes one line with the remedy."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from reducible.data import schemes
from reducible.data.hashes import open_regular
from reducible.data.paths import expanded, scheme_like
from reducible.pipelines.dataset.generated_section import GeneratedSection, generated_in
from reducible.pipelines.dataset.kinds import data_paths, section_in
from reducible.pipelines.recipe import yaml_text
from reducible.pipelines.recipe.fields import plain_message
from reducible.pipelines.recipe.recipe import Recipe
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec
from reducible.tasks.train.optimizers.registry import DEFAULT, optimizer_kind

NO_SECTION = ("model_type", "model_attributes_type", "dict_type", "mapping_type")
"""Pydantic's errors for a value that stands where a section should."""
HOLDS_MODEL = ("config.json", "manifest.json")
"""A folder that can be a base holds one of these files: a pretrained checkpoint, or an artifact of a training."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe. Its name defaults to the file's.

    Paths inside it are relative to the recipe's own folder, so that the current folder does not matter.

    Raises:
        UserError: naming the file and field, what is wrong and what would be right.
    """
    return _checked(_read(path), path.stem, overrides, f"{path}: ")


def recipe_of_text(text: str, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a report has printed. Its paths are absolute already.

    Raises:
        UserError: as load_recipe; `where` begins the line.
    """
    return _checked(yaml_text.load(text), "recipe", overrides, f"{where}: ")


def finetuning_recipe(
    base: str,
    reads: str,
    data: str | None,
    method: str | None,
    path: Path | None,
    name: str | None,
    overrides: Sequence[str],
) -> Recipe:
    """The recipe of `reducible finetune`: a file, if there is one, overridden by the command line.

    `reads`: the kind of data that the base takes.

    Raises:
        UserError: as load_recipe.
    """
    content = _read(path) if path else {}
    section = {**_section(content, "finetune", path), "base": _base(base, Path())}
    if method:
        section["method"] = method
    content["finetune"] = section
    if data is not None or "data" in content or any(override.startswith("data.") for override in overrides):
        content["data"] = {"kind": reads, **_section(content, "data", path)}
    if data is not None:
        content["data"]["source"] = _absolute(data, Path())
    if name is not None:
        content["name"] = name
    default = f"{Path(base).stem}-{section.get('method', 'lora')}"
    return _checked(content, path.stem if path else default, overrides, f"{path}: " if path else "")


def _section(content: Mapping[str, Any], name: str, path: Path | None) -> Mapping[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{path}: {name}: {section!r} is not allowed; a section holds `key: value` lines")
    return section


def _checked(content: dict[str, Any], name: str, overrides: Sequence[str], where: str) -> Recipe:
    for override in overrides:
        _apply(content, override)
    content = {key: value for key, value in content.items() if value is not None}  # a section left empty
    content.setdefault("name", re.sub(r"[^\w. -]", "-", name).lstrip(".- ") or "recipe")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}{explain(error, Recipe, content)}") from None
    return recipe


def load_evaluation(
    settings: type[EvaluateSpec], section: Mapping[str, Any], overrides: Sequence[str] = ()
) -> EvaluateSpec:
    """The section `evaluate` as these settings, with overrides as for a recipe, such as evaluate.split=test.

    Raises:
        UserError: naming the field, what is wrong and what would be right.
    """
    content: dict[str, Any] = {"evaluate": dict(section)}
    for override in overrides:
        _apply(content, override)
    for key in content.keys() - {"evaluate"}:
        raise UserError(f"{key}: unknown key; an evaluation takes evaluate.KEY=value")
    given = content["evaluate"] or {}
    if not isinstance(given, Mapping):
        raise UserError(f"evaluate: {given!r} is not allowed; a section holds `key: value` lines")
    try:
        return settings.model_validate(given)
    except ValidationError as error:
        raise UserError(f"evaluate.{explain(error, settings, given)}") from None


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: base leads back to itself")
    try:
        with open_regular(path) as stream:
            text = stream.read().decode("utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else [], n=1)
        raise UserError(
            f"{path}: no such recipe" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a recipe ({(error.strerror or str(error)).lower()})") from None
    try:
        content = yaml_text.load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}{yaml_text.mistake(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a list of `key: value` lines, such as `data: {{source: notes}}`")
    _absolute_paths(content, path.parent)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or not base or "\0" in base or _only_scheme(base, path.parent):
        raise UserError(f"{path}: base: {base!r} must be the path of another recipe")
    return _merged(_read(path.parent / expanded(base), (*seen, path.resolve())), content)


def _only_scheme(location: str, folder: Path) -> bool:
    """Whether the location looks like one with a scheme, and no file has that name."""
    return scheme_like(location) is not None and not os.path.lexists(folder / location)


def _absolute_paths(content: dict[str, Any], folder: Path) -> None:
    """Makes sources, tokenizers and a base absolute, which the recipe names relative to its folder."""
    finetune = content.get("finetune")
    if isinstance(finetune, dict) and "base" in finetune:
        finetune["base"] = _base(finetune["base"], folder)
    data = content.get("data")
    if not isinstance(data, dict):
        return
    for dotted in data_paths():
        section: Any = data
        keys = dotted.split(".")[1:]
        for key in keys[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(keys[-1]) is not None:
            section[keys[-1]] = _absolute(section[keys[-1]], folder)


def _absolute(value: Any, folder: Path) -> Any:
    """A location, or a list of them, relative to the folder. Anything else stays as it is."""
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return schemes.seen_from(folder, value) if isinstance(value, str) else value


def _base(value: Any, folder: Path) -> Any:
    """The base of a fine-tuning: a path if it exists, else the name of a run.

    A folder of data often has the same name as a run. So a name without a slash is a path only if it holds a model.
    """
    if not isinstance(value, str):
        return value
    path = folder / expanded(value)
    named = os.path.isdir(path) and "/" not in value and not any((path / file).is_file() for file in HOLDS_MODEL)
    return str(path.absolute()) if os.path.exists(path) and not named else value


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _apply(content: dict[str, Any], override: str) -> None:
    """Sets one field, such as train.tokens=100M. The value is YAML; paths are relative to the current folder."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise UserError(f"{override}: an override reads key=value, such as train.tokens=100M")
    try:
        value = yaml_text.load(text)
    except yaml_text.WrongKey as error:
        raise UserError(f"{override}: {error.problem}") from None
    except yaml.YAMLError:
        value = text
    section: Any = content
    for key in keys[:-1]:
        if section.get(key) is None:
            section[key] = {}
        inner = section[key]
        if not isinstance(inner, dict):
            raise UserError(f"{override}: {key} is a value, not a section with a key {keys[-1]}")
        section = inner
    given: dict[str, Any] = {keys[-1]: value}
    for key in reversed(keys[:-1]):
        given = {key: given}
    _absolute_paths(given, Path())  # also the paths inside a value, such as data={source: notes}
    for key in keys:
        given = given[key]
    section[keys[-1]] = given


def explain(error: ValidationError, model: type[BaseModel], content: Any) -> str:
    """The first mistake in one line: the dotted field, what is wrong, what would be right."""
    first = min(error.errors(), key=_order)
    location = [str(part) for part in first["loc"] if not _is_tag(part)]
    field = ".".join(location)
    if first["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1], content)
        near = difflib.get_close_matches(location[-1], fields, n=1, cutoff=0.5)
        known = f"did you mean {near[0]}?" if near else f"allowed here: {', '.join(fields)}"
        return f"{field}: unknown key; {known}"
    if first["type"] == "missing":
        return f"{field}: is missing" + ("; for example data: {source: builtin:stdlib}" if field == "data" else "")
    message = plain_message(first["msg"])
    if first["type"] == "string_pattern_mismatch":
        message = "letters, digits, spaces, dots, - and _, a letter or digit first"
    if first["type"] in NO_SECTION:
        message = "a section: `key: value` lines"
    given = first["input"]
    if isinstance(given, BaseModel | dict) and first["type"] == "value_error":  # a sentence about the whole section
        return f"{field}: {message}" if field else message
    return f"{field}: {given!r} is not allowed; it must be {message}"


def _order(problem: Any) -> int:
    """Sorts mistakes: an unknown key first, then a missing one (which it was meant to be), then other union members."""
    if problem["type"] == "extra_forbidden":
        return 0
    return 2 if problem["type"] == "literal_error" and isinstance(problem["input"], dict) else 1


def _is_tag(part: Any) -> bool:
    """Whether a part of pydantic's location names a member of a union, which the user did not write."""
    return isinstance(part, str) and (part.startswith(("tuple[", "literal[", "function-")) or part in ("Search", "int"))


def _fields_at(model: type[BaseModel], location: Sequence[str], content: Any) -> list[str]:
    for part in location:
        if part == "data":
            model = section_in(content["data"]) or model
            continue
        field = model.model_fields.get(part)
        if part == "optimizer":
            train = content.get("train") or {}
            model = optimizer_kind((train.get("optimizer") or {}).get("kind", DEFAULT)).settings
            continue
        if field is None:
            continue
        inner = [field.annotation, *get_args(field.annotation)]
        inner += [deep for argument in inner for deep in get_args(argument)]
        models = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if models:
            model = models[0]
        if model is GeneratedSection:
            model = generated_in(content["data"]["generated"]) or model
    return list(model.model_fields)
