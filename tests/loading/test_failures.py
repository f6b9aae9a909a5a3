"""Failures raise an error in the training loop that names the sample, and leave nothing open."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder as StockCropDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.transforms import ToTensor
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, BetonIndex, PrunedLoader, Selection
from dp4tl_ffcv.loading.caches import CACHES
from dp4tl_ffcv.loading.decoding.decoders import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
)
from tests.support.betons import damage, put
from tests.support.images import picture, write_images
from tests.support.loading import Guarded, loader_of, only

BATCH = 10
VICTIM = 57
EPOCH = list(range(120))


def descriptors() -> list[str]:
    """Return the betons and shared memory that this process holds open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own descriptor is closed by now
            found.append(str(link.readlink()))
    return sorted(name for name in found if ".beton" in name or "dp4tl" in name)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Check that every test ends without threads, and with the files open that it began with."""
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
    """Loads epochs, and keeps the ids of the samples that were loaded before an error."""

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


def copy_of(dataset: Any, folder: Path) -> Path:
    path = folder / "copy.beton"
    path.write_bytes(dataset.path.read_bytes())
    return path


@pytest.fixture
def copied(colours: Any, tmp_path: Path) -> Path:
    return copy_of(colours, tmp_path)


def start_of(path: Path, sample: int) -> int:
    return int(BetonIndex.open(path).extents([sample])["ptr"][0])


# The file.


@pytest.mark.parametrize("cache", CACHES)
def test_a_file_cut_after_opening_fails_until_it_is_whole_again(
    cache: str, colours: Any, copied: Path, guarded: Guarded
) -> None:
    loader = loader_of(copied, BATCH, cache=cache)
    load, whole = Recorded(colours, loader, guarded), copied.read_bytes()
    os.truncate(copied, start_of(copied, VICTIM) + 100)
    for _ in range(2):
        found = rf"^cannot read sample {VICTIM} of '.*copy.beton' .* bytes too short"
        with pytest.raises(BetonError, match=found):
            load()
        assert load.seen == EPOCH[: VICTIM // BATCH * BATCH if cache == "extents" else 0]
    copied.write_bytes(whole)
    assert load() == EPOCH
    if cache == "ram":  # does not read the file again
        os.truncate(copied, 0)
        assert load() == EPOCH


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_a_file_cut_during_an_epoch_fails_after_right_batches(
    order: str, paged: Any, tmp_path: Path, guarded: Guarded
) -> None:
    path = copy_of(paged, tmp_path)
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

    with pytest.raises(BetonError, match=r"^cannot read sample [0-9]+ of .* bytes too short"):
        guarded(load)
    assert seen == expected[: len(seen)]
    assert 4 <= len(seen) < 120


def test_incomplete_files_are_rejected(truncated: Path, unfinished: Path, tmp_path: Path) -> None:
    (tmp_path / "text.beton").write_text("no beton\n" * 1000)
    for path in (truncated, unfinished, tmp_path / "text.beton"):
        with pytest.raises(BetonError, match=path.name):
            loader_of(path, BATCH)
    with pytest.raises(FileNotFoundError):
        loader_of(tmp_path / "none.beton", BATCH)


@pytest.mark.parametrize("cache", CACHES)
def test_the_old_file_is_loaded_after_it_was_replaced(
    cache: str, colours: Any, copied: Path, tmp_path: Path, guarded: Guarded
) -> None:
    load = Recorded(colours, loader_of(copied, BATCH, cache=cache), guarded)
    other = tmp_path / "other"
    other.write_bytes(bytes(5000))
    other.replace(copied)
    assert load() == EPOCH
    # Another selection needs the tables of the old file.
    with pytest.raises(BetonError, match="is not a beton"):
        load.loader.set_selection([3, 1, 2])
    assert load() == EPOCH


# Orders.


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
def test_a_wrong_order_is_an_error_in_that_epoch_only(
    wrong: Any, error: Any, message: str, colours: Any, guarded: Guarded
) -> None:
    broken = [False]

    def order(ids: Any, **_: Any) -> Any:
        return wrong(ids) if broken[0] else ids[::-1]

    loader = loader_of(colours, BATCH, order=order, indices=EPOCH[:100], drop_last=True)
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
def test_an_order_may_omit_and_repeat_samples(cache: str, colours: Any, guarded: Guarded) -> None:
    chosen = [5, 5, 9, 5, 100, 7, 7, 7, 7, 7, 5, 5, 100]
    loader = loader_of(colours, BATCH, cache=cache, order=lambda ids, **_: chosen)
    assert Recorded(colours, loader, guarded)() == chosen


# Images.


Damage = Callable[[Path], None]


def overwritten(data: bytes, start: float = 0.0) -> Damage:
    """Replace the victim's bytes by repeated `data`, from a fraction of its size on."""

    def change(path: Path) -> None:
        extent = BetonIndex.open(path).extents([VICTIM])[0]
        kept = int(extent["size"] * start)
        put(path, int(extent["ptr"]) + kept, np.resize(bytearray(data), extent["size"] - kept))

    return change


