"""`write_beton` after it was killed or failed: no half-written file, and the next run continues."""

import contextlib
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from ffcv.fields import IntField

from dp4tl_ffcv import write_beton
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.errors import one_line_errors
from dp4tl_ffcv.writing import pages
from tests.support.betons import PAGE_SIZE, put
from tests.support.blobs import COUNT, FIELDS, ORDER, Blobs, write_blobs

STOP = KeyboardInterrupt()


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The file of a run without interruption."""
    return write_blobs(tmp_path / "whole" / "a.beton", Blobs()).path.read_bytes()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the state after every batch, and wait until it is on the disk."""
    monkeypatch.setattr(pages, "COMMIT_BYTES", 0)
    save = pages.PageWriter._save

    def save_and_wait(self: Any) -> None:
        save(self)
        self._wait()

    monkeypatch.setattr(pages.PageWriter, "_save", save_and_wait)


def stop_at(path: Path, number: int, **options: Any) -> None:
    """Write until the sample that comes at place `number`, which leaves an unfinished file."""
    failing = options.pop("failing", ())
    with pytest.raises(KeyboardInterrupt):
        write_blobs(path, Blobs(failing=failing, errors={int(ORDER[number]): STOP}), **options)


# Killed, and stopped from the keyboard.


class Slow(Blobs):
    def __getitem__(self, number: Any) -> Any:
        time.sleep(0.005)
        return super().__getitem__(number)


def write_slowly(path: Path, log: Path) -> None:
    os.setsid()
    # A shell starts programs in the background with SIGINT ignored, and the tests may run there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as sys.stderr, one_line_errors(program="test"):
        write_blobs(path, Slow(), num_workers=2)


@pytest.fixture
def started(often: None, tmp_path: Path) -> Iterator[Any]:
    """A slow writer in its own process group, which has recorded some samples."""
    path = tmp_path / "a.beton"
    process = get_context("fork").Process(target=write_slowly, args=(path, tmp_path / "log"))
    process.start()
    state, deadline = tmp_path / ".a.beton.part.json", time.monotonic() + 60
    while not (state.exists() and json.loads(state.read_text())["placed"] > 16):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.name not in ("whole", "log"))


def test_a_killed_run_leaves_no_beton_and_the_next_one_completes_it(
    started: Any, tmp_path: Path, whole: bytes
) -> None:
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    started.kill()
    started.join()
    part = ".a.beton.part"
    assert names_in(tmp_path) == [part, f"{part}.json", f"{part}.table"]
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "worker processes outlive their parent"
        time.sleep(0.02)
    samples = Blobs()
    index = write_blobs(tmp_path / "a.beton", samples)
    assert index.path.read_bytes() == whole
    assert len(samples.asked) < COUNT  # the others were in the unfinished file
    assert names_in(tmp_path) == ["a.beton", "a.beton.json"]


@pytest.mark.parametrize("gap", [None, 0.03])
def test_ctrl_c_ends_every_process(
    gap: float | None, started: Any, tmp_path: Path, whole: bytes
) -> None:
    """A terminal sends Ctrl-C to the whole group, and twice if the user is impatient."""
    os.killpg(started.pid, signal.SIGINT)
    if gap is not None:
        time.sleep(gap)
        os.killpg(started.pid, signal.SIGINT)
    started.join(timeout=30)
    if gap is None:
        assert started.exitcode == 130
        printed = (tmp_path / "log").read_text()
        assert printed.splitlines()[-1].startswith("test: stopped. Run it again")
        assert "Traceback" not in printed
    assert started.exitcode not in (None, 0)
    assert not (tmp_path / "a.beton").exists()
    assert write_blobs(tmp_path / "a.beton", Blobs()).path.read_bytes() == whole


