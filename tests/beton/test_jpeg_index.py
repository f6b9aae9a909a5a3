"""The indexes of a beton's JPEGs: made ahead or in the first epoch, kept, shared, never wrong."""

import errno
import fcntl
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.transforms import ToTensor
from numpy.typing import NDArray

from dp4tl_ffcv import (
    BetonError,
    BetonIndex,
    CenterCropRGBImageDecoder,
    PrunedLoader,
    RandomResizedCropRGBImageDecoder,
    compact,
    index_jpegs,
    verify,
)
from dp4tl_ffcv.beton.jpeg_index import JpegIndexes
from dp4tl_ffcv.beton.jpeg_index_file import IndexFile, index_path, remove_index
from dp4tl_ffcv.jpeg.crop import DECODED, decode_crop, jpeg_scratch_bytes
from dp4tl_ffcv.jpeg.index_jpeg import index_jpeg
from dp4tl_ffcv.jpeg.mcu_index import HEADER, checksum
from dp4tl_ffcv.loading.decoding.crop_kernels import _index_of
from dp4tl_ffcv.parallel import map_ordered
from tests.support.betons import damage
from tests.support.images import jpeg, picture, write_images
from tests.support.loading import pretend_rank

COUNT, SIDE = 9, 208
BATCH = 2
TABLE = 72 + 24 + 24 * COUNT  # bytes of a file before the indexes of its first block


def padded(seed: int) -> list[bytes]:
    """Return JPEGs whose lengths are the same for each seed: zeros follow the end marker."""
    images = [jpeg(picture(SIDE, SIDE, 100 * seed + each), quality=90) for each in range(COUNT)]
    return [image.ljust(60_000 + each, b"\0") for each, image in enumerate(images)]


