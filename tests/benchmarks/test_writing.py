"""The writing benchmark measures both sides, on very little data."""

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.command import load_figures, measure
from benchmarks.harness.dataset import Images, prepare_files
from benchmarks.harness.rows import Row
from benchmarks.writing import bench as shared
from benchmarks.writing.figures import compact_raw_throughput
from benchmarks.writing.sides import Job, Ours, check_bytes
from dp4tl_ffcv import BetonIndex

TINY = shared.Scale(
    passthrough=20,
    resize=10,
    compact=60,
    raw=40,
    peak=(10, 500),
    distinct=8,
    writes=1,
    copies=1,
    epochs=2,
    peaks=1,
)
COUNTS = {"compact_copy": 3, "write_passthrough": 2, "write_peak_bytes": 3, "write_resize": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[shared.Bench]:
    """A bench that starts its pair of processes once, which takes seconds."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        bench = shared.Bench(TINY, tmp_path_factory.mktemp("writing"), stack)
        sides = bench.sides
        patch.setattr(shared.Bench, "both", lambda _: nullcontext(sides))
        yield bench
    assert not list(bench.data.glob("writing.*"))  # the outputs are deleted


def test_every_figure_is_measured(tiny: shared.Bench) -> None:
    rows: dict[str, list[Row]] = {}
    for row in measure(load_figures("writing", COUNTS), [tiny]):
        rows.setdefault(row["figure"], []).append(row)
    assert {name: len(found) for name, found in rows.items()} == COUNTS
    kept_bytes, checked = rows["write_passthrough"]
    assert kept_bytes["other"] == checked["other"]  # one measurement for both
    assert [row["params"]["flush"] for row in rows["compact_copy"]] == [
        "both", "compact alone", "neither, into memory",
    ]  # fmt: skip
    few, many, each = rows["write_peak_bytes"]
    assert few["other"] > 2 * (1 << 23)  # a page in each worker
    for side in ("ours", "other"):
        assert each[side] == pytest.approx((many[side] - few[side]) / 490, rel=1e-3)
    assert few["params"]["rounds"] == each["params"]["rounds"] == 1


def test_both_loaders_read_the_compacted_raw_file(
    tiny: shared.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[tuple[str, str]]] = []

    def alternated(sides: Any, rounds: int) -> tuple[list[list[float]], dict[str, Any]]:
        loaded.append([(side.name, setting.beton.name) for side, setting in sides])
        rates = [[8.0] * rounds, [4.0] * rounds, [2.0] * rounds]
        return rates, {"images": 8, "ours_cache": "ram"}

    monkeypatch.setattr(compact_raw_throughput, "alternate_epochs", alternated)
    ours, stock = compact_raw_throughput.measure(tiny)
    (name, raw), (its_name, its_raw), (original_name, original) = loaded[0]
    assert name == "PrunedLoader"
    assert its_name == original_name == ours["other_name"] == stock["other_name"] != name
    assert raw == its_raw != original
    assert (ours["params"]["how"], ours["ratio"]) == ("PrunedLoader", 4)
    assert (stock["params"]["how"], stock["ratio"]) == ("stock Loader", 2)
    assert ours["params"]["ours_cache"] == "ram"
    assert "ours_cache" not in stock["params"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = Images(num_samples=12, long_side=64, num_classes=2, distinct=8)
    return prepare_files(images, tmp_path_factory.mktemp("files"))


def test_a_folder_holds_as_many_files_as_requested(files: Path) -> None:
    contents = {path.name: path.read_bytes() for path in files.iterdir()}
    assert sorted(contents) == [f"{number:06}.jpg" for number in range(12)]
    assert 4 <= len(set(contents.values())) <= 8


def test_changed_and_missing_images_are_detected(files: Path, tmp_path: Path) -> None:
    side, out = Ours(), tmp_path / "out.beton"
    side.list_files(Job(files=files, num_samples=12))
    side.write(out)
    check_bytes(out, files)
    index = BetonIndex.open(out)
    _, start, size = index.extents([5])[0].tolist()
    content = bytearray(out.read_bytes())
    content[start + size // 2] ^= 1
    out.write_bytes(content)
    path = sorted(files.iterdir())[int(index.column("identifier")[5])]
    with pytest.raises(RuntimeError, match=f"does not hold the bytes of .*{path.name}"):
        check_bytes(out, files)

    side.list_files(Job(files=files, num_samples=11))
    side.write(out)
    with pytest.raises(RuntimeError, match="every file"):
        check_bytes(out, files)
