"""`reducible ui`: brings MLflow up to date with the store, serves it on loopback and opens the published view."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import IO

from reducible.tasks.errors import UserError

STARTS_IN = 120  # seconds; 9-15 on a quiet machine


def serve(root: str | Path, port: int = 5000, browser: bool = True, tracking_uri: str | None = None) -> None:
    """Serves MLflow until Ctrl-C. If a tracking server runs already, only opens it."""
    import click

    from reducible.tasks.mlflow.recorder import Recorder, last_tracking_uri
    from reducible.tasks.workflow.execute import stop_politely

    folder = Path(root).expanduser().absolute()
    uri = tracking_uri or last_tracking_uri(folder)
    if not (folder / "artifacts").is_dir():
        raise UserError(f"--root {root}: nothing has run there yet; run something first, or give a root that has runs")
    stop_politely()
    recorder = Recorder(folder, uri, poll_seconds=0.05)
    recorder.catch_up()
    complete = recorder.close(timeout=600)
    if uri.startswith(("http://", "https://")):
        click.echo(f"MLflow: {recorder.url(uri)}" if complete else f"MLflow: {uri}")
        return
    port = free_port(port)
    address = f"http://127.0.0.1:{port}"
    with (folder / "mlflow" / "server.log").open("w") as log:
        server = start_server(uri, folder, port, log)
        try:
            click.echo("Starting MLflow ...")
            _wait_until_up(server, address, folder / "mlflow" / "server.log")
            url = recorder.url(address)
            click.echo(f"MLflow: {url}\nCtrl-C stops it.")
            if browser:
                webbrowser.open(url)
            server.wait()
        except KeyboardInterrupt:
            click.echo()
        finally:
            stop_server(server)


def free_port(wanted: int) -> int:
    """The wanted port, or the next free one.

    Raises:
        UserError: none of the next fifty is free.
    """
    for port in range(wanted, min(wanted + 50, 65536)):
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                candidate.bind(("127.0.0.1", port))
                return port
    raise UserError(f"--port {wanted}: it and the fifty after it are taken; give another")


def start_server(uri: str, root: Path, port: int, log: IO[str]) -> "subprocess.Popen[bytes]":
    """Starts MLflow's server quietly in its own process group, with two processes instead of nine."""
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for leaked in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        environment.pop(leaked, None)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--artifacts-destination", (root / "mlflow-artifacts").as_uri()]
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=root, start_new_session=True)


def stop_server(server: "subprocess.Popen[bytes]") -> None:
    """Ends the server and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)


def _wait_until_up(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + STARTS_IN
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(f"MLflow's server ended while it started; its last line: {_last_line(log)} (all in {log})")
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise UserError(f"MLflow's server did not answer within {STARTS_IN} s; see {log}")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else json.dumps("")
