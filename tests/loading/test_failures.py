"""Every failure raises an error in the training loop that names the sample."""

import errno
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields.basics import IntDecoder
from ffcv.transforms import ToTensor
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, BetonIndex, PrunedLoader, Selection
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.loading.caches import CACHES
from dp4tl_ffcv.loading.decoding.decoders import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
)
from dp4tl_ffcv.loading.reading import file_reader
from tests.support.loading import only

Guarded = Callable[[Callable[[], Any]], Any]

BATCH = 10
VICTIM = 57
EPOCH = list(range(120))


def descriptors() -> list[str]:
    """Return what the open descriptors of this process stand for."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue  # the one of the listing
    return sorted(name for name in found if ".beton" in name or "dp4tl" in name)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Let every test end without threads, and with the open files that it began with."""
    before = set(descriptors())
    yield
    if busy_threads() or set(descriptors()) - before:
        gc.collect()
    assert not busy_threads()
    assert set(descriptors()) <= before


def busy_threads() -> list[str]:
    """Return the threads that load or read."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("dp4tl") or "CheckedThread" in type(thread).__name__
    ]


class Recorded:
    """Loads epochs under guard, and keeps the samples that the pixels showed until an error."""

    def __init__(self, dataset: Any, loader: PrunedLoader, guarded: Guarded) -> None:
        self.dataset, self.loader, self.guarded = dataset, loader, guarded
        self.seen: list[int] = []

    def __call__(self) -> list[int]:
        self.seen = []

        def load() -> None:
            for pixels, *_ in self.loader:
                self.seen += self.dataset.ids_of(pixels).tolist()

        try:
            self.guarded(load)
        finally:
            assert not busy_threads()
        return self.seen


@pytest.fixture
def copied(colours: Any, tmp_path: Path) -> Path:
    path = tmp_path / "copy.beton"
    path.write_bytes(colours.path.read_bytes())
    return path


def loader_of(path: Path, cache: str, **options: Any) -> PrunedLoader:
    return PrunedLoader(path, BATCH, **{"cache": cache, "num_workers": 2, **options})


def start_of(path: Path, sample: int) -> int:
    return int(BetonIndex.open(path).extents([sample])["ptr"][0])


# The file.


@pytest.mark.parametrize("cache", CACHES)
def test_a_file_that_was_cut_after_opening(
    cache: str, colours: Any, copied: Path, guarded: Guarded
) -> None:
    loader = loader_of(copied, cache)
    load, whole = Recorded(colours, loader, guarded), copied.read_bytes()
    assert load() == EPOCH
    if cache == "ram":  # has no need of the file any more
        os.truncate(copied, 0)
        assert load() == EPOCH
        return
    os.truncate(copied, start_of(copied, VICTIM) + 100)
    for _ in range(2):
        found = rf"^cannot read sample {VICTIM} of '.*copy.beton' .* bytes too short"
        with pytest.raises(BetonError, match=found):
            load()
        assert load.seen == EPOCH[: VICTIM // BATCH * BATCH if cache == "extents" else 0]
    copied.write_bytes(whole)
    assert load() == EPOCH


def test_a_file_that_was_cut_before_it_was_read_into_memory(
    colours: Any, copied: Path, guarded: Guarded
) -> None:
    load, whole = Recorded(colours, loader_of(copied, "ram"), guarded), copied.read_bytes()
    os.truncate(copied, start_of(copied, VICTIM))
    for _ in range(2):
        with pytest.raises(BetonError, match=f"sample {VICTIM} of"):
            load()
        assert load.seen == []
    copied.write_bytes(whole)
    assert load() == EPOCH


@pytest.mark.parametrize("order", ["sequential", "random", "quasi_random"])
def test_a_file_that_is_cut_during_an_epoch(
    order: str, paged: Any, tmp_path: Path, guarded: Guarded
) -> None:
    path = tmp_path / "cut.beton"
    path.write_bytes(paged.path.read_bytes())
    loader = PrunedLoader(
        path, 4, cache="extents", order=order, seed=3, read_ahead=1, batches_ahead=1
    )
    expected = loader.plan_epoch(0).order.tolist()
    seen: list[int] = []

    def load() -> None:
        for pixels, *_ in loader:
            seen.extend(paged.ids_of(pixels).tolist())
            if len(seen) == 4:
                os.truncate(path, start_of(paged.path, 40))

    if order == "quasi_random":  # one window, which has been read
        guarded(load)
        assert seen == expected
    else:
        with pytest.raises(BetonError, match=r"^cannot read sample [0-9]+ of .* bytes too short"):
            guarded(load)
        assert seen == expected[: len(seen)]
        assert 4 <= len(seen) < 120


@pytest.mark.parametrize("cache", ["extents", "ram"])
def test_a_disk_that_fails(
    cache: str, colours: Any, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, start = os.preadv, start_of(colours.path, VICTIM)
    load = Recorded(colours, loader_of(colours.path, cache), guarded)

    def failing(file: int, buffers: Any, offset: int) -> int:
        if offset + len(buffers[0]) > start:
            if offset >= start:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            buffers = [buffers[0][: start - offset]]
        return preadv(file, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(file_reader, "_read_requests", lambda *_: 0)
        patch.setattr(os, "preadv", failing)
        with pytest.raises(
            BetonError, match=f"sample 57 of .* at byte {start}: Input/output error"
        ):
            load()
        assert load.seen == (EPOCH[:50] if cache == "extents" else [])
    assert load() == EPOCH


@pytest.mark.parametrize("cache", CACHES)
def test_files_that_are_not_whole_are_refused(
    cache: str, truncated: Path, unfinished: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.beton").write_text("no beton\n" * 1000)
    for path in (truncated, unfinished, tmp_path / "text.beton"):
        with pytest.raises(BetonError, match=path.name):
            loader_of(path, cache)
    with pytest.raises(FileNotFoundError):
        loader_of(tmp_path / "none.beton", cache)


@pytest.mark.parametrize("cache", CACHES)
def test_a_file_that_is_replaced_is_loaded_as_it_was(
    cache: str, colours: Any, copied: Path, tmp_path: Path, guarded: Guarded
) -> None:
    load = Recorded(colours, loader_of(copied, cache, drop_last=False), guarded)
    other = tmp_path / "other"
    other.write_bytes(bytes(5000))
    other.replace(copied)
    assert load() == EPOCH
    # It cannot be pruned in another way: that takes the tables of the file that was there.
    with pytest.raises(BetonError, match="is not a beton"):
        load.loader.set_selection([3, 1, 2])
    assert load() == EPOCH


# Orders.


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda ids: 1 // 0, ZeroDivisionError, "by zero"),
        (
            lambda ids: [0, 1, 119],
            ValueError,
            "^`order` must return retained samples; got 1 others",
        ),
        (lambda ids: [0, -1], ValueError, "got 1 others, for example -1"),
        (lambda ids: [0, 120], ValueError, "got 1 others, for example 120"),
        (
            lambda ids: np.uint64([2**63, 0]),
            ValueError,
            "got 1 others, for example 9223372036854775808",
        ),
        (lambda ids: [0.0, 1.0], TypeError, r"^`order` must return sample ids \(M,\); got float64"),
        (lambda ids: ids < 5, TypeError, "got bool"),
        (lambda ids: ids.reshape(2, -1), TypeError, r"got uint64 \(2, 50\)"),
        (lambda ids: None, TypeError, "got object"),
        (lambda ids: ids[:5], ValueError, "^`batch_size` is 10: none of the 100 samples"),
        (lambda ids: [], (TypeError, ValueError), "^`(order|batch_size)`"),
    ],
)
def test_an_order_that_fails(
    wrong: Any, error: Any, message: str, cache: str, colours: Any, guarded: Guarded
) -> None:
    broken = [False]

    def order(ids: Any, **_: Any) -> Any:
        return wrong(ids) if broken[0] else ids[::-1]

    loader = loader_of(colours.path, cache, order=order, indices=EPOCH[:100])
    load = Recorded(colours, loader, guarded)
    assert load() == EPOCH[99::-1]
    broken[0] = True
    for _ in range(2):
        with pytest.raises(error, match=message):
            load()
        assert load.seen == []
    broken[0] = False
    assert load() == EPOCH[99::-1]


@pytest.mark.parametrize("cache", CACHES)
def test_an_order_may_leave_out_and_repeat(cache: str, colours: Any, guarded: Guarded) -> None:
    chosen = [5, 5, 9, 5, 100, 7, 7, 7, 7, 7, 5, 5, 100]
    loader = loader_of(colours.path, cache, order=lambda ids, **_: chosen, drop_last=False)
    assert Recorded(colours, loader, guarded)() == chosen


# Operations.


# Images.


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


def overwrite(path: Path, data: Callable[[int], bytes]) -> None:
    """Put other bytes where the victim's are."""
    extent = BetonIndex.open(path).extents([VICTIM])[0]
    put(path, int(extent["ptr"]), data(int(extent["size"])))


