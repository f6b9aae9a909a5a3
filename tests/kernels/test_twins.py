"""Every kernel has a numpy-only twin of the same name and signature, and compiles to it."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dp4tl_ffcv import kernels
from tests import reference

ROOT = Path(__file__).resolve().parents[2]
TWINS = sorted((ROOT / "tests" / "reference").rglob("*.py"))

# Saves the results of every kernel on small data.
PROGRAM = """
import sys
import numpy as np
from dp4tl_ffcv import kernels

rng = np.random.default_rng(3)
labels = rng.integers(0, 5, 40)
wide = rng.normal(size=(40, 6))
results = {"counts": kernels.class_histogram(labels, 7)}
results["members"] = kernels.class_members(labels, np.arange(7) % 2 == 1)
for dtype in (np.float16, np.float32, np.float64):
    features = wide.astype(dtype)
    results[f"sums {dtype}"], _ = kernels.class_sums(features, labels, 7)
    means = np.vstack([wide[:4], wide[:2], np.full((1, 6), np.nan)])
    results[f"nearest {dtype}"], results[f"votes {dtype}"] = kernels.nearest_mean(features, means)
photo = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
for size in ((20, 25), (50, 33), (1, 2)):
    results[f"resized {size}"] = kernels.resize_area(photo, size, (1, 2, 38, 57), True)
results["resized narrow"] = kernels.resize_area(photo, (9, 7), (0, 5, 40, 10))
results["resized far"] = kernels.resize_area(np.tile(photo, (10, 1, 1)), (2, 7))
planes = [np.ascontiguousarray(photo[::2, ::2, 0]), np.ascontiguousarray(photo[::2, ::2, 1])]
luma = np.ascontiguousarray(photo[..., 2])
results["converted"] = kernels.ycc_to_rgb(luma, *planes, (2, 2), (3, 5, 20, 31))
ids = np.arange(40)
results["crops"] = kernels.random_crops(30 + ids, 70 - ids, ids, 5, 2)
results["flips"] = kernels.random_flips(ids, 5, 2)
np.savez(sys.argv[1], **results)
"""


@pytest.mark.parametrize("name", kernels.__all__)
def test_every_kernel_has_a_twin_of_the_same_signature(name: str) -> None:
    twin = getattr(reference, name, None)
    assert twin is not None, f"tests/reference lacks a twin of {name}"
    assert name in reference.__all__
    assert inspect.signature(twin) == inspect.signature(getattr(kernels, name))


def test_every_twin_has_a_kernel() -> None:
    assert set(reference.__all__) == set(kernels.__all__)


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_twins_import_only_numpy_and_each_other(path: Path) -> None:
    imports = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert imports
    for node in imports:
        is_twin = isinstance(node, ast.ImportFrom) and node.level == 1
        names = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
        assert is_twin or {name.split(".")[0] for name in names} == {"numpy"}, ast.unparse(node)


def test_compiled_and_interpreted_kernels_agree(tmp_path: Path) -> None:
    results = []
    for disabled in ("0", "1"):
        path = tmp_path / f"{disabled}.npz"
        env = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        command = [sys.executable, "-c", PROGRAM, str(path)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(path) as stored:
            results.append(dict(stored))
    compiled, interpreted = results
    assert len(compiled) == 19
    for name, values in compiled.items():
        if name.startswith("votes"):  # exp may differ in the last bit
            np.testing.assert_allclose(values, interpreted[name], rtol=1e-12)
        else:
            np.testing.assert_array_equal(values, interpreted[name])
