"""The writing benchmark runs, on next to nothing, and prints what it should."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import writing
from benchmarks.harness.dataset import Images, prepare_files
from benchmarks.writing import figures
from benchmarks.writing.figures import Scale
from benchmarks.writing.sides import Job, Ours, check_bytes
from dp4tl_ffcv import BetonIndex

TINY = Scale(
    passthrough=20,
    resize=10,
    compact=200,
    raw=40,
    peak=(10, 2000),
    distinct=8,
    writes=1,
    copies=1,
    epochs=2,
    peaks=2,
)
COUNTS = {"write_passthrough": 2, "write_resize": 1, "compact_copy": 3, "write_peak_bytes": 3}


def test_every_figure_is_measured() -> None:
    assert set(figures.NAMES) == {*COUNTS, "compact_raw_throughput"}


@pytest.fixture(scope="module")
def one_pair() -> Iterator[None]:
    """Start no process a second time: it takes seconds."""
    start, pairs = figures._both, []
    with ExitStack() as processes, pytest.MonkeyPatch.context() as patch:

        @contextmanager
        def started(bench: figures.Bench) -> Iterator[figures.Sides]:
            if not pairs:
                pairs.append(processes.enter_context(start(bench)))
            yield pairs[0]

        patch.setattr(figures, "_both", started)
        yield


@pytest.mark.usefixtures("one_pair")
def test_it_prints_lines_on_stdout_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "QUICK", TINY)
    data, out = tmp_path / "data", tmp_path / "rows.jsonl"
    writing.main(writing.Config(quick=True, only=tuple(COUNTS), data=data, out=out))
    printed = capfd.readouterr()
    head, *kept = out.read_text().splitlines()
    assert "environment" in json.loads(head)
    assert kept == printed.out.splitlines()
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, kept):
        assert row["bench"] == "writing"
        rows.setdefault(row["figure"], []).append(row)
    assert {name: len(found) for name, found in rows.items()} == COUNTS
    for name in COUNTS:
        assert name in printed.err
    assert not list(data.glob("writing.*"))  # nothing that was measured is left

    kept_bytes, checked = rows["write_passthrough"]
    assert kept_bytes["other"] == checked["other"]  # one measurement for both
    assert [row["params"]["flush"] for row in rows["compact_copy"]] == [
        "both", "compact alone", "neither, into memory",
    ]  # fmt: skip
    few, many, each = rows["write_peak_bytes"]
    assert few["other"] > 2 * (1 << 23)  # a page in each worker
    for side in ("ours", "other"):
        assert each[side] == pytest.approx((many[side] - few[side]) / 1990, rel=1e-3)
    assert few["params"]["rounds"] == each["params"]["rounds"] == 2


@pytest.mark.usefixtures("one_pair")
def test_a_compacted_raw_file_is_loaded_by_both_loaders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[tuple[str, str]]] = []

    def alternated(sides: Any, rounds: int) -> tuple[list[list[float]], dict[str, Any]]:
        loaded.append([(side.name, setting.beton.name) for side, setting in sides])
        rates = [[8.0] * rounds, [4.0] * rounds, [2.0] * rounds]
        return rates, {"images": 8, "ours_cache": "os"}

    monkeypatch.setattr(figures, "alternate_epochs", alternated)
    ours, stock = figures.measure(TINY, tmp_path, ["compact_raw_throughput"])
    (name, raw), (its_name, its_raw), (original_name, original) = loaded[0]
    assert name == "PrunedLoader"
    assert its_name == original_name == ours.other_name == stock.other_name != name
    assert raw == its_raw != original
    assert (ours.params["how"], ours.ratio) == ("PrunedLoader", 4)
    assert (stock.params["how"], stock.ratio) == ("stock Loader", 2)
    assert ours.params["ours_cache"] == "os"
    assert "ours_cache" not in stock.params


def test_only_a_full_run_of_all_figures_replaces_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(writing, "RESULTS", results)
    monkeypatch.setattr(writing, "measure", lambda *_: iter(()))
    writing.main(writing.Config(quick=True))
    writing.main(writing.Config(only=("write_resize",)))
    assert not results.exists()
    writing.main(writing.Config())
    assert results.exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = Images(num_samples=12, long_side=64, num_classes=2, distinct=8)
    return prepare_files(images, tmp_path_factory.mktemp("files"))


def test_a_folder_holds_as_many_files_as_asked_for(files: Path) -> None:
    contents = {path.name: path.read_bytes() for path in files.iterdir()}
    assert sorted(contents) == [f"{number:06}.jpg" for number in range(12)]
    assert 4 <= len(set(contents.values())) <= 8


def test_an_image_that_is_not_stored_as_its_bytes_is_told(files: Path, tmp_path: Path) -> None:
    side, out = Ours(), tmp_path / "out.beton"
    side.list_files(Job(files=files, num_samples=12))
    side.write(out)
    check_bytes(out, files)
    index = BetonIndex.open(out)
    _, start, size = index.extents([5])[0].tolist()
    with out.open("r+b") as stream:
        stream.seek(start + size // 2)
        byte = stream.read(1)[0]
        stream.seek(start + size // 2)
        stream.write(bytes([byte ^ 1]))
    path = sorted(files.iterdir())[int(index.column("identifier")[5])]
    with pytest.raises(RuntimeError, match=f"does not hold the bytes of .*{path.name}"):
        check_bytes(out, files)


def test_a_file_that_is_missing_is_told(files: Path, tmp_path: Path) -> None:
    side, out = Ours(), tmp_path / "out.beton"
    side.list_files(Job(files=files, num_samples=11))
    side.write(out)
    with pytest.raises(RuntimeError, match="every file"):
        check_bytes(out, files)


def test_files_are_listed_again_until_there_are_enough(files: Path) -> None:
    side = Ours()
    side.list_files(Job(files=files, num_samples=30))
    paths, labels, identifiers = zip(*(side.samples[i] for i in range(30)), strict=True)
    assert [Path(path).name for path in paths] == [f"{i % 12:06}.jpg" for i in range(30)]
    np.testing.assert_array_equal(labels, np.arange(30))
    np.testing.assert_array_equal(identifiers, np.arange(30))