def overwrite_end(path: Path, left: float) -> None:
    """Put zeros where the end of the victim's bytes is, as a copy that was broken off has them."""
    extent = BetonIndex.open(path).extents([VICTIM])[0]
    kept = int(extent["size"] * left)
    put(path, int(extent["ptr"]) + kept, bytes(int(extent["size"]) - kept))


def cut_extent(path: Path, left: float) -> None:
    """Let the allocation table say that the victim has fewer bytes."""
    index = BetonIndex.open(path)
    table = index.allocations.copy()
    row = table["sample_id"] == VICTIM
    table["size"][row] = (table["size"][row] * left).astype(np.uint64)
    put(path, int(index.header["alloc_table_ptr"]), table.tobytes())


def redescribe(path: Path, **values: Callable[[int], int]) -> None:
    """Change what the metadata say of the victim."""
    index = BetonIndex.open(path)
    metadata = index.metadata.copy()
    image = metadata[index.field("image").column]
    for name, change in values.items():
        image[name][VICTIM] = change(int(image[name][VICTIM]))
    start = format.HEADER.itemsize + len(index.fields) * format.FIELD.itemsize
    put(path, start, metadata.tobytes())


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(8).bytes(size)


def one_more(value: int) -> int:
    return value + 1


def one_less(value: int) -> int:
    return value - 1


