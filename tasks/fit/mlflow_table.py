"""The runs of an MLflow experiment as a table: metrics, parameters and tags are its columns."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from reducible.tasks.environment import environment
from reducible.tasks.errors import UserError
from reducible.tasks.words import listed

if TYPE_CHECKING:
    from mlflow import MlflowClient

_STORES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks")
_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9]*)(?:\+[a-z0-9]+)?:(?://|/)(?P<rest>.*)")
DATABASE = b"SQLite format 3\0"
QUIET = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""MLflow reads a folder of runs, which it refuses otherwise, and reports to no one."""


def is_mlflow(location: str) -> bool:
    """Whether a location is a tracking URI, an SQLite database, or a folder that MLflow has written.

    Raises:
        UserError: it is a URI that MLflow does not know.
    """
    uri = _URI.fullmatch(location)
    if uri and not Path(location).exists():
        if uri["scheme"] not in _STORES:
            raise UserError(f"{location}: {uri['scheme']}:// is not a known scheme; give a file, or a tracking URI")
        return True
    path = Path(location)
    if path.is_dir():
        return (path / "mlflow.db").is_file() or (path / "meta.yaml").is_file() or any(path.glob("*/meta.yaml"))
    return path.is_file() and _starts_as_database(path)


def runs(location: str, experiment: str | None) -> pandas.DataFrame:
    """A row for each run that is not deleted, oldest first.

    Raises:
        UserError: there is no such store, experiment or run, or several experiments have runs.
    """
    uri, only = _tracking_uri(location)
    with environment(QUIET):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            client = MlflowClient(tracking_uri=uri)
            found = _runs(client, _experiment(client, location, experiment, only))
        except (MlflowException, OSError) as error:
            raise UserError(f"{location} cannot be read by MLflow ({str(error).splitlines()[0]})") from None
    if not found:
        raise UserError(f"{location}: the experiment has no runs")
    rows = [_row(run) for run in found]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pandas.DataFrame({name: pandas.Series([row.get(name) for row in rows], dtype=object) for name in names})


def _row(run: Any) -> dict[str, object]:
    """As mlflow.search_runs names the columns. MLflow's own tags are about the program that ran."""
    tags = {f"tags.{key}": value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    return {
        "name": run.info.run_name or run.info.run_id,
        "status": run.info.status,
        **{f"metrics.{key}": value for key, value in run.data.metrics.items()},
        **{f"params.{key}": value for key, value in run.data.params.items()},
        **tags,
    }


def _experiment(client: MlflowClient, location: str, name: str | None, only: str | None) -> str:
    """The identity of the named experiment, of the folder's own, or of the only one that has runs."""
    there = [one for one in client.search_experiments() if only is None or one.experiment_id == only]
    if name is not None:
        there = [one for one in there if name in (one.name, one.experiment_id)]
        if not there:
            known = listed([repr(one.name) for one in client.search_experiments()])
            raise UserError(f"--experiment {name}: {location} has no experiment of that name; it has {known}")
        return str(there[0].experiment_id)
    full = [one for one in there if client.search_runs([one.experiment_id], max_results=1)]
    if len(full) == 1:
        return str(full[0].experiment_id)
    if not full:
        raise UserError(f"{location}: no experiment has runs")
    raise UserError(f"{location}: several experiments have runs; add --experiment with one of {_names(full)}")


def _names(experiments: list[Any]) -> str:
    return ", ".join(repr(one.name) for one in experiments)


def _runs(client: MlflowClient, identity: str) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [identity], max_results=1000, page_token=token, order_by=["attributes.start_time ASC"]
        )
        found += page
        token = page.token
        if not token:
            return found


def _tracking_uri(location: str) -> tuple[str, str | None]:
    """MLflow's URI of the location, and the experiment if the location is the folder of one.

    MLflow makes what is not there, and tables in a database that is not its own: that is refused before.
    """
    uri = _URI.fullmatch(location)
    path = Path(location)
    if uri and uri["scheme"] not in ("sqlite", "file") and not path.exists():
        return location, None
    if uri and not path.exists():
        rest = uri["rest"]
        path = Path(rest.removeprefix("/") if uri["scheme"] == "sqlite" else f"/{rest.lstrip('/')}")
    if path.is_dir() and (path / "mlflow.db").is_file():
        path = path / "mlflow.db"
    if path.is_dir():
        inside = (path / "meta.yaml").is_file()
        folder = path.absolute().parent if inside else path.absolute()
        return folder.as_uri(), path.absolute().name if inside else None
    if not path.is_file():
        raise UserError(f"{location}: there is no file {path}")
    if not _starts_as_database(path):
        raise UserError(f"{location}: {path} is not an SQLite database")
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            raise UserError(f"{location}: the database is not one of MLflow")
    return f"sqlite:///{path.absolute()}", None


def _starts_as_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(DATABASE)) == DATABASE
