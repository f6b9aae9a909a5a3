"""What every writer relies on: checks before the first byte, listings, messages, the command."""

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.utils import ImageFiles
from dp4tl_ffcv.writing import pages
from tests.writers.support import jpeg, put_all, stored
from writers.components.common import (
    Expected,
    Options,
    check_class_ids,
    check_no_others,
    run,
    say,
    write_splits,
)

NAMES = ("ant", "bee")


def options(out: Path, **others: Any) -> Options:
    return Options(out=out, **{"num_workers": 0, **others})


def three(first: int = 0) -> list[tuple[bytes, int, int]]:
    return [(jpeg(first + i), i % 2, first + i) for i in range(3)]


def test_splits_are_written_with_what_wrote_them(tmp_path: Path) -> None:
    given = options(tmp_path / "out", jpeg_quality=77, seed=5)
    splits = {"train": three(), "val": three(3)}
    expected = Expected(2, {"train": 3, "val": 3, "test": 9})
    written = write_splits("birds", splits, NAMES, given, expected)
    assert set(written) == {"train", "val"}
    assert stored(written["val"]) == {3 + i: (i % 2, jpeg(3 + i)) for i in range(3)}
    for split, index in written.items():
        assert index.path == tmp_path / "out" / f"{split}.beton"
        assert index.manifest is not None
        by = index.manifest.written_by
        assert (by["writer"], by["split"], by["jpeg_quality"]) == ("birds", split, 77)
        assert (by["seed"], by["shuffle"]) == (5, True)
        # What changes no sample is left out, so that a killed run is continued under other values.
        assert not {"out", "num_workers", "check_counts", "on_error"} & set(by)


def test_the_order_depends_on_the_seed_and_can_be_kept(tmp_path: Path) -> None:
    samples = [(jpeg(i), 0, i) for i in range(20)]

    def order(name: str, **others: Any) -> list[int]:
        given = options(tmp_path / name, **others)
        index = write_splits("birds", {"all": samples}, NAMES, given, None)["all"]
        identifiers: list[int] = index.column("identifier").tolist()
        return identifiers

    one, other = order("one"), order("other", seed=1)
    assert one == order("same")
    assert one != other
    assert sorted(one) == sorted(other) == order("kept", shuffle=False) == list(range(20))


def test_the_listing_tells_other_names_and_labels(tmp_path: Path) -> None:
    put_all(tmp_path, {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})

    def listing(names: list[str], labels: list[int]) -> str:
        samples = ImageFiles([tmp_path / name for name in names], labels)
        index = write_splits("birds", {"all": samples}, NAMES, options(tmp_path / "out"), None)
        assert index["all"].manifest is not None
        return str(index["all"].manifest.written_by["listing"])

    first = listing(["a.jpg", "b.jpg"], [0, 1])
    others = [listing(["b.jpg", "a.jpg"], [0, 1]), listing(["a.jpg", "b.jpg"], [1, 0])]
    assert len({first, *others}) == 3
    assert listing(["a.jpg", "b.jpg"], [0, 1]) == first


# What is refused, before anything is written.


@pytest.mark.parametrize(
    ("expected", "what"),
    [
        (Expected(2, {"train": 3, "val": 4}), "3 images in val instead of 4;"),
        (Expected(3, {"train": 3}), "2 classes instead of 3;"),
        (Expected(1, {"train": 2}), "3 images in train instead of 2 and 2 classes instead of 1;"),
    ],
)
def test_other_counts_are_refused_unless_they_are_not_checked(
    expected: Expected, what: str, tmp_path: Path
) -> None:
    splits = {"train": three(), "val": three()}
    message = rf"`birds` must be complete; got {what[:-1]}\. .*--no-check-counts"
    with pytest.raises(ValueError, match=message):
        write_splits("birds", splits, NAMES, options(tmp_path / "out"), expected)
    assert not (tmp_path / "out").exists()
    given = options(tmp_path / "out", check_counts=False)
    assert set(write_splits("birds", splits, NAMES, given, expected)) == {"train", "val"}


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_name_is_refused_in_any_split(label: int, tmp_path: Path) -> None:
    splits = {"train": three(), "val": [(jpeg(0), label, 0)]}
    with pytest.raises(ValueError, match=rf"`val` must have labels from 0 to 1.*got.* {label}"):
        write_splits("birds", splits, NAMES, options(tmp_path / "out"), None)
    assert not (tmp_path / "out").exists()


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`val` must hold at least one image"):
        write_splits("birds", {"train": three(), "val": []}, NAMES, options(tmp_path / "out"), None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [-1, 1 << 24, 10**30])
