"""`compact`: what stock ffcv reads, order, labels and manifest of the new beton; refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, FloatField, IntField, RGBImageField
from ffcv.loader import Loader

from dp4tl_ffcv import (
    BetonError,
    BetonIndex,
    Selection,
    compact,
    verify,
    write_beton,
)
from dp4tl_ffcv.compaction import copy_samples
from dp4tl_ffcv.utils import sha256_of_file
from tests.compaction.support import read_images, sha256
from tests.support.betons import PAGE_SIZE, damage, write_ours, write_stock
from tests.support.images import picture, write_images

NUM_SAMPLES = 60
CLASSES = 5
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]  # there is no fox

Read = dict[int, tuple[int, str]]  # label and digest of the pixels, by identifier


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs and raw images at random on three pages, by ffcv's writer with two workers."""
    rng = np.random.default_rng(8)
    path = tmp_path_factory.mktemp("compact") / "source.beton"
    images = rng.integers(0, 256, (NUM_SAMPLES, 180, 160, 3), dtype=np.uint8)
    samples = [(images[i], i * i % CLASSES, i) for i in range(NUM_SAMPLES)]
    fields = {
        "image": RGBImageField(write_mode="proportion", compress_probability=0.5),
        "label": IntField(),
        "identifier": IntField(),
    }
    return write_stock(path, samples, fields, num_workers=2, chunk=7)


@pytest.fixture(scope="module")
def pixels(source: Path) -> Read:
    """Labels and pixels that stock ffcv reads from the source."""
    return read_images(source, os_cache=True, key="identifier")


@pytest.fixture(scope="module")
def selection(source: Path) -> Selection:
    """Classes 1 and 4, with 24 samples each. Labels are squares modulo 5."""
    return Selection.of_classes(BetonIndex.open(source), [1, 4], provenance={"rule": "mine"})


def contents(path: Path) -> dict[int, str]:
    """Return a digest of the bytes of each sample of `blobs`, by identifier."""
    index, data = BetonIndex.open(path), path.read_bytes()
    found = {}
    for row in index.metadata:
        place, size = int(row["f0"]["ptr"]), int(row["f0"]["size"])
        found[int(row["f2"])] = sha256(data[place : place + size])
    return found


# Contents.


@pytest.mark.parametrize("os_cache", [True, False])
def test_stock_ffcv_reads_the_same_pixels_and_labels(
    os_cache: bool, source: Path, pixels: Read, selection: Selection, tmp_path: Path
) -> None:
    compact(source, selection, tmp_path / "out.beton")
    found = read_images(tmp_path / "out.beton", os_cache, key="identifier")
    assert sorted(found) == selection.indices.tolist()
    assert found == {each: pixels[each] for each in found}
    assert len(BetonIndex.open(tmp_path / "out.beton").page_table[0]) > 1


def test_the_order_is_drawn_from_the_seed_and_the_bytes_from_the_arguments(
    source: Path, selection: Selection, tmp_path: Path
) -> None:
    files = []
    for number, options in enumerate([{"num_workers": 1}, {"num_workers": 4}, {}, {"seed": 5}]):
        path = tmp_path / f"{number}.beton"
        compact(source, selection, path, **options)
        files.append(sha256_of_file(path))
    assert files[1] == files[2] == files[0]
    orders = [BetonIndex.open(tmp_path / f"{n}.beton").column("identifier") for n in (0, 3)]
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


def test_a_beton_may_be_open_and_a_selection_a_file_or_ids(
    source: Path, selection: Selection, tmp_path: Path
) -> None:
    selection.save(tmp_path / "selection.npz")
    ids = selection.indices[::-1].tolist()
    betons = [source, source, BetonIndex.open(source), str(source)]
    forms = [selection, tmp_path / "selection.npz", ids * 2, np.array(ids)]
    for number, (beton, form) in enumerate(zip(betons, forms, strict=True)):
        compact(beton, form, tmp_path / f"{number}.beton")
    assert len({sha256_of_file(tmp_path / f"{number}.beton") for number in range(4)}) == 1


