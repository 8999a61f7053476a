"""What Ray's processes can import: this package, and nothing else that lies beside it or in the current folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reducible.pipelines.cluster.ray_session import _python_path
from reducible.pipelines.cluster.upload import PACKAGE

FIND = """
import importlib.util, json, sys
names = sorted({*sys.stdlib_module_names, *json.loads(sys.argv[1])})
found = {name: importlib.util.find_spec(name) for name in names if name not in ("__main__", "this", "antigravity")}
print(json.dumps({name: spec and str(spec.origin) for name, spec in found.items()}))
"""


def found(names: list[str], folder: Path, path: str) -> dict[str, str | None]:
    """Where a Python that starts in this folder finds each name, and every module of its own library."""
    command = [sys.executable, "-P", "-c", FIND, json.dumps(names)]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, str | None] = json.loads(done.stdout)
    return result


def test_ray_s_processes_find_this_package_and_else_what_any_python_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere, scratch = tmp_path / "here", tmp_path / "elsewhere", tmp_path / "scratch"
    for folder in (here, elsewhere, scratch):
        folder.mkdir()
    beside = [path.stem for path in PACKAGE.parent.iterdir() if path.stem.isidentifier()]
    names = sorted({"torch", "numpy", "ray", "click", "sitecustomize", *beside} - {PACKAGE.name})
    for name in ("types", "random", "json", *names):
        (here / f"{name}.py").write_text("raise RuntimeError('not the module that was meant')")
    monkeypatch.chdir(here)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    usual = found([*names, PACKAGE.name], elsewhere, "")
    theirs = found([*names, PACKAGE.name], elsewhere, _python_path(scratch))
    assert Path(str(theirs.pop(PACKAGE.name))).resolve() == (PACKAGE / "__init__.py").resolve()
    usual.pop(PACKAGE.name)
    assert theirs == usual


def test_what_the_user_has_put_on_pythonpath_stays_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_own_module.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    where = found(["my_own_module"], tmp_path, _python_path(tmp_path))
    assert where["my_own_module"] == str(tmp_path / "own" / "my_own_module.py")
