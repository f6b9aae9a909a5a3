"""`dp4tl compact`: every option reaches the library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import BetonIndex, Selection, compact
from dp4tl_ffcv.utils import sha256_of_file
from tests.cli.conftest import flags_of
from tests.conftest import Images


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "class", "relabel": True},
        {"seed": 7, "images": "raw", "max_resolution": 32},
        {"raw_budget": "20MiB", "fields": ("image", "label")},
        {"selection": None},
    ],
    ids=str,
)
def test_options_are_arguments(
    options: dict[str, Any], run: Callable[..., Any], photos: Images, tmp_path: Path
) -> None:
    selection, out = tmp_path / "selection.npz", tmp_path / "out.beton"
    Selection.of_classes(photos.index, [2, 5, 9]).save(selection)
    given = {"selection": selection, "num_workers": 1, **options}
    expected = compact(photos.path, out=tmp_path / "expected.beton", **given)
    result = run("compact", photos.path, *flags_of(given), "--out", out)
    assert sha256_of_file(out) == sha256_of_file(expected.path)
    assert result == {"out": str(out), **BetonIndex.open(out).summary()}