def most(value: int) -> int:
    return 65535


DAMAGED_JPEGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "zeroed": (lambda path: overwrite(path, bytes), "is not a JPEG"),
    "random": (lambda path: overwrite(path, random_bytes), "is not a JPEG"),
    "a text": (lambda path: overwrite(path, lambda size: b"text" * (size // 4)), "is not a JPEG"),
    "zeros from the middle on": (lambda path: overwrite_end(path, 0.6), "is a corrupt JPEG"),
    "zeros at the end": (lambda path: overwrite_end(path, 0.97), "is a corrupt JPEG"),
    "cut in the header": (lambda path: cut_extent(path, 0.05), "is not a JPEG"),
    "cut": (lambda path: cut_extent(path, 0.8), "is a corrupt JPEG"),
    "no bytes": (lambda path: cut_extent(path, 0), "has no bytes"),
    "wider": (lambda path: redescribe(path, width=one_more), "is a JPEG of another size"),
    "lower": (lambda path: redescribe(path, height=one_less), "is a JPEG of another size"),
    "very wide": (lambda path: redescribe(path, width=most), "is a JPEG of another size"),
    "without width": (
        lambda path: redescribe(path, width=lambda _: 0),
        "is a JPEG of another size",
    ),
    "called raw": (lambda path: redescribe(path, mode=one_more), "has more or fewer bytes"),
}


def decoders() -> list[Any]:
    return [
        CenterCropRGBImageDecoder((16, 16), ratio=1.0),
        RandomResizedCropRGBImageDecoder((16, 16), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.5),
    ]


def photos_loader(path: Path, cache: str, decoder: Any, **options: Any) -> PrunedLoader:
    pipelines = only(image=[decoder, ToTensor()], identifier=[IntDecoder()])
    return loader_of(path, cache, pipelines=pipelines, seed=5, **options)


def images_of(loader: PrunedLoader, into: dict[int, NDArray[np.uint8]]) -> None:
    """Load an epoch, and put the pixels where a later error does not reach them."""
    for pixels, numbers in loader:
        for image, number in zip(pixels.numpy(), numbers[:, 0].tolist(), strict=True):
            into[number] = image.copy()


@pytest.fixture(scope="module")
def healthy(photos: Any) -> list[list[dict[int, NDArray[np.uint8]]]]:
    """Pixels of the undamaged photographs in three epochs, for each decoder."""
    found: list[list[dict[int, NDArray[np.uint8]]]] = []
    for decoder in decoders():
        loader = photos_loader(photos.path, "extents", decoder)
        epochs: list[dict[int, NDArray[np.uint8]]] = [{}, {}, {}]
        for epoch in epochs:
            images_of(loader, epoch)
        found.append(epochs)
    return found


def check_damaged(
    path: Path, cache: str, number: int, found: str, healthy: Any, guarded: Guarded
) -> None:
    """Two epochs that fail at the victim, and one without it, whose pixels are right."""
    loader = photos_loader(path, cache, decoders()[number], drop_last=False)
    message = rf"^sample {VICTIM} of '.*{path.name}' cannot be decoded: its image {found}"

    def load() -> dict[int, NDArray[np.uint8]]:
        seen: dict[int, NDArray[np.uint8]] = {}
        try:
            guarded(lambda: images_of(loader, seen))
        finally:
            assert not busy_threads()
            epoch = healthy[number][loader.next_epoch - 1]
            for sample, image in seen.items():
                np.testing.assert_array_equal(image, epoch[sample])
            # In batches before that of the victim, or all.
            assert len(seen) in (VICTIM // BATCH * BATCH, 119)
        return seen

    for _ in range(2):
        with pytest.raises(BetonError, match=message):
            load()
    loader.set_selection(np.delete(np.arange(120), VICTIM))
    assert sorted(load()) == [sample for sample in EPOCH if sample != VICTIM]


@pytest.mark.parametrize("decoder", [0, 1], ids=["centre", "random"])
@pytest.mark.parametrize("damage", DAMAGED_JPEGS)
def test_a_damaged_jpeg_is_named(
    damage: str, decoder: int, photos: Any, tmp_path: Path, healthy: Any, guarded: Guarded
) -> None:
    path = tmp_path / "damaged.beton"
    path.write_bytes(photos.path.read_bytes())
    do_damage, found = DAMAGED_JPEGS[damage]
    do_damage(path)
    cache = CACHES[list(DAMAGED_JPEGS).index(damage) % len(CACHES)]
    check_damaged(path, cache, decoder, found, healthy, guarded)


@pytest.mark.parametrize("cache", CACHES)
def test_a_jpeg_damaged_during_an_epoch_is_named_and_repaired_it_is_loaded(
    cache: str, photos: Any, tmp_path: Path, healthy: Any, guarded: Guarded
) -> None:
    path = tmp_path / "damaged.beton"
    path.write_bytes(photos.path.read_bytes())
    loader = photos_loader(path, cache, decoders()[1])
    overwrite(path, bytes)
    with pytest.raises(BetonError, match=f"^sample {VICTIM} of .* is not a JPEG"):
        guarded(lambda: images_of(loader, {}))
    path.write_bytes(photos.path.read_bytes())
    seen: dict[int, NDArray[np.uint8]] = {}
    if cache == "ram":  # what was read is kept
        with pytest.raises(BetonError, match=f"^sample {VICTIM} of"):
            guarded(lambda: images_of(loader, seen))
        loader.set_selection(EPOCH)
    guarded(lambda: images_of(loader, seen))
    for sample, image in healthy[1][loader.next_epoch - 1].items():
        np.testing.assert_array_equal(seen[sample], image)


@pytest.mark.parametrize("kind", ["photos", "colours"])
def test_an_image_of_impossible_size_is_named(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, guarded: Guarded
) -> None:
    """It takes more scratch memory than most machines have; where it does not, it is decoded."""
    path = tmp_path / "damaged.beton"
    path.write_bytes(request.getfixturevalue(kind).path.read_bytes())
    redescribe(path, height=most, width=most)
    loader = photos_loader(path, "extents", decoders()[0])
    for _ in range(2):
        with pytest.raises(BetonError, match=rf"65535 x 65535 pixels|sample {VICTIM} "):
            guarded(lambda: images_of(loader, {}))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: redescribe(path, height=one_more),
        lambda path: redescribe(path, width=one_less),
        lambda path: cut_extent(path, 0.99),
        lambda path: cut_extent(path, 0),
    ],
    ids=["higher", "narrower", "cut", "no bytes"],
)
def test_a_raw_image_of_another_length_is_named(
    damage: Callable[[Path], None], cache: str, colours: Any, copied: Path, guarded: Guarded
) -> None:
    damage(copied)
    steps = [CenterCropRGBImageDecoder((8, 8), ratio=1.0), ToTensor()]
    load = Recorded(colours, loader_of(copied, cache, pipelines={"image": steps}), guarded)
    for _ in range(2):
        with pytest.raises(BetonError, match=f"sample {VICTIM} "):
            load()
        assert load.seen in (EPOCH[:50], [])
    left = [sample for sample in EPOCH[:101] if sample != VICTIM]
    load.loader.set_selection(left)
    assert load() == left


# Loops that are left.


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("order", ["sequential", "random"])
def test_a_loop_left_anywhere_leaves_nothing(
    order: str, cache: str, paged: Any, guarded: Guarded
) -> None:
    selection = Selection.of_classes(paged.index, [1, 3, 5, 7])
    loader = PrunedLoader(
        paged.path, 6, cache=cache, order=order, seed=2, selection=selection, num_workers=2,
        batches_ahead=2,
    )  # fmt: skip
    before, most = descriptors(), loader.pool_bytes

    def leave(after: int) -> None:
        expected = loader.plan_epoch(loader.next_epoch).order.tolist()
        batches = iter(loader)
        for at in range(after):
            ids = paged.ids_of(next(batches)[0]).tolist()
            assert ids == expected[6 * at : 6 * at + 6]

    for after in range(9):
        guarded(lambda after=after: leave(after))
        gc.collect()
        assert not busy_threads()
        assert descriptors() == before
        spare = getattr(loader.memory_manager.cache, "spare", [])
        assert len(spare) <= 1
        assert sum(pool.nbytes for pool in spare) <= most
    seen = guarded(lambda: [n for pixels, *_ in loader for n in paged.ids_of(pixels).tolist()])
    assert sorted(seen) == selection.indices.tolist()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_loop_left_before_its_error_leaves_nothing(
    after: int, colours: Any, copied: Path, guarded: Guarded
) -> None:
    whole = copied.read_bytes()
    loader = loader_of(copied, "extents", batches_ahead=1)
    os.truncate(copied, start_of(copied, 45))

    def leave() -> None:
        batches = iter(loader)
        for at in range(after):
            assert colours.ids_of(next(batches)[0]).tolist() == EPOCH[10 * at : 10 * at + 10]

    for _ in range(3):
        guarded(leave)
        gc.collect()
        assert not busy_threads()
    copied.write_bytes(whole)
    assert Recorded(colours, loader, guarded)() == EPOCH


@pytest.mark.parametrize("cache", CACHES)
def test_loaders_that_are_dropped_give_everything_back(cache: str, colours: Any) -> None:
    before = descriptors()
    for _ in range(3):
        loader = loader_of(colours.path, cache)
        next(iter(loader))
        assert len(descriptors()) > len(before)
        del loader
        gc.collect()
        assert descriptors() == before
        assert not busy_threads()