def others() -> list[bytes]:
    return [jpeg(picture(320, 400, each), quality=95) for each in range(3)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "a.beton"
    return write_images(path, padded(0), mode="jpg", jpeg_index=False).path


@pytest.fixture
def beton(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A beton in a folder of its own, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    return Path(shutil.copyfile(written, folder / "a.beton"))


@pytest.fixture
def other(beton: Path) -> Path:
    """A beton of other images with the same tables, and so the same fingerprint."""
    path = beton.with_name("other.beton")
    other = write_images(path, padded(1), mode="jpg", jpeg_index=False)
    assert other.fingerprint == BetonIndex.open(beton).fingerprint
    return path


def table_of(beton: Path | BetonIndex) -> JpegIndexes:
    """Return the table of a beton's indexes, without any."""
    index = BetonIndex.of(beton)
    table = np.sort(index.allocations, order="ptr")
    is_jpeg = np.ones(len(table), dtype=np.bool_)
    sizes = table["size"].astype(np.int64)
    return JpegIndexes(IndexFile(index), np.ascontiguousarray(table["ptr"]), sizes, is_jpeg)


def contents(table: JpegIndexes) -> list[bytes | None]:
    """Return the index of each JPEG, None for those without."""
    return [
        None if length <= 0 else table.data[start : start + length].tobytes()
        for start, length in zip(table.places, table.lengths, strict=False)
    ]


def saved(beton: Path | BetonIndex) -> list[bytes | None]:
    """Return the indexes that a beton's file has."""
    table = table_of(beton)
    table.refresh()
    return contents(table)


@pytest.fixture(scope="module")
def expected(written: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The indexes of the beton `written`."""
    path = Path(shutil.copy(written, tmp_path_factory.mktemp("expected")))
    assert index_jpegs(path)["indexed"] == COUNT
    found = saved(path)
    assert all(found)
    return found  # type: ignore[return-value]  # none is None


def load(path: Path | BetonIndex, **options: Any) -> PrunedLoader:
    pipelines = {
        "image": [RandomResizedCropRGBImageDecoder((32, 32)), ToTensor()],
        "label": None,
        "identifier": None,
    }
    options = {"num_workers": 1, "seed": 1, "drop_last": False, "pipelines": pipelines, **options}
    return PrunedLoader(path, BATCH, **options)


def pixels_of(loader: PrunedLoader) -> NDArray[np.uint8]:
    return np.concatenate([batch[0].numpy().copy() for batch in loader])


@pytest.fixture
def plain(beton: Path) -> NDArray[np.uint8]:
    """The pixels of a first epoch without indexes."""
    return pixels_of(load(beton, jpeg_index=False))


# Who makes them.


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_made_ahead_and_in_the_first_epoch_are_the_same(
    num_workers: int, beton: Path, expected: list[bytes], plain: NDArray[np.uint8]
) -> None:
    summary = index_jpegs(beton, num_workers=num_workers)
    file = index_path(beton)
    counts = {"jpegs": COUNT, "indexed": COUNT, "small": 0, "other": 0}
    assert summary == {
        "beton": str(beton), **counts, "file": str(file), "file_bytes": file.stat().st_size
    }  # fmt: skip
    assert saved(beton) == expected
    file.unlink()
    loader = load(beton)
    np.testing.assert_array_equal(pixels_of(loader), plain)
    assert saved(beton) == expected
    content = file.read_bytes()
    assert pixels_of(loader).shape == plain.shape  # an epoch with nothing to add
    assert index_jpegs(beton)["indexed"] == COUNT
    assert file.read_bytes() == content


def misled(index: bytes, jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a valid index with other DC predictors, so that its JPEG has other pixels."""
    scratch = np.empty(jpeg_scratch_bytes(SIDE, SIDE), dtype=np.uint8)

    def decoded(index: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
        box = 0, 0, SIDE, SIDE
        assert decode_crop(jpeg, index, SIDE, SIDE, *box, scratch, out) == DECODED
        return out

    plain = decoded(np.empty(0, dtype=np.uint8))
    for bit in range(8 * HEADER, 8 * len(index)):
        changed = np.frombuffer(bytearray(index), dtype=np.uint8)
        changed[bit // 8] ^= 128 >> bit % 8
        changed[:8].view(np.int64)[0] = checksum(jpeg) ^ checksum(changed[8:])
        if not np.array_equal(decoded(changed), plain):
            return changed
    raise AssertionError("no bit changes pixels")


def test_indexes_are_used(beton: Path, expected: list[bytes]) -> None:
    """With an index that leads to other pixels, each image of an epoch has other pixels."""
    pipelines = {"image": [CenterCropRGBImageDecoder((SIDE, SIDE), ratio=1.0), ToTensor()]}
    plain = pixels_of(load(beton, pipelines=pipelines, jpeg_index=False))
    index_jpegs(beton)
    loader, data = load(beton, pipelines=pipelines), np.fromfile(beton, dtype=np.uint8)
    indexes = loader.memory_manager.indexes
    indexes.refresh()
    extents = loader.memory_manager.cache.extents
    for row, (ptr, size) in enumerate(zip(extents.ptrs.tolist(), extents.sizes, strict=True)):
        changed = misled(expected[row], data[ptr : ptr + size].copy())
        indexes.data[indexes.places[row] :][: changed.size] = changed
    differs = (pixels_of(loader) != plain).any(axis=(1, 2, 3))
    assert differs.sum() == COUNT


def test_images_without_an_index_are_counted(tmp_path: Path) -> None:
    large, small = picture(320, 400), picture(24, 24)
    images = [
        jpeg(large, quality=95),
        jpeg(small, quality=95),
        jpeg(large, quality=95, progressive=True),
        jpeg(large, quality=95),
    ]
    path = tmp_path / "mixed.beton"
    index = write_images(path, images, mode="jpg", jpeg_index=False)
    for _ in range(2):
        found = index_jpegs(index)
        counts = {name: found[name] for name in ("jpegs", "indexed", "small", "other")}
        assert counts == {"jpegs": 4, "indexed": 2, "small": 1, "other": 1}
    load_all = load(path)
    pixels_of(load_all)
    assert sorted(load_all.memory_manager.indexes.lengths < 0) == [False, False, True, True]


def test_a_beton_without_jpegs_gets_no_file(tmp_path: Path) -> None:
    index = write_images(tmp_path / "raw.beton", [picture(64, 64)])
    assert index_jpegs(index)["file"] is None
    pixels_of(load(index.path))
    assert not index_path(index.path).exists()


def test_an_image_that_cannot_be_read_is_named(beton: Path) -> None:
    index = BetonIndex.open(beton)
    extent = index.allocations[-1]
    os.truncate(beton, int(extent["ptr"]) + 10)
    with pytest.raises(BetonError, match=f"cannot read sample {extent['sample_id']} of .*a.beton"):
        index_jpegs(index)


def test_a_record_of_another_size_takes_no_memory(
    beton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with damage(beton) as parts:
        for side in ("height", "width"):
            parts.metadata[BetonIndex.open(beton).field("image").column][side][3] = 65_535
    sizes = []

    def note(memory: Any, size: int) -> Any:
        sizes.append(size)
        return memory if memory.size >= size else np.empty(size, dtype=np.uint8)

    monkeypatch.setattr("dp4tl_ffcv.beton.index_jpegs._at_least", note)
    assert index_jpegs(beton, num_workers=0)["indexed"] == COUNT - 1
    assert max(sizes) < 1 << 24


def test_epochs_left_early_keep_what_they_made(beton: Path, expected: list[bytes]) -> None:
    loader = load(beton, order="sequential", batches_ahead=1)
    for _ in loader:
        break
    del loader
    found = saved(beton)
    assert found[0] == expected[0]
    assert all(each in (None, wanted) for each, wanted in zip(found, expected, strict=True))


def test_a_selection_adds_its_images(beton: Path, expected: list[bytes]) -> None:
    loader = load(beton, indices=[1, 2])
    pixels_of(loader)
    assert [bool(each) for each in saved(beton)] == [each in (1, 2) for each in range(COUNT)]
    loader.set_selection([2, 5])
    pixels_of(loader)
    found = saved(beton)
    assert [each for each, index in enumerate(found) if index] == [1, 2, 5]
    assert [found[each] for each in (1, 2, 5)] == [expected[each] for each in (1, 2, 5)]


def test_ranks_share_one_file(
    beton: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = []
    for rank in range(2):
        pretend_rank(monkeypatch, rank, 2)
        loaders.append(load(beton, distributed=True, order="sequential", cache="extents"))
    for rank, loader in enumerate(loaders):
        pretend_rank(monkeypatch, rank, 2)
        pixels_of(loader)
    assert saved(beton) == expected
    size = index_path(beton).stat().st_size
    for rank, loader in enumerate(loaders):
        pretend_rank(monkeypatch, rank, 2)
        pixels_of(loader)
        assert (loader.memory_manager.indexes.stored > 0).all()  # the other rank's too
    assert index_path(beton).stat().st_size == size


def test_without_jpeg_index_the_file_is_neither_read_nor_written(
    beton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IndexFile, "__init__", None)
    pixels_of(load(beton, jpeg_index=False))
    assert list(beton.parent.iterdir()) == [beton]


# Damage.


def test_a_truncated_file_gives_whole_blocks_and_is_continued(
    beton: Path, expected: list[bytes]
) -> None:
    whole = table_of(beton)
    index_jpegs(beton)
    whole.refresh()
    file = index_path(beton)
    file.unlink()
    ends = [0]
    parts = table_of(beton)
    for rows in (slice(0, 3), slice(3, 4), slice(4, None)):
        parts.data[:] = whole.data
        parts.lengths[rows] = whole.lengths[rows]
        parts.save()
        ends.append(file.stat().st_size)
    content, index = file.read_bytes(), BetonIndex.open(beton)
    for size in sorted({*range(0, len(content), 7), *ends[:-1]}):
        file.write_bytes(content[:size])
        have = (0, 3, 4)[int(np.searchsorted(ends, size, side="right")) - 1]
        assert saved(index) == [*expected[:have], *[None] * (COUNT - have)], size
        if size % 98 == 0 or size in ends:
            assert index_jpegs(beton, num_workers=0)["indexed"] == COUNT
            assert saved(beton) == expected


def test_a_changed_byte_never_gives_another_index(beton: Path, expected: list[bytes]) -> None:
    index_jpegs(beton)
    file = index_path(beton)
    content, index = bytearray(file.read_bytes()), BetonIndex.open(beton)
    lost = 0
    for place in [*range(TABLE), *range(TABLE, len(content), 13)]:
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        content[place] ^= 1 << place % 8
        found = saved(index)
        assert all(each in (None, wanted) for each, wanted in zip(found, expected, strict=True))
        lost += found != expected
    assert lost == TABLE + len(range(TABLE, len(content), 13))


def test_indexes_of_other_images_are_not_used(
    beton: Path, other: Path, expected: list[bytes]
) -> None:
    index_jpegs(beton)
    plain = pixels_of(load(other, jpeg_index=False))
    shutil.copyfile(index_path(beton), index_path(other))
    assert saved(other) == expected  # of other pixels
    np.testing.assert_array_equal(pixels_of(load(other)), plain)
    renewed = saved(other)
    index_path(other).unlink()
    index_jpegs(other)
    assert renewed == saved(other) != expected


def test_another_betons_file_is_ignored_and_replaced(
    beton: Path, expected: list[bytes], plain: NDArray[np.uint8]
) -> None:
    path = beton.with_name("other.beton")
    write_images(path, others(), mode="jpg")
    shutil.copyfile(index_path(path), index_path(beton))
    assert saved(beton) == [None] * COUNT
    np.testing.assert_array_equal(pixels_of(load(beton)), plain)
    assert saved(beton) == expected


def test_a_new_beton_at_the_path_keeps_its_file(beton: Path) -> None:
    loader = load(beton)
    batches = iter(loader)
    next(batches)
    write_images(beton, others(), mode="jpg")
    content = index_path(beton).read_bytes()
    assert len(list(batches)) == -(-COUNT // BATCH) - 1
    assert index_path(beton).read_bytes() == content


# Where the file cannot be written.


def test_the_cache_folder_is_next(
    beton: Path, tmp_path: Path, expected: list[bytes], plain: NDArray[np.uint8]
) -> None:
    index_path(beton).mkdir()  # nobody can write a file here
    for make in (lambda: pixels_of(load(beton)), lambda: index_jpegs(beton)):
        make()
        (file,) = (tmp_path / "cache" / "dp4tl_ffcv").iterdir()
        assert saved(beton) == expected
        assert index_jpegs(beton)["file"] == str(file)
        np.testing.assert_array_equal(pixels_of(load(beton)), plain)
        file.unlink()


def test_loaders_work_without_a_file(beton: Path, tmp_path: Path, plain: NDArray[np.uint8]) -> None:
    index_path(beton).mkdir()
    (tmp_path / "cache").write_text("not a folder")
    loader = load(beton)
    np.testing.assert_array_equal(pixels_of(loader), plain)
    assert (loader.memory_manager.indexes.lengths > 0).all()
    with pytest.raises(OSError, match=r"a\.beton\.jpegs"):
        index_jpegs(beton)


def test_a_full_disk_leaves_earlier_blocks(
    beton: Path, tmp_path: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels_of(load(beton, indices=[0, 1, 2]))
    size = index_path(beton).stat().st_size
    write = os.pwrite

    def fail_on_the_second(file: int, data: Any, place: int) -> int:
        if place > size:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(file, data[:100], place)

    monkeypatch.setattr(os, "pwrite", fail_on_the_second)
    pixels_of(load(beton))
    with pytest.raises(OSError, match="no space left"):
        index_jpegs(beton)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert index_path(beton).stat().st_size == size
    assert saved(beton) == [*expected[:3], *[None] * (COUNT - 3)]


def test_processes_append_in_turn(beton: Path, expected: list[bytes]) -> None:
    index_jpegs(beton)
    whole = table_of(beton)
    whole.refresh()
    index_path(beton).unlink()

    def append(first: int) -> None:
        mine = table_of(beton)
        mine.data[:] = whole.data
        for row in range(first, COUNT, 2):
            mine.lengths[row] = whole.lengths[row]
            mine.save()

    with map_ordered(append, range(2), 2) as done:
        assert list(done) == [None, None]
    assert saved(beton) == expected


# Writers.


def test_writers_index_and_replace_a_stale_file(
    beton: Path, expected: list[bytes], tmp_path: Path
) -> None:
    copied = compact(beton, None, beton.with_name("copy.beton"))
    assert None not in saved(copied.path)
    assert sorted(saved(copied.path)) == sorted(expected)  # type: ignore[type-var]  # none is None
    stale = index_path(copied.path).read_bytes()
    for options in ({"jpeg_index": False}, {"images": "raw"}):
        index_path(copied.path).write_bytes(stale)
        compact(beton, None, copied.path, **options)
        assert not index_path(copied.path).exists()
    index_path(copied.path).write_bytes(stale)
    written = write_images(copied.path, padded(0), mode="jpg")
    assert saved(written.path) == expected
    assert verify(written.path, decode=True).is_sound


def test_compact_copies_the_indexes_that_there_are(
    beton: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels_of(load(beton, indices=[0, 3, 4, 8]))
    made = []

    def count(*arguments: Any) -> int:
        made.append(arguments)
        return int(index_jpeg(*arguments))

    monkeypatch.setattr("dp4tl_ffcv.beton.index_jpegs.index_jpeg", count)
    copied = compact(beton, None, beton.with_name("copy.beton"), num_workers=1)
    assert len(made) == COUNT - 4
    found = saved(copied)
    order = np.argsort(copied.column("image")["data_ptr"])
    identifiers = copied.column("identifier")[order]
    assert found == [expected[each] for each in identifiers]
    pixels = pixels_of(load(copied, jpeg_index=False))
    np.testing.assert_array_equal(pixels_of(load(copied)), pixels)


def test_a_failure_to_index_keeps_the_beton(
    beton: Path, tmp_path: Path, expected: list[bytes]
) -> None:
    path = beton.with_name("copy.beton")
    index_path(path).mkdir()
    (tmp_path / "cache").write_text("not a folder")
    with pytest.warns(RuntimeWarning, match=r"copy\.beton' is complete, but .*dp4tl index"):
        compact(beton, None, path)
    assert verify(path, decode=True).is_sound


def test_a_file_of_something_else_is_kept(beton: Path, tmp_path: Path) -> None:
    index_path(beton).write_text("a list of photographs")
    made = index_jpegs(beton, num_workers=0)
    assert made["indexed"] == COUNT
    assert Path(made["file"]).is_relative_to(tmp_path / "cache")
    remove_index(beton)
    assert index_path(beton).read_text() == "a list of photographs"


# Other processes and threads.


def test_indexes_of_an_open_loader_are_not_written_for_the_next_beton(
    beton: Path, tmp_path: Path
) -> None:
    """The loader of the old beton has read nothing before."""
    loader = load(beton)
    write_images(beton, others(), mode="jpg")
    content = index_path(beton).read_bytes()
    pixels_of(loader)  # of the old file
    assert index_path(beton).read_bytes() == content
    assert not (tmp_path / "cache").exists()


def test_a_beton_replaced_while_waiting_for_the_lock_keeps_its_file(
    beton: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = table_of(beton)
    index_jpegs(beton)
    old.refresh()
    old.stored[:] = 0  # as if it had made them
    lock = fcntl.flock

    def replaced_before(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        write_images(beton, others(), mode="jpg")
        lock(file, operation)

    index_path(beton).unlink()
    monkeypatch.setattr(fcntl, "flock", replaced_before)
    with pytest.raises(OSError, match="another beton has taken its place"):
        old.save()
    assert index_jpegs(beton)["indexed"] == len(others())


def test_a_file_made_again_with_the_same_inode_is_read_from_its_start(
    beton: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp4tl_ffcv.beton.jpeg_index_file.inode_of", lambda _: (1, 1))
    monkeypatch.setattr(IndexFile, "_check_beton", lambda _: None)
    pixels_of(load(beton, indices=[0, 1, 2]))
    table = table_of(beton)
    table.refresh()
    assert [bool(each) for each in contents(table)] == [True] * 3 + [False] * 6
    index_path(beton).unlink()
    pixels_of(load(beton, indices=[3, 4, 5, 6]))
    table.refresh()
    assert contents(table) == [*expected[:7], None, None]


def test_a_lock_that_is_never_released_costs_the_file_only(
    beton: Path, tmp_path: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that was forked during a save, or a stopped process, keeps the lock."""
    monkeypatch.setattr("dp4tl_ffcv.beton.jpeg_index_file._PATIENCE", 0.1)
    with index_path(beton).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        pixels_of(load(beton))
        assert index_path(beton).stat().st_size == 0
    assert len(list((tmp_path / "cache" / "dp4tl_ffcv").iterdir())) == 1
    assert saved(beton) == expected


def test_a_process_forked_during_a_save_does_not_keep_the_lock(
    beton: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, children = os.pwrite, []
    reading, writing = os.pipe()

    def fork_first(*arguments: Any) -> int:
        if not children and (child := os.fork()) == 0:
            os.read(reading, 1)  # until the parent has ended
            os._exit(0)
        elif not children:
            children.append(child)
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", fork_first)
    for indices in ([0, 1], [2, 3]):
        pixels_of(load(beton, indices=indices))
    assert [bool(each) for each in saved(beton)] == [True] * 4 + [False] * 5
    os.write(writing, b"x")
    os.waitpid(children[0], 0)
    os.close(reading)
    os.close(writing)


def test_indexes_are_saved_during_the_epoch(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dp4tl_ffcv.loading.index_thread.SAVES_EVERY", 0.01)
    batches = iter(load(beton, order="sequential"))
    next(batches)
    until = time.monotonic() + 60
    while not saved(beton)[0]:  # the epoch is still running
        assert time.monotonic() < until
        time.sleep(0.01)
    batches.close()


@pytest.mark.parametrize("what", ["refresh", "save"])
def test_a_stalled_file_does_not_stop_the_epoch(
    what: str, beton: Path, plain: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    def stall(self: JpegIndexes) -> None:
        with self._free_file():
            assert goes_on.wait(60)

    monkeypatch.setattr("dp4tl_ffcv.loading.index_thread.STALLED_AFTER", 0.1)
    monkeypatch.setattr(JpegIndexes, what, stall)
    loader = load(beton)
    for _ in range(2):
        assert pixels_of(loader).shape == plain.shape
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name == "dp4tl-index":
            thread.join(60)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_file_that_is_none_is_ignored(kind: str, beton: Path, plain: NDArray[np.uint8]) -> None:
    if kind == "pipe":
        os.mkfifo(index_path(beton))
    elif kind == "folder":
        index_path(beton).mkdir()
    else:
        index_path(beton).symlink_to("/dev/zero")
    np.testing.assert_array_equal(pixels_of(load(beton)), plain)
    assert index_jpegs(beton)["indexed"] == COUNT
    remove_index(beton)
    assert os.path.lexists(index_path(beton))


def test_a_full_disk_leaves_no_empty_file(
    beton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    pixels_of(load(beton))
    assert not index_path(beton).exists()
    assert list((tmp_path / "cache" / "dp4tl_ffcv").iterdir()) == []


def test_a_beton_that_was_deleted_gets_no_file(beton: Path) -> None:
    loader = load(beton)
    beton.unlink()
    pixels_of(loader)
    assert list(beton.parent.iterdir()) == []


def test_without_a_home_the_file_is_next_to_the_beton(
    beton: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", fail)
    pixels_of(load(beton))
    assert saved(beton) == expected
    index_path(beton).unlink()
    index_path(beton).mkdir()
    pixels_of(load(beton))
    with pytest.raises(OSError, match=r"a\.beton\.jpegs"):
        index_jpegs(beton)


def test_decoders_use_a_copy_of_the_index(beton: Path, expected: list[bytes]) -> None:
    """Another epoch of the loader may replace the index after it was checked."""
    table, data = table_of(beton), np.fromfile(beton, dtype=np.uint8)
    index_jpegs(beton)
    table.refresh()
    jpeg_data = data[int(table._ptrs[0]) :][:60_000].copy()
    assert table.largest >= len(expected[0])
    copy = np.zeros(table.largest, dtype=np.uint8)
    found = _index_of(jpeg_data, 0, table.state, copy)
    table.data[:] = 0
    assert found.tobytes() == expected[0]
    assert not _index_of(jpeg_data, 0, table.state, copy).size
    assert table.lengths[0] == 0  # will be made again


def test_an_index_that_is_made_again_during_a_save_is_not_saved_as_impossible(
    beton: Path, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_jpegs(beton)
    table = table_of(beton)
    table.refresh()
    index_path(beton).unlink()
    table.stored[:] = 0
    append = IndexFile.append

    def forget_first(self: IndexFile, *arguments: Any) -> None:
        table.lengths[4] = 0  # a decoder has found another image
        append(self, *arguments)

    monkeypatch.setattr(IndexFile, "append", forget_first)
    table.save()
    assert saved(beton) == expected
    assert table.stored.all()
