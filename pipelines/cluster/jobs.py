"""Commands as jobs on a cluster: submit, list, follow, stop. Ray's job server does the work, over HTTP."""

import asyncio
import difflib
import logging
import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from reducible.pipelines.cluster.ray_session import (
    SETTINGS,
    auth_mode,
    refused_token,
    reread_environment,
    worker_settings,
)
from reducible.pipelines.cluster.upload import code_files, family_files, named_files, needed_distributions, pack
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.code_version import code_version

ENDED = {"STOPPED", "SUCCEEDED", "FAILED"}
DASHBOARD = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class Job:
    identity: str
    command: str
    status: str
    started: datetime | None
    seconds: float | None
    exit_code: int | None


def submit(command: Sequence[str], address: str | None, commands: Mapping[str, click.Command]) -> str:
    """Starts `reducible COMMAND`, one of `commands`, on the cluster. Returns its id: run-my-notes-20261123-142501-3f2a.

    The current code and the files that the command names are uploaded (pipelines/cluster/upload.py states the rule).

    Raises:
        UserError: the command cannot run there, or the cluster does not take it.
    """
    words = list(command)
    root, name = _understood(words, commands)
    identity = _readable(words[0], name)
    with tempfile.TemporaryDirectory() as folder, _client(address) as client:
        archive = Path(folder, "upload.zip")
        here = Path.cwd()
        for distribution in needed_distributions(words[1:], here, root):
            click.echo(f"the cluster must have {distribution} installed: a family of this command is from it", err=True)
        files = [*code_files(), *family_files(words[1:], here, root), *named_files(words[1:], root, here)]
        pack(archive, dict(files).items())
        client.submit_job(
            # -P: a folder of the user must not hide a package of the same name.
            entrypoint=f"mkdir -p files && cd files && exec python -P -m reducible.pipelines.cli {shlex.join(words)}",
            submission_id=identity,
            runtime_env={"working_dir": str(archive), "env_vars": _environment_of_job()},
            metadata={"command": shlex.join(["reducible", *words])},
        )
    return identity


def _understood(words: list[str], commands: Mapping[str, click.Command]) -> tuple[Path, str]:
    """The command's root and what it works on. Mistakes are reported here, not a minute later in a job's log."""
    from reducible.pipelines.recipe.load import load_recipe

    able = [name for name, known in commands.items() if name != "ui" and "root" in [p.name for p in known.params]]
    if not words or words[0] not in able:
        raise UserError(f"submit {shlex.join(words[:1])}: cannot run as a job; these can: {', '.join(able)}")
    context = commands[words[0]].make_context(words[0], words[1:])
    recipe, law = context.params.get("recipe"), context.params.get("from_law")
    if law is not None:  # what stands where a recipe would is a setting
        name = law
    elif recipe is not None and (recipe.is_file() or not recipe.is_absolute()):
        name = load_recipe(recipe, context.params["overrides"]).name
    else:
        name = next((word for word in words[1:] if not word.startswith("-")), "")
    root = context.params["root"]
    if not root.startswith("/"):
        raise UserError(
            f"--root {root}: a job needs an absolute folder on storage that all nodes see, such as /shared/reducible"
        )
    if context.get_parameter_source("root") is ParameterSource.ENVIRONMENT:
        words += ["--root", root]  # the job does not have this machine's environment
    return Path(os.path.normpath(root)), name


