"""Faults during `compact`: full disks, changing sources, killed runs, other writers.

Many tests run both code paths: samples are copied, or their images are encoded.
"""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonError, BetonIndex, Selection, atomic, compact
from dp4tl_ffcv.atomic import locked_part
from dp4tl_ffcv.compaction import copy_samples
from dp4tl_ffcv.utils import sha256_of_file
from dp4tl_ffcv.writing import pages
from tests.compaction.support import ROOT
from tests.support.betons import PAGE_SIZE

both_ways = pytest.mark.parametrize("options", [{}, {"images": "raw"}], ids=["copy", "encode"])
Options = dict[str, Any]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def limit_space(patch: pytest.MonkeyPatch, folder: Path, free: int) -> None:
    values = list(os.statvfs(folder))
    values[1], values[4] = 1, free  # f_frsize, f_bavail
    patch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))


@both_ways
def test_too_little_space_is_found_before_the_first_byte(
    options: Options, jpeg_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unfinished file of a killed run counts as free space."""
    needed = compact(jpeg_source, None, tmp_path / "whole.beton", **options).path.stat().st_size
    out = tmp_path / "out.beton"
    unfinished = tmp_path / ".out.beton.part"
    with unfinished.open("wb") as stream:
        stream.write(np.random.default_rng(0).bytes(1 << 20))
        os.fsync(stream.fileno())
    free = needed - unfinished.stat().st_blocks * 512
    limit_space(monkeypatch, tmp_path, free - 1)
    with pytest.raises(ValueError, match=f"needs {needed} bytes, and .* has {needed - 1} free"):
        compact(jpeg_source, None, out, **options)
    with pytest.raises(ValueError, match=f"has {free - 1} free"):
        compact(jpeg_source, None, tmp_path / "new" / "out.beton", **options)
    limit_space(monkeypatch, tmp_path, free)
    compact(jpeg_source, None, out, **options)
    assert sha256_of_file(out) == sha256_of_file(tmp_path / "whole.beton")


@both_ways
@pytest.mark.parametrize("call", ["pwrite", "fsync"])  # during the copy, and at its end
def test_a_full_disk_is_named_and_the_old_file_and_manifest_stay(
    call: str, options: Options, jpeg_source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out.beton"
    compact(jpeg_source, [1, 2], out)
    before = {name: sha256_of_file(tmp_path / name) for name in names(tmp_path)}

    def fill(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fill)
    with pytest.raises(OSError, match="No space left on device") as caught:
        compact(jpeg_source, None, out, num_workers=1, **options)
    assert caught.value.filename == str(out)
    assert {name: sha256_of_file(tmp_path / name) for name in names(tmp_path)} == before


@pytest.mark.parametrize(
    ("change", "options"),
    [
        *(("written", {}), ("replaced", {}), ("deleted", {}), ("written", {"images": "raw"})),
        ("opened", {}),  # between opening the file and reading its tables
    ],
)
def test_a_source_that_changes_is_an_error(
    change: str, options: Options, jpeg_source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "a.beton"
    path.write_bytes(jpeg_source.read_bytes())
    real = BetonIndex.open

    def disturb(opened: Any, **arguments: Any) -> BetonIndex:
        if change == "opened":
            os.utime(path, ns=(0, 0))
        elif Path(opened).name == ".out.beton.part":
            if change == "written":
                os.utime(path, ns=(0, 0))
            elif change == "deleted":
                path.unlink()
            else:
                (tmp_path / "other").write_bytes(b"other")
                (tmp_path / "other").replace(path)
        return real(opened, **arguments)

    monkeypatch.setattr(BetonIndex, "open", disturb)
    with pytest.raises(BetonError, match="changed while it was copied"):
        compact(path, None, tmp_path / "out.beton", num_workers=1, **options)
    assert names(tmp_path) == ([] if change == "deleted" else ["a.beton"])


def test_a_source_truncated_during_the_copy_is_an_error(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturb(*_: Any) -> None:
        os.truncate(blobs, PAGE_SIZE + 50_000)

    monkeypatch.setattr(copy_samples, "check_free_space", disturb)
    with pytest.raises(BetonError, match="is truncated: it has no byte"):
        compact(blobs, None, tmp_path / "out.beton")
    assert names(tmp_path) == ["blobs.beton", "blobs.beton.json"]


@both_ways
def test_an_error_of_the_disk_names_the_source(
    options: Options, jpeg_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises((OSError, ValueError), match="Input/output error") as caught:
        compact(jpeg_source, None, tmp_path / "out.beton", num_workers=1, **options)
    assert str(jpeg_source) in str(caught.value)
    assert names(tmp_path) == []


@both_ways
def test_one_process_writes_a_file_at_a_time(
    options: Options, jpeg_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_PATIENCE", 0.05)
    out = tmp_path / "out.beton"
    with locked_part(out) as stream:
        stream.write(b"of another")
        stream.flush()
        with pytest.raises(BlockingIOError):
            compact(jpeg_source, None, out, num_workers=1, **options)
        assert (tmp_path / ".out.beton.part").read_bytes() == b"of another"
    for suffix in (".json", ".table"):  # of other options
        (tmp_path / f".out.beton.part{suffix}").write_bytes(b"left")
    compact(jpeg_source, None, out, num_workers=1, jpeg_index=False, **options)
    assert names(tmp_path) == ["out.beton", "out.beton.json"]


# Runs that are continued.

KILLED = """
import os, signal, sys
from dp4tl_ffcv import compact
from dp4tl_ffcv.writing import pages

_, source, out, images, batches = sys.argv
left = int(batches)
def die_after(place):
    def call(self, *arguments):
        global left
        done = place(self, *arguments)
        left -= 1
        if not left:
            if hasattr(self, "_wait"):
                self._wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call

if left > 1:
    pages.COMMIT_BYTES = 0
if images == "keep":
    write = os.pwrite
    os.pwrite = lambda *arguments: die_after(lambda _: write(*arguments))(None)
else:
    pages.PageWriter.place = die_after(pages.PageWriter.place)
compact(source, None, out, images=images, num_workers=1)
"""


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples in each batch that is placed."""
    place, placed = pages.PageWriter.place, []

    def count(self: Any, batch: Any, *arguments: Any) -> None:
        placed.append(len(batch.rows))
        place(self, batch, *arguments)

    monkeypatch.setattr(pages.PageWriter, "place", count)
    return placed


@pytest.mark.parametrize(
    ("images", "batches"),
    [("keep", 1), ("raw", 1), ("raw", 3)],  # the journal is written after the first batch
)
def test_a_killed_run_leaves_no_file_and_the_next_gives_the_same_bytes(
    images: Any, batches: int, jpeg_source: Path, tmp_path: Path, placed: list[int]
) -> None:
    compact(jpeg_source, None, tmp_path / "whole.beton", images=images, num_workers=1)
    out = tmp_path / "folder" / "out.beton"
    command = [sys.executable, "-c", KILLED, str(jpeg_source), str(out), images, str(batches)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    assert (out.parent / ".out.beton.part.json").exists() == (batches > 1)
    placed.clear()
    compact(jpeg_source, None, out, images=images, num_workers=1, jpeg_index=False)
    if images == "raw":
        assert (sum(placed) < 36) == (batches > 1)
    assert sha256_of_file(out) == sha256_of_file(tmp_path / "whole.beton")
    assert names(out.parent) == ["out.beton", "out.beton.json"]


def stop_after(batches: int, run: Callable[[], Any]) -> None:
    """Run until `batches` batches are placed and recorded, which leaves an unfinished file."""
    place, left = pages.PageWriter.place, [batches]

    def stop(self: Any, *batch: Any) -> None:
        if not left[0]:
            raise OSError("stopped")
        left[0] -= 1
        place(self, *batch)
        self._save()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages.PageWriter, "place", stop)
        with pytest.raises(OSError, match="stopped"):
            run()


def test_an_unfinished_file_of_other_options_is_not_continued(
    jpeg_source: Path, tmp_path: Path, placed: list[int]
) -> None:
    """The two files differ in the label of one sample, which is not compared."""
    chosen = Selection.of_indices(BetonIndex.open(jpeg_source), np.delete(np.arange(36), 34))
    orders = {seed: np.random.default_rng(seed).permutation(chosen.indices) for seed in range(99)}
    seed = next(seed for seed, order in orders.items() if order[2] == 35)
    out = tmp_path / "out.beton"
    options: Options = {"images": "raw", "seed": seed, "num_workers": 1}
    compact(jpeg_source, chosen, tmp_path / "whole.beton", relabel=True, **options)
    stop_after(3, lambda: compact(jpeg_source, chosen, out, **options))
    placed.clear()
    compact(jpeg_source, chosen, out, relabel=True, **options)
    assert sum(placed) == 35
    assert sha256_of_file(out) == sha256_of_file(tmp_path / "whole.beton")
    stop_after(3, lambda: compact(jpeg_source, chosen, out, **options))
    placed.clear()
    compact(jpeg_source, chosen, out, **options)
    assert sum(placed) < 35
