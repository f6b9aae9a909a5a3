"""Compiled code is kept on disk until a file that it may come from changes."""

from pathlib import Path

import pytest

from dp4tl_ffcv.kernels.compiled import source_stamp

TREE = {
    "kernels/__init__.py": "from .sums import total\n",
    "kernels/sums.py": "from ..limits import (\n    MOST,\n    LEAST,\n)\nfrom . import vectors\n",
    "kernels/vectors.py": "LANES = 32\n",
    "kernels/other.py": "from .sums import total\n",
    "limits.py": "import numpy as np\n",
    "docs.py": "",
}


@pytest.mark.parametrize(
    ("changed", "is_stale"),
    [
        ("kernels/sums.py", True),
        ("limits.py", True),
        ("kernels/vectors.py", True),
        ("kernels/other.py", False),
        ("docs.py", False),
    ],
)
def test_a_change_counts_for_the_files_that_import_it(
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