def _readable(command: str, name: str) -> str:
    """command-name-time-random: what the job is and when it began; the random part makes it unique."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    parts = [command, slug, time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)]
    return "-".join(part for part in parts if part)


def _environment_of_job() -> dict[str, str]:
    """The job's environment. It must hold no secrets, because the dashboard and Ray's logs show it."""
    return {
        **worker_settings(),
        "RAY_SCHEDULER_EVENTS": SETTINGS["RAY_SCHEDULER_EVENTS"],
        "REDUCIBLE_CODE": code_version(),  # the upload has no .git
        "RAY_JOB_STOP_WAIT_TIME_S": "15",  # time for the last records; Ray's default of 3 s is short
    }


def list_jobs(address: str | None) -> list[Job]:
    """The jobs that were submitted to the cluster, newest first."""
    with _client(address) as client:
        details = [detail for detail in client.list_jobs() if detail.submission_id]
    return [_job(detail) for detail in sorted(details, key=lambda detail: -(detail.start_time or 0))]


def _job(detail: Any) -> Job:
    started = detail.start_time and detail.start_time / 1000
    ended = detail.end_time / 1000 if detail.end_time else time.time()
    return Job(
        identity=detail.submission_id,
        command=(detail.metadata or {}).get("command", detail.entrypoint),
        status=detail.status.value,
        started=datetime.fromtimestamp(started) if started else None,
        seconds=max(0.0, ended - started) if started else None,
        exit_code=detail.driver_exit_code,
    )


def job(identity: str, address: str | None) -> Job:
    with _client(address) as client:
        return _job(_detail(client, identity))


def logs(identity: str, address: str | None, follow: bool = False) -> Iterator[str]:
    """The output of the job's command, in pieces; with `follow` until it ends.

    Raises:
        UserError: there is no such job, or the connection broke (the job itself continues).
    """
    with _client(address) as client:
        _detail(client, identity)
        if not follow:
            yield client.get_job_logs(identity)
            return
        pieces = client.tail_job_logs(identity)
        with asyncio.Runner() as runner:
            while (piece := runner.run(_next(pieces))) is not None:
                yield piece


async def _next(pieces: Any) -> str | None:
    return await anext(pieces, None)


def stop(identity: str, address: str | None, patience: float = 60) -> Job:
    """Stops the job and waits until it has ended. A job that has ended already stays as it is.

    Raises:
        UserError: there is no such job, or it still runs after `patience` seconds.
    """
    with _client(address) as client:
        _detail(client, identity)
        client.stop_job(identity)
        deadline = time.monotonic() + patience
        while (found := _job(_detail(client, identity))).status not in ENDED:
            if time.monotonic() > deadline:
                raise UserError(f"{identity}: was told to stop {patience:.0f} s ago and still runs; see its logs")
            time.sleep(0.3)
        return found


def print_jobs(address: str | None) -> None:
    found = list_jobs(address)
    if not found:
        click.echo("No jobs yet.")
        return
    width = max(len(entry.identity) for entry in found)
    click.echo(f"{'ID':<{width}}  {'STATUS':<9}  {'STARTED':<16}  {'TOOK':>8}  COMMAND")
    for entry in found:
        started = entry.started.strftime("%Y-%m-%d %H:%M") if entry.started else ""
        took = _duration(entry.seconds) if entry.seconds is not None else ""
        click.echo(f"{entry.identity:<{width}}  {entry.status:<9}  {started:<16}  {took:>8}  {entry.command}")


def print_logs(identity: str, follow: bool, address: str | None) -> int:
    """Prints the job's output. Returns the job's exit code if it was followed to its end and failed, otherwise 0."""
    try:
        for piece in logs(identity, address, follow):
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo(f"\nNo longer following; the job continues. Stop it with:  reducible stop {identity}", err=True)
        return 0
    if not follow:
        return 0
    ended = job(identity, address)
    click.echo(f"{identity}: {ended.status} after {_duration(ended.seconds or 0)}", err=True)
    return 0 if ended.status == "SUCCEEDED" else ended.exit_code or 1


def stop_job(identity: str, address: str | None) -> None:
    ended = stop(identity, address)
    click.echo(f"{identity}: {ended.status}. Finished tasks are kept; submit the command again to continue.")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}h {whole % 3600 // 60:02}m" if whole >= 3600 else f"{whole // 60}m {whole % 60:02}s"


def _detail(client: Any, identity: str) -> Any:
    """The details of a job. If there is no such job, the error suggests the nearest id."""
    try:
        return client.get_job_info(identity)
    except RuntimeError as error:
        if "404" not in str(error):
            raise
        known = [detail.submission_id for detail in client.list_jobs() if detail.submission_id]
        near = difflib.get_close_matches(identity, known, n=1)
        raise UserError(
            f"{identity}: no such job" + (f"; did you mean {near[0]}?" if near else "; `reducible jobs` lists them")
        ) from None


@contextmanager
def _client(address: str | None) -> Iterator[Any]:
    """A client of the cluster's job server. Every error of it becomes one line.

    Raises:
        UserError: no server answers, it refuses the token, or its Ray has no jobs.
    """
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--address {url}: jobs are submitted to a dashboard's URL, such as {DASHBOARD}")
    with _own_address():
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        reread_environment()
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield JobSubmissionClient(url)
        except AuthenticationError:
            raise UserError(f"{url}: {refused_token()}") from None
        except (ConnectionError, requests.RequestException, aiohttp.ClientError):
            raise UserError(
                f"{url}: no Ray dashboard answers there; is the tunnel open (`ray dashboard cluster.yaml`)?"
            ) from None
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{url}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


@contextmanager
def _own_address() -> Iterator[None]:
    """The environment for the client: RAY_ADDRESS would override the address, and a token needs token mode."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    mode = auth_mode()
    try:
        for name in names:
            os.environ.pop(name, None)
        os.environ["RAY_AUTH_MODE"] = mode
        yield
    finally:
        del os.environ["RAY_AUTH_MODE"]
        os.environ.update(kept)
