"""Commands as jobs: what travels, what is refused, what a session is; and a real head, with a driver killed."""

import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import click
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray_head import free_port, head, wait

from reducible.pipelines.cli import main
from reducible.pipelines.cluster import jobs, upload
from reducible.pipelines.cluster.ray_session import Cluster, Machine, capacity, session
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store, write_manifest

ROOT = "/srv/shared/reducible"  # does not exist here


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's: a recipe with a base, notes, and a package that carries the name of one of ours."""
    folder = tmp_path / "project"
    for name, text in {
        "notes/a.md": "a",
        "notes/deep/b.md": "b",
        "notes/.hidden": "h",
        "other.txt": "o",
        "my-notes.yaml": "base: bases/small.yaml\ndata: {source: 'notes/**/*.md'}\n",
        "bases/small.yaml": "model: {width: 16}\n",
        "data/__init__.py": "raise RuntimeError('the wrong package')\n",
        ".gitignore": "notes/\n",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(folder)
    return folder


def _travels(here: Path, *arguments: str, root: str = ROOT) -> list[str]:
    return sorted(name.removeprefix("files/") for name, _ in upload.named_files(arguments, Path(root), here))


def test_a_recipe_its_bases_and_its_data_travel(here: Path) -> None:
    recipe = ["bases/small.yaml", "my-notes.yaml"]
    assert _travels(here, "my-notes.yaml") == [*recipe, "notes/a.md", "notes/deep/b.md"]
    assert _travels(here, "my-notes.yaml", "data.source=other.txt") == [*recipe, "other.txt"]
    assert _travels(here, "my-notes.yaml", "data.source=notes") == [*recipe, "notes/a.md", "notes/deep/b.md"]
    assert _travels(here, "my-notes.yaml", "data.source=builtin:stdlib") == recipe
    assert _travels(here, "my-notes.yaml", "data.source=*.txt") == [*recipe, "other.txt"]
    assert _travels(here, "a-run", "--data", "other.txt", "--seed=3") == ["other.txt"]


def test_every_file_of_pairs_travels(here: Path) -> None:
    for name in ("a.en", "a.de", "v.tsv", "t.en", "t.de", "tok/s.json"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("x")
    recipe = "data: {source: [a.en, a.de], test: [t.en, t.de], validation: v.tsv, source_tokenizer: {path: tok/s.json}}"
    (here / "pairs.yaml").write_text(recipe)
    others = ["pairs.yaml", "t.de", "t.en", "tok/s.json", "v.tsv"]
    assert _travels(here, "pairs.yaml") == ["a.de", "a.en", *others]
    assert _travels(here, "pairs.yaml", "data.source=[other.txt, a.de]") == ["a.de", "other.txt", *others]
    with pytest.raises(UserError, match=r"^data.test: .*nothing does not exist"):
        _travels(here, "pairs.yaml", "data.test=[t.en, nothing]")


def test_paths_that_the_cluster_would_not_see_are_refused(here: Path) -> None:
    outside = here.parent / "outside.txt"
    outside.write_text("x")
    with pytest.raises(UserError, match=r"^data.source: .*outside.txt is a path of this machine"):
        _travels(here, "my-notes.yaml", f"data.source={outside}")
    with pytest.raises(UserError, match=r"^data.source: ../outside.txt is outside the current folder"):
        _travels(here, "my-notes.yaml", "data.source=../outside.txt")
    with pytest.raises(UserError, match=r"^data.source: .*nothing does not exist"):
        _travels(here, "my-notes.yaml", "data.source=nothing")
    # The cluster's own paths: one that is not here, and one on the storage that holds --root.
    assert len(_travels(here, "my-notes.yaml", "data.source=/data/of/the/cluster/*.md")) == 2
    assert len(_travels(here, "my-notes.yaml", f"data.source={outside}", root=f"{outside.parent}/root")) == 2


def test_rayignore_refuses_by_name_what_a_recipe_needs(here: Path) -> None:
    (here / ".rayignore").write_text("deep/\n")
    with pytest.raises(UserError, match=r"^data.source: needs .*b.md, which .rayignore keeps"):
        _travels(here, "my-notes.yaml")


def test_an_upload_that_a_job_cannot_carry_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "LIMIT", 2**20)
    (tmp_path / "small").write_text("x")
    (tmp_path / "large").write_bytes(os.urandom(3 * 2**20))
    upload.pack(tmp_path / "small.zip", [("small", tmp_path / "small")])
    with pytest.raises(UserError, match=r"exceeds 1 MiB, the most that a job can carry, at .*large \(3 MiB\)"):
        upload.pack(tmp_path / "large.zip", [(name, tmp_path / name) for name in ("large", "small")])
    with pytest.raises(UserError, match="absent: cannot be uploaded"):
        upload.pack(tmp_path / "absent.zip", [("absent", tmp_path / "absent")])


def test_the_upload_runs_by_itself_and_is_the_same_every_time(here: Path, tmp_path: Path) -> None:
    first, second, there = tmp_path / "1.zip", tmp_path / "2.zip", tmp_path / "there"
    named = list(upload.named_files(["my-notes.yaml"], Path(ROOT), here))
    upload.pack(first, [*upload.code_files(), *named])
    (here / "other.txt").touch()
    upload.pack(second, reversed([*upload.code_files(), *named]))
    assert first.read_bytes() == second.read_bytes()

    zipfile.ZipFile(first).extractall(there)
    assert not [path for path in there.rglob("*") if "__pycache__" in path.parts]
    # As Ray runs the entry point: the package's folder on PYTHONPATH, inside files, beside a `reducible` of the user's.
    (there / "files" / "reducible").mkdir()
    (there / "files" / "reducible" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    command = [
        sys.executable,
        "-P",
        "-c",
        "import reducible.pipelines.cli, reducible.data as data; print(data.__file__)",
    ]
    environment = {**os.environ, "PYTHONPATH": str(there)}
    done = subprocess.run(command, cwd=there / "files", env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(there / "reducible" / "data" / "__init__.py")


def test_what_a_job_could_not_do_is_refused_here(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDUCIBLE_ROOT", raising=False)
    for wrong in ([], ["--root", ".reducible"], ["--root=runs"], ["--root", "s3://bucket/runs"]):
        with pytest.raises(UserError, match=r"^--root .*absolute folder on storage that all nodes see"):
            jobs.submit(["run", "my-notes.yaml", *wrong], "http://127.0.0.1:9", main.commands)
    with pytest.raises(UserError, match="^submit ui: cannot run as a job; these can: run, sweep"):
        jobs.submit(["ui", "--root", ROOT], "http://127.0.0.1:9", main.commands)
    with pytest.raises(UserError, match="tokns: unknown key; did you mean tokens?"):
        jobs.submit(["run", "my-notes.yaml", "train.tokns=5", "--root", ROOT], "http://127.0.0.1:9", main.commands)
    with pytest.raises(click.UsageError, match="No such option"):
        jobs.submit(["run", "my-notes.yaml", "--rot", ROOT], "http://127.0.0.1:9", main.commands)


def test_a_job_is_named_after_its_recipe_and_given_the_root_of_this_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDUCIBLE_ROOT", ROOT)
    words = ["run", "my-notes.yaml"]
    assert jobs._understood(words, main.commands) == (Path(ROOT), "my-notes")
    assert words == ["run", "my-notes.yaml", "--root", ROOT]
    law = ["run", "--from-law", "demo", "--flops", "1e12", "compute.workers=2"]
    assert jobs._understood(law, main.commands) == (Path(ROOT), "demo")
    assert re.fullmatch(r"run-my-notes-\d{8}-\d{6}-[0-9a-f]{4}", jobs._readable("run", "My Notes"))


class _Server(BaseHTTPRequestHandler):
    """Answers as the dashboard of a cluster with the token "right" does (ray's http_token_authentication.py)."""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        status = {None: 401, "Bearer right": 200}.get(given, 403)
        body = {200: '{"ray_version": "2.60.0"}', 401: "Unauthorized: Missing", 403: "Forbidden: Invalid"}[status]
        if self.path.endswith("/jobs/") and status == 200:
            body = "[]"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Server)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_wrong_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.9.8.7:6379")  # Ray would prefer it to the address that was given
    nobody = f"http://127.0.0.1:{free_port()}"
    for token in (None, "some-token"):
        if token:
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        with pytest.raises(UserError, match=f"^{nobody}: no Ray dashboard answers there"):
            jobs.list_jobs(nobody)
    with pytest.raises(UserError, match="^--address 127.0.0.1:6379: jobs are submitted to a dashboard's URL"):
        jobs.list_jobs("127.0.0.1:6379")
    assert os.environ["RAY_ADDRESS"] == "10.9.8.7:6379"


def test_no_token_a_wrong_token_and_the_right_one(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for mode in (None, "token"):
        if mode:
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
        with pytest.raises(UserError, match=f"^{dashboard}: wants a token, and there is none here; copy the cluster's"):
            jobs.list_jobs(dashboard)
        assert os.environ.get("RAY_AUTH_MODE") == mode
    assert not list(tmp_path.iterdir())  # none was made up either

    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-the-token")
    with pytest.raises(UserError, match=f"^{dashboard}: does not know this token; copy the cluster's") as refused:
        jobs.list_jobs(dashboard)
    assert "not-the-token" not in str(refused.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")

    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("right")
    assert jobs.list_jobs(dashboard) == []
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="^RAY_AUTH_TOKEN_PATH=.*nothing: cannot be read or is empty$"):
        jobs.list_jobs(dashboard)


MACHINES = st.builds(
    Machine,
    name=st.just("node"),
    cpus=st.integers(0, 4),
    gpus=st.integers(0, 2),
    count=st.integers(0, 3),
    scales=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MACHINES, max_size=3), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2))
def test_capacity_is_the_most_workers_that_any_choice_of_nodes_holds(
    machines: list[Machine], scales_to: int, cpus: int, gpus: int
) -> None:
    if cpus == gpus == 0:
        return

    def place(node: Machine) -> int:
        workers, left_cpus, left_gpus = 0, node.cpus, node.gpus
        while left_cpus >= cpus and left_gpus >= gpus:
            workers, left_cpus, left_gpus = workers + 1, left_cpus - cpus, left_gpus - gpus
        return workers

    standing = sum(place(machine) * machine.count for machine in machines if not machine.scales)
    startable = [machine for machine in machines if machine.scales for _ in range(machine.count)]
    best = max(
        sum(place(node) for node in chosen)
        for chosen in itertools.combinations(startable, min(scales_to, len(startable)))
    )
    assert capacity(tuple(machines), scales_to, cpus, gpus) == standing + best


def test_a_request_that_can_never_be_met_is_refused_before_anything_starts() -> None:
    cluster = Cluster(False, (Machine("node", 0, 0), Machine("gpu", 8, 1, 4, scales=True)), scales_to=2)
    cluster.require("train", cpus=8, gpus=1, workers=2)
    with pytest.raises(UserError, match=r"^train: asks for 3 workers of 8 CPU \+ 1 GPU, and there is room for 2: node"):
        cluster.require("train", cpus=8, gpus=1, workers=3)
    Cluster(False, None).require("train", cpus=512, gpus=64)  # nothing is known, nothing is claimed


def test_a_session_is_private_quiet_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a user has here is taken for none of ours by the workers
    for name in ("reducible/__init__.py", "data/__init__.py", "models/__init__.py", "tasks.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('the wrong package')")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = dict(os.environ)

    def seen_by_a_worker() -> dict[str, str | None]:  # in here: workers cannot import the tests
        import ray

        import reducible.pipelines.cluster.jobs

        session_folder = ray._private.worker._global_node.get_session_dir_path()
        return {
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "ours": reducible.pipelines.cluster.jobs.__file__,
            "logs": session_folder,
        }

    with session(cpus=1) as cluster:
        import ray

        assert str(cluster.machines) == str((Machine("this machine", 1.0, 0),))
        with pytest.raises(UserError, match=r"^train: asks for 2 workers of 1 CPU \+ 0 GPU, and there is room for 1"):
            cluster.require("train", workers=2)
        seen = ray.get(ray.remote(seen_by_a_worker).remote())
        assert seen["threads"] == "1" and Path(seen["ours"]).samefile(jobs.__file__)
        scratch = Path(seen["logs"]).parent
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        with session() as inner:  # a second one joins the first and leaves it open
            assert not inner.local
        assert ray.is_initialized()
    assert not psutil.Process().children(recursive=True)
    assert not scratch.exists()
    assert {name: value for name, value in os.environ.items() if "TOKEN" in name or name in before} == before


def test_a_node_that_was_not_up_in_time_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's own error, raised at the place where Ray raises it: its processes run, and the node is not known yet."""
    from ray._private import services

    get_node, started = services.get_node, []

    def late_once(*arguments: Any) -> Any:
        if not started:
            started.extend(psutil.Process().children(recursive=True))
            raise Exception("The current node timed out during startup. This could happen ...")
        return get_node(*arguments)

    monkeypatch.setattr(services, "get_node", late_once)
    with session(cpus=1) as cluster:
        assert cluster.machines == (Machine("this machine", 1.0, 0),)
        assert len(started) > 1 and not any(process.is_running() for process in started)
    assert "starting it once more" in capsys.readouterr().err
    assert not psutil.Process().children(recursive=True)


def test_another_error_of_a_start_or_a_second_late_node_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Ray's logs are kept after an error

    errors: list[Exception] = []

    def fails(*_: Any, **__: Any) -> None:
        raise errors.pop()

    monkeypatch.setattr(ray, "init", fails)
    late = "The current node timed out during startup."
    for errors[:], message in (([Exception(late), Exception(late)], "timed out"), ([OSError("no disk")], "no disk")):
        with pytest.raises(Exception, match=message), session(cpus=1):
            pass
        assert not errors


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "is the address for submitting jobs"),
        ("ray://127.0.0.1:10001", "give the head's host:port"),
        ("auto", "give the head's host:port"),
        ("127.0.0.1:1", "nothing answers there"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message), session(address):
        pass


@pytest.mark.slow
def test_ctrl_c_ends_a_session_and_all_its_processes() -> None:
    # What a shell runs in the background ignores Ctrl-C, tests as well.
    script = (
        "import signal, time; from reducible.pipelines.cluster.ray_session import session\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with session(cpus=1): print('open'); time.sleep(99)"
    )
    environment = {**os.environ, "PYTHONPATH": str(upload.PACKAGE.parent)}
    environment.pop("RAY_ADDRESS", None)
    command = subprocess.Popen(
        [sys.executable, "-uc", script], env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None and command.stdout.readline() == "open\n"
    children = psutil.Process(command.pid).children(recursive=True)
    assert children
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does it
    assert command.wait(60) == -signal.SIGINT
    assert not psutil.wait_procs(children, timeout=30)[1]


RECIPE = """
data: {source: notes, documents: paragraph, tokenizer: {kind: bytes}, sequence: 64}
model: {width: 16, depth: 1, heads: 2}
train: {tokens: 1M, batch: 512}
"""


@pytest.mark.slow
def test_a_killed_driver_and_the_command_submitted_again_run_no_finished_task_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, root = tmp_path / "project", tmp_path / "shared" / "root"
    (project / "notes").mkdir(parents=True)
    text = "\n\n".join(path.read_text() for path in sorted((upload.PACKAGE / "tasks").rglob("*.py")))
    (project / "notes" / "code.txt").write_text(text)
    (project / "my-notes.yaml").write_text(RECIPE)
    root.parent.mkdir()
    monkeypatch.chdir(project)
    command = ["run", "my-notes.yaml", "--root", str(root)]
    with head() as (address, gcs, token):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        assert jobs.list_jobs(address) == []

        first = jobs.submit(command, address, main.commands)
        wait(lambda: list((root / "work" / "train").glob("*/*")), "the training to begin")
        driver = _driver_of(root)
        finished = _attempts(root)
        assert {name for name, _ in finished} == {"tokenizer", "tokens", "dataset"}
        driver.kill()
        wait(lambda: jobs.job(first, address).status == "FAILED", "the job to be seen as failed")

        second = jobs.submit(command, address, main.commands)
        assert "dataset" in "".join(jobs.logs(second, address, follow=True))
        ended = jobs.job(second, address)
        assert (ended.status, ended.exit_code) == ("SUCCEEDED", 0), "".join(jobs.logs(second, address))
        assert ended.command == f"reducible run my-notes.yaml --root {root}"
        afterwards = _attempts(root)
        assert {key: afterwards[key] for key in finished} == finished
        assert {"train", "evaluate"} <= {name for name, _ in afterwards}
        made = re.findall(r"made +(\S+)", "".join(jobs.logs(second, address)))
        assert made and not {"tokenizer", "tokens", "dataset"} & set(made)

        # Where a task runs is no part of what it is: on this machine everything is done, and Ray does not start.
        local = [sys.executable, "-m", "reducible.pipelines.cli", *command]
        again = subprocess.run(
            local, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(upload.PACKAGE.parent)}
        )
        assert again.returncode == 0 and "Starting Ray" not in again.stdout, again.stdout + again.stderr

        # Stopping, and what is said of jobs that are not there.
        third = jobs.submit([*command, "train.tokens=50M"], address, main.commands)
        wait(lambda: len(list((root / "work" / "train").glob("*"))) > 0, "the third job to train")
        assert jobs.stop(third, address).status == "STOPPED"
        wait(lambda: _driver_of(root, missing_ok=True) is None, "the stopped driver to be gone")
        assert [job.identity for job in jobs.list_jobs(address)] == [third, second, first]
        with pytest.raises(UserError, match=f"no such job; did you mean {first}"):
            list(jobs.logs(first[:-1], address))
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(UserError, match="does not know this token"):
            jobs.list_jobs(address)
        with (
            pytest.raises(UserError, match="RAY_ADDRESS=.*is not a Ray head"),
            session(address.removeprefix("http://")),
        ):
            pass
        with pytest.raises(UserError, match="RAY_ADDRESS=.*does not know this token"), session(gcs):
            pass
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(UserError, match="wants a token, and there is none here"):
            jobs.list_jobs(address)
        with pytest.raises(UserError, match="RAY_ADDRESS=.*wants a token, and there is none here"), session(gcs):
            pass


def _driver_of(root: Path, missing_ok: bool = False) -> Any:
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(root) in line and "reducible.pipelines.cli" in line:
            return process
    assert missing_ok, "no driver runs"
    return None


def _attempts(root: Path) -> dict[tuple[str, str], str]:
    """What is committed, and the attempt that made it."""
    from reducible.tasks.workflow.store import read_manifest

    folders = [path.parent for path in (root / "artifacts").glob("*/*/manifest.json")]
    return {(folder.parent.name, folder.name): str(read_manifest(folder)["attempt"]) for folder in folders}


def test_the_code_of_a_family_from_outside_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine_here/__init__.py", "mine_here/model.py", "other_here.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "base.yaml").write_text("model: {family: mine_here.model:FAMILY}")
    (tmp_path / "recipe.yaml").write_text("base: base.yaml\nsweep: {families: [{family: transformer}]}")
    found = upload.family_files(["recipe.yaml", "model.family=other_here:FAMILY"], tmp_path)
    assert dict(found) == {
        name: tmp_path / name for name in ("mine_here/__init__.py", "mine_here/model.py", "other_here.py")
    }


