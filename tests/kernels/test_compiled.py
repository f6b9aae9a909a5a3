"""Compiled code is kept on disk until a file that it may come from changes."""

import time
from pathlib import Path

import pytest
from numba import njit

from dp4tl_ffcv.kernels.compiled import compile_timer, source_stamp

TREE = {
    "kernels/__init__.py": "from .sums import total\n",
    "kernels/sums.py": (
        "from ..limits import (\n    MOST,\n    LEAST,\n)\nfrom ..checks import check\n"
        "from . import vectors\nfrom .add import add\n"
    ),
    "kernels/add.py": "from .compiled import compiled\n",
    "kernels/vectors.py": "LANES = 32\n",
    "kernels/other.py": "from .sums import total\n",
    "limits.py": "from .machine import CORES\n",
    "machine.py": "CORES = 2\n",
    "checks.py": "def check(): ...\n",
}


@pytest.mark.parametrize(
    ("changed", "is_stale"),
    [
        ("kernels/sums.py", True),
        ("limits.py", True),
        ("machine.py", True),
        ("kernels/vectors.py", True),
        ("kernels/add.py", True),
        ("kernels/other.py", False),
        ("checks.py", False),
    ],
)
def test_a_change_counts_where_constants_or_compiled_code_are_imported(
    changed: str, is_stale: bool, tmp_path: Path
) -> None:
    stamps = []
    for run in ("before", "after"):
        for name, text in TREE.items():
            path = tmp_path / run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + ("# changed\n" if run == "after" and name == changed else ""))
        stamps.append(source_stamp(tmp_path / run / "kernels" / "sums.py"))
    assert (stamps[0] != stamps[1]) == is_stale


def test_the_timer_counts_compiling_and_nothing_else() -> None:
    @njit  # not cached, so that it is compiled here
    def add(one: int, other: int) -> int:
        return one + other

    with compile_timer() as timer:
        assert timer.seconds == timer.processor_seconds == 0.0
        started = time.perf_counter()
        assert add(1, 2) == 3
        first = timer.seconds
        assert 0.0 < first <= time.perf_counter() - started
        assert timer.processor_seconds > 0.0
        assert add(2, 2) == 4
        assert timer.seconds == first
