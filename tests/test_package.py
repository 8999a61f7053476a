"""What is installed: the wheel is whole, and its command runs anywhere, also among files named as its own packages."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("data", "models", "tasks", "pipelines", "recipes")
RECIPE = """
name: toy
data: {generated: {documents: 50}, tokenizer: {kind: bytes}, sequence: 32}
model: {family: transformer, width: 16, depth: 1, heads: 1}
train: {tokens: 4k, batch: 512}
"""


def run(*command: str, cwd: Path, **more: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | more, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a build/ and an egg-info beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*FOLDERS, "reducible"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)]
    # pip asks for rustc's version, whose wrapper makes a folder in the home.
    variables = os.environ | {"HOME": str(out.parent)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=500)
    if done.returncode and "No matching distribution found for setuptools" in done.stdout + done.stderr:
        pytest.skip("a build fetches setuptools, and no package index answers here")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_every_module_recipe_and_page_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    kinds = (".py", ".yaml", ".html", ".css")
    expected = {f"reducible/{path.relative_to(ROOT)}" for path in files if path.suffix in kinds}
    assert held == expected | {"reducible/__init__.py"}
    assert {Path(name).suffix for name in expected} == set(kinds)


@pytest.mark.slow
def test_the_wheel_runs_among_files_named_as_its_packages(wheel: Path, tmp_path: Path) -> None:
    """Somebody else's models/, reducible/, types.py and torch.py lie where the command is given; none is imported."""
    site, here = tmp_path / "site", tmp_path / "here"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
        cwd=tmp_path,
        HOME=str(tmp_path),
    )
    here.mkdir()
    command = str(site / "bin" / "reducible")
    assert "sweep" in run(command, "--help", cwd=here, PYTHONPATH=str(site))
    assert not list(here.iterdir())
    for name in (
        *("tasks.py", "models/__init__.py", "models/net.py", "data/__init__.py", "reducible/__init__.py"),
        *("types.py", "random.py", "json.py", "sitecustomize.py", "torch.py", "numpy.py", "ray.py"),
    ):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("raise RuntimeError('not the package that was meant')\n")
    (here / "toy.yaml").write_text(RECIPE)
    run(command, "run", "toy.yaml", cwd=here, PYTHONPATH=str(site))
    where = "import reducible.tasks.train.loop; print(reducible.tasks.train.loop.__file__)"
    assert Path(run(sys.executable, "-c", where, cwd=tmp_path, PYTHONPATH=str(site)).strip()).is_relative_to(site)
    assert list((here / ".reducible" / "artifacts" / "train").glob("*/model/model.safetensors"))


def test_the_train_task_runs_as_a_module_and_says_how(tmp_path: Path) -> None:
    said = run(sys.executable, "-m", "reducible.tasks.train", "--help", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert said.startswith("usage:") and "reducible.tasks.train" in said
