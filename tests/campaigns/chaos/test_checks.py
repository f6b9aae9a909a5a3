"""The checks of the chaos campaign fail when they should."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.campaigns.chaos import faults, trees
from tests.campaigns.chaos.disturbance import check_end, names_file
from tests.campaigns.chaos.loads import Loaded, problems_of
from tests.campaigns.chaos.processes import Child
from tests.campaigns.chaos.tally import Tally
from tests.campaigns.results import exit_status

INTACT = [[number, f"pixels {number}"] for number in range(8)]
ROOT = Path(__file__).parents[3]


def loaded(samples: list[list[object]], happened: str = "completed") -> Loaded:
    return Loaded(happened, samples, "", 0.0, "")


def test_files_that_are_left_lost_or_changed_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.beton").write_bytes(b"one")
    (tmp_path / "log.jsonl").write_text('{"event": "epoch", "step": 1, "seconds": 3}\n')
    expected = trees.read_tree([tmp_path])
    assert trees.differences(trees.read_tree([tmp_path]), expected) == []
    (tmp_path / ".a.beton.part").touch()
    (tmp_path / "log.jsonl").write_text(
        '{"event": "epoch", "step": 1, "seconds": 4}\n{"event": "resume"}\n'
    )
    (part,) = trees.differences(trees.read_tree([tmp_path]), expected)
    assert part == f"left behind: {tmp_path / '.a.beton.part'}"
    (tmp_path / ".a.beton.part").unlink()
    (tmp_path / "a.beton").write_bytes(b"two")
    (tmp_path / "log.jsonl").write_text('{"event": "epoch", "step": 1}\n' * 2)
    found = trees.differences(trees.read_tree([tmp_path]), expected)
    assert [problem.split(":")[0] for problem in found] == ["different content"] * 2
    (tmp_path / "a.beton").unlink()
    assert trees.differences(trees.read_tree([tmp_path]), expected)[0].startswith("missing")


def test_facts_of_artifacts_and_numbers_of_states_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"

    def artifact(**header: object) -> bytes:
        np.savez(path, classes=np.arange(3), header=np.array(json.dumps(header)))
        return path.read_bytes()

    first = artifact(names=["a"], seconds=1)
    assert trees.same_content("kept.npz", artifact(names=["a"], seconds=2), first)
    assert not trees.same_content("kept.npz", artifact(names=["b"], seconds=1), first)
    state = {name: io.BytesIO() for name in ("first", "same", "other")}
    for (name, stream), step in zip(state.items(), (3, 3, 4), strict=True):
        torch.save({"step": step, "weight": torch.ones(2), "names": [name[:0]]}, stream)
    contents = {name: stream.getvalue() for name, stream in state.items()}
    assert trees.same_content("last.pt", contents["same"], contents["first"])
    assert not trees.same_content("last.pt", contents["other"], contents["first"])
    stream = io.BytesIO()
    torch.save({"step": 3, "weight": torch.ones(2), "names": ["dog"]}, stream)
    assert not trees.same_content("last.pt", stream.getvalue(), contents["first"])
    assert not trees.same_content("report.html", b"kept 3 of 4", b"kept 2 of 4")


def test_an_index_in_the_cache_folder_counts_as_in_place() -> None:
    expected = {"/w/out/a.beton.jpegs": b"index"}
    cached = {"/w/cache/dp4tl_ffcv/f1.jpegs": b"index"}
    assert trees.differences(cached, expected) == []
    assert trees.differences({**cached, **expected}, expected)
    assert trees.differences({"/w/cache/dp4tl_ffcv/f1.jpegs": b"part"}, expected)


def test_other_pixels_orders_and_numbers_of_samples_are_reported() -> None:
    assert problems_of(loaded(INTACT), INTACT, 1) == []
    assert problems_of(loaded(INTACT[:4], "error"), INTACT, 1) == []
    swapped = [*INTACT[:2], [2, "pixels 3"], *INTACT[3:]]
    for samples, found in (
        (swapped, "another sample's pixels: sample 2 shows sample 3"),
        ([*INTACT[:2], [2, "noise"], *INTACT[3:]], "wrong pixels: sample 2"),
        ([INTACT[1], INTACT[0], *INTACT[2:]], "another order"),
        (INTACT[:4], "lost samples"),
    ):
        (problem,) = problems_of(loaded(samples), INTACT, 1)
        assert problem.startswith(found)
    assert problems_of(loaded(swapped, "error"), INTACT, 2)
    assert problems_of(loaded([], "hang"), INTACT, 1)[0].startswith("hang")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.build(tmp_path_factory.mktemp("shim"))


CALLS = """
import json, os, sys, time
from tests.campaigns.chaos.faults import Shim
path, shim, hits = sys.argv[1], Shim(), {}
file = os.open(path, os.O_RDWR)
calls = {
    "pread": lambda: os.pread(file, 500, 0),
    "preadv": lambda: os.preadv(file, [bytearray(250), bytearray(250)], 0),
    "read": lambda: os.read(file, 500),
    "stream": lambda: open(path, "rb", buffering=0).read(500),
    "pwrite": lambda: os.pwrite(file, bytes(500), 0),
    "write": lambda: os.write(file, bytes(500)),
    "fsync": lambda: os.fsync(file),
}
for name, call in calls.items():
    os.lseek(file, 0, os.SEEK_SET)
    before, started = shim.hits, time.monotonic()
    try:
        value = call()
        what = len(value) if isinstance(value, bytes) else value
    except OSError as error:
        what = -error.errno
    hits[name] = [shim.hits - before, what, time.monotonic() - started > 0.9]