def test_numbers_that_are_no_class_ids_are_refused(number: int) -> None:
    check_class_ids("label", 0, (1 << 24) - 1)
    with pytest.raises(ValueError, match=f"`label` must hold class ids from 0 .*got {number}"):
        check_class_ids("label", 0, number)


# Runs after others.


def what_remains(out: Path) -> dict[str, int]:
    """Return the inode of each beton, which another file of that name does not have."""
    return {path.stem: path.stat().st_ino for path in out.glob("*.beton")}


def test_a_run_after_one_that_failed_between_splits_writes_the_rest_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"train": three(), "val": [*three(3), (b"no image", 0, 9)]}
    with pytest.raises(ValueError, match="sample"):
        write_splits("birds", bad, NAMES, options(tmp_path), None)
    before = what_remains(tmp_path)
    assert set(before) == {"train"}
    capsys.readouterr()
    splits = {"train": three(), "val": [*three(3), (jpeg(9), 0, 9)]}
    written = write_splits("birds", splits, NAMES, options(tmp_path, num_workers=1), None)
    assert what_remains(tmp_path)["train"] == before["train"]
    assert stored(written["train"]) == {i: (i % 2, jpeg(i)) for i in range(3)}
    assert written["val"].num_samples == 4
    train = tmp_path / "train.beton"
    said = f"train: already written; delete {train} to write it again\n"
    assert capsys.readouterr().out == said
    train.unlink()
    write_splits("birds", splits, NAMES, options(tmp_path), None)
    assert train.exists()


