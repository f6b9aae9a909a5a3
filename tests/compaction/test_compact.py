"""`compact`: what stock ffcv reads of the new beton, its order, labels and manifest, and faults."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, FloatField, IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter

from dp4tl_ffcv import (
    BetonError,
    BetonIndex,
    Selection,
    StaleArtifactError,
    compact,
    verify,
    write_beton,
)
from dp4tl_ffcv.compaction import copy_ranges
from dp4tl_ffcv.utils import sha256_of_file

PAGE_SIZE = 1 << 21
NUM_SAMPLES = 60
CLASSES = 5
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]  # there is no fox
ROOT = Path(__file__).resolve().parents[2]

Read = dict[int, tuple[int, str]]  # label and digest of the pixels by identifier


def sha256(data: bytes) -> str:
    """What to compare instead of megabytes, whose differences pytest would take minutes to show."""
    return hashlib.sha256(data).hexdigest()


def read_with_stock(path: Path, os_cache: bool) -> Read:
    """What ffcv's Loader yields in the order of the file: label and pixels by identifier."""
    loader = Loader(
        str(path),
        batch_size=8,
        num_workers=1,
        os_cache=os_cache,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={
            "image": [SimpleRGBImageDecoder()],
            "label": [IntDecoder()],
            "identifier": [IntDecoder()],
        },
    )
    found = {}
    for batch in loader:  # in the order of the file's fields
        images, labels, identifiers = batch
        for image, label, identifier in zip(images, labels, identifiers, strict=True):
            found[int(identifier[0])] = (int(label[0]), sha256(image.tobytes()))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs and raw images by turns on three pages, by ffcv's writer with two workers."""
    rng = np.random.default_rng(8)
    path = tmp_path_factory.mktemp("compact") / "source.beton"
    images = rng.integers(0, 256, (NUM_SAMPLES, 180, 160, 3), dtype=np.uint8)
    samples = [(images[i], i * i % CLASSES, i) for i in range(NUM_SAMPLES)]
    fields = {
        "image": RGBImageField(write_mode="proportion", compress_probability=0.5),
        "label": IntField(),
        "identifier": IntField(),
    }
    writer = DatasetWriter(str(path), fields, page_size=PAGE_SIZE, num_workers=2)
    writer.from_indexed_dataset(samples, chunksize=7)
    return path


@pytest.fixture(scope="module")
def pixels(source: Path) -> Read:
    """What stock reads of the source."""
    return read_with_stock(source, os_cache=True)


@pytest.fixture(scope="module")
def selection(source: Path) -> Selection:
    """Classes 1 and 4, 24 samples each or none: labels are squares modulo 5."""
    return Selection.of_classes(BetonIndex.open(source), [1, 4], provenance={"rule": "mine"})


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """40 samples of bytes in 4 named classes of 10."""
    rng = np.random.default_rng(3)
    samples = [
        (rng.integers(0, 256, 30_000 + 999 * i, dtype=np.uint8), i % 4, i) for i in range(40)
    ]
    fields = {"blob": BytesField(), "label": IntField(), "identifier": IntField()}
    path = tmp_path / "blobs.beton"
    write_beton(
        path, samples, fields, class_names=NAMES[:4], seed=None, page_size=PAGE_SIZE, num_workers=0
    )
    return path


def contents(path: Path) -> dict[int, str]:
    """A digest of the bytes of each sample of `blobs` by identifier."""
    index, data = BetonIndex.open(path), path.read_bytes()
    found = {}
    for row in index.metadata:
        place, size = int(row["f0"]["ptr"]), int(row["f0"]["size"])
        found[int(row["f2"])] = sha256(data[place : place + size])
    return found


# What is in the file.


@pytest.mark.parametrize("os_cache", [True, False])
def test_stock_ffcv_reads_the_same_pixels_and_labels(
    os_cache: bool, source: Path, pixels: Read, selection: Selection, tmp_path: Path
) -> None:
    compact(source, selection, tmp_path / "out.beton")
    found = read_with_stock(tmp_path / "out.beton", os_cache)
    assert sorted(found) == selection.indices.tolist()
    assert found == {each: pixels[each] for each in found}
    assert len(BetonIndex.open(tmp_path / "out.beton").page_table[0]) > 1