# Continued.


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [20, COUNT - 1])
def test_a_failed_run_is_continued(number: int, workers: int, tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.beton"
    stop_at(path, number)
    assert not path.exists()
    for name in (".a.beton.part", ".a.beton.part.table"):  # bytes after the last record
        with (tmp_path / name).open("ab") as stream:
            stream.write(b"\x77" * 5_000_001)
    samples = Blobs()
    write_blobs(path, samples, num_workers=workers)
    assert path.read_bytes() == whole
    if workers == 0:
        again = number // 16 * 16
        assert len(samples.asked) <= COUNT - again + 4  # four are compared


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("change", ["samples", "count", "seed", "names", "arguments", "page"])
def test_another_beton_is_not_continued(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    stop_at(path, 300)
    samples = Blobs(COUNT - (change == "count"), salt=int(change == "samples"))
    options = {
        "seed": {"seed": 1},
        "names": {"class_names": "abcdefg"},
        "arguments": {"written_by": {"root": "elsewhere"}},
        "page": {"page_size": 2 * PAGE_SIZE},
    }.get(change, {})
    write_blobs(path, samples, **options)
    assert len(set(samples.asked)) == len(samples)  # all were read
    twin = write_blobs(tmp_path / "twin" / "a.beton", samples, **options)
    assert path.read_bytes() == twin.path.read_bytes()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("with_blobs", [False, True])
def test_a_beton_of_other_labels_is_not_continued(with_blobs: bool, tmp_path: Path) -> None:
    class Shifted(Blobs):
        shift = 0

        def __getitem__(self, number: Any) -> Any:
            blob, label = super().__getitem__(number)
            label = (label + self.shift) % 7
            return (blob, label) if with_blobs else (label,)

    path, fields = tmp_path / "a.beton", FIELDS if with_blobs else {"label": IntField()}
    with pytest.raises(KeyboardInterrupt):
        write_beton(path, Shifted(errors={int(ORDER[300]): STOP}), fields, num_workers=0)
    Shifted.shift = 1
    index = write_beton(path, Shifted(), fields, num_workers=0)
    assert index.labels().tolist() == ((ORDER + 1) % 7).tolist()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("", lambda data: data[: len(data) // 2]),
        ("", None),
        (".table", lambda data: data[:24]),
        (".table", lambda data: bytes(len(data))),
        (".table", None),
        (".json", lambda data: data.replace(b'"placed": ', b'"placed": 1')),
        (".json", lambda data: data[:-9]),
        (".json", lambda data: b'{"key": "", "format of a later version": 2}'),
    ],
)
def test_a_corrupt_unfinished_file_is_written_from_scratch(
    suffix: str, damage: Any, tmp_path: Path, whole: bytes
) -> None:
    path, damaged = tmp_path / "a.beton", tmp_path / f".a.beton.part{suffix}"
    stop_at(path, 300)
    if damage:
        damaged.write_bytes(damage(damaged.read_bytes()))
    else:
        damaged.unlink()
    write_blobs(path, Blobs())
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("often")
def test_skipped_samples_stay_skipped_when_a_run_is_continued(tmp_path: Path) -> None:
    path, failing = tmp_path / "a.beton", [3, 50, 51, 120, 399]
    stop_at(path, 250, failing=failing, on_error="skip")
    samples = Blobs(failing=failing)
    index = write_blobs(path, samples, on_error="skip")
    assert len(set(samples.asked)) < COUNT
    twin = write_blobs(tmp_path / "twin" / "a.beton", Blobs(failing=failing), on_error="skip")
    assert path.read_bytes() == twin.path.read_bytes()
    assert len(index) == COUNT - len(failing)
    assert index.manifest == twin.manifest
    assert {each["sample"] for each in index.manifest.skipped} == set(failing)


@pytest.mark.usefixtures("often")
def test_repaired_samples_are_read_when_a_run_is_continued(tmp_path: Path, whole: bytes) -> None:
    path, bad, worse = tmp_path / "a.beton", int(ORDER[5]), int(ORDER[40])
    stop_at(path, 250, failing=[bad], on_error="skip")
    write_blobs(path, Blobs())
    assert path.read_bytes() == whole
    stop_at(path, 250, failing=[bad, worse], on_error="skip")
    index = write_blobs(path, Blobs(failing=[worse]), on_error="skip")
    assert [each["sample"] for each in index.manifest.skipped] == [worse]


@pytest.mark.usefixtures("often")
def test_metadata_beyond_the_last_sample_is_cleared(tmp_path: Path) -> None:
    path, failing = tmp_path / "a.beton", ORDER[260:300].tolist()
    stop_at(path, 250, on_error="skip")
    rows_at, row = format.HEADER.itemsize + 2 * format.FIELD.itemsize, 24
    put(tmp_path / ".a.beton.part", rows_at + 360 * row, b"\x77" * 40 * row)
    write_blobs(path, Blobs(failing=failing), on_error="skip")
    twin = write_blobs(tmp_path / "twin" / "a.beton", Blobs(failing=failing), on_error="skip")
    assert path.read_bytes() == twin.path.read_bytes()


# Failures.


@pytest.mark.parametrize("recorded", [False, True])
def test_a_full_disk_is_named_and_the_run_can_be_continued(
    recorded: bool,
    tmp_path: Path,
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if recorded:
        request.getfixturevalue("often")
    path, pwrite, room = tmp_path / "a.beton", os.pwrite, [1_000_000]

    def write_until_full(file: int, data: Any, offset: int) -> int:
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", write_until_full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.beton") as found:
        write_blobs(path, Blobs(), num_workers=2)
    assert found.value.errno == errno.ENOSPC
    kept = [note for note in getattr(found.value, "__notes__", ()) if "run it again" in note]
    assert len(kept) == int(recorded)
    assert not path.exists()
    if not recorded:
        assert [each.name for each in tmp_path.iterdir()] == ["whole"]
    room[0] = 1 << 40
    write_blobs(path, Blobs())
    assert path.read_bytes() == whole
