"""`dp4tl verify`: the problems it lists, and an exit status for scripts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv.cli import main
from tests.conftest import Images


@pytest.fixture
def damaged(photos: Images, tmp_path: Path) -> Path:
    """The photos without their manifest. Sample 17 is not a JPEG."""
    path = Path(shutil.copyfile(photos.path, tmp_path / "damaged.beton"))
    with path.open("r+b") as stream:
        stream.seek(int(photos.index.column("image")["data_ptr"][17]))
        stream.write(b"\x89PNG")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    """Return exit status, result and stderr."""
    try:
        main(["verify", *map(str, arguments), "--json"])
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    shown = capsys.readouterr()
    return status, json.loads(shown.out or "{}"), shown.err


def test_a_sound_beton_has_status_0(photos: Images, capsys: pytest.CaptureFixture[str]) -> None:
    status, result, err = run(capsys, photos.path, "--decode", "--num-workers", 2)
    assert (status, err) == (0, "")
    assert result["file_bytes"] == photos.path.stat().st_size
    assert [result[name] for name in ("samples", "decoded", "problems")] == [120, 120, 0]


def test_problems_are_listed_and_have_status_1(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, damaged)[0] == 0  # without --decode no image is read
    damaged.write_bytes(damaged.read_bytes()[: -24 * 15])
    status, result, err = run(capsys, damaged, "--decode")
    assert status == 1
    assert err.startswith(f"dp4tl: {damaged} is damaged")
    assert err.count("\n") == 1
    assert result["problems"] == len(result["first_problems"]) == 16
    assert result["decoded"] == 104
    last = result["first_problems"][-1]
    assert (last["kind"], last["sample_id"]) == ("jpeg", 17)
    assert "Not a JPEG" in last["message"]
