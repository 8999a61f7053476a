"""The published view is what MLflow's bundled page reads; the format is undocumented, so it is pinned here."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlflow_store import make_sweep

from reducible.pipelines.ui import free_port, start_server, stop_server
from reducible.tasks.mlflow.recorder import catch_up, quiet
from reducible.tasks.mlflow.view import (
    LONGEST_TAG,
    TAG,
    decode,
    encode,
    link,
    member_tag,
    publish,
    share_key,
    view_state,
)


@cache
def bundled_javascript() -> str:
    """What MLflow's page runs, all of it."""
    from importlib.util import find_spec

    spec = find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "server" / "js" / "build" / "static" / "js"
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.js")))


def test_a_view_survives_its_encoding_and_fits_into_a_tag() -> None:
    state = view_state("demo")
    value = encode("Sweep demo", state, 123)
    assert decode(value) == ("Sweep demo", state)
    assert len(value) < LONGEST_TAG / 4
    assert all(
        chart["metricSectionId"] in {s["uuid"] for s in state["compareRunSections"]}
        for chart in state["compareRunCharts"]
    )
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])


def test_every_sweep_has_a_key_of_its_own_that_a_link_can_carry() -> None:
    keys = {share_key(name) for name in (None, "all", "a b", "a/b", "a-b")}
    assert len(keys) == 5 and all(re.fullmatch(r"[\w-]+", key) for key in keys)
    assert link("http://127.0.0.1:5000/", "7", "a b") == (
        f"http://127.0.0.1:5000/#/experiments/7/runs?viewStateShareKey={share_key('a b')}"
        "&compareRunsMode=CHART&workflowType=machine_learning"
    )


def test_mlflow_reads_the_keys_and_values_that_the_view_writes() -> None:
    code = bundled_javascript()
    for text in (
        f'"{TAG}"',
        '"viewStateShareKey"',
        '"compareRunsMode"',
        '"machine_learning"',
        '"deflate;"',
        '"string"!==typeof i.name||"number"!==typeof i.createdAt||"string"!==typeof i.state',  # the envelope
        '="SHOW_ALL"',
        '.SCATTER="SCATTER"',
        '.PARALLEL="PARALLEL"',
        '.METRIC="metric"',
        '"Model metrics"',
        '"System metrics"',
        '"mlflow.runColor"',  # the tag by which a sweep's families have their colours
    ):
        assert text in code, f"MLflow's page no longer has {text}"
    listed = re.search(r'\["selectedColumns","columnOrder",[^]]*\]', code)
    assert listed is not None
    facets = {
        "searchFilter",
        "orderByKey",
        "orderByAsc",
        "startTime",
        "lifecycleFilter",
        "datasetsFilter",
        "modelVersionFilter",
    }
    assert facets == set(re.findall(r"\b(\w+):", re.search(r'\{searchFilter:"",[^}]*\}', code).group(0)))  # type: ignore[union-attr]
    assert set(view_state()) <= facets | set(re.findall(r'"(\w+)"', listed.group(0)))
    for chart in view_state()["compareRunCharts"]:
        for field in set(chart) - {"uuid", "type"}:
            assert f".{field}" in code or f"{field}:" in code, f"MLflow's charts no longer know {field}"


def test_publishing_again_changes_nothing_and_keeps_a_note_written_by_hand(tmp_path: Path) -> None:
    quiet()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("reducible")
    publish(client, experiment, ["demo"])
    tags = client.get_experiment(experiment).tags
    name, state = decode(tags[TAG + share_key("demo")])
    assert name == "Sweep demo" and member_tag("demo") in state["searchFilter"]
    client.search_runs(
        [experiment], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"]
    )  # MLflow accepts it
    client.set_experiment_tag(experiment, "mlflow.note.content", "mine")
    publish(client, experiment, ["demo"])
    assert client.get_experiment(experiment).tags == {**tags, "mlflow.note.content": "mine"}


def test_a_taken_port_is_passed_over() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    make_sweep(tmp_path, budgets=(3e11, 1e12), widths=(40, 64))
    assert catch_up(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    port = free_port(5600 + os.getpid() % 300)
    with (tmp_path / "server.log").open("w") as log:
        server = start_server(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, port, log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            stop_server(server)


def _page(address: str, profile: Path, needs: str) -> str:
    """The page's HTML once its requests were answered; again until `needs` is in it, as the server may still start."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1700,1500",
    ]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=60000", "--dump-dom", address]
    page = ""
    for _ in range(4):
        page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        if needs in page:
            break
        time.sleep(2)
    return page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_link_opens_the_published_view_in_a_browser(served: str, tmp_path: Path) -> None:
    import urllib.request

    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{served}/health", timeout=5)
            break
        except OSError:
            time.sleep(0.5)
    page = _page(link(served, "1", "demo"), tmp_path / "profile", "Loss against compute")
    assert "Loss against compute" in page and "What made the difference" in page
    assert "viewing a shared view" in page and "Sweep demo" in page
    assert re.search(r">6</strong> matching|>6<[^>]*> matching", page), "4 trainings, a fit and the sweep"
    assert "train 1e12 w40" in page


@pytest.mark.slow
def test_reducible_ui_prints_the_link_and_leaves_no_server_behind(tmp_path: Path) -> None:
    make_sweep(tmp_path, budgets=(3e11,), widths=(40,))
    port = free_port(5900 + os.getpid() % 90)
    program = f"from reducible.pipelines.ui import serve; serve({str(tmp_path)!r}, port={port}, browser=False)"
    command = [sys.executable, "-u", "-c", program]
    environment: dict[str, Any] = {**os.environ, "MLFLOW_RUN_ID": "0" * 32}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3], env=environment
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        assert f"http://127.0.0.1:{port}/#/experiments/1/runs?viewStateShareKey=all" in "".join(lines)
    finally:
        process.terminate()
        process.wait(60)
    assert free_port(port) == port