def shortened(left: float) -> Damage:
    """Reduce the victim's size in the allocation table to a fraction."""

    def change(path: Path) -> None:
        with damage(path) as parts:
            row = parts.table["sample_id"] == VICTIM
            parts.table["size"][row] = (parts.table["size"][row] * left).astype(np.uint64)

    return change


def described(**values: Callable[[int], int]) -> Damage:
    """Change the victim's metadata."""

    def change(path: Path) -> None:
        column = BetonIndex.open(path).field("image").column
        with damage(path) as parts:
            image = parts.metadata[column]
            for name, changed in values.items():
                image[name][VICTIM] = changed(int(image[name][VICTIM]))

    return change


def one_more(value: int) -> int:
    return value + 1


def one_less(value: int) -> int:
    return value - 1


def most(value: int) -> int:
    return 65535


NOT_A_JPEG, CORRUPT, WRONG_SIZE = "is not a JPEG", "is a corrupt JPEG", "is a JPEG of another size"
DAMAGED: dict[str, tuple[Damage, str]] = {
    "zeroed": (overwritten(b"\0"), NOT_A_JPEG),
    "random": (overwritten(np.random.default_rng(8).bytes(10_000)), NOT_A_JPEG),
    "text": (overwritten(b"text"), NOT_A_JPEG),
    "zeros from the middle on": (overwritten(b"\0", start=0.6), CORRUPT),
    "zeros at the end": (overwritten(b"\0", start=0.97), CORRUPT),
    "cut in the header": (shortened(0.05), NOT_A_JPEG),
    "cut": (shortened(0.8), CORRUPT),
    "wider": (described(width=one_more), WRONG_SIZE),
    "lower": (described(height=one_less), WRONG_SIZE),
    "very wide": (described(width=most), WRONG_SIZE),
    "without width": (described(width=lambda _: 0), WRONG_SIZE),
}
# Faults of the tables, for which the file is refused.
REFUSED: dict[tuple[str, str], Damage] = {
    ("photos", "no bytes"): shortened(0),
    ("photos", "called raw"): described(mode=one_more),
    ("colours", "no bytes"): shortened(0),
    ("colours", "higher"): described(height=one_more),
    ("colours", "narrower"): described(width=one_less),
    ("colours", "cut"): shortened(0.99),
    ("colours", "very large"): described(height=most, width=most),
}


def decoders() -> list[Any]:
    return [
        CenterCropRGBImageDecoder((16, 16), ratio=1.0),
        RandomResizedCropRGBImageDecoder((16, 16), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.5),
    ]


def images_loader(beton: Any, decoder: Any, **options: Any) -> PrunedLoader:
    pipelines = only(image=[decoder, ToTensor()], identifier=[IntDecoder()])
    return loader_of(beton, BATCH, pipelines=pipelines, seed=5, **options)