def test_a_beton_of_numbers_without_labels_is_compacted(tmp_path: Path) -> None:
    write_beton(tmp_path / "a.beton", [(n / 2,) for n in range(9)], {"score": FloatField()})
    index = compact(tmp_path / "a.beton", [2, 4], tmp_path / "out.beton")
    source = BetonIndex.open(tmp_path / "a.beton").column("score")
    assert sorted(index.column("score")) == sorted(source[[2, 4]])
    assert (tmp_path / "out.beton").stat().st_size == index.page_size
    with pytest.raises(BetonError, match="no field 'label'"):
        compact(tmp_path / "a.beton", [2], tmp_path / "b.beton", layout="class")


# Fewer fields.


@pytest.mark.parametrize("options", [{}, {"images": "raw"}])
def test_stock_ffcv_reads_a_beton_of_fewer_fields_as_pairs(
    options: dict[str, Any], source: Path, pixels: Read, selection: Selection, tmp_path: Path
) -> None:
    whole = compact(source, selection, tmp_path / "whole.beton", **options)
    out = tmp_path / "out.beton"
    index = compact(source, selection, out, fields=("label", "image"), **options)
    assert [field.name for field in index.fields] == ["image", "label"]
    assert index.manifest.written_by["fields"] == ["image", "label"]
    assert index.class_counts().tolist() == whole.class_counts().tolist()
    loader = Loader(str(out), batch_size=len(index.labels()), num_workers=1, drop_last=False)
    ((images, labels),) = loader  # as recipes unpack a batch
    digests = [pixels[int(each)][1] for each in whole.column("identifier")]
    assert [sha256(image.numpy().tobytes()) for image in images] == digests
    assert labels.flatten().tolist() == whole.labels().tolist()
    assert verify(out, decode=True).is_sound


# Labels and the manifest.


