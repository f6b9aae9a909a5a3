"""Every kernel has a numpy-only twin of the same name and signature."""

import inspect
import re
import sys
from pathlib import Path

import pytest

from dp4tl_ffcv import kernels
from tests import reference

ROOT = Path(__file__).resolve().parents[2]
TWINS = sorted((ROOT / "tests" / "reference").rglob("*.py"))


def test_every_kernel_has_a_twin_of_the_same_signature() -> None:
    assert set(reference.__all__) == set(kernels.__all__)
    for name in kernels.__all__:
        twin, kernel = getattr(reference, name), getattr(kernels, name)
        assert inspect.signature(twin) == inspect.signature(kernel)


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_twins_import_only_numpy_and_each_other(path: Path) -> None:
    imports = re.findall(r"^ *(?:from|import) +([\w.]+)", path.read_text(), re.MULTILINE)
    assert imports
    assert {name.split(".")[0] for name in imports} <= {"", "numpy", *sys.stdlib_module_names}