def images_of(loader: PrunedLoader, into: dict[int, NDArray[np.uint8]]) -> None:
    """Load an epoch into `into`, which keeps the pixels that were loaded before an error."""
    for pixels, numbers in loader:
        for image, number in zip(pixels.numpy(), numbers[:, 0].tolist(), strict=True):
            into[number] = image.copy()


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_image_is_named(name: str, photos: Any, tmp_path: Path, guarded: Guarded) -> None:
    """Two epochs fail at the victim, and an epoch without it is loaded."""
    at, (change, found) = [*DAMAGED].index(name), DAMAGED[name]
    path, decoder, cache = copy_of(photos, tmp_path), at % 2, CACHES[at % len(CACHES)]
    change(path)
    loader = images_loader(path, decoders()[decoder], cache=cache)
    healthy = images_loader(photos, decoders()[decoder])
    message = rf"^sample {VICTIM} of '.*{path.name}' cannot be decoded: its image {found}"

    def load() -> list[int]:
        seen: dict[int, NDArray[np.uint8]] = {}
        expected: dict[int, NDArray[np.uint8]] = {}
        images_of(healthy, expected)
        try:
            guarded(lambda: images_of(loader, seen))
        finally:
            assert not busy_threads()
            for sample, image in seen.items():
                np.testing.assert_array_equal(image, expected[sample])
            # In batches before that of the victim, or all.
            assert len(seen) in (VICTIM // BATCH * BATCH, 119)
        return sorted(seen)

    for _ in range(2):
        with pytest.raises(BetonError, match=message):
            load()
    left = [sample for sample in EPOCH if sample != VICTIM]
    loader.set_selection(left)
    assert load() == left


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_a_file_whose_tables_contradict_each_other_is_not_loaded(
    kind: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = copy_of(request.getfixturevalue(kind), tmp_path)
    REFUSED[kind, name](path)
    message = rf"{path.name}' is .*corrupt: the field 'image' of sample {VICTIM} (has|points to) "
    with pytest.raises(BetonError, match=message):
        images_loader(path, decoders()[0])


def test_an_image_of_impossible_size_is_named(
    photos: Any, tmp_path: Path, guarded: Guarded
) -> None:
    """The image needs more scratch memory than most machines have. On others, decoding fails."""
    path = copy_of(photos, tmp_path)
    described(height=most, width=most)(path)
    loader = images_loader(path, decoders()[0], cache="extents")
    for _ in range(2):
        with pytest.raises(BetonError, match=rf"65535 x 65535 pixels|sample {VICTIM} "):
            guarded(lambda: images_of(loader, {}))


def constant_size(path: Path) -> Path:
    """Write JPEGs of 48 x 48 pixels, but for the victim, which has twice the sides."""
    sides = [96 if number == VICTIM else 48 for number in range(60)]
    write_images(path, [picture(side, side) for side in sides], mode="jpg")
    described(height=lambda _: 48, width=lambda _: 48)(path)
    return path


@pytest.mark.parametrize("decoder", ["simple", "crop"])
def test_ffcvs_decoders_get_no_jpeg_that_is_larger_than_its_metadata_says(
    decoder: str, tmp_path: Path, guarded: Guarded
) -> None:
    """They would write its pixels beyond their memory."""
    path = constant_size(tmp_path / "a.beton")
    stock = SimpleRGBImageDecoder() if decoder == "simple" else StockCropDecoder((32, 32), 1.0)
    loader = loader_of(path, BATCH, pipelines=only(image=[stock]))
    seen: list[int] = []

    def load() -> None:
        seen.extend(len(pixels) for (pixels,) in loader)

    with pytest.raises(BetonError, match=rf"^sample {VICTIM} .* {WRONG_SIZE}"):
        guarded(load)
    assert sum(seen) == VICTIM // BATCH * BATCH
    loader.set_selection([each for each in range(60) if each != VICTIM])
    guarded(load)


# Loops that are left early.


@pytest.mark.parametrize("cache", CACHES)
def test_leaving_a_loop_frees_threads_files_and_memory(
    cache: str, paged: Any, guarded: Guarded
) -> None:
    selection = Selection.of_classes(paged.index, [1, 3, 5, 7])
    loader = loader_of(
        paged, 6, cache=cache, order="random", seed=2, selection=selection, batches_ahead=2
    )
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


def test_leaving_a_loop_before_its_error_frees_threads_and_files(
    colours: Any, copied: Path, guarded: Guarded
) -> None:
    whole = copied.read_bytes()
    loader = loader_of(copied, BATCH, cache="extents", batches_ahead=1)
    os.truncate(copied, start_of(copied, 45))

    def leave(after: int) -> None:
        batches = iter(loader)
        for at in range(after):
            assert colours.ids_of(next(batches)[0]).tolist() == EPOCH[10 * at : 10 * at + 10]

    for after in range(4):
        guarded(lambda after=after: leave(after))
        gc.collect()
        assert not busy_threads()
    copied.write_bytes(whole)
    assert Recorded(colours, loader, guarded)() == EPOCH


@pytest.mark.parametrize("cache", CACHES)
def test_deleting_a_loader_frees_threads_and_files(cache: str, colours: Any) -> None:
    before = descriptors()
    for _ in range(3):
        loader = loader_of(colours, BATCH, cache=cache)
        next(iter(loader))
        assert len(descriptors()) > len(before)
        del loader
        gc.collect()
        assert descriptors() == before
        assert not busy_threads()
