"""Launchers: a study on a real Ray cluster that loses a node, as jobs of submitit, and errors."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dp4tl_ffcv import image_fields, write_beton
from dp4tl_ffcv.atomic import lock_folder, unlock
from train.components.study import work
from train.components.study.launchers import LaunchError, launcher_of, nodes
from train.components.study.stages import Stage
from train.configs.study import Config
from train.study import study

FILE = """
source: source_{split}.beton
targets: {digits: "target_{split}.beton"}
methods: [label_mapping]
keeps: {equal_epochs: [0.5]}
seeds: 1
images: {resolution: 16, crop_ratio: 1.0, flip: false}
pretrain: {arch: resnet8_w16, epochs: 8, batch_size: 20, lr: 0.1}
surrogates: {default: {epochs: 9}}
finetune:
  linear_probe: {epochs: 2, batch_size: 16}
"""
TIMES = ("_seconds", "_per_second")
SOURCE, TARGET = range(6), range(6, 10)  # digits


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study of handwritten digits: six are the source, four the target."""
    folder = tmp_path_factory.mktemp("launchers")
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(pixels.repeat(2, 1).repeat(2, 2)[..., None], 3, axis=3)
    for name, digits, splits in (
        ("source", SOURCE, {"train": 60, "val": 20}),
        ("target", TARGET, {"train": 20, "val": 20, "test": 40}),
    ):
        ids = np.flatnonzero(np.isin(labels, digits))
        for split, count in splits.items():
            chosen, ids = ids[:count], ids[count:]
            samples = [(pixels[n], int(labels[n]) - digits[0], int(n)) for n in chosen]
            path = folder / f"{name}_{split}.beton"
            write_beton(path, samples, image_fields(mode="raw"), num_workers=0)
    (folder / "digits.yaml").write_text(FILE)
    return folder / "digits.yaml"


@pytest.fixture(scope="module")
def expected(file: Path) -> list[dict[str, Any]]:
    """Return the rows of the launcher `local`."""
    out = file.parent / "local"
    study(Config(file=file, out=out, jobs=1))
    return rows(out)


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a study without times."""
    lines = (out / "results.jsonl").read_text().splitlines()
    found = map(json.loads, lines)
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in found]


# -- Ray -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a Ray cluster on this machine: two nodes of one core, which work in another folder."""
    utils = pytest.importorskip("ray.cluster_utils", reason="the extra `ray` is not installed")
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "worker_niceness": 0,  # other tests run at the same time
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.chdir(tmp_path_factory.mktemp("nodes"))
        made = utils.Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
        made.add_node(**node)
    yield made
    made.shutdown()


def ray_config(cluster: Any, file: Path, **options: Any) -> Config:
    return Config(file=file, launcher="ray", address=cluster.address, **options)