def test_the_order_is_drawn_from_the_seed_and_the_bytes_from_the_arguments(
    source: Path, selection: Selection, tmp_path: Path
) -> None:
    files = []
    for number, options in enumerate([{"jobs": 1}, {"jobs": 2}, {"jobs": 4}, {}, {"seed": 5}]):
        path = tmp_path / f"{number}.beton"
        compact(source, selection, path, **options)
        files.append(sha256_of_file(path))
    assert files[1] == files[2] == files[3] == files[0]
    orders = [BetonIndex.open(tmp_path / f"{n}.beton").column("identifier") for n in (0, 4)]
    assert sorted(orders[0]) == sorted(orders[1]) == selection.indices.tolist()
    assert orders[0].tolist() != orders[1].tolist() != selection.indices.tolist()
    ranks = np.argsort(np.argsort(orders[0]))
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.5


def test_class_layout_puts_classes_together(source: Path, tmp_path: Path) -> None:
    index = compact(source, None, tmp_path / "out.beton", layout="class")
    rows = list(zip(index.labels().tolist(), index.column("identifier").tolist(), strict=True))
    assert len(rows) == NUM_SAMPLES
    assert rows == sorted(rows)
    places = index.column("image")["data_ptr"]
    assert (np.diff(places.astype(np.int64)) > 0).all()


def test_a_selection_may_be_a_file_or_ids(
    source: Path, selection: Selection, tmp_path: Path
) -> None:
    selection.save(tmp_path / "selection.npz")
    ids = selection.indices[::-1].tolist()
    for number, form in enumerate([selection, tmp_path / "selection.npz", ids * 2, np.array(ids)]):
        compact(source, form, tmp_path / f"{number}.beton")
    assert len({sha256_of_file(tmp_path / f"{number}.beton") for number in range(4)}) == 1


def test_nothing_selected_means_all_samples(blobs: Path, tmp_path: Path) -> None:
    compact(blobs, None, tmp_path / "out.beton")
    assert contents(tmp_path / "out.beton") == contents(blobs)


def test_a_beton_without_labels_or_extents_is_compacted(tmp_path: Path) -> None:
    write_beton(tmp_path / "a.beton", [(n / 2,) for n in range(9)], {"score": FloatField()})
    index = compact(tmp_path / "a.beton", [2, 4], tmp_path / "out.beton")
    source = BetonIndex.open(tmp_path / "a.beton").column("score")
    assert sorted(index.column("score")) == sorted(source[[2, 4]])
    assert (tmp_path / "out.beton").stat().st_size == index.page_size
    with pytest.raises(BetonError, match="no field 'label'"):
        compact(tmp_path / "a.beton", [2], tmp_path / "b.beton", layout="class")


def test_a_compacted_beton_is_compacted_again(blobs: Path, tmp_path: Path) -> None:
    compact(blobs, np.arange(30), tmp_path / "once.beton")
    again = BetonIndex.open(tmp_path / "once.beton")
    ids = np.flatnonzero(again.column("identifier") < 10)
    compact(tmp_path / "once.beton", ids, tmp_path / "twice.beton")
    expected = contents(blobs)
    assert contents(tmp_path / "twice.beton") == {each: expected[each] for each in range(10)}


# Fewer fields.


