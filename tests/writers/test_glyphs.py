"""Characters in the fonts that matplotlib ships, and in changed copies of them."""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, read_image
from tests.writers.support import check_refused, names_of, stored, write
from writers import glyphs
from writers.components.characters import CLASSES, class_name
from writers.components.fonts import draw_fonts, font_files

SOME = (*"0123456789", "AΑА", "a", "Cc", "D", "E", "f", "K", "k", "א", "Жж", "→", "∫")
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral", "cmr10")
Images = NDArray[np.int64]


@pytest.fixture(autouse=True)
def some_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "CLASSES", SOME)


def shipped(name: str) -> Path:
    matplotlib = pytest.importorskip("matplotlib")
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        copy(shipped(name), path)
    return path


def altered(path: Path, family: str, glyph_of: dict[str, str], stretch: int = 1) -> None:
    """Save DejaVu Sans with other glyphs for some characters, as another family.

    Args:
        path: the new font.
        family: its name.
        glyph_of: character whose glyph each character gets. An empty text removes it.
        stretch: factor of the outline of `A`.
    """
    fonts = pytest.importorskip("fontTools.ttLib")
    font = fonts.TTFont(shipped("DejaVuSans"))
    original = font.getBestCmap()
    for table in font["cmap"].tables:
        for character, other in glyph_of.items():
            table.cmap.pop(ord(character), None)
            if other:
                table.cmap[ord(character)] = original[ord(other)]
    for record in font["name"].names:
        if record.nameID in (1, 16):
            record.string = family
    if stretch > 1:
        outline = font["glyf"]["A"]
        outline.coordinates.scale((stretch, 1))
        outline.program.fromBytecode(b"")
        font["head"].unitsPerEm = 16
    font.save(path)


def collection(name: str, count: int) -> bytes:
    """Return a .ttc of `count` fonts, all of which are the same."""
    font = bytearray(shipped(name).read_bytes())
    start = 12 + 4 * count
    for record in range(12, 12 + 16 * int.from_bytes(font[4:6]), 16):
        offset = slice(record + 8, record + 12)
        font[offset] = (int.from_bytes(font[offset]) + start).to_bytes(4)
    head = b"ttcf" + (0x10000).to_bytes(4) + count.to_bytes(4)
    return head + count * start.to_bytes(4) + bytes(font)


def put(out: Path, fonts: Path, **options: Any) -> dict[str, BetonIndex]:
    given = {"val": 0, "test": 0, "min_per_class": 1, "mode": "raw", **options}
    return write(glyphs, out, fonts=(fonts,), **given)


def images_of(index: BetonIndex) -> dict[str, list[Images]]:
    """Return the images of each class that has some."""
    found: dict[str, list[Images]] = {}
    for i, label in enumerate(index.labels().tolist()):
        found.setdefault(names_of(index)[label], []).append(read_image(index, i).astype(np.int64))
    return found


def characters_of(index: BetonIndex) -> set[str]:
    return {name[0] for name in images_of(index)}


# Classes.


def test_every_character_is_in_one_class_with_a_name_of_its_own() -> None:
    assert len(CLASSES) >= 300
    characters = "".join(CLASSES)
    assert len(set(characters)) == len(characters)
    assert CLASSES[:10] == tuple("0123456789")
    names = [class_name(each) for each in CLASSES]
    assert len(set(names)) == len(names)
    for name in names:
        assert name == unicodedata.normalize("NFC", name)
        assert name.isprintable()
    alphabets = ("AZ", "az", "ΑΡ", "ΣΩ", "αω", "АЯ", "ая", "את")
    for first, last in alphabets:
        for code in range(ord(first), ord(last) + 1):
            assert chr(code) in characters


@pytest.mark.parametrize(
    ("characters", "name"),
    [("7", "7"), ("AΑА", "A"), ("α", "α alpha"), ("Жж", "Ж capital zhe"), ("ךּ", "ך final kaf")],
)
def test_class_names_say_what_the_character_is(characters: str, name: str) -> None:
    assert class_name(characters) == name


