"""Run folders: a result is valid for one configuration; other runs start over or fail."""

import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dp4tl_ffcv import CheckpointError, __version__, atomic
from dp4tl_ffcv.utils import RunFolder, checkpoint_of, environment

CONFIG = {"epochs": 3, "lr": 0.1, "parts": [1, 2], "deep": {"name": "ä", "none": None}}


def finish(path: Path, config: dict[str, Any], **result: Any) -> RunFolder:
    folder = RunFolder(path, config)
    folder.start()
    folder.finish(result)
    return folder


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("resume", [False, True])
def test_a_started_run_has_its_config_and_log(resume: bool, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", CONFIG)
    assert folder.finished() is None
    assert not folder.path.exists()
    folder.start(resume=resume)
    assert json.loads((folder.path / "config.json").read_text()) == CONFIG
    assert folder.checkpoints == folder.path / "checkpoints"
    assert not folder.checkpoints.exists()
    (row,) = rows(folder)
    assert row == {"event": "start", **environment()}
    assert folder.finished() is None


def test_a_finished_run_is_found_again_with_its_result(tmp_path: Path) -> None:
    config = {**CONFIG, "ramp": (1, 2), "names": {1: "a"}}  # compared as JSON
    full = finish(tmp_path, config, accuracy=0.75).finished()
    assert full == {"accuracy": 0.75, "environment": environment()}
    same = {"names": {"1": "a"}, "ramp": [1, 2], **CONFIG}
    assert RunFolder(tmp_path, same).finished() == full
    assert json.loads((tmp_path / "result.json").read_text()) == full


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 4}, {"lr": 0.2}, {"parts": [2, 1]}, {"deep": {"name": "ä"}}, {"more": 1}],
    ids=str,
)
def test_another_config_is_not_finished(changes: dict[str, Any], tmp_path: Path) -> None:
    finish(tmp_path, CONFIG, accuracy=1)
    assert RunFolder(tmp_path, {**CONFIG, **changes}).finished() is None
    assert RunFolder(tmp_path, {"epochs": 3}).finished() is None


def stop(path: Path, config: dict[str, Any]) -> RunFolder:
    """Leave the files of a killed run: a checkpoint, a partial one, and a partial log line."""
    folder = RunFolder(path, config)
    folder.start()
    folder.log({"epoch": 0})
    folder.checkpoints.mkdir()
    (folder.checkpoints / "resume.pt").write_bytes(b"whole")
    (folder.checkpoints / ".resume.pt.x1.part").write_bytes(b"half")
    with (path / "log.jsonl").open("a") as stream:
        stream.write('{"epo')
    return folder