def test_labels_and_names_stay_without_relabel(blobs: Path, tmp_path: Path) -> None:
    chosen = Selection.of_classes(BetonIndex.open(blobs), [3, 1])
    kept = compact(blobs, chosen, tmp_path / "kept.beton")
    assert kept.labels().tolist() == (kept.column("identifier") % 4).tolist()
    assert kept.manifest.class_names == tuple(NAMES[:4])
    assert kept.manifest.class_counts == (0, 10, 0, 10)
    new = compact(blobs, chosen, tmp_path / "new.beton", relabel=True)
    assert new.labels().tolist() == (new.column("identifier") % 4 // 2).tolist()
    assert new.manifest.class_names == ("bee", "dog")
    assert new.manifest.class_counts == (10, 10)
    assert contents(tmp_path / "new.beton") == contents(tmp_path / "kept.beton")
    ids = compact(blobs, [2, 6, 3], tmp_path / "ids.beton", relabel=True, layout="class")
    assert ids.labels().tolist() == [0, 0, 1]
    assert ids.manifest.class_names == ("cat", "dog")


def test_a_class_without_samples_keeps_its_number_and_name(tmp_path: Path) -> None:
    samples = [(np.zeros(9, dtype=np.uint8), label) for label in (0, 2, 2, 5)]
    fields = {"blob": BytesField(), "label": IntField()}
    source = write_beton(tmp_path / "a.beton", samples, fields, class_names=NAMES)
    chosen = Selection.of_classes(source, [2, 4, 5])
    index = compact(source.path, chosen, tmp_path / "b.beton", relabel=True)
    assert sorted(index.labels()) == [0, 0, 2]
    assert index.manifest.class_names == ("cat", "eel", "fox")
    assert index.manifest.class_counts == (2, 0, 1)


def test_class_names_stay_with_their_field(tmp_path: Path) -> None:
    fields = {"label": IntField(), "kind": IntField()}
    samples = [(n % 3, n % 2) for n in range(12)]
    source = write_beton(tmp_path / "a.beton", samples, fields, class_names=NAMES[:3])
    chosen = Selection.of_classes(source, [1], label_field="kind")
    kept = compact(source.path, chosen, tmp_path / "b.beton").manifest
    assert (kept.label_field, kept.class_names) == ("label", tuple(NAMES[:3]))
    assert kept.class_counts == (2, 2, 2)
    new = compact(source.path, chosen, tmp_path / "c.beton", relabel=True, layout="class")
    assert (new.manifest.label_field, new.manifest.class_names) == ("kind", ())
    assert new.manifest.class_counts == (6,)
    assert new.column("kind").tolist() == [0] * 6
    assert sorted(new.labels()) == [0, 0, 1, 1, 2, 2]
    assert new.class_names("label") == ()
    assert new.num_classes == 3
    for name in ("b", "c"):
        assert verify(tmp_path / f"{name}.beton").is_sound


def test_ids_may_repeat_but_a_selection_must_retain_the_classes_of_its_samples(
    blobs: Path, tmp_path: Path
) -> None:
    def select(indices: list[int]) -> Selection:
        return Selection(
            classes=np.array([0]),
            indices=np.array(indices),
            label_map=np.array([0, -1, -1, -1]),
            fingerprint=BetonIndex.open(blobs).fingerprint,
        )

    index = compact(blobs, [0, 4, 4, 0], tmp_path / "out.beton")
    assert sorted(contents(index.path)) == [0, 4]
    again = compact(index, [1], tmp_path / "again.beton")  # of a compacted beton
    expected, [found] = contents(blobs), again.column("identifier")
    assert contents(again.path) == {found: expected[found]}
    with pytest.raises(ValueError, match="`selection` retains samples of class 1, which it prunes"):
        compact(blobs, select([0, 1]), tmp_path / "none.beton", relabel=True)
    assert not (tmp_path / "none.beton").exists()


def test_the_manifest_records_the_provenance(
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


def test_provenance_that_is_not_json_is_found_before_the_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Selection.of_classes(BetonIndex.open(source), [1], provenance={"rule": object()})
    with monkeypatch.context() as patched:
        patched.setattr(copy_samples, "map_ordered", None)
        with pytest.raises(TypeError, match="not JSON serializable"):
            compact(source, chosen, tmp_path / "out.beton")
    assert list(tmp_path.iterdir()) == []
    index = compact(source, None, tmp_path / "out.beton", seed=np.int64(3))  # type: ignore[arg-type]
    assert index.manifest.written_by["seed"] == 3


@pytest.mark.parametrize(
    ("factor", "message"), [(-1, "negative class id"), (10**17, "too large for a class id")]
)
def test_labels_that_are_no_class_ids_are_copied_but_not_relabelled(
    factor: int, message: str, tmp_path: Path
) -> None:
    labels = [factor * n for n in range(9)]
    write_beton(
        tmp_path / "a.beton", [(each,) for each in labels], {"label": IntField()}, label_field=""
    )
    index = compact(tmp_path / "a.beton", None, tmp_path / "b.beton")
    assert sorted(index.column("label")) == sorted(labels)
    assert index.manifest.class_counts == ()
    with pytest.raises(BetonError, match=message):
        compact(tmp_path / "a.beton", None, tmp_path / "c.beton", relabel=True)


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "random"}, "`layout` must be one of shuffled, class; got 'random'"),
        ({"images": "png"}, "`images` must be one of keep, jpeg, raw; got 'png'"),
        ({"seed": -1}, "`seed` must be at least 0; got -1"),
        ({"seed": None}, "`seed` must be an int"),
        ({"max_resolution": 0}, r"`max_resolution` must be in \[1, 65535\]; got 0"),
        ({"max_resolution": 1.5}, "`max_resolution` must be an int"),
        ({"raw_budget": "9" * 400}, "`raw_budget` must be bytes"),
        ({"raw_budget": "much"}, "`raw_budget` must be bytes, or text such as 64GiB; got 'much'"),
        ({"raw_budget": -1}, "`raw_budget` must be bytes"),
        ({"raw_budget": "1GiB", "images": "raw"}, "`raw_budget` cannot be combined with images="),
        ({"num_workers": 0}, "`num_workers` must be at least 1; got 0"),
        ({"selection": []}, "`selection` retains no sample"),
        ({"selection": "foreign.npz"}, "`selection` was made for another beton"),
        ({"selection": [0, 40]}, r"`selection` must lie in \[0, 40\)"),
        ({"images": "raw"}, "has no RGB images. Leave out `images`"),
        ({"fields": ["label", "identifier"]}, "`fields` must keep 'blob': only numbers"),
        ({"fields": ["blob", "identifier"]}, "`fields` leaves out the class ids. Add 'label'"),
        ({"fields": ["blob", "labels"]}, "no field 'labels'. Its fields are blob, label, ident"),
        ({"fields": []}, "`fields` is empty"),
        ({"out": "folder"}, "`out` is the folder"),
        ({"out": "blobs.beton"}, "`out` would overwrite"),
        ({"out": "link.beton"}, "`out` would overwrite"),
        ({"out": "hard"}, "the manifest of `out` would overwrite"),
    ],
)
def test_wrong_arguments_change_nothing(
    options: dict[str, Any], message: str, blobs: Path, selection: Selection, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    selection.save(tmp_path / "foreign.npz")
    (tmp_path / "link.beton").symlink_to(blobs)
    (tmp_path / "hard.json").hardlink_to(blobs)
    before = {path: path.is_file() and sha256_of_file(path) for path in tmp_path.rglob("*")}
    chosen, out = options.pop("selection", None), options.pop("out", "new/out.beton")
    if chosen == "foreign.npz":
        chosen = tmp_path / chosen
    with pytest.raises((ValueError, TypeError), match=message):
        compact(blobs, chosen, tmp_path / out, **options)
    after = {path: path.is_file() and sha256_of_file(path) for path in tmp_path.rglob("*")}
    assert after == before


@pytest.mark.parametrize("images", ["keep", "jpeg"])
def test_pages_larger_than_the_source_are_not_copied(images: Any, tmp_path: Path) -> None:
    """A damaged header would make a file of gigabytes from one of megabytes."""
    write_images(tmp_path / "a.beton", [picture(40, 60, number) for number in range(3)])
    with damage(tmp_path / "a.beton") as parts:
        parts.header["page_size"] = 1 << 31
    index = compact(tmp_path / "a.beton", None, tmp_path / "b.beton", images=images)
    assert index.page_size == 16 << 20
    assert index.path.stat().st_size < 33 << 20


def test_a_page_grows_for_a_sample_that_needs_it(tmp_path: Path) -> None:
    fields = {"blob": BytesField(), "other": BytesField()}
    sizes = [(5, 7), (PAGE_SIZE, 9), (3, 0)]
    samples = [tuple(np.full(size, 7, dtype=np.uint8) for size in pair) for pair in sizes]
    path = write_ours(tmp_path / "source.beton", samples, fields, page_size=2 * PAGE_SIZE)
    with damage(path) as parts:
        parts.header["page_size"] = PAGE_SIZE  # its samples cross such pages
    index = compact(path, None, tmp_path / "out.beton")
    assert index.page_size == 2 * PAGE_SIZE
    assert verify(index).is_sound
    pages = index.allocations["ptr"] // np.uint64(index.page_size)
    assert len(set(zip(index.allocations["sample_id"], pages, strict=True))) == 3
    small = compact(path, [0, 2], tmp_path / "small.beton")
    assert small.page_size == PAGE_SIZE