@pytest.mark.parametrize("together", ["AΑА", "OoΟοОо", "Cc", "Vvν", "Жж", "ΣΣ∑", "lI", "Δ∆"])
def test_look_alikes_are_one_class(together: str) -> None:
    assert sum(bool(set(together) & set(each)) for each in CLASSES) == 1


@pytest.mark.parametrize("apart", ["0O", "1l", "Kk", "Uu", "Aa", "3З", "×x"])
def test_characters_that_fonts_draw_differently_are_apart(apart: str) -> None:
    assert not any(set(apart) <= set(each) for each in CLASSES)


# Images.


@pytest.mark.parametrize("resolution", [32, 45])
def test_characters_have_one_size_and_are_in_the_middle(resolution: int, tmp_path: Path) -> None:
    fonts = folder(tmp_path / "fonts", "DejaVuSans", "DejaVuSerif")
    options = {"resolution": resolution}
    light = put(tmp_path / "light", fonts, **options)["source_train"]
    dark = put(tmp_path / "dark", fonts, ink="dark", **options)["source_train"]
    assert light.num_samples > 40
    inverse = stored(dark)
    for identifier, (label, content) in stored(light).items():
        image = np.frombuffer(content, dtype=np.uint8).reshape(resolution, resolution, 3)
        assert np.ptp(image, axis=2).max() == 0
        spans = [np.flatnonzero(image.max(axis=(axis, 2))) for axis in (0, 1)]
        assert max(np.ptp(span) + 1 for span in spans) == round(resolution * 20 / 28)
        for span in spans:
            assert abs(span[0] - (resolution - 1 - span[-1])) <= 1
        assert image.max() > 200
        assert inverse[identifier] == (label, (255 - image).tobytes())


def test_images_show_the_characters(tmp_path: Path) -> None:
    """The mean of another font's images is nearest to the image of the same character."""
    one = put(tmp_path / "1", folder(tmp_path / "sans", "DejaVuSans"))["source_train"]
    other = put(tmp_path / "2", folder(tmp_path / "serif", "DejaVuSerif"))["source_train"]
    sans, serif = images_of(one), images_of(other)
    common = [name for name in sans if name in serif]
    assert len(common) >= len(SOME) - 2
    distances = np.array(
        [[np.square(sans[a][0] - serif[b][0]).mean() for b in common] for a in common]
    )
    assert (distances.argmin(axis=1) == np.arange(len(common))).mean() > 0.7


def test_characters_that_a_font_lacks_are_left_out(tmp_path: Path) -> None:
    assert characters_of(
        put(tmp_path / "1", folder(tmp_path / "tex", "cmr10"))["source_train"]
    ).isdisjoint("אЖ")
    fonts = folder(tmp_path / "fonts")
    altered(fonts / "a.ttf", "Without", {"A": "", "Α": "", "А": "", "7": " ", "E": "◌"})
    found = characters_of(put(tmp_path / "2", fonts)["source_train"])
    assert {each[0] for each in SOME} - {"A", "7", "E", "א"} == found - {"א"}


def test_an_image_of_an_earlier_class_is_left_out(tmp_path: Path) -> None:
    fonts = folder(tmp_path / "fonts", "DejaVuSerif")
    altered(fonts / "capitals.ttf", "Capitals", {"a": "A", "k": "K", "f": "□", "E": "□"})
    found = images_of(put(tmp_path / "out", fonts)["source_train"])
    counts = {name: len(each) for name, each in found.items()}
    assert {name: counts[name] for name in "AaKkD"} == {"A": 2, "a": 1, "K": 2, "k": 1, "D": 2}
    assert counts["E"] + counts["f"] == 3  # a font that has boxes for both keeps one of them


def test_fonts_of_pictures_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fonts = folder(tmp_path / "fonts", "DejaVuSans", "DejaVuSerif", "STIXGeneral")
    pictures = {each: chr(0x2600 + i) for i, each in enumerate("".join(SOME))}
    altered(fonts / "pictures.ttf", "Pictures", pictures)
    with_pictures = put(tmp_path / "1", fonts)["source_train"]
    assert re.search(r"left out \S*pictures\.ttf: .*do not resemble", capsys.readouterr().out)
    (fonts / "pictures.ttf").unlink()
    assert stored(put(tmp_path / "2", fonts)["source_train"]) == stored(with_pictures)