def test_one_process_at_a_time_runs_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_PATIENCE", 0.1)
    read, write = os.pipe()
    if not (child := os.fork()):
        stop(tmp_path, CONFIG)
        os.write(write, b"started")
        signal.pause()
    assert os.read(read, 7) == b"started"
    before = sorted(tmp_path.rglob("*"))
    for resume in (True, False):
        with pytest.raises(BlockingIOError, match="another process") as caught:
            RunFolder(tmp_path, CONFIG).start(resume=resume)
        assert caught.value.filename == str(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for file in (read, write):
        os.close(file)
    folder = RunFolder(tmp_path, CONFIG)
    folder.start(resume=True)
    assert [row.get("event") for row in rows(folder)] == ["start", None, "resume"]


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_process_may_run_again_in_its_folder(is_finished: bool, tmp_path: Path) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    folder = RunFolder(tmp_path, CONFIG)
    folder.start()
    if is_finished:
        folder.finish({})
        assert len(list(Path("/proc/self/fd").iterdir())) == files
    RunFolder(tmp_path, CONFIG).start(resume=True)


def test_a_row_that_cannot_be_written_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    folder.start()
    before, limits = rows(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "log.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError, match=r"log\.jsonl"):
            folder.log({"epoch": 0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert rows(folder) == before
    folder.log({"epoch": 0})
    assert rows(folder) == [*before, {"epoch": 0}]


def test_an_unfinished_run_is_resumed_or_starts_over(tmp_path: Path) -> None:
    stop(tmp_path, CONFIG)
    again = RunFolder(tmp_path, CONFIG)
    again.start(resume=True)
    assert [path.name for path in again.checkpoints.iterdir()] == ["resume.pt"]
    start, epoch, resume = rows(again)
    assert (start["event"], epoch) == ("start", {"epoch": 0})
    assert resume == {"event": "resume", **environment()}
    assert again.finished() is None
    again.start()
    assert [row.get("event") for row in rows(again)] == ["start"]
    assert not again.checkpoints.exists()


def test_an_unfinished_run_of_another_config_is_neither_resumed_nor_deleted(tmp_path: Path) -> None:
    stop(tmp_path, CONFIG)
    other = {**CONFIG, "lr": 0.2, "more": 1}
    with pytest.raises(ValueError, match=r"unfinished run with other values of lr, more\."):
        RunFolder(tmp_path, other).start(resume=True)
    assert (tmp_path / "checkpoints" / "resume.pt").exists()
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    folder = RunFolder(tmp_path, other, overwrite=True)
    folder.start(resume=True)
    assert not folder.checkpoints.exists()


def test_a_run_of_another_config_replaces_the_first_only_with_overwrite(tmp_path: Path) -> None:
    first = finish(tmp_path, CONFIG, accuracy=1)
    with pytest.raises(ValueError, match="holds a finished run with other settings"):
        RunFolder(tmp_path, {"epochs": 9}).start()
    assert first.finished() is not None
    folder = RunFolder(tmp_path, {"epochs": 9}, overwrite=True)
    folder.start()
    folder.finish({"accuracy": 2})
    assert RunFolder(tmp_path, CONFIG).finished() is None
    result = RunFolder(tmp_path, {"epochs": 9}).finished()
    assert result is not None
    assert result["accuracy"] == 2


def test_a_finished_run_is_not_resumed_and_other_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    folder = finish(tmp_path, CONFIG, accuracy=1)
    folder.checkpoints.mkdir()
    folder.start(resume=True)
    assert folder.finished() is None
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "config.json", "log.jsonl"}


def test_checkpoints_without_a_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").touch()
    with pytest.raises(ValueError, match="checkpoints but no run"):
        RunFolder(tmp_path, CONFIG, overwrite=True).start()
    assert (tmp_path / "checkpoints" / "mine.pt").exists()


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x80", b"[" * 100_000, b"[1]"])
def test_a_damaged_folder_is_not_finished(name: str, content: bytes, tmp_path: Path) -> None:
    finish(tmp_path, CONFIG, accuracy=1)
    (tmp_path / name).write_bytes(content)
    folder = RunFolder(tmp_path, CONFIG, overwrite=True)
    assert folder.finished() is None
    folder.start()
    folder.finish({"accuracy": 2})
    assert folder.finished() is not None


def test_configs_and_results_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="JSON"):
        RunFolder(tmp_path, {"path": tmp_path})
    with pytest.raises(ValueError, match="JSON"):
        finish(tmp_path, CONFIG, accuracy=float("nan"))
    assert RunFolder(tmp_path, CONFIG).finished() is None


def test_the_environment_names_machine_and_versions() -> None:
    row = environment()
    assert json.loads(json.dumps(row)) == row
    assert row["cores"] == len(os.sched_getaffinity(0))
    assert row["dp4tl_ffcv"] == __version__
    for name in ("machine", "cpu", "gpu", "python", "ffcv", "torch", "numba", "numpy"):
        assert row[name]
    assert row["numpy"] != "absent"


@pytest.mark.parametrize(
    ("initialized", "name"), [(True, "a card"), (False, "none"), (None, "none")]
)
def test_without_driver_files_torch_names_a_gpu_in_use(
    initialized: bool | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    glob = Path.glob

    def without_cards(self: Path, pattern: str) -> Any:
        return [] if "nvidia" in str(self) else glob(self, pattern)

    monkeypatch.setattr(Path, "glob", without_cards)
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_initialized=lambda: initialized, get_device_name=lambda: "a card")
    )
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if initialized is not None:
        monkeypatch.setitem(sys.modules, "torch", torch)
    assert environment()["gpu"] == name
    assert ("torch" in sys.modules) == (initialized is not None)


def test_a_run_folder_stands_for_its_checkpoint(tmp_path: Path) -> None:
    finish(tmp_path / "old", CONFIG, checkpoint=str(tmp_path / "old/checkpoints/last.pt"))
    (tmp_path / "old").rename(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    assert checkpoint_of(tmp_path / "run") == last
    assert checkpoint_of(last) == last
    for made in ({}, {"checkpoint": None}):
        finish(tmp_path / "other", CONFIG | made, **made)
        with pytest.raises(CheckpointError, match=r"a folder, but not that of a finished run"):
            checkpoint_of(tmp_path / "other")
        (tmp_path / "other" / "result.json").unlink()
