"""The peers benchmark: the check of a peer's crops, two peers on very little data, the table."""

import ast
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.harness.command import load_figures, measure
from benchmarks.harness.rows import compare
from benchmarks.harness.tables import with_quartiles
from benchmarks.peers import bench as shared
from benchmarks.peers.bench import Bench, Scale
from benchmarks.peers.check import check_epoch, coded_image
from benchmarks.peers.crops import crop_and_resize
from benchmarks.peers.job import Job, read_job
from benchmarks.peers.peer import Peer, Process, all_peers
from benchmarks.peers.table import peers_sentence, peers_table

IDS = tuple(range(0, 1200, 4)) + tuple(range(1, 1200, 12))
JOB = Job(beton=Path("b"), files=Path("f"), own=Path("o"), ids=tuple(sorted(IDS)))
Images = NDArray[np.uint8]


def crops(job: Job = JOB) -> tuple[Images, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return np.stack([crop_and_resize(job, coded_image(each), rng) for each in job.ids]), np.array(
        job.ids
    )


@pytest.fixture(scope="module")
def right() -> tuple[Images, NDArray[np.int64]]:
    return crops()


def batches(images: Images, ids: NDArray[np.int64]) -> list[tuple[Images, NDArray[np.int64]]]:
    size = JOB.batch_size
    return [(images[at : at + size], ids[at : at + size]) for at in range(0, len(ids), size)]


# -- the check -------------------------------------------------------------------------------------
def test_right_crops_pass_in_both_layouts_and_types(
    right: tuple[Images, NDArray[np.int64]],
) -> None:
    images, ids = right
    check_epoch(JOB, batches(images, ids))
    planes = np.moveaxis(images, -1, 1).astype(np.float32) / 255
    check_epoch(JOB, [(planes[:256], ids[:256]), (planes[256:], ids[256:])])


def whole(_: Images) -> Images:
    large = Job(**{**vars(JOB), "scale": (0.98, 1.0)})
    return crops(large)[0]


WRONG: dict[str, tuple[Callable[[Images], Images], str]] = {
    "another image": (lambda images: np.roll(images, 1, axis=0), "shows another image"),
    "blue first": (lambda images: images[..., ::-1], "shows another image"),
    "upside down": (lambda images: images[:, ::-1], "is distorted"),
    "turned": (lambda images: images.transpose(0, 2, 1, 3), "is distorted"),
    "whole images": (whole, "mean area of the crops"),
    "never flipped": (
        lambda images: np.where(
            (images[:, :, -1:, :1] > images[:, :, :1, :1]).all(axis=1, keepdims=True),
            images,
            images[:, :, ::-1],
        ),
        "share of flipped images",
    ),
}


@pytest.mark.parametrize("how", list(WRONG))
def test_wrong_crops_are_an_error(how: str, right: tuple[Images, NDArray[np.int64]]) -> None:
    change, message = WRONG[how]
    images, ids = right
    with pytest.raises(RuntimeError, match=message):
        check_epoch(JOB, batches(change(images), ids))


def test_one_other_image_and_missing_or_repeated_images_are_errors(
    right: tuple[Images, NDArray[np.int64]],
) -> None:
    images, ids = right
    other = images.copy()
    other[17] = images[18]
    with pytest.raises(RuntimeError, match=f"labelled as image {ids[17]} shows another"):
        check_epoch(JOB, batches(other, ids))
    with pytest.raises(RuntimeError, match="lacks 1 of 400 retained"):
        check_epoch(JOB, batches(images[1:], ids[1:]))
    repeated = ids.copy()
    repeated[1] = repeated[0]
    with pytest.raises(RuntimeError, match=r"lacks 1 of 400 retained .* 0 that are not"):
        check_epoch(JOB, batches(images, repeated))
    with pytest.raises(RuntimeError, match=r"batches have \{200\} images"):
        check_epoch(JOB, [(images[:200], ids[:200]), (images[200:], ids[200:])])


# -- the peers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("peer", all_peers(), ids=lambda peer: peer.name)
def test_a_peer_imports_nothing_that_may_be_missing_before_it_loads(peer: Peer) -> None:
    tree = ast.parse(Path(peer.module.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in tree.body
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names | {"benchmarks"}
    assert peer.module.__doc__
    assert callable(peer.module.load)
    assert peer.module.DISTRIBUTION
    assert peer.module.REQUIRES


def test_a_job_passes_through_its_file(tmp_path: Path) -> None:
    JOB.write(tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == JOB


def test_a_missing_module_and_a_failing_peer_are_named(tmp_path: Path) -> None:
    peer = Peer("opencv")
    peer.module = type("Module", (), {"REQUIRES": ("json", "not_there.part"), "LIBRARIES": ("no",)})
    assert peer.missing == ["not_there.part", "libno"]
    with Process(Peer("opencv"), tmp_path / "no.json", "check") as process:  # noqa: SIM117
        with pytest.raises(RuntimeError, match=r"opencv .* failed:\n[^$]*no\.json"):
            process.answer()


FAKE = """
from benchmarks.peers.crops import crop_and_resize, read_rgb

DISTRIBUTION, REQUIRES = "numpy", ()


def prepare(job):
    (job.own / "prepared").touch()


def load(job):
    import numpy

    assert (job.own / "prepared").exists()
    rng = numpy.random.default_rng(0)

    def epoch(number):
        for start in range(0, len(job.ids), job.batch_size):
            some = slice(start, start + job.batch_size)
            images = [crop_and_resize(job, read_rgb(str(path)), rng) for path in job.paths[some]]
            yield SHIFT(images), job.ids[some]

    return epoch
"""


@pytest.fixture
def make_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """Return a function that makes a bench with peers of plain numpy and OpenCV."""
    package = tmp_path / "fake_peers"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the peers' processes

    def make(stack: ExitStack, **shifts: str) -> Bench:
        for name, shift in shifts.items():
            (package / f"{name}.py").write_text(FAKE.replace("SHIFT", shift))
        monkeypatch.setattr(shared, "all_peers", lambda: [Peer(n, package.name) for n in shifts])
        data = tmp_path / "data"
        data.mkdir()
        return Bench(Scale(samples=300, distinct=8, rounds=2), data, stack)

    return make


def test_peers_are_measured_in_processes_of_their_own(make_peers: Callable[..., Bench]) -> None:
    figures = load_figures("peers")
    with ExitStack() as stack:
        bench = make_peers(stack, ours="", another="")
        rows = {row["figure"]: row for row in measure(figures, [bench])}
    assert rows.keys() == {"first_batch", "peer_memory", "peer_reads", "peers"}
    for row in rows.values():
        assert row["other_name"].startswith("another (numpy")
        assert row["params"]["peer"] == "another"
        assert row["other"] > 0
    assert rows["peers"]["unit"] == "images/processor s"
    assert rows["peers"]["params"]["rounds"] == rows["first_batch"]["params"]["rounds"] == 2
    assert 10e6 < rows["peer_memory"]["ours"] < 1e9
    assert not list(bench.data.glob("peers.*"))


def test_a_peer_that_delivers_another_image_ends_the_benchmark(
    make_peers: Callable[..., Bench],
) -> None:
    with ExitStack() as stack, pytest.raises(RuntimeError, match="shows another image"):
        _ = make_peers(stack, ours="", wrong="(lambda images: images[1:] + images[:1])").peers


# -- the table -------------------------------------------------------------------------------------
def test_the_table_has_a_line_for_each_peer_the_fastest_first() -> None:
    def rows(figure: str, unit: str, ours: float, others: dict[str, float]) -> list[Any]:
        about = {"retained_bytes": 10, "keep": 0.2, "samples": 50}
        walls = {"ours_wall_s": 2 * ours, "other_wall_s": 1.0}
        return [
            compare(figure, unit, [ours] * 2, [other] * 2, f"{peer} 1", peer=peer, **about, **walls)
            for peer, other in others.items()
        ]

    lines = [
        {},
        *rows("peers", "images/processor s", 900.0, {"slow": 100.0, "fast": 300.0}),
        *rows("first_batch", "processor s", 1.5, {"slow": 0.5, "fast": 2.5}),
        *rows("peer_memory", "bytes", 4e6, {"slow": 1e6, "fast": 2e6}),
        *rows("peer_reads", "bytes", 10, {"slow": 50, "fast": 20}),
    ]
    table = peers_table(lines, "Measured", with_quartiles).splitlines()
    assert table[2] == "| `PrunedLoader` | 900 |  | 1.50 s | 3.00 s | 4 MB | 1.00 |"
    assert table[3] == "| fast 1 | 300 | 3 (3 to 3) | 2.50 s | 1.00 s | 2 MB | 2.00 |"
    assert table[4].startswith("| slow 1 | 100 | 9 (9 to 9) |")
    assert "3 times as many images per second as the fastest of 2" in peers_sentence(lines)