def test_images_of_a_class_differ(tmp_path: Path) -> None:
    fonts = folder(tmp_path / "fonts", *FONTS)
    copy(shipped("DejaVuSans"), fonts / "copy.ttf")
    index = put(tmp_path / "out", fonts)["source_train"]
    found = images_of(index)
    assert len(found["D"]) == len(FONTS)  # the weights and the families, without the copy
    for each in found.values():
        small = [image[..., 0].reshape(16, 2, 16, 2).mean(axis=(1, 3)) for image in each]
        for one, other in itertools.combinations(small, 2):
            assert np.sqrt(np.square(one - other).mean()) > 7.5  # 8, and rounding


# Splits.


def families_of(index: BetonIndex, fonts: Path) -> set[str]:
    """Return the families of a beton's fonts, by the positions that the identifiers are."""
    faces = list(draw_fonts(font_files([fonts]), SOME, 32, "raise"))
    ends = np.cumsum([len(face.labels) for face in faces])
    numbers = np.searchsorted(ends, index.column("identifier"), side="right")
    return {faces[number].family for number in numbers}


def test_a_family_is_in_one_split(tmp_path: Path) -> None:
    fonts = folder(tmp_path / "fonts", *FONTS)
    seen = set()
    for seed in range(3):
        written = put(tmp_path / f"{seed}", fonts, val=0.2, test=0.4, seed=seed)
        families = {name: families_of(index, fonts) for name, index in written.items()}
        assert {name: len(each) for name, each in families.items()} == {
            "source_train": 2, "source_val": 1, "source_test": 2
        }  # fmt: skip
        assert len(set().union(*families.values())) == 5
        seen.add(frozenset(families["source_test"]))
    assert len(seen) > 1


def test_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    fonts = folder(tmp_path / "fonts", *FONTS)
    one, other = (
        put(tmp_path / f"{workers}", fonts, val=0.2, num_workers=workers) for workers in (0, 2)
    )
    for name, index in one.items():
        assert index.path.read_bytes() == other[name].path.read_bytes()


def test_digits_of_other_fonts_are_the_target(tmp_path: Path) -> None:
    fonts = folder(tmp_path / "fonts", *FONTS)
    copy(shipped("DejaVuSans-BoldOblique"), fonts)  # of a family in the target
    altered(fonts / "renamed.ttf", "Renamed", {})  # looks like a font of the target
    held_out = folder(tmp_path / "hand", "DejaVuSans", "cmss10", "cmtt10", "cmti10", "STIXGeneral")
    written = put(tmp_path / "out", fonts, target_fonts=(held_out,))
    assert set(written) == {"source_train", "target_train", "target_val", "target_test"}
    counts = {name: index.class_counts().tolist() for name, index in written.items()}
    assert names_of(written["target_test"]) == tuple("0123456789")
    sizes = [max(counts[f"target_{split}"]) for split in ("train", "val", "test")]
    assert sizes == [2, 1, 2]  # of 5 families
    assert max(counts["source_train"][:10]) == 3  # DejaVu Sans Mono, DejaVu Serif, cmr10


def test_small_classes_are_left_out_and_large_ones_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fonts = folder(tmp_path / "fonts", *FONTS)
    index = put(tmp_path / "out", fonts, min_per_class=5, max_per_class=5)["source_train"]
    assert set(index.class_counts().tolist()) == {5}
    assert re.search(
        r"left out \d classes with fewer than 5 images: .*א \d", capsys.readouterr().out
    )
    assert not any("alef" in name for name in names_of(index))
    check_refused(
        glyphs, tmp_path / "none", "No class has 50 different images; the largest has",
        fonts=(fonts,), min_per_class=50,
    )  # fmt: skip


# Errors.


def test_families_must_be_left_for_training(tmp_path: Path) -> None:
    fonts = folder(tmp_path / "fonts", "DejaVuSans", "cmr10")
    options: dict[str, Any] = {"fonts": (fonts,), "min_per_class": 1}
    shares = {"val": 0.5, "test": 0.49}
    why = "source: none of the 2 families of fonts is left for training. Lower --val"
    check_refused(glyphs, tmp_path / "out", why, **options, **shares)
    why = "All families of --fonts are in --target-fonts too"
    check_refused(glyphs, tmp_path / "out", why, **options, target_fonts=(fonts,))


