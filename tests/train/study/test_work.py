"""The work of single stages: what their results record."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Selection, label_mapping
from tests.support.images import write_images
from train.components.study import work
from train.components.study.stages import Stage


def test_a_stage_records_its_warnings_and_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(_: Stage, __: int | None) -> dict[str, Any]:
        for number in (1, 2):
            warnings.warn(f"warning {number}", stacklevel=1)
        return {}

    monkeypatch.setitem(work._WORK, "score", score)
    stage = Stage(kind="score", facts={}, root=tmp_path)
    before = warnings.showwarning
    with pytest.warns(UserWarning, match=r"warning \d") as shown:
        assert work.run_stage(stage)["warnings"] == ["warning 1", "warning 2"]
    assert [str(each.message) for each in shown] == ["warning 1", "warning 2"]
    assert warnings.showwarning is before
    result = json.loads((stage.folder / "result.json").read_text())
    assert result["warnings"] == ["warning 1", "warning 2"]


def test_a_selection_records_the_evidence_of_keep_auto(tmp_path: Path) -> None:
    write_images(tmp_path / "source.beton", np.zeros((20, 2, 2, 3), np.uint8), range(20))
    scores = Stage(kind="score", facts={"method": "label_mapping"}, root=tmp_path)
    scores.folder.mkdir(parents=True)
    votes = np.repeat(np.arange(20), [150, 120, 100, 80, 60, *[1] * 3, *[0] * 12])
    label_mapping(10 * np.eye(20, dtype=np.float32)[votes]).save(scores.folder / "scores.npz")
    found = {}
    for keep in ("auto", 0.5):
        stage = Stage(
            kind="selection", facts={"keep": keep}, needs={"scores": scores}, root=tmp_path,
            paths={"beton": tmp_path / "source.beton"},
        )  # fmt: skip
        stage.folder.mkdir(parents=True)
        found[keep] = work.selection(stage, None)
        if keep == "auto":
            provenance = Selection.load(stage.folder / "selection.npz").provenance
    kept, automatic = found["auto"], provenance["automatic"]
    assert kept["classes"] == int(20 * kept["keep"] + 0.5) < 20
    for name in ("coverage", "lower_bound"):
        assert kept[name] == automatic[name][str(provenance["keep"])] > 0.95
    assert found[0.5] == {"classes": 10, "samples": 10, "keep": 0.5}
