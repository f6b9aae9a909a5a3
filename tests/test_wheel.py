"""The wheel holds `dp4tl_ffcv` alone, whole, and works where the checkout cannot be seen."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "torchvision", "numba", "ffcv")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the variables that could make the checkout importable."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built, without network, from a copy of every folder that holds Python files."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for folder in (path for path in ROOT.iterdir() if any(path.glob("*.py"))):
        shutil.copytree(folder, tree / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", tree / "dist", tree, cwd=tree)
    (built,) = (tree / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; third-party packages are the running interpreter's."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "third_party.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return home


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    version = wheel.name.split("-")[1]
    assert top == {"dp4tl_ffcv", f"dp4tl_ffcv-{version}.dist-info"}


def test_wheel_holds_the_whole_package(wheel: Path) -> None:
    package = ROOT / "dp4tl_ffcv"
    files = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".md")
    expected = {f"{path.relative_to(ROOT)}" for path in files if "__pycache__" not in path.parts}
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("dp4tl_ffcv/")}
    assert "dp4tl_ffcv/py.typed" in inside
    assert inside == expected


def test_command_works_without_the_checkout(elsewhere: Path) -> None:
    assert "usage: dp4tl" in run(elsewhere / "bin/dp4tl", "--help", cwd=elsewhere)


def test_import_is_the_wheels_and_loads_nothing_heavy(elsewhere: Path) -> None:
    code = (
        "import sys, dp4tl_ffcv; "
        f"print(dp4tl_ffcv.__file__, *(name for name in {HEAVY} if name in sys.modules))"
    )
    file, *loaded = run(elsewhere / "bin/python", "-I", "-c", code, cwd=elsewhere).split()
    assert Path(file).is_relative_to(elsewhere)
    assert loaded == []
