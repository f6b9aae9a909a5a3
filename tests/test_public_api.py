"""The package's three lists of names agree, each name is there, and importing it is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dp4tl_ffcv

ROOT = Path(__file__).resolve().parent.parent


def imports_for_type_checkers() -> dict[str, str]:
    """Return name to module, as the block under TYPE_CHECKING has them."""
    tree = ast.parse((ROOT / "dp4tl_ffcv" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert isinstance(block.test, ast.Name)
    assert block.test.id == "TYPE_CHECKING"
    return {
        alias.asname or alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_lazy_table_is_what_type_checkers_see() -> None:
    assert imports_for_type_checkers() == dp4tl_ffcv._HOMES


def test_all_names_are_public() -> None:
    assert sorted(dp4tl_ffcv._HOMES.keys() | {"__version__"}) == sorted(dp4tl_ffcv.__all__)
    assert len(set(dp4tl_ffcv.__all__)) == len(dp4tl_ffcv.__all__)
    assert dir(dp4tl_ffcv) == sorted(dp4tl_ffcv.__all__)


@pytest.mark.parametrize("name", dp4tl_ffcv.__all__)
def test_every_name_is_there_and_the_same_each_time(name: str) -> None:
    value = getattr(dp4tl_ffcv, name)
    assert value is not None
    assert getattr(dp4tl_ffcv, name) is value


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dp4tl_ffcv.nonsense  # noqa: B018  # reading it is the test


def test_the_names_that_design_and_readme_promise_are_public() -> None:
    promised = {"BetonIndex", "Scores", "Selection", "PrunedLoader", "RemapLabel"}
    promised |= {"label_mapping", "feature_mapping", "class_means", "select"}
    assert promised <= set(dp4tl_ffcv.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, dp4tl_ffcv\n"
        "print([n for n in ('torch', 'torchvision', 'numba', 'ffcv') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
