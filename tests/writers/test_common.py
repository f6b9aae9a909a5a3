"""Checks before writing, finished and continued runs, the command line."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import pytest

import writers
from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.utils import ImageFiles
from tests.writers.support import jpeg, put_all, stored
from writers.components.common import Expected, Options, run, write_splits

NAMES = ("ant", "bee")
WRITERS = sorted(each.name for each in iter_modules(writers.__path__) if not each.ispkg)


def write(splits: Any, out: Path, names: Any = NAMES, **others: Any) -> dict[str, BetonIndex]:
    options = Options(out=out, **{"num_workers": 0, **others})
    return write_splits("birds", splits, names, options, None)


def three(first: int = 0) -> list[tuple[bytes, int, int]]:
    return [(jpeg(first + i), i % 2, first + i) for i in range(3)]


def test_manifests_record_the_options_that_change_samples(tmp_path: Path) -> None:
    splits = {"train": three(), "val": three(3)}
    written = write(splits, tmp_path / "out", jpeg_quality=77, seed=5)
    assert set(written) == {"train", "val"}
    assert stored(written["val"]) == {3 + i: (i % 2, jpeg(3 + i)) for i in range(3)}
    for split, index in written.items():
        assert index.path == tmp_path / "out" / f"{split}.beton"
        assert index.manifest is not None
        by = index.manifest.written_by
        assert (by["writer"], by["split"], by["jpeg_quality"]) == ("birds", split, 77)
        assert (by["seed"], by["shuffle"]) == (5, True)
        # A killed run may continue with other values of these.
        assert not {"out", "num_workers", "check_counts", "on_error"} & set(by)


def test_the_seed_gives_the_order_unless_shuffle_is_off(tmp_path: Path) -> None:
    samples = [(jpeg(i), 0, i) for i in range(20)]

    def order(name: str, **others: Any) -> list[int]:
        index = write({"all": samples}, tmp_path / name, **others)["all"]
        identifiers: list[int] = index.column("identifier").tolist()
        return identifiers

    one, other = order("one"), order("other", seed=1)
    assert one == order("same")
    assert one != other
    assert sorted(one) == sorted(other) == order("kept", shuffle=False) == list(range(20))


def test_the_listing_hash_depends_on_names_and_labels(tmp_path: Path) -> None:
    put_all(tmp_path, {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})

    def listing(names: list[str], labels: list[int]) -> str:
        samples = ImageFiles([tmp_path / name for name in names], labels)
        index = write({"all": samples}, tmp_path / "out")["all"]
        assert index.manifest is not None
        return str(index.manifest.written_by["listing"])

    first = listing(["a.jpg", "b.jpg"], [0, 1])
    others = [listing(["b.jpg", "a.jpg"], [0, 1]), listing(["a.jpg", "b.jpg"], [1, 0])]
    assert len({first, *others}) == 3
    assert listing(["a.jpg", "b.jpg"], [0, 1]) == first


# Errors before anything is written.


@pytest.mark.parametrize(
    ("val", "expected", "why"),
    [
        (three(), Expected(2, {"train": 3, "val": 4}), "3 images in val instead of 4"),
        (three(), Expected(3, {"train": 3}), "2 classes instead of 3"),
        (three(), Expected(1, {"train": 2}), "3 images in train .* 2, 2 classes instead of 1"),
        ([(jpeg(0), -1, 0)], None, "labels from -1 to -1"),
        ([(jpeg(0), 2, 0)], None, "labels from 2 to 2, but the 2 class names are for labels 0"),
        ([], None, "The split val has no images"),
    ],
)
def test_wrong_counts_and_labels_are_refused(
    val: list[Any], expected: Expected | None, why: str, tmp_path: Path
) -> None:
    splits = {"train": three(), "val": val}
    options = Options(out=tmp_path / "out", num_workers=0)
    with pytest.raises(ValueError, match=f"{why}.*--no-check-counts" if expected else why):
        write_splits("birds", splits, NAMES, options, expected)
    assert not (tmp_path / "out").exists()
    if expected:
        options = Options(out=tmp_path / "out", num_workers=0, check_counts=False)
        assert set(write_splits("birds", splits, NAMES, options, expected)) == {"train", "val"}


# Runs after other runs.


def inodes(out: Path) -> dict[str, int]:
    """Return the inode of each beton. A new file of the same name has another inode."""
    return {path.stem: path.stat().st_ino for path in out.glob("*.beton")}


def test_finished_splits_are_not_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"train": three(), "val": [*three(3), (b"no image", 0, 9)]}
    with pytest.raises(ValueError, match="sample"):
        write(bad, tmp_path)
    before = inodes(tmp_path)
    assert set(before) == {"train"}
    capsys.readouterr()
    splits = {"train": three(), "val": [*three(3), (jpeg(9), 0, 9)]}
    written = write(splits, tmp_path, num_workers=1)
    assert inodes(tmp_path)["train"] == before["train"]
    assert stored(written["train"]) == {i: (i % 2, jpeg(i)) for i in range(3)}
    assert written["val"].num_samples == 4
    train = tmp_path / "train.beton"
    said = f"train: already written; delete {train} to write it again\n"
    assert capsys.readouterr().out == said
    train.unlink()
    write(splits, tmp_path)
    assert train.exists()


@pytest.mark.parametrize(
    "change", ["option", "names", "labels", "manifest", "no manifest", "damage"]
)
def test_a_split_that_differs_is_written_again(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write({"all": three()}, tmp_path)["all"]
    before = inodes(tmp_path)
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
    write({"all": samples}, tmp_path, names, **others)
    assert inodes(tmp_path) != before
    assert capsys.readouterr().out == ""


def test_a_split_with_skipped_images_is_written_again(tmp_path: Path) -> None:
    samples = [*three(), (b"no image", 0, 9)]
    write({"all": samples}, tmp_path, on_error="skip")
    samples[3] = (jpeg(9), 0, 9)  # repaired
    assert write({"all": samples}, tmp_path, on_error="skip")["all"].num_samples == 4


# The command line.


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    bad: bool = False


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a writer of three samples, or of `samples`, as a command."""

    def run_writer(*arguments: str, samples: Any = None, names: Any = NAMES) -> None:
        def write(config: Config) -> dict[str, BetonIndex]:
            train = [*three(), (b"no image", 0, 9)] if config.bad else samples or three()
            return write_splits("birds", {"train": train, "val": three()}, names, config, None)

        writer: Any = ModuleType("writers.birds")
        writer.__spec__ = ModuleSpec(writer.__name__, None)
        writer.Config, writer.write = Config, write
        monkeypatch.setitem(sys.modules, writer.__name__, writer)
        given = ["--out", str(tmp_path / "out"), "--num-workers", "0", *arguments]
        run(writer.__name__, given)

    return run_writer


