"""Writers that are killed, that fail, and that run at once: never half a file, nothing twice."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, image_fields, write_beton
from dp4tl_ffcv.artifacts import locked_part
from dp4tl_ffcv.kernels import resize_area
from dp4tl_ffcv.writing import pages
from dp4tl_ffcv.writing.encode import Batch, Tasks

FIELDS = {"blob": BytesField(), "label": IntField()}
COUNT = 400
PAGE_SIZE = 1 << 21


class Blobs(Sequence[Any]):
    """Blobs of several sizes; counts who asks, waits at a number, fails at others."""

    def __init__(self, count: int = COUNT, failing: Sequence[int] = (), salt: int = 0) -> None:
        self.count = count
        self.failing = set(failing)
        self.salt = salt
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> tuple[NDArray[np.uint8], int]:
        self.asked.append(number)
        if number in self.failing:
            raise OSError(f"no sample {number}")
        rng = np.random.default_rng((number, self.salt))
        return rng.integers(0, 256, 1000 + 150 * (number % 70), dtype=np.uint8), number % 7

    def name(self, number: int) -> str:
        return f"blob {number}"


def write(path: Path, samples: Blobs, **options: Any) -> BetonIndex:
    options = {"page_size": PAGE_SIZE, "num_workers": 0, **options}
    return write_beton(path, samples, FIELDS, **options)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The file that nothing interrupts."""
    return write(tmp_path / "whole" / "a.beton", Blobs()).path.read_bytes()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record progress after every batch, and wait for that."""
    monkeypatch.setattr(pages, "COMMIT_BYTES", 0)
    save = pages.PageWriter._save

    def save_and_wait(self: Any) -> None:
        save(self)
        self._wait()

    monkeypatch.setattr(pages.PageWriter, "_save", save_and_wait)


def stop_at(path: Path, number: int, error: type[BaseException] = ValueError) -> None:
    """Write until a sample fails, which leaves an unfinished file."""
    order = np.random.default_rng(0).permutation(COUNT)
    with pytest.raises(error):
        write(path, Blobs(failing=[int(order[number])]))


# Killed.

KILLED = """
import sys, time
from pathlib import Path
from dp4tl_ffcv.writing import pages
from tests.writing.test_resume import Blobs, write

pages.COMMIT_BYTES = 0

class Slow(Blobs):
    def __getitem__(self, number):
        if self.asked and len(self.asked) > 60:
            Path(sys.argv[2]).touch()
            time.sleep(0.05)
        return super().__getitem__(number)

write(Path(sys.argv[1]), Slow(), num_workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_killed_run_leaves_no_beton_and_the_next_one_completes_it(
    workers: int, tmp_path: Path, whole: bytes
) -> None:
    path, flag = tmp_path / "a.beton", tmp_path / "flag"
    command = [sys.executable, "-c", KILLED, str(path), str(flag), str(workers)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    state = tmp_path / ".a.beton.part.json"
    deadline = time.monotonic() + 60
    while not (flag.exists() and placed(state) > 16) and time.monotonic() < deadline:
        time.sleep(0.02)
        assert process.poll() is None
    children = list_children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert placed(state) > 16
    assert not path.exists()
    assert not (tmp_path / "a.beton.json").exists()
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "worker processes outlive their parent"
        time.sleep(0.02)
    samples = Blobs()
    index = write(path, samples)
    assert path.read_bytes() == whole
    assert len(samples.asked) < COUNT  # the rest was there
    assert index.manifest is not None
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        ["a.beton", "a.beton.json", "flag", "whole"]
    )


def placed(state: Path) -> int:
    """How many samples a record says are written."""
    return int(json.loads(state.read_text())["placed"]) if state.exists() else 0


def list_children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in text.split()]


# Continued.


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [20, 200, COUNT - 1])
def test_a_failed_run_is_continued(number: int, workers: int, tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.beton"
    stop_at(path, number)
    assert not path.exists()
    samples = Blobs()
    write(path, samples, num_workers=workers)
    assert path.read_bytes() == whole
    if workers == 0:
        again = number // 16 * 16
        assert len(samples.asked) <= COUNT - again + 4  # four are looked at


@pytest.mark.usefixtures("often")
def test_what_a_killed_run_wrote_behind_its_record_does_not_stay(
    tmp_path: Path, whole: bytes
) -> None:
    path = tmp_path / "a.beton"
    stop_at(path, 200)
    for name in (".a.beton.part", ".a.beton.part.table"):
        with (tmp_path / name).open("ab") as stream:
            stream.write(b"\x77" * 5_000_001)
    write(path, Blobs())
    assert path.read_bytes() == whole


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
    write(path, samples, **options)
    assert len(set(samples.asked)) == len(samples)  # all were read
    twin = write(tmp_path / "twin" / "a.beton", samples, **options)
    assert path.read_bytes() == twin.path.read_bytes()


class Numbers(Sequence[Any]):
    """Labels, with a blob each or without."""

    def __init__(self, blobs: bool, shift: int, stop: int = -1) -> None:
        self.blobs, self.shift, self.stop = blobs, shift, stop

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: Any) -> Any:
        if number == self.stop:
            raise KeyboardInterrupt
        label = (number + self.shift) % 7
        return (np.full(50, number % 251, np.uint8), label) if self.blobs else (label,)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("blobs", [False, True])