def test_a_family_by_its_short_name_travels_or_must_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable distribution travels with what declares its entry point; one that is installed as files does not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, recorded in (("editable_here", ""), ("released_here", "released_here.py,,\n")):
        folder = tmp_path / f"{name}-1.5.dist-info"
        folder.mkdir()
        (tmp_path / f"{name}.py").write_text("")
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (folder / "entry_points.txt").write_text(f"[reducible.families]\n{name}_family = {name}:FAMILY\n")
        lines = [f"{folder.name}/{file},,\n" for file in ("METADATA", "entry_points.txt", "RECORD")]
        (folder / "RECORD").write_text(recorded + "".join(lines))
    declared = (
        "editable_here.py",
        "editable_here-1.5.dist-info/METADATA",
        "editable_here-1.5.dist-info/entry_points.txt",
    )
    arguments = ["model.family=editable_here_family"]
    assert dict(upload.family_files(arguments, tmp_path)) == {name: tmp_path / name for name in declared}
    assert upload.needed_distributions(arguments, tmp_path) == []
    arguments = ["model.family=released_here_family"]
    assert dict(upload.family_files(arguments, tmp_path)) == {}
    assert upload.needed_distributions(arguments, tmp_path) == ["released_here 1.5"]


def test_the_family_of_a_training_that_a_command_names_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trained_here.py").write_text("")
    (tmp_path / "tune.yaml").write_text("finetune: {base: my-run}")
    described = {"task": "train", "version": 1, "spec": {"family": "trained_here:FAMILY"}, "inputs": {}}
    folder = Store(tmp_path / "root").artifact("train", "a" * 64)
    folder.mkdir(parents=True)
    write_manifest(folder, described, identity="a" * 64, label="train my-run", attempt="a", started=0.0)
    for arguments in (["my-run", "--data", "x"], ["tune.yaml"]):
        found = dict(upload.family_files(arguments, tmp_path, tmp_path / "root"))
        assert found == {"trained_here.py": tmp_path / "trained_here.py"}
    assert dict(upload.family_files(["other-run"], tmp_path, tmp_path / "root")) == {}
