"""The wheel contains library, recipes and writers, and works where the checkout is not visible."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "dp4tl_ffcv": "dp4tl_ffcv", "train": "dp4tl_ffcv/train", "writers": "dp4tl_ffcv/writers",
}  # fmt: skip


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the variables that could make the checkout importable."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built without network from a copy of the checkout."""
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
def dp4tl(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment with the wheel and the running interpreter's packages."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    third_party = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "third_party.pth").write_text("\n".join(third_party) + "\n")
    return home / "bin/dp4tl"


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder with a `train.py` and a `writers.py` of somebody else."""
    for name in ("train", "writers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger ran')")
    return tmp_path


def test_the_wheel_contains_every_file_below_one_package(wheel: Path) -> None:
    expected = {
        f"{inside}/{path.relative_to(ROOT / folder)}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"dp4tl_ffcv/py.typed", "dp4tl_ffcv/__init__.pyi", "dp4tl_ffcv/utils.pyi"} <= expected
    assert "dp4tl_ffcv/train/configs/pretrain.py" in expected
    assert "dp4tl_ffcv/report/report.html.j2" in expected


def test_the_installed_package_is_the_wheels(dp4tl: Path, stranger: Path) -> None:
    code = "import dp4tl_ffcv.train, dp4tl_ffcv.writers as w; print(w.__file__, dp4tl_ffcv.verify)"
    file, *_ = run(dp4tl.with_name("python"), "-I", "-c", code, cwd=stranger).split()
    assert Path(file).is_relative_to(dp4tl.parents[1])


@pytest.mark.parametrize("verb", ["", "inspect", "write imagefolder", "pretrain", "demo"])
def test_verbs_answer_next_to_a_strangers_files(verb: str, dp4tl: Path, stranger: Path) -> None:
    assert "usage: " in run(dp4tl, *verb.split(), "--help", cwd=stranger)


def test_a_writer_runs_next_to_a_strangers_files(dp4tl: Path, stranger: Path) -> None:
    for name in ("cat", "dog"):
        (stranger / "photos" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(np.full((8, 8, 3), 60 * number, dtype=np.uint8))
            image.save(stranger / "photos" / name / f"{number}.png")
    options = ("--root", "photos", "--out", "betons", "--num-workers", "0")
    run(dp4tl, "write", "imagefolder", *options, cwd=stranger)
    assert "cat, dog" in run(dp4tl, "inspect", "betons/train.beton", cwd=stranger)