print(json.dumps(hits))
"""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.EIO, {"pread": -5, "preadv": -5, "read": -5, "stream": -5}),
        (faults.SHORT_READS, {"pread": 100, "preadv": 100, "read": 100, "stream": 100}),
        (faults.EARLY_END, {"pread": 0, "preadv": 0, "read": 0, "stream": 0}),
        (
            replace(faults.STALL, seconds=1, most=2),
            {"pread": 500, "preadv": 500},
        ),
        (replace(faults.EIO, ops=faults.WRITE, error=28), {"pwrite": -28, "write": -28}),
        (replace(faults.SHORT_READS, ops=faults.WRITE), {"pwrite": 100, "write": 100}),
        (replace(faults.EIO, ops=faults.SYNC), {"fsync": -5}),
    ],
    ids=["EIO", "short", "end", "stall", "full", "short writes", "fsync"],
)
def test_every_fault_reaches_every_call(
    fault: faults.Fault,
    expected: dict[str, int],
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, control = tmp_path / "file", library.with_name("plan")
    path.write_bytes(bytes(4096))
    monkeypatch.setenv("CHAOS_CONTROL", str(control))
    with faults.Shim().injected(fault, "/file"):
        done = subprocess.run(
            [sys.executable, "-c", CALLS, path], capture_output=True, text=True, check=True,
            env={**os.environ, "LD_PRELOAD": str(library)}, cwd=ROOT, timeout=60,
        )  # fmt: skip
    found = json.loads(done.stdout)
    assert {name: what for name, (hits, what, _) in found.items() if hits} == expected
    slow = [name for name, (_, _, is_slow) in found.items() if is_slow]
    assert slow == (list(expected) if fault.kind == "stall" else [])


def test_a_process_left_behind_is_reported(tmp_path: Path) -> None:
    def leave() -> None:
        if os.fork() == 0:
            time.sleep(60)

    child = Child(leave, tmp_path / "log")
    assert child.wait() == 0
    (orphan,) = child.orphans(0.2)
    assert orphan != child.pid
    child.kill_group()
    assert child.orphans() == []


def test_hangs_crashes_and_unclear_errors_are_reported(tmp_path: Path) -> None:
    def ends(function: object, seconds: float = 60.0) -> tuple[Child, int | None]:
        child = Child(function, tmp_path / "log")  # type: ignore[arg-type]
        return child, child.wait(seconds)

    child, status = ends(lambda: time.sleep(60), 1.0)
    assert status is None
    child, status = ends(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert check_end(child, "failed", "")[0].startswith("crash")
    child, status = ends(lambda: 1 // 0)
    assert status == 70
    assert "no clear error" in check_end(child, "failed", child.text)[0]
    child, _ = ends(lambda: sys.exit(1))
    assert check_end(child, "failed", "dp4tl select: no space left in 'a.npz'.\n") == []


def test_an_error_must_name_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "a.npz").touch()
    later = [str(tmp_path / "run/last.pt"), "/elsewhere/b.npz"]
    for text, names in (
        (f"cannot use '{tmp_path}/c'", True),
        ("cannot write 'a.npz'", True),
        ("cannot write last.pt", True),
        ("cannot read b.npz", False),
        ("Input/output error. Run the run again.", False),
    ):
        assert names_file(text, tmp_path, later) == names


def test_faults_and_kinds_without_cases_end_the_campaign_with_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    held, fallen, empty = (Tally("chaos", name) for name in ("held", "fallen", "empty"))
    held.add("first", "killed", [])
    fallen.add("first", "killed", ["left behind: a", "missing: b"])
    assert exit_status([held.line()]) == 0
    assert exit_status([held.line(), fallen.line()]) == 1
    assert exit_status([held.line(), empty.line()]) == 1
    assert fallen.faults == {"left behind": 1}
