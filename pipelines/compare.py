"""`reducible compare`: several laws on the same data: what overtakes what, and what the compute of one counts."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from reducible.pipelines.predict import laws_in, load_fit
from reducible.tasks.errors import UserError
from reducible.tasks.fit.fit_summary import families_summary
from reducible.tasks.fit.overtaking import compare
from reducible.tasks.fit.result import Fit


def print_comparison(laws: Sequence[str], as_json: bool, root: str) -> None:
    """The laws of a sweep of several families, or those of several sweeps, fits and tables on the same data."""
    fits: dict[str, Fit] = {}
    for law in laws:
        families: list[str | None] = [*laws_in(law, root)]
        for family in families or [None]:
            name = family if family and len(laws) == 1 else "/".join(filter(None, (_short(law), family)))
            if name in fits:
                raise UserError(f"{law}: stands twice; give each law once")
            fits[name] = load_fit(law, root, family)
    if len(fits) < 2:
        raise UserError(f"{laws[0]}: has one law; give two or more, such as reducible compare {laws[0]} OTHER")
    comparison = compare(fits)
    if as_json:
        click.echo(json.dumps(comparison.to_dict(), indent=1))
    else:
        click.echo(families_summary(fits, comparison))


def _short(law: str) -> str:
    """What a law is called: runs-fit of path/runs-fit/fit.json."""
    path = Path(law)
    return path.parent.name if path.name == "fit.json" and path.parent.name else path.name