def test_other_files_are_ignored_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fonts = folder(tmp_path / "fonts", "DejaVuSans")
    (fonts / "deeper").mkdir()
    copy(shipped("DejaVuSerif"), fonts / "deeper" / "SERIF.TTF")
    for name in ("README", "a.pfb", "b.pfb"):
        (fonts / name).touch()
    os.mkfifo(fonts / "waits.ttf")
    index = put(tmp_path / "out", fonts)["source_train"]
    assert index.class_counts()[0] == 2
    assert "ignored 2 *.pfb, 1 files without a suffix, 1 *.ttf" in capsys.readouterr().out


def damaged() -> Iterator[tuple[str, bytes]]:
    content = shipped("DejaVuSans").read_bytes()
    yield "empty", b""
    yield "text", b"no font"
    yield "truncated", content[:3000]
    yield "without outlines", content[: len(content) // 3]
    yield "collection of many", b"ttcf" + bytes([0, 1, 0, 0, 255, 255, 255, 255])
    yield "collection of none", b"ttcf" + bytes([0, 1, 0, 0, 0, 0, 0, 2])


def test_all_fonts_of_a_collection_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "two.ttc").write_bytes(collection("DejaVuSerif", 2))
    first, second = draw_fonts(font_files([tmp_path]), SOME, 32, "raise")
    assert first.family == second.family == "DejaVu Serif"
    assert len(first.labels) > 15
    assert (first.images == second.images).all()
    (tmp_path / "two.ttc").write_bytes(collection("DejaVuSerif", 65))
    why = "65 fonts, and at most 64 are read"
    check_refused(glyphs, tmp_path / "out", why, fonts=(tmp_path,))


@pytest.mark.parametrize("kind", [name for name, _ in damaged()])
def test_a_damaged_font_is_named_or_skipped(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fonts = folder(tmp_path / "fonts", "DejaVuSerif")
    intact = stored(put(tmp_path / "intact", fonts)["source_train"])
    (fonts / "Zamaged.ttf").write_bytes(dict(damaged())[kind])
    options = {"fonts": (fonts,), "min_per_class": 1}
    check_refused(glyphs, tmp_path / "out", r"font '.*Zamaged\.ttf': .*on-error skip", **options)
    index = put(tmp_path / "out", fonts, on_error="skip")["source_train"]
    assert re.search(r"skipped \S*Zamaged\.ttf: \w", capsys.readouterr().out)
    assert stored(index) == intact
    (fonts / "DejaVuSerif.ttf").unlink()
    why = "None of the 1 fonts can be drawn"
    check_refused(glyphs, tmp_path / "none", why, on_error="skip", **options)


def test_a_huge_glyph_is_refused_before_it_is_drawn(tmp_path: Path) -> None:
    fonts = folder(tmp_path / "fonts")
    altered(fonts / "wide.ttf", "Wide", {}, stretch=8)
    why = r"wide\.ttf': its U\+\w+ is more than 8 ems wide or high"
    check_refused(glyphs, tmp_path / "out", why, fonts=(fonts,))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"resolution": 8}, "`resolution` must be"),
        ({"resolution": 4096}, "`resolution` must be"),
        ({"min_per_class": 0}, "`min_per_class` must be"),
        ({"max_per_class": 0}, "`max_per_class` must be"),
        ({"ink": "red"}, "`ink` must be one of light, dark; got 'red'"),
        ({"val": 0.5, "test": 0.5}, "--val and --test must be fractions with a sum below 1"),
        ({"fonts": (Path("nowhere"),)}, "There is no folder of fonts 'nowhere'"),
        ({"target_fonts": (Path("nowhere"),)}, "There is no folder of fonts 'nowhere'"),
        ({}, r"There are no fonts \(\.otf, \.ttc, \.ttf\) below"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    check_refused(glyphs, tmp_path / "out", why, **{"fonts": (empty,), **options})