@pytest.mark.parametrize("options", [{}, {"images": "raw"}])
def test_stock_ffcv_reads_a_beton_of_fewer_fields_as_pairs(
    options: dict[str, Any], source: Path, pixels: Read, selection: Selection, tmp_path: Path
) -> None:
    whole = compact(source, selection, tmp_path / "whole.beton", **options)
    out = tmp_path / "out.beton"
    index = compact(source, selection, out, fields=("label", "image"), **options)
    assert [field.name for field in index.fields] == ["image", "label"]
    assert index.manifest is not None
    assert index.manifest.written_by["fields"] == ["image", "label"]
    assert index.class_counts().tolist() == whole.class_counts().tolist()
    loader = Loader(str(out), batch_size=len(index.labels()), num_workers=1, drop_last=False)
    ((images, labels),) = loader  # as recipes unpack a batch
    digests = [pixels[int(each)][1] for each in whole.column("identifier")]
    assert [sha256(image.numpy().tobytes()) for image in images] == digests
    assert labels.flatten().tolist() == whole.labels().tolist()
    assert verify(out, decode=True).is_sound


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (["label", "identifier"], "`fields` must leave out numbers alone; .* without 'image'"),
        (["image", "identifier"], "`fields` must keep the class ids, 'label'"),
        (["image", "labels"], "no field 'labels'. Its fields are image, label, identifier"),
        ([], "`fields` must"),
    ],
)
def test_fields_that_cannot_be_left_out_are_named(
    fields: list[str], error: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, BetonError), match=error):
        compact(source, None, tmp_path / "out.beton", fields=fields)
    assert not any(tmp_path.iterdir())


# Labels and the manifest.