def test_each_beton_and_each_skipped_image_is_printed(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("--on-error", "skip", "--bad")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"train: 3 images, 2 classes -> {tmp_path / 'out' / 'train.beton'}"
    assert lines[1].startswith("  skipped sample 3: ")
    assert lines[2] == f"val: 3 images, 2 classes -> {tmp_path / 'out' / 'val.beton'}"


def test_classes_without_images_are_printed(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(names=[*NAMES, *(f"rare {number}" for number in range(7))])
    rare = ", ".join(f"rare {number}" for number in range(5))
    assert capsys.readouterr().out.splitlines()[1] == f"  no images of {rare} and 2 more"


def test_an_error_prints_one_line_and_exits_with_1(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command("--bad")
    assert ended.value.code == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "birds" in each]
    assert line.startswith("dp4tl write birds: Cannot encode sample 3: ")


@pytest.mark.parametrize(
    ("encoding", "printed"), [("utf-8", "é \\udcff.jpg"), ("ascii", "\\xe9 \\udcff.jpg")]
)
def test_file_names_that_are_not_text_are_printed_with_escapes(
    encoding: str,
    printed: str,
    command: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_all(tmp_path, {"good.jpg": jpeg(0)})
    bad = tmp_path / os.fsdecode("é ".encode() + b"\xff.jpg")
    bad.write_bytes(b"no image")
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding, errors="strict"))
    command("--on-error", "skip", samples=ImageFiles([tmp_path / "good.jpg", bad], [0, 1]))
    sys.stdout.flush()
    assert f"skipped {tmp_path}/{printed}" in stream.getvalue().decode(encoding)


# All writers.


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(f"writers.{name}", ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: dp4tl write {name.replace('_', '-')} ")
    assert "Write " in said
    assert "--out PATH" in said


def test_importing_a_writer_is_fast() -> None:
    heavy = {"torch", "torchvision", "ffcv", "numba", "cv2", "PIL", "pyarrow", "scipy", "sklearn"}
    names = ", ".join(f"writers.{name}" for name in WRITERS)
    code = f"import sys, {names}; print({heavy} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