def test_ray_runs_at_most_what_its_nodes_can_place(cluster: Any, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with launcher_of(ray_config(cluster, tmp_path), tmp_path) as launcher:
        assert launcher.slots == 2
        assert signal.getsignal(signal.SIGTERM) == handler
    with launcher_of(ray_config(cluster, tmp_path, jobs=5), tmp_path) as launcher:
        assert launcher.slots == 5
    with pytest.raises(LaunchError, match="no node of the Ray cluster has num_cpus=2 for a stage"):
        launcher_of(ray_config(cluster, tmp_path, ray=("num_cpus=2",)), tmp_path)


def test_a_study_on_ray_survives_the_loss_of_a_node(
    file: Path, expected: list[dict[str, Any]], cluster: Any
) -> None:
    out = file.parent / "ray"
    (node,) = cluster.worker_nodes
    lost: list[str] = []

    def kill_in_the_middle() -> None:
        while not lost:
            lost.extend(pretrains_on(node, out))
            time.sleep(0.02)
        kill(raylet_of(node))

    Thread(target=kill_in_the_middle, daemon=True).start()
    study(ray_config(cluster, file, out=Path(os.path.relpath(out))))
    (key,) = lost
    assert rows(out) == expected
    resumed = [path for path in out.glob("*/*/run/log.jsonl") if '"resume"' in path.read_text()]
    assert [path.parents[1].name for path in resumed] == [key]
    with launcher_of(ray_config(cluster, file), out) as launcher:
        limit = time.monotonic() + 60
        while launcher.slots > 1:  # until Ray misses the node, seconds after its end
            assert time.monotonic() < limit
            time.sleep(0.1)


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def processes_of(parent: int) -> list[Any]:
    """Return a process and all that it has started."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process(parent)
    return [process, *process.children(recursive=True)]


def kill(parent: int) -> None:
    """Kill a process and all that it has started, as a power failure does."""
    for process in processes_of(parent):
        process.kill()


def pretrains_on(node: Any, out: Path) -> list[str]:
    """Return the unfinished pretraining of a node, whose folder it locks, once it has a state."""
    opened = set()
    for process in processes_of(raylet_of(node)):
        with suppress(FileNotFoundError):  # the process or the file has gone
            links = Path(f"/proc/{process.pid}/fd").iterdir()
            opened |= {link.readlink() for link in links}
    return [
        state.parents[2].name
        for state in out.glob("pretrain/*/run/checkpoints/resume.pt")
        if state.parents[2] in opened and not (state.parents[1] / "result.json").exists()
    ]


# -- Slurm ---------------------------------------------------------------------------------------
def test_a_study_as_jobs_of_submitit_repeats_a_job_that_is_killed(
    file: Path, expected: list[dict[str, Any]]
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    out, parameters = file.parent / "local", ("cluster=local", "timeout_min=10")
    for folder in [*out.glob("finetune/*"), *out.glob("selection/*")]:
        shutil.rmtree(folder)
    (out / "results.jsonl").unlink()
    killed: list[int] = []

    def kill_the_first_job() -> None:
        while not (jobs := [*out.glob("slurm/*_submitted.pkl")]):
            time.sleep(0.02)
        killed.append(int(jobs[0].name.partition("_")[0]))
        kill(killed[0])

    Thread(target=kill_the_first_job, daemon=True).start()
    study(Config(file=file, out=out, launcher="slurm", jobs=2, slurm=parameters))
    assert killed
    assert rows(out) == expected
    assert len([*out.glob("slurm/*_submitted.pkl")]) == 4  # for three stages


# -- nodes that share the folder late, or not at all ---------------------------------------------
@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Stage, Stage]:
    """Return a stage and another one that needs it. Their work is empty."""
    monkeypatch.setattr(nodes, "_PATIENCE", 0.5)
    monkeypatch.setattr(nodes, "_TRIES_EVERY", 0.01)
    monkeypatch.setitem(work._WORK, "nothing", lambda stage, threads: {"threads": threads})
    need = Stage(kind="nothing", facts={"name": "need"}, root=tmp_path)
    return need, Stage(kind="nothing", facts={"name": "use"}, needs={"need": need}, root=tmp_path)


def settled(stage: Stage, outcome: nodes.Outcome) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()
    nodes.settle(future, stage, outcome)
    return future


def test_a_node_runs_a_stage_of_the_folder_that_it_shares(stages: tuple[Stage, Stage]) -> None:
    mark = nodes.mark(stages[0].root)
    for stage in stages:
        outcome = nodes.run_on_node(stage, mark, 3)
        assert settled(stage, outcome).result() == stage.result()
        assert outcome.result is not None
        assert outcome.result["threads"] == 3


def test_a_node_without_the_folder_ends_the_study(stages: tuple[Stage, Stage]) -> None:
    need, stage = stages
    old = nodes.mark(need.root)
    mark = nodes.mark(need.root)
    for outcome, folder in (
        (nodes.run_on_node(need, old), need.root),  # it sees another folder
        (nodes.run_on_node(stage, mark), need.folder),  # it does not see what another node wrote
        (nodes.Outcome(result={}, node="far"), stage.folder),  # it wrote elsewhere
    ):
        with pytest.raises(LaunchError, match=r"does not share .* all nodes see") as caught:
            settled(stage, outcome).result()
        assert repr(str(folder)) in str(caught.value)
    assert not need.folder.exists()


def test_a_node_waits_for_files_that_show_up_late(stages: tuple[Stage, Stage]) -> None:
    need, stage = stages
    mark = nodes.mark(need.root)
    hidden = (need.root / mark).rename(need.root / "hidden")
    shown = Timer(0.1, hidden.rename, (need.root / mark,))
    late = Timer(0.2, nodes.run_on_node, (need, mark))
    for timer in (shown, late):
        timer.start()
    outcome = nodes.run_on_node(stage, mark)
    assert outcome.result is not None
    late.join()
    hidden = stage.folder.rename(stage.root / "hidden")
    future: Future[dict[str, Any]] = Future()
    nodes.settle(future, stage, outcome)
    assert not future.done()  # and `settle` did not wait
    hidden.rename(stage.folder)
    assert future.result() == outcome.result


def test_a_node_waits_for_the_lock_of_a_dead_one(
    stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp4tl_ffcv.atomic._PATIENCE", 0.05)
    stage, mark = stages[0], nodes.mark(stages[0].root)
    lock = lock_folder(stage.folder, stage.folder)
    freed = Timer(0.2, unlock, (lock,))
    freed.start()
    assert nodes.run_on_node(stage, mark).result is not None
    freed.join()


def test_a_node_reports_the_error_of_a_stage(
    stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stage: Stage, threads: int | None) -> dict[str, Any]:
        raise OSError("no space left")

    monkeypatch.setitem(work._WORK, "nothing", fail)
    outcome = nodes.run_on_node(stages[0], nodes.mark(stages[0].root))
    with pytest.raises(ValueError, match=r"^no space left$") as caught:
        settled(stages[0], outcome).result()
    assert not isinstance(caught.value, LaunchError)  # other stages go on


# -- settings ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": "auto"}, "`address` is for the launcher ray; got local"),
        ({"slurm": ("timeout_min=1",)}, "`slurm` is for the launcher slurm; got local"),
        ({"launcher": "rya"}, "`launcher` must be"),
        ({"launcher": "ray", "ray": ("num_gpus",)}, "NAME=VALUE; got 'num_gpus'"),
        (
            {"launcher": "ray", "ray": ("gpus=1",)},
            "`ray` has no parameter gpus; there are",
        ),
        ({"launcher": "ray", "ray": ("num_gpus=two",)}, "num_gpus of `ray` must be a number"),
        ({"launcher": "ray", "ray": ("num_cpus=nan",)}, "num_cpus of `ray` must be a number"),
        ({"launcher": "ray", "ray": ("num_cpus=inf",)}, "num_cpus of `ray` must be a number"),
        ({"launcher": "ray", "ray": ("memory=much",)}, "memory.* must be bytes"),
        ({"launcher": "ray", "ray": ("num_cpus=0",)}, "asks for no resource"),
        ({"launcher": "slurm"}, "needs timeout_min=MINUTES"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        launcher_of(Config(file=tmp_path, **options), tmp_path)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("cluster=slurm", "no Slurm on this machine"),
        ("colour=red", "refuses a parameter of `slurm`: Parameter 'colour' need"),
        ("slurm_colour=red", "refuses a parameter of `slurm`: Unknown argument 'colour'"),
        ("gpus_per_node=one", 'refuses a parameter of `slurm`: Parameter "gpus_per_node"'),
    ],
)
def test_slurm_that_is_missing_or_refuses_a_parameter(
    parameter: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    monkeypatch.setenv("PATH", "")
    slurm = ("cluster=local", "timeout_min=1", parameter)
    with pytest.raises(ValueError, match=words) as caught:
        launcher_of(Config(file=tmp_path, launcher="slurm", slurm=slurm), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("launcher", "package", "options"),
    [("ray", "ray", {}), ("slurm", "submitit", {"slurm": ("timeout_min=1",)})],
)
def test_a_missing_package_is_named(
    launcher: str,
    package: str,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"Run `pip install {package}`"):
        launcher_of(Config(file=tmp_path, launcher=launcher, **options), tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense"])
def test_an_address_without_a_cluster_is_refused(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.raises(LaunchError, match=r"no Ray cluster answers .*ray start") as caught:
        launcher_of(Config(file=tmp_path, launcher="ray", address=address), tmp_path)
    assert "\n" not in str(caught.value)