@pytest.mark.parametrize(
    "change", ["option", "names", "labels", "manifest", "no manifest", "damage"]
)
def test_a_split_that_is_not_what_the_run_would_write_is_written_again(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_splits("birds", {"all": three()}, NAMES, options(tmp_path), None)["all"]
    before = what_remains(tmp_path)
    names, samples, others = NAMES, three(), {}
    manifest = first.path.with_name("all.beton.json")
    if change == "option":
        others["jpeg_quality"] = 50
    elif change == "names":
        names = ("ant", "cat")
    elif change == "labels":
        samples = [(image, 1 - label, number) for image, label, number in samples]
    elif change == "manifest":
        manifest.write_text(manifest.read_text().replace(first.fingerprint, "0" * 64))
    elif change == "no manifest":
        manifest.unlink()
    else:
        first.path.write_bytes(first.path.read_bytes()[:-24])
    write_splits("birds", {"all": samples}, names, options(tmp_path, **others), None)
    assert what_remains(tmp_path) != before
    assert capsys.readouterr().out == ""


def test_a_split_that_lacks_samples_is_written_again(tmp_path: Path) -> None:
    given = options(tmp_path, on_error="skip")
    samples = [*three(), (b"no image", 0, 9)]
    write_splits("birds", {"all": samples}, NAMES, given, None)
    samples[3] = (jpeg(9), 0, 9)  # mended
    assert write_splits("birds", {"all": samples}, NAMES, given, None)["all"].num_samples == 4


def test_a_run_that_an_image_ended_is_continued_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def every_batch(part: pages.PageWriter) -> bool:
        part._wait()  # on a slow disk, the last record may still be on its way
        return True

    monkeypatch.setattr(pages.PageWriter, "_is_due", every_batch)
    asked: list[int] = []

    class Samples(list[tuple[bytes, int, int]]):
        labels = [0] * 400

        def name(self, position: int) -> str:
            return str(position)

        def __getitem__(self, position: Any) -> Any:
            asked.append(position)
            return super().__getitem__(position)

    samples = Samples([(jpeg(i), 0, i) for i in range(399)] + [(b"no image", 0, 399)])
    with pytest.raises(ValueError, match="399"):
        write_splits("birds", {"all": samples}, NAMES, options(tmp_path, shuffle=False), None)
    asked.clear()
    given = options(tmp_path, shuffle=False, on_error="skip")
    assert write_splits("birds", {"all": samples}, NAMES, given, None)["all"].num_samples == 399
    assert len(asked) < 200


def test_a_name_that_cannot_be_called_is_none(tmp_path: Path) -> None:
    class Samples(list[tuple[bytes, int, int]]):
        name = "birds"

    written = write_splits("birds", {"all": Samples(three())}, NAMES, options(tmp_path), None)
    assert written["all"].num_samples == 3


def test_betons_of_other_splits_are_refused(tmp_path: Path) -> None:
    put_all(tmp_path, {"val.beton": b""})
    check_no_others(tmp_path, ["test"])
    with pytest.raises(ValueError, match=r"`out` must not hold .*got val\.beton"):
        check_no_others(tmp_path, ["test", "val"])


# The command.


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    bad: bool = False


def write(config: Config) -> dict[str, BetonIndex]:
    samples = [*three(), (b"no image", 0, 9)] if config.bad else three()
    return write_splits("birds", {"train": samples, "val": three()}, NAMES, config, None)


def test_the_command_prints_each_split_and_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--num-workers", "0", "--on-error", "skip", "--bad"]
    run("birds", Config, write, "Write birds.", arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"train: 3 images, 2 classes -> {tmp_path / 'train.beton'}"
    assert lines[1].startswith("  left out sample 3: ")
    assert lines[2] == f"val: 3 images, 2 classes -> {tmp_path / 'val.beton'}"


def test_the_command_names_classes_without_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_few(config: Config) -> dict[str, BetonIndex]:
        names = [*NAMES, *(f"rare {number}" for number in range(7))]
        return write_splits("birds", {"train": three()}, names, config, None)

    run("birds", Config, write_few, None, ["--out", str(tmp_path), "--num-workers", "0"])
    lines = capsys.readouterr().out.splitlines()
    rare = ", ".join(f"rare {number}" for number in range(5))
    assert lines[1:] == [f"  no images of {rare} and 2 more"]


def test_an_error_ends_the_command_with_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("birds", Config, write, None, ["--out", str(tmp_path), "--num-workers", "0", "--bad"])
    assert ended.value.code == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "writers.birds" in each]
    assert "Cannot encode sample 3: " in line


@pytest.mark.parametrize(
    ("encoding", "printed"), [("utf-8", "é \\udcff.jpg\n"), ("ascii", "\\xe9 \\udcff.jpg\n")]
)
def test_names_that_are_no_text_are_printed_with_escapes(
    encoding: str, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding, errors="strict"))
    say("é " + os.fsdecode(b"\xff.jpg"))
    sys.stdout.flush()
    assert stream.getvalue().decode(encoding) == printed


def test_the_command_prints_left_out_files_whose_names_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / os.fsdecode(b"\xff.jpg")
    put_all(tmp_path, {"good.jpg": jpeg(0)})
    bad.write_bytes(b"no image")

    def write_files(config: Config) -> dict[str, BetonIndex]:
        samples = ImageFiles([tmp_path / "good.jpg", bad], [0, 1])
        return write_splits("birds", {"train": samples}, NAMES, config, None)

    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="utf-8", errors="strict"))
    arguments = ["--out", str(tmp_path), "--num-workers", "0", "--on-error", "skip"]
    run("birds", Config, write_files, None, arguments)
    sys.stdout.flush()
    assert rb"\udcff.jpg" in stream.getvalue()
