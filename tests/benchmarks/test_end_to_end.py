"""The end-to-end benchmark: all sides train on very little data, and figures of known epochs."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ffcv.pipeline.compiler import Compiler

from benchmarks.end_to_end import bench as bench_module
from benchmarks.end_to_end.bench import CPU, GPU, QUICK_CPU, QUICK_GPU, Bench
from benchmarks.end_to_end.sides import Epoch, Scale, Side, Trainer, unguarded
from benchmarks.end_to_end.table import end_to_end_table
from benchmarks.harness.command import load_figures, measure
from benchmarks.harness.dataset import retain
from benchmarks.harness.timing import Timing
from dp4tl_ffcv.loading.ffcv_adapter import iterator

TINY = Scale(
    resolution=32,
    batch_size=16,
    num_classes=4,
    samples=80,
    keeps=(0.5,),
    warm=1,
    cold=1,
    limit=True,
)
SECONDS = {
    "PrunedLoader, full": 8.0,
    "PrunedLoader": 5.0,
    "compacted": 4.0,
    "compacted, raw": 2.0,
    "stock Loader, full": 16.0,
    "stock Loader, indices=": 10.0,
    "stock Loader, compacted": 8.0,
    "PrunedLoader, no guard": 4.0,
    "synthetic": 1.0,
}


class Uncompiled(Trainer):
    """Trainer whose stock loaders are not compiled, which would take 7 s for each."""

    def open(self, side: Side) -> None:
        Compiler.set_enabled(not side.stock)
        super().open(side)


Rows = dict[tuple[str, str, str], dict[str, Any]]


def measured(bench: Bench) -> Rows:
    """Return the rows of a bench by figure, side (and method) and page cache."""
    rows = list(measure(load_figures("end_to_end"), [bench]))
    named = {}
    for row in rows:
        params = row["params"]
        how = params["how"] + params.get("method", "")
        named[row["figure"], how, params["page_cache"]] = row
    assert len(named) == len(rows)
    return named


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("end_to_end")


def pretend(bench: Bench, side: Side) -> Epoch:
    """Make an epoch that waited for a quarter of its time and read each sample twice."""
    images = round(bench.share(side.keep) * TINY.samples)
    seconds = SECONDS[side.how]
    timing = Timing(seconds, 3 * seconds)
    return Epoch(timing=timing, images=images, waited=seconds / 4, read=1000)


@pytest.fixture(scope="module")
def pretended(folder: Path) -> tuple[Bench, Rows]:
    """Rows of epochs whose times are known."""
    bench = Bench(TINY, folder, ExitStack())
    epochs = {side: [pretend(bench, side)] * 3 for side in bench.sides}
    bench.__dict__["epochs"] = {"cold": epochs, "warm": epochs}
    bench.__dict__["selection_seconds"] = {"label_mapping": 1.0, "feature_mapping": 3.0}
    return bench, measured(bench)


@pytest.mark.parametrize("how", ["PrunedLoader", "stock Loader, indices=", "compacted"])
def test_the_ratio_is_the_speed_up_times_the_retained_share(
    how: str, pretended: tuple[Bench, Rows]
) -> None:
    bench, rows = pretended
    row = rows["speedup_of_ideal", how, "warm"]
    full = SECONDS["stock Loader, full" if how.startswith("stock") else "PrunedLoader, full"]
    assert row["params"]["speedup"] == pytest.approx(full / SECONDS[how])
    assert row["ratio"] == pytest.approx(full / SECONDS[how] * bench.share(0.5), rel=1e-4)


def test_the_cost_of_selection_is_spread_over_a_run(pretended: tuple[Bench, Rows]) -> None:
    bench, rows = pretended
    for method, cost in (("label_mapping", 1.0), ("feature_mapping", 3.0)):
        row = rows["speedup_with_selection", f"PrunedLoader{method}", "warm"]
        assert row["params"]["speedup"] == pytest.approx(16 * 8 / (16 * 5 + cost), rel=1e-4)
    compacted = rows["speedup_with_selection", "compactedlabel_mapping", "warm"]
    seconds = bench.compacted["compacted", 0.5][1]
    assert compacted["ours"] == pytest.approx(16 * 4 + 1 + seconds, rel=1e-4)


def test_rates_and_waiting_are_compared_with_stock_ffcv_and_the_device(
    pretended: tuple[Bench, Rows],
) -> None:
    bench, rows = pretended
    rate = rows["images_per_second", "PrunedLoader", "warm"]
    assert (rate["other_name"], rate["ratio"]) == ("stock Loader, indices=", pytest.approx(2.0))
    assert rate["cpu_ratio"] == pytest.approx(2.0)
    stalled = rows["stall_share", "compacted", "cold"]
    assert (stalled["ours"], stalled["other"]) == (0.25, 0.25)
    assert stalled["other_name"] == "stock Loader, compacted"
    guard = rows["guard_cost", "PrunedLoader", "warm"]
    assert (guard["other_name"], guard["ratio"]) == ("PrunedLoader, no guard", pytest.approx(0.8))
    share = rows["gpu_limit_share", "compacted", "warm"]["ratio"]
    images = round(bench.share(0.5) * TINY.samples)
    assert share == pytest.approx((images / 4) / (TINY.samples / 1), rel=1e-4)


def test_the_table_has_a_line_for_each_side(pretended: tuple[Bench, Rows]) -> None:
    bench, rows = pretended
    table = end_to_end_table([{}, *rows.values()], "Measured")
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| resnet8")]
    assert [line[2] for line in lines[:2]] == ["PrunedLoader, full", "stock Loader, full"]
    sides = {line[2]: line for line in lines}
    assert len(lines) == len(sides) == len(SECONDS) - 2
    assert "with the guard of pinned buffers / without: 0.800." in table
    share = bench.share(0.5)
    assert sides["compacted"][3:5] == ["2.00", f"{2 * share:.2f}"]
    rate = round(share * TINY.samples) / SECONDS["stock Loader, indices="]
    assert sides["stock Loader, indices="][7:9] == [f"{rate:.0f}", "25.0%"]
    limit = TINY.samples / SECONDS["synthetic"]
    pruned = round(share * TINY.samples) / SECONDS["PrunedLoader"]
    assert sides["PrunedLoader"][-1] == f"{pruned / limit:.2f} |"


def test_all_sides_train_and_pruned_epochs_read_what_is_retained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "Trainer", Uncompiled)
    cold = replace(TINY, warm=0, limit=False)
    rows = measured(Bench(cold, folder, ExitStack()))
    pruned = {how for figure, how, _ in rows if figure == "speedup_of_ideal"}
    assert pruned == {
        how for how in SECONDS if how != "synthetic" and "full" not in how and "guard" not in how
    }
    for (figure, *_), row in rows.items():
        assert row["ours"] > 0, figure
        assert row["ratio"] is None or row["ratio"] > 0
    for how in ("PrunedLoader", "compacted", "PrunedLoader, full"):
        assert 0.9 < rows["bytes_read", how, "cold"]["ratio"] <= 1
    assert rows["bytes_read", "stock Loader, indices=", "cold"]["ratio"] < 0.6  # whole pages


def test_the_retained_samples_fill_whole_batches(pretended: tuple[Bench, Rows]) -> None:
    """Each real epoch is checked to train exactly these samples."""
    bench, _ = pretended
    chosen = retain(bench.index.labels(), 0.5)
    assert len(chosen) % 16, "choose another size, else nothing is cut"
    assert bench.retained(0.5).tolist() == chosen[: len(chosen) // 16 * 16].tolist()


@pytest.mark.filterwarnings("ignore:the surrogate hardly")  # it is not trained
def test_selection_runs_from_betons_to_classes(pretended: tuple[Bench, Rows]) -> None:
    source = pretended[0].source
    trainer = Trainer(TINY, source, cold=False)
    for method in ("label_mapping", "feature_mapping"):
        assert trainer.select(method, source, source, 0.5) > 0


def test_a_small_network_is_trained_without_a_gpu_and_resnets_with_one() -> None:
    for scale in (*CPU, *QUICK_CPU):
        assert (scale.arch, scale.device, scale.limit) == ("resnet8_w16", "cpu", False)
    for scale in (*CPU, *QUICK_CPU, *GPU, *QUICK_GPU):
        assert scale.samples % scale.batch_size == 0  # no short last batch
    assert [(scale.arch, scale.resolution) for scale in GPU] == [
        ("resnet18", 160),
        ("resnet50", 160),
    ]


def test_the_minutes_on_a_gpu_leave_out_the_full_source(tmp_path: Path) -> None:
    scale = replace(TINY, full=False, warm=1, cold=0)
    bench = Bench(scale, tmp_path, ExitStack())
    hows = [side.how for side in bench.sides]
    assert hows == [how for how in hows if "full" not in how and how != "stock Loader, compacted"]
    bench.__dict__["epochs"] = {"warm": {side: [pretend(bench, side)] for side in bench.sides}}
    rows = measured(bench)
    assert {figure for figure, *_ in rows} == {
        "gpu_limit_share", "guard_cost", "images_per_second", "stall_share",
    }  # fmt: skip
    assert rows["images_per_second", "compacted", "warm"]["other_name"] == "stock Loader, indices="
    assert not any(scale.full for scale in QUICK_GPU)


def test_a_loader_without_its_guard_waits_for_no_event() -> None:
    with unguarded():
        iterator._event_on(None).synchronize()
    assert iterator._event_on.__module__ == iterator.__name__


def test_the_script_for_a_gpu_runs_all_figures_that_need_one() -> None:
    script = (Path(bench_module.__file__).parents[1] / "gpu.sh").read_text()
    limits = [int(line.split()[2]) for line in script.splitlines() if line.startswith("step ")]
    assert sum(limits) <= 9 * 60
    for figure in ("gpu_limit_share", "stall_share", "guard_cost", "images_per_second"):
        assert figure in script
        assert load_figures("end_to_end", [figure])
