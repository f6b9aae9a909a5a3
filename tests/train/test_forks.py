"""Copies of a recipe's file, which are recipes of their own."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Images
from tests.support.training import PRETRAIN, RECIPES
from train import pretrain

LONGEST = 500  # seconds; it takes a few when the machine is free


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_copy_of_one_file_is_a_recipe_of_its_own(
    recipe: str, photos: Images, tmp_path: Path
) -> None:
    text = (Path(pretrain.__file__).parent / f"{recipe}.py").read_text()
    text = text.replace("from .", "from dp4tl_ffcv.train.")
    text = text.replace('    """Pretrain a', '    print("my line")\n    """Pretrain a')
    copy = tmp_path / "empty" / f"my_{recipe}.py"
    copy.parent.mkdir()
    copy.write_text(text)
    if recipe != "pretrain":  # one run as a program is enough
        assert callable(runpy.run_path(str(copy))[recipe])
        return
    options = {**PRETRAIN, "epochs": 1, "train": photos.path, "run": tmp_path / "mine"}
    flags = [str(w) for name, v in options.items() for w in (f"--{name.replace('_', '-')}", v)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, copy.name, *flags], cwd=copy.parent, env=environment,
        timeout=LONGEST, text=True, check=False, capture_output=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "my line" in ended.stdout
    assert json.loads((tmp_path / "mine" / "result.json").read_text())["steps"] == 3