def test_a_beton_of_other_labels_is_not_continued(blobs: bool, tmp_path: Path) -> None:
    path, fields = tmp_path / "a.beton", FIELDS if blobs else {"label": IntField()}
    order = np.random.default_rng(0).permutation(COUNT)
    with pytest.raises(KeyboardInterrupt):
        write_beton(path, Numbers(blobs, 0, stop=int(order[300])), fields, num_workers=0)
    index = write_beton(path, Numbers(blobs, 1), fields, num_workers=0)
    assert index.labels().tolist() == ((order + 1) % 7).tolist()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("damage", ["part", "table", "json", "no table", "no part", "later"])
def test_a_damaged_unfinished_file_is_started_anew(
    damage: str, tmp_path: Path, whole: bytes
) -> None:
    path = tmp_path / "a.beton"
    stop_at(path, 300)
    part = tmp_path / ".a.beton.part"
    table, state = tmp_path / f"{part.name}.table", tmp_path / f"{part.name}.json"
    if damage == "part":
        os.truncate(part, part.stat().st_size // 2)
    elif damage == "table":
        os.truncate(table, 24)
    elif damage == "json":
        state.write_text(state.read_text()[:-9])
    elif damage == "later":
        state.write_text('{"key": "", "format of a later version": 2}')
    else:
        (table if damage == "no table" else part).unlink()
    write(path, Blobs())
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("often")
def test_skipped_samples_stay_skipped_when_a_run_is_continued(tmp_path: Path) -> None:
    path, failing = tmp_path / "a.beton", [3, 50, 51, 120, 399]
    order = np.random.default_rng(0).permutation(COUNT)

    class Stopping(Blobs):
        def __getitem__(self, number: Any) -> Any:
            if number == order[250]:
                raise KeyboardInterrupt
            return super().__getitem__(number)

    with pytest.raises(KeyboardInterrupt):
        write(path, Stopping(failing=failing), on_error="skip")
    index = write(path, Blobs(failing=failing), on_error="skip")
    assert index.num_samples == COUNT - len(failing)
    twin = write(tmp_path / "twin" / "a.beton", Blobs(failing=failing), on_error="skip")
    assert path.read_bytes() == twin.path.read_bytes()
    assert index.manifest is not None
    assert index.manifest == twin.manifest
    assert {each["sample"] for each in index.manifest.skipped} == set(failing)


@pytest.mark.usefixtures("often")
def test_mended_samples_are_read_when_none_may_be_skipped(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.beton"
    order = np.random.default_rng(0).permutation(COUNT)

    class Stopping(Blobs):
        def __getitem__(self, number: Any) -> Any:
            if number == order[250]:
                raise KeyboardInterrupt
            return super().__getitem__(number)

    with pytest.raises(KeyboardInterrupt):
        write(path, Stopping(failing=[int(order[5])]), on_error="skip")
    write(path, Blobs())
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("often")
def test_mended_samples_are_not_left_out_when_a_run_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    order = np.random.default_rng(0).permutation(COUNT)

    class Stopping(Blobs):
        def __getitem__(self, number: Any) -> Any:
            if number == order[250]:
                raise KeyboardInterrupt
            return super().__getitem__(number)

    bad, worse = int(order[5]), int(order[40])
    with pytest.raises(KeyboardInterrupt):
        write(path, Stopping(failing=[bad, worse]), on_error="skip")
    index = write(path, Blobs(failing=[worse]), on_error="skip")
    assert index.manifest is not None
    assert [each["sample"] for each in index.manifest.skipped] == [worse]


# Stopped from the keyboard.

STOPPED = """
import signal, sys, time
from pathlib import Path
from dp4tl_ffcv.utils import one_line_errors
from dp4tl_ffcv.writing import pages
from tests.writing.test_resume import Blobs, write

pages.COMMIT_BYTES = 0
# A shell starts what runs in the background with SIGINT ignored, and the tests may run there.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Slow(Blobs):
    def __getitem__(self, number):
        Path(sys.argv[2]).touch()
        time.sleep(0.01)
        return super().__getitem__(number)

with one_line_errors("test"):
    write(Path(sys.argv[1]), Slow(), num_workers=2)
"""


@pytest.mark.parametrize("gap", [None, 0.03])
def test_ctrl_c_ends_every_process(gap: float | None, tmp_path: Path, whole: bytes) -> None:
    """A terminal sends it to the whole group; impatient people send it twice."""
    path, flag = tmp_path / "a.beton", tmp_path / "flag"
    command = [sys.executable, "-c", STOPPED, str(path), str(flag)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while placed(tmp_path / ".a.beton.part.json") < 17 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    if gap is not None:
        time.sleep(gap)
        os.killpg(process.pid, signal.SIGINT)
    try:
        _, printed = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if gap is None:
        assert process.returncode == 130
        assert printed.splitlines()[-1].startswith("test: stopped. Run it again")
        assert "Traceback" not in printed
    assert process.returncode != 0
    assert not path.exists()
    write(path, Blobs())
    assert path.read_bytes() == whole


# Failures.


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_listed(workers: int, tmp_path: Path) -> None:
    failing = [0, 17, 18, 300]
    index = write(
        tmp_path / "a.beton", Blobs(failing=failing), on_error="skip", num_workers=workers
    )
    assert index.manifest is not None
    found = sorted(index.manifest.skipped, key=lambda each: int(each["sample"]))
    assert found == [
        {"sample": number, "name": f"blob {number}", "error": f"no sample {number}"}
        for number in failing
    ]
    kept = [n for n in np.random.default_rng(0).permutation(COUNT).tolist() if n not in failing]
    assert index.labels().tolist() == [number % 7 for number in kept]
    assert sum(index.manifest.class_counts) == len(kept)


def test_the_first_error_names_the_sample(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Cannot encode blob 9: no sample 9\. Fix this"):
        write(tmp_path / "a.beton", Blobs(failing=[9]))
    assert list(tmp_path.iterdir()) == []


def test_a_beton_of_which_every_sample_is_skipped_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Cannot encode blob"):
        write(tmp_path / "a.beton", Blobs(20, failing=range(20)), on_error="skip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_full_disk_is_told_and_what_is_written_can_be_continued(
    recorded: bool,
    num_workers: int,
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
        write(path, Blobs(), num_workers=num_workers)
    assert found.value.errno == errno.ENOSPC
    kept = [note for note in getattr(found.value, "__notes__", ()) if "run it again" in note]
    assert len(kept) == int(recorded)
    assert not path.exists()
    if not recorded:
        assert [each.name for each in tmp_path.iterdir()] == ["whole"]
    room[0] = 1 << 40
    write(path, Blobs())
    assert path.read_bytes() == whole


class Dying(Blobs):
    """Its process dies at number 37."""

    def __getitem__(self, number: Any) -> Any:
        if number == 37:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a worker process died"):
        write(tmp_path / "a.beton", Dying(), num_workers=2)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.beton"
    with locked_part(path), pytest.raises(BlockingIOError, match="another process is writing"):
        write(path, Blobs())
    write(path, Blobs())
    assert path.read_bytes() == whole


def test_the_folder_may_be_another_file_system(tmp_path: Path, whole: bytes) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not another file system here")
    path = shared / f"{os.getpid()}_{tmp_path.name}.beton"
    try:
        write(path, Blobs())
        assert path.read_bytes() == whole
    finally:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.json").unlink(missing_ok=True)


def test_large_samples_are_handed_over_one_by_one() -> None:
    """What waits to be placed is bounded by its bytes, not by the number of samples."""
    dtype = np.dtype([("f0", "<i8")])

    def batch_of(number: int, size: int) -> Batch:
        sizes = np.full(number, size)
        rows, ones = np.zeros(number, dtype), np.ones(number, dtype=np.int64)
        return Batch(rows=rows, extents=ones, sizes=sizes, data=None)

    tasks = Tasks(np.arange(1000))
    lengths = []
    dealt = iter(tasks)
    for size in [1000] * 3 + [1 << 20] * 3 + [40 << 20] * 3 + [1000] * 2:
        number, numbers = next(dealt)
        assert tasks.taken() == numbers.tolist()
        assert number == len(lengths)
        lengths.append(len(numbers))
        tasks.adapt(batch_of(len(numbers), size))
    assert lengths == [1, 16, 16, 16, 7, 7, 7, 1, 1, 1, 16]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_error_says_what_it_is(workers: int, tmp_path: Path) -> None:
    class Odd(Blobs):
        def __getitem__(self, number: Any) -> Any:
            if number == 3:
                raise KeyError("x")
            if number == 4:
                raise RuntimeError
            return super().__getitem__(number)

    index = write(tmp_path / "a.beton", Odd(), on_error="skip", num_workers=workers)
    assert index.manifest is not None
    errors = {each["sample"]: each["error"] for each in index.manifest.skipped}
    assert errors == {3: "KeyError: 'x'", 4: "RuntimeError: "}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lack_of_memory_leaves_no_sample_out(workers: int, tmp_path: Path) -> None:
    class Hungry(Blobs):
        def __getitem__(self, number: Any) -> Any:
            if number == 3:
                raise MemoryError
            return super().__getitem__(number)

    with pytest.raises(MemoryError, match="no memory for sample 3"):
        write(tmp_path / "a.beton", Hungry(), on_error="skip", num_workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_the_old_manifest_stays_with_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.beton"
    old = write(path, Blobs(50), class_names="abcdefg").manifest

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write(path, Blobs(60))
    assert BetonIndex.open(path).manifest == old
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.beton", "a.beton.json"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="`path` must name a file; got the folder"):
        write(tmp_path, Blobs())
    assert list(tmp_path.iterdir()) == []


def test_a_label_that_counts_too_many_classes_is_refused(tmp_path: Path) -> None:
    samples = [(np.zeros(3, np.uint8), label) for label in (1, 1 << 24)]
    with pytest.raises(ValueError, match=r"must lie in \[0, 16777216\); got values from 16777216"):
        write_beton(tmp_path / "a.beton", samples, FIELDS, num_workers=0)
    assert list(tmp_path.iterdir()) == []


# Pages that grow.


@pytest.mark.parametrize("workers", [0, 2])
def test_pages_grow_until_the_largest_sample_fits(workers: int, tmp_path: Path) -> None:
    sizes = [10, 9_000_000, 20, 17_000_000, 30, 8_000_000]
    samples = [(np.full(size, size % 251, np.uint8), 0) for size in sizes]
    index = write_beton(tmp_path / "a.beton", samples, FIELDS, seed=None, num_workers=workers)
    assert index.page_size == 32 << 20
    table = index.allocations
    ends = table["ptr"] + table["size"] - np.uint64(1)
    assert (table["ptr"] // index.page_size == ends // index.page_size).all()
    data = index.path.read_bytes()
    for extent, size in zip(table, sizes, strict=True):
        start = int(extent["ptr"])
        assert data[start : start + size] == bytes([size % 251]) * size


def test_the_seed_gives_the_order(tmp_path: Path) -> None:
    samples = [(np.zeros(3, np.uint8), number) for number in range(50)]
    orders = {}
    for seed in (None, 0, 1):
        index = write_beton(tmp_path / "a.beton", samples, FIELDS, seed=seed, num_workers=0)
        orders[seed] = index.labels().tolist()
    assert orders[None] == list(range(50))
    assert orders[0] == np.random.default_rng(0).permutation(50).tolist()
    assert orders[1] == np.random.default_rng(1).permutation(50).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "`num_workers` must be at least 0; got -1"),
        ({"seed": -1}, "`seed` must be at least 0; got -1"),
        ({"on_error": "ignore"}, "`on_error` must be one of raise, skip; got 'ignore'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.beton", Blobs(), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("os_cache", [True, False])
def test_stock_ffcv_reads_pages_that_grew(os_cache: bool, tmp_path: Path) -> None:
    """The first page is then no multiple of the page size: it starts within the tables' page."""
    rng = np.random.default_rng(0)
    shapes = [(40, 30, 3)] * 5 + [(1700, 1700, 3)] + [(50, 20, 3)] * 5
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    samples = [(image, number, 0) for number, image in enumerate(images)]
    path = tmp_path / "a.beton"
    index = write_beton(path, samples, image_fields(mode="raw"), num_workers=0)
    assert index.page_size == 16 << 20
    assert int(index.allocations["ptr"].min()) < index.page_size
    pages = Loader(
        str(path),
        batch_size=1,
        num_workers=1,
        os_cache=os_cache,
        order=OrderOption.SEQUENTIAL,
        pipelines={"image": [CenterCropRGBImageDecoder((20, 20), 1)], "identifier": None},
    )
    seen = 0
    for (crop,), (label,) in pages:
        image = images[int(label)]
        height, width = image.shape[:2]
        # ffcv crops a square of the shorter side, and shrinks it.
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        expected = resize_area(image, (20, 20), (top, left, side, side))
        assert np.abs(np.asarray(crop).astype(int) - expected).max() <= 1
        seen += 1
    assert seen == len(images)