def test_labels_and_names_stay_unless_asked_for(blobs: Path, tmp_path: Path) -> None:
    chosen = Selection.of_classes(BetonIndex.open(blobs), [3, 1])
    kept = compact(blobs, chosen, tmp_path / "kept.beton")
    assert kept.labels().tolist() == (kept.column("identifier") % 4).tolist()
    assert kept.manifest is not None
    assert kept.manifest.class_names == tuple(NAMES[:4])
    assert kept.manifest.class_counts == (0, 10, 0, 10)
    new = compact(blobs, chosen, tmp_path / "new.beton", relabel=True)
    assert new.labels().tolist() == (new.column("identifier") % 4 // 2).tolist()
    assert new.manifest is not None
    assert new.manifest.class_names == ("bee", "dog")
    assert new.manifest.class_counts == (10, 10)
    assert contents(tmp_path / "new.beton") == contents(tmp_path / "kept.beton")


def test_ids_are_relabelled_by_the_classes_that_they_have(blobs: Path, tmp_path: Path) -> None:
    index = compact(blobs, [2, 6, 3], tmp_path / "a.beton", relabel=True, layout="class")
    assert index.labels().tolist() == [0, 0, 1]
    assert index.manifest is not None
    assert index.manifest.class_names == ("cat", "dog")


def test_a_class_without_samples_keeps_its_number_and_name(tmp_path: Path) -> None:
    samples = [(np.zeros(9, dtype=np.uint8), label) for label in (0, 2, 2, 5)]
    fields = {"blob": BytesField(), "label": IntField()}
    source = write_beton(tmp_path / "a.beton", samples, fields, class_names=NAMES)
    chosen = Selection.of_classes(source, [2, 4, 5])
    index = compact(source.path, chosen, tmp_path / "b.beton", relabel=True)
    assert sorted(index.labels()) == [0, 0, 2]
    assert index.manifest is not None
    assert index.manifest.class_names == ("cat", "eel", "fox")
    assert index.manifest.class_counts == (2, 0, 1)


def test_labels_of_another_field_are_used_where_the_selection_says_so(tmp_path: Path) -> None:
    fields = {"label": IntField(), "kind": IntField()}
    source = write_beton(tmp_path / "a.beton", [(7, n % 3) for n in range(9)], fields)
    chosen = Selection.of_classes(source, [2, 0], label_field="kind")
    index = compact(source.path, chosen, tmp_path / "b.beton", relabel=True, layout="class")
    assert index.column("kind").tolist() == [0, 0, 0, 1, 1, 1]
    assert index.column("label").tolist() == [7] * 6
    assert index.manifest is not None
    assert index.manifest.class_counts == (3, 3)


def test_names_stay_with_the_field_that_they_name(tmp_path: Path) -> None:
    fields = {"label": IntField(), "kind": IntField()}
    samples = [(n % 3, n % 2) for n in range(12)]
    source = write_beton(tmp_path / "a.beton", samples, fields, class_names=NAMES[:3])
    chosen = Selection.of_classes(source, [1], label_field="kind")
    kept = compact(source.path, chosen, tmp_path / "b.beton").manifest
    assert kept is not None
    assert (kept.label_field, kept.class_names) == ("label", tuple(NAMES[:3]))
    assert kept.class_counts == (2, 2, 2)
    new = compact(source.path, chosen, tmp_path / "c.beton", relabel=True)
    assert new.manifest is not None
    assert (new.manifest.label_field, new.manifest.class_names) == ("kind", ())
    assert new.manifest.class_counts == (6,)
    assert new.class_names("label") == ()
    assert new.num_classes == 3
    for name in ("b", "c"):
        assert verify(tmp_path / f"{name}.beton").is_sound


def test_a_sample_that_is_selected_twice_is_copied_once(blobs: Path, tmp_path: Path) -> None:
    index = BetonIndex.open(blobs)
    chosen = Selection(
        classes=np.array([0]),
        indices=np.array([0, 4, 4, 0]),
        label_map=np.array([0, -1, -1, -1]),
        fingerprint=index.fingerprint,
    )
    assert sorted(contents(compact(blobs, chosen, tmp_path / "out.beton").path)) == [0, 4]


def test_a_selection_that_prunes_the_class_of_a_sample_is_refused(
    blobs: Path, tmp_path: Path
) -> None:
    index = BetonIndex.open(blobs)
    chosen = Selection(
        classes=np.array([0]),
        indices=np.array([0, 1]),
        label_map=np.array([0, -1, -1, -1]),
        fingerprint=index.fingerprint,
    )
    with pytest.raises(ValueError, match="`selection` must retain the class of each of its sampl"):
        compact(blobs, chosen, tmp_path / "out.beton", relabel=True)
    assert not (tmp_path / "out.beton").exists()


def test_the_manifest_says_where_it_came_from(
    source: Path, selection: Selection, tmp_path: Path
) -> None:
    index = compact(source, selection, tmp_path / "out.beton", seed=3, layout="class")
    stored = json.loads((tmp_path / "out.beton.json").read_text())
    assert stored["fingerprint"] == index.fingerprint
    assert stored["num_samples"] == len(selection)
    assert stored["fields"] == {"image": "rgb_image", "label": "int", "identifier": "int"}
    written_by = stored["written_by"]
    assert written_by["writer"] == "compact"
    assert written_by["source_fingerprint"] == BetonIndex.open(source).fingerprint
    assert written_by["selection"] == {
        "digest": selection.digest(),
        "provenance": {"rule": "mine"},
    }
    assert (written_by["seed"], written_by["layout"], written_by["images"]) == (3, "class", "keep")


# Bad arguments, and sources that are not what they should be.


def test_what_the_manifest_cannot_keep_is_found_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Selection.of_classes(BetonIndex.open(source), [1], provenance={"rule": object()})
    copied: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(copy_ranges._Copier, "run", lambda self, task: copied.append(task))
        with pytest.raises(TypeError, match="not JSON serializable"):
            compact(source, chosen, tmp_path / "out.beton")
    assert copied == []
    assert list(tmp_path.iterdir()) == []
    index = compact(source, None, tmp_path / "out.beton", seed=np.int64(3))  # type: ignore[arg-type]  # as numpy gives it
    assert index.manifest is not None
    assert index.manifest.written_by["seed"] == 3


def test_integers_that_are_no_class_ids_are_copied(tmp_path: Path) -> None:
    samples = [(-n,) for n in range(9)]
    write_beton(tmp_path / "a.beton", samples, {"label": IntField()}, label_field="")
    index = compact(tmp_path / "a.beton", None, tmp_path / "b.beton")
    assert sorted(index.column("label")) == list(range(-8, 1))
    assert index.manifest is not None
    assert index.manifest.class_counts == ()
    with pytest.raises(BetonError, match="holds the negative class id"):
        compact(tmp_path / "a.beton", None, tmp_path / "c.beton", relabel=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "random"}, "`layout` must be shuffled or class; got 'random'"),
        ({"images": "png"}, "`images` must be keep or jpeg or raw; got 'png'"),
        ({"seed": -1}, "`seed` must be an int of at least 0; got -1"),
        ({"seed": None}, "`seed` must be an int of at least 0; got None"),
        ({"raw_budget": "9" * 400}, "`raw_budget` must be a number of bytes, or text such as"),
        ({"jobs": 0}, "`jobs` must be an int of at least 1; got 0"),
        ({"selection": []}, "`selection` must retain at least one sample"),
        ({"selection": [0, 40]}, r"`indices` must lie in \[0, 40\)"),
    ],
)
def test_bad_arguments_leave_nothing(
    options: dict[str, Any], message: str, blobs: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        compact(blobs, options.pop("selection", None), tmp_path / "new" / "out.beton", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_a_selection_of_another_beton_is_stale(
    blobs: Path, selection: Selection, tmp_path: Path
) -> None:
    with pytest.raises(StaleArtifactError, match="`selection` was made for another beton"):
        compact(blobs, selection, tmp_path / "out.beton")
    assert not (tmp_path / "out.beton").exists()


def test_the_source_is_never_overwritten(blobs: Path, tmp_path: Path) -> None:
    before = sha256_of_file(blobs)
    (tmp_path / "link.beton").symlink_to(blobs)
    for out in (blobs, tmp_path / "link.beton"):
        with pytest.raises(ValueError, match="`out` must be another file than `source`"):
            compact(blobs, None, out)
    manifest = tmp_path / "x.json"
    blobs.rename(manifest)
    with pytest.raises(ValueError, match="`out` must not have its manifest where `source` lies"):
        compact(manifest, None, tmp_path / "x")
    assert sha256_of_file(manifest) == before


def test_a_folder_is_refused_before_the_work(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(copy_ranges, "SourceFile", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="`out` must name a file; got the folder"):
        compact(blobs, None, tmp_path / "folder")
    assert sorted(tmp_path.rglob("*")) == before


def test_threads_end_with_the_call(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would write to whatever file gets the number of the one that was closed."""
    copy = copy_ranges._Copier.run

    def slowly(self: Any, task: int) -> None:
        time.sleep(0.05)
        copy(self, task)

    def interrupted(items: Any, **_: Any) -> Any:
        yield next(items)
        raise KeyboardInterrupt

    monkeypatch.setattr(copy_ranges, "_TASK", 1 << 17)
    monkeypatch.setattr(copy_ranges._Copier, "run", slowly)
    monkeypatch.setattr(copy_ranges, "track", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        compact(blobs, None, tmp_path / "out.beton", jobs=2)
    assert threading.active_count() == before


def test_the_old_manifest_stays_with_the_old_file(
    blobs: Path, keeps_the_old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        compact(blobs, None, keeps_the_old)


@pytest.mark.parametrize("change", ["written", "replaced", "deleted"])
def test_a_source_that_changes_is_an_error(
    change: str, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_ranges._Copier.run

    def disturb(self: Any, task: int) -> None:
        copy(self, task)
        if change == "written":
            os.utime(blobs, ns=(0, 0))
        elif change == "deleted":
            blobs.unlink(missing_ok=True)
        else:
            (tmp_path / "other").write_bytes(b"other")
            (tmp_path / "other").replace(blobs)

    monkeypatch.setattr(copy_ranges._Copier, "run", disturb)
    with pytest.raises(BetonError, match="`source` must not change while it is copied"):
        compact(blobs, None, tmp_path / "out.beton", jobs=1)
    assert not list(tmp_path.glob("*out*")) + list(tmp_path.glob(".*"))


def test_a_source_that_is_truncated_meanwhile_is_an_error(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_ranges._Copier.run

    def disturb(self: Any, task: int) -> None:
        os.truncate(blobs, PAGE_SIZE + 50_000)
        copy(self, task)

    monkeypatch.setattr(copy_ranges._Copier, "run", disturb)
    with pytest.raises(BetonError, match="`source` must stay whole while it is copied"):
        compact(blobs, None, tmp_path / "out.beton")
    assert not list(tmp_path.glob("*out*")) + list(tmp_path.glob(".*"))


# Disks that are full, runs that are killed.


@pytest.fixture
def keeps_the_old(blobs: Path, tmp_path: Path) -> Iterator[Path]:
    """A beton that a failing run must leave as it is, alone in its folder."""
    out = tmp_path / "folder" / "out.beton"
    compact(blobs, [1, 2], out)
    before = {path.name: sha256_of_file(path) for path in out.parent.iterdir()}
    yield out
    assert {path.name: sha256_of_file(path) for path in out.parent.iterdir()} == before


def test_too_little_free_space_is_found_before_the_first_byte(
    blobs: Path, keeps_the_old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(keeps_the_old.parent)
    needed = 2 * PAGE_SIZE + 40 * 24

    def statvfs(free: int) -> None:
        values = list(real)
        values[0], values[1], values[4] = 4096, 1, free  # f_bsize, f_frsize, f_bavail
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))

    statvfs(needed - 1)
    with pytest.raises(ValueError, match=f"`out` must have room for {needed} bytes; got"):
        compact(blobs, None, keeps_the_old)
    with pytest.raises(ValueError, match="`out` must have room"):
        compact(blobs, None, keeps_the_old.parent / "new" / "out.beton")
    statvfs(needed)
    other = keeps_the_old.parent.parent / "fits.beton"
    compact(blobs, None, other)
    assert other.stat().st_size == needed


def test_a_disk_that_fills_up_is_named_and_nothing_is_left(
    blobs: Path, keeps_the_old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.pwrite, []

    def fill(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", fill)
    with pytest.raises(OSError, match="No space left on device") as caught:
        compact(blobs, None, keeps_the_old, jobs=1)
    assert caught.value.filename == str(keeps_the_old)
    assert len(calls) >= 3


KILLED = """
import os, signal, sys
from dp4tl_ffcv.beton import gather
from dp4tl_ffcv import compact

write = os.pwrite
def kill(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
os.pwrite = kill
compact(sys.argv[1], None, sys.argv[2], jobs=1)
"""


def test_a_killed_run_leaves_no_file_and_the_next_gives_the_same_bytes(
    blobs: Path, tmp_path: Path
) -> None:
    compact(blobs, None, tmp_path / "whole.beton")
    out = tmp_path / "folder" / "out.beton"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(blobs), str(out)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in out.parent.iterdir()] == [".out.beton.part"]
    compact(blobs, None, out)
    assert sha256_of_file(out) == sha256_of_file(tmp_path / "whole.beton")
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.beton", "out.beton.json"]


def test_another_file_system_gets_the_same_bytes(
    blobs: Path, tmp_path: Path, shared_memory_folder: Path
) -> None:
    compact(blobs, None, tmp_path / "out.beton", layout="class")
    compact(blobs, None, shared_memory_folder / "out.beton", layout="class")
    folders = (tmp_path, shared_memory_folder)
    assert len({sha256_of_file(folder / "out.beton") for folder in folders}) == 1


@pytest.fixture
def shared_memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    folder = shared / f"compact-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


# Large samples.


def test_a_page_grows_for_a_sample_that_needs_it(tmp_path: Path) -> None:
    fields = {"blob": BytesField(), "other": BytesField()}
    path = tmp_path / "source.beton"
    sizes = [(5, 7), (PAGE_SIZE, 9), (3, 0)]
    samples = [tuple(np.full(size, 7, dtype=np.uint8) for size in pair) for pair in sizes]
    write_beton(path, samples, fields, label_field="", seed=None, page_size=2 * PAGE_SIZE)
    data = bytearray(path.read_bytes())
    data[4:8] = PAGE_SIZE.to_bytes(4, "little")  # its samples cross such pages
    path.write_bytes(data)
    index = compact(path, None, tmp_path / "out.beton")
    assert index.page_size == 2 * PAGE_SIZE
    table = index.allocations
    ends = table["ptr"].astype(np.int64) + np.maximum(table["size"].astype(np.int64), 1) - 1
    assert (table["ptr"] // np.uint64(index.page_size) == ends // index.page_size).all()
    assert len({(int(row["sample_id"]), int(row["ptr"]) >> 22) for row in table}) == 3
    small = compact(path, [0, 2], tmp_path / "small.beton")
    assert small.page_size == PAGE_SIZE
