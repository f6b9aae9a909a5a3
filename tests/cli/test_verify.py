"""`dp4tl verify`: counts, the problems, and an exit status that scripts can go by."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import BetonError
from dp4tl_ffcv.cli import main
from dp4tl_ffcv.cli.verify import Verify
from tests.conftest import Images


@pytest.fixture
def damaged(photos: Images, tmp_path: Path) -> Path:
    """The photos without their manifest, of which sample 17 is no JPEG."""
    path = Path(shutil.copyfile(photos.path, tmp_path / "damaged.beton"))
    with path.open("r+b") as stream:
        stream.seek(int(photos.index.column("image")["data_ptr"][17]))
        stream.write(b"\x89PNG")
    return path


def test_the_verb_lists_problems_and_then_fails(damaged: Path, photos: Images) -> None:
    sound, verb = Verify(beton=photos.path), Verify(beton=damaged, decode=True, num_workers=1)
    sound.conclude(sound.run())
    result = verb.run()
    (problem,) = result["first_problems"]
    assert (problem["kind"], problem["sample_id"]) == ("jpeg", 17)
    with pytest.raises(BetonError, match="got 1 problem,"):
        verb.conclude(result)


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr."""
    try:
        main(["verify", *map(str, arguments)])
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_a_sound_beton_is_counted_and_status_is_0(
    photos: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, photos.path, "--decode", "--num-workers", 2)
    assert (status, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["beton"] == str(photos.path)
    assert rows["file_bytes"] == str(photos.path.stat().st_size)
    assert [rows[name] for name in ("samples", "extents", "decoded")] == ["120"] * 3
    assert rows["problems"] == "0"


def test_problems_are_listed_on_stdout_and_status_is_1(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, damaged, "--decode")
    assert status == 1
    (line,) = [line for line in out.splitlines() if "jpeg" in line]
    assert "17" in line
    assert "Not a JPEG file" in line
    assert err.count("\n") == 1
    assert err.startswith("dp4tl: `beton` must be whole; got 1 problem,")
    assert str(damaged) in err


def test_a_problem_takes_a_line(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged.write_bytes(damaged.read_bytes()[: -24 * 15])
    status, out, err = run(capsys, damaged)
    assert status == 1
    assert "got 15 problems," in err
    lines = [line for line in out.splitlines() if "no extent starts" in line]
    assert len(lines) == 12
    assert "(15)" in out.splitlines()[-1]


def test_json_has_every_problem_and_status_is_1(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged.write_bytes(damaged.read_bytes()[: -24 * 15])
    status, out, err = run(capsys, damaged, "--json", "--decode")
    assert status == 1
    assert err.count("\n") == 1
    result = json.loads(out)
    assert result["problems"] == len(result["first_problems"]) == 16
    assert result["decoded"] == 104
    last = result["first_problems"][-1]
    assert (last["kind"], last["sample_id"]) == ("jpeg", 17)
    assert "Not a JPEG" in last["message"]


def test_without_decode_no_image_is_looked_at(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, damaged, "--json")
    assert status == 0
    assert json.loads(out)["decoded"] == json.loads(out)["problems"] == 0


def test_a_file_that_is_no_beton_is_told_in_the_list(
    truncated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, truncated)
    assert status == 1
    assert "The file is truncated" in out
    assert err.startswith("dp4tl: `beton` must be whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("none.beton",), "no file"), (("{photos}", "--num-workers", "-1"), "`num_workers` must")],
)
def test_what_cannot_be_checked_is_one_line(
    arguments: tuple[str, ...], message: str, photos: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *(each.format(photos=photos.path) for each in arguments))
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_beton_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2
