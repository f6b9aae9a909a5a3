"""MoCo v2: its loss against the formula, what a run leaves, resumes and shares, and FM on it."""

import copy
import json
import multiprocessing
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dp4tl_ffcv import Scores, Selection, StaleArtifactError, build_model, compact, load_checkpoint
from dp4tl_ffcv.cli import main
from tests.conftest import Colours, Images
from train import finetune, pretrain_moco
from train.components.augmentations import augment, draw
from train.components.moco import GroupedBatchNorm, group_norms
from train.components.processes import Processes, processes
from train.components.resuming import Progress, Snapshot
from train.configs.self_supervised import CONFIGS, Config

CPU = Processes(torch.device("cpu"))
PATIENCE = 240  # seconds for two processes to start and train; a few when the machine is free
# Three steps an epoch on 120 images; batch statistics over 10.
SMALL: dict[str, Any] = {
    "arch": "resnet8_w16",
    "resolution": 32,
    "batch_size": 40,
    "norm_batch": 10,
    "queue": 80,
    "projection_size": 16,
    "key_momentum": 0.9,
    "epochs": 2,
    "num_workers": 1,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def configure(photos: Images, tmp_path: Path) -> Callable[..., Config]:
    def make(**changes: Any) -> Config:
        return Config(**{**SMALL, "train": photos.path, "run": tmp_path / "run", **changes})

    return make


@pytest.fixture(scope="module")
def trained(photos: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run without interruption."""
    run = tmp_path_factory.mktemp("moco") / "run"
    return pretrain_moco.pretrain_moco(Config(**SMALL, train=photos.path, run=run))


def state_of(checkpoint: str | Path) -> dict[str, Tensor]:
    return load_checkpoint(checkpoint).state_dict()


def assert_same_states(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# -- one step --------------------------------------------------------------------------------------
def batch_of(parts: pretrain_moco.Parts) -> list[Tensor]:
    return [crops.clone() for crops in next(iter(parts.loader))]


def test_the_loss_is_that_of_queries_against_their_keys_and_the_queue(
    configure: Callable[..., Config],
) -> None:
    config = configure(temperature=0.3, seed=5)
    parts = pretrain_moco.set_up(config, CPU, None, 40)
    moco = copy.deepcopy(parts.moco)
    with torch.no_grad():
        for weights in parts.moco.key.parameters():  # no longer those of the queries
            weights.mul_(0.5)
    first, second = batch_of(parts)
    queue = parts.moco.loss.memory_bank.bank.clone()

    torch.manual_seed(1)
    loss = pretrain_moco.contrastive_loss(parts, first, second, (3, 7))

    torch.manual_seed(1)
    shuffle = torch.randperm(40)
    for weights, own in zip(moco.key.parameters(), moco.query.parameters(), strict=True):
        weights.data = 0.9 * (0.5 * weights.data) + (1 - 0.9) * own.data
    queries = moco.query(augment(first, draw(40, config, (5, 3, 7, 0, 0), CPU.device)))
    shuffled = moco.key(augment(second[shuffle], draw(40, config, (5, 3, 7, 0, 1), CPU.device)))
    keys = torch.empty_like(shuffled)
    keys[shuffle] = shuffled
    queries, keys = normalize(queries, dim=1), normalize(keys, dim=1)
    positive = (queries * keys).sum(1)
    logits = torch.cat([positive[:, None], queries @ queue.T], 1) / 0.3
    expected = (logits.logsumexp(1) - logits[:, 0]).mean()
    torch.testing.assert_close(loss, expected)

    bank = parts.moco.loss.memory_bank
    torch.testing.assert_close(bank.bank[:40], keys)
    assert torch.equal(bank.bank[40:], queue[40:])
    assert int(bank.bank_ptr) == 40
    loss.backward()
    assert all(weights.grad is None for weights in parts.moco.key.parameters())
    assert all(weights.grad is not None for weights in parts.moco.query.parameters())


def test_a_step_moves_the_query_network_at_the_rate_of_a_cosine(
    configure: Callable[..., Config],
) -> None:
    parts = pretrain_moco.set_up(configure(lr=0.2, momentum=0.0, weight_decay=0.1), CPU, None, 40)
    before = [weights.detach().clone() for weights in parts.moco.query.parameters()]
    first, second = batch_of(parts)
    pretrain_moco.train_step(parts, first, second, Progress(step=2))
    rate = 0.2 * (1 + np.cos(np.pi * 2 / 6)) / 2
    for weights, old in zip(parts.moco.query.parameters(), before, strict=True):
        assert weights.grad is not None
        torch.testing.assert_close(weights, old - rate * (weights.grad + 0.1 * old))


def test_the_queue_starts_over_when_it_is_full(configure: Callable[..., Config]) -> None:
    parts = pretrain_moco.set_up(configure(), CPU, None, 40)
    bank, (first, second) = parts.moco.loss.memory_bank, batch_of(parts)
    places = []
    for step in range(3):
        pretrain_moco.contrastive_loss(parts, first, second, (0, step))
        places.append(int(bank.bank_ptr))
    assert places == [40, 0, 40]


def test_views_are_two_crops_of_the_same_image(
    colours: Colours, photos: Images, configure: Callable[..., Config]
) -> None:
    seen: list[int] = []
    loader = pretrain_moco.two_views(configure(train=colours.path), CPU, None, 40)
    for first, second in loader:
        ids = colours.ids_of(first.permute(0, 2, 3, 1))
        assert ids.tolist() == colours.ids_of(second.permute(0, 2, 3, 1)).tolist()
        seen += ids.tolist()
    assert sorted(seen) == list(range(120))
    first, second = next(iter(pretrain_moco.two_views(configure(), CPU, None, 40)))
    assert first.dtype == torch.uint8
    assert first.shape == second.shape == (40, 3, 32, 32)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_batch_statistics_are_those_of_each_part() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(5)
    nn.init.uniform_(plain.weight)
    nn.init.uniform_(plain.bias)
    grouped = GroupedBatchNorm(plain, 4)
    images = torch.randn((11, 5, 6, 7)).contiguous(memory_format=torch.channels_last)
    parts = [copy.deepcopy(plain) for _ in range(3)]  # 11 images: parts of 4, 4 and 3
    chunks = images.tensor_split(3)
    expected = torch.cat([norm(part) for norm, part in zip(parts, chunks, strict=True)])
    torch.testing.assert_close(grouped(images), expected)
    assert_same_states(grouped.state_dict(), parts[0].state_dict())
    torch.testing.assert_close(grouped.eval()(images), parts[0].eval()(images))


def test_every_norm_of_an_encoder_is_replaced_and_its_state_fits_the_plain_one() -> None:
    plain, grouped = build_model("resnet18", None), build_model("resnet18", None)
    group_norms(grouped, 8)
    norms = [part for part in grouped.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(isinstance(norm, GroupedBatchNorm) for norm in norms)
    plain.load_state_dict(grouped.state_dict())


# -- runs ------------------------------------------------------------------------------------------
def test_a_run_leaves_an_encoder_and_a_result(trained: dict[str, Any], photos: Images) -> None:
    run = Path(trained["checkpoint"]).parents[1]
    assert json.loads((run / "result.json").read_text()) == trained
    assert trained["steps"] == 6
    assert trained["images"] == 240
    assert trained["retained_samples"] == 120
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "epoch"] == [3, 6]
    assert trained["loss"] == rows[-1]["loss"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.pt"]
    model = load_checkpoint(trained["checkpoint"], arch="resnet8_w16")
    assert model.num_classes is None
    assert model.trained_on == photos.index.fingerprint
    assert model.state_dict().keys() == build_model("resnet8_w16", None).state_dict().keys()
    logits, features = model.eval().features(torch.zeros((2, 3, 32, 32), dtype=torch.uint8))
    assert logits is None
    assert features.shape == (2, 64)


def test_a_run_learns_to_tell_images_apart(configure: Callable[..., Config]) -> None:
    """Two crops of an image are nearer to each other than to those of other images."""
    run = pretrain_moco.pretrain_moco(configure(epochs=12, lr=0.06))

    def rank_of_the_other_crop(model: nn.Module) -> float:
        loader = pretrain_moco.two_views(configure(batch_size=120), CPU, None, 120)
        first, second = (normalize(model.eval()(crops), dim=1) for crops in next(iter(loader)))
        similarity = first @ second.T
        return float((similarity > similarity.diagonal()[:, None]).float().sum(1).mean())

    with torch.inference_mode():
        torch.manual_seed(0)
        untrained = rank_of_the_other_crop(build_model("resnet8_w16", None))
        assert rank_of_the_other_crop(load_checkpoint(run["checkpoint"])) < 0.8 * untrained


def test_a_run_that_is_killed_ends_with_the_same_weights(
    configure: Callable[..., Config], trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second epoch, behind the state of the first."""
    step, taken = pretrain_moco.train_step, []

    def killed(*args: Any) -> Tensor:
        taken.append(args)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(pretrain_moco, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain_moco.pretrain_moco(configure())
    torch.manual_seed(123)
    resumed = pretrain_moco.pretrain_moco(configure())
    assert len(taken) == 5 + 3
    assert resumed["loss"] == trained["loss"]
    assert resumed["images"] == 240
    assert_same_states(state_of(resumed["checkpoint"]), state_of(trained["checkpoint"]))


def test_queue_key_network_and_momentum_come_back(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    parts, other = (pretrain_moco.set_up(configure(seed=seed), CPU, None, 40) for seed in (0, 1))
    first, second = batch_of(parts)
    pretrain_moco.train_step(parts, first, second, Progress())
    Snapshot(tmp_path / "state.pt", parts.stateful).save(Progress(step=1))
    assert Snapshot(tmp_path / "state.pt", other.stateful).load().step == 1
    assert_same_states(dict(parts.moco.named_parameters()), dict(other.moco.named_parameters()))
    assert_same_states(dict(parts.moco.named_buffers()), dict(other.moco.named_buffers()))
    assert any("bank_ptr" in name for name, _ in other.moco.named_buffers())
    for own, its in zip(*(p.optimizer.state.values() for p in (parts, other)), strict=True):
        assert torch.equal(own["momentum_buffer"], its["momentum_buffer"])


def test_a_finished_run_is_taken_over(
    trained: dict[str, Any], photos: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(**SMALL, train=photos.path, run=Path(trained["checkpoint"]).parents[1])
    assert pretrain_moco.pretrain_moco(replace(config, save_every=7, num_workers=2)) == trained
    assert "reused" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`run`"):
        pretrain_moco.pretrain_moco(replace(config, temperature=0.1))


def test_files_that_were_moved_are_the_same_run(
    trained: dict[str, Any], photos: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(trained["checkpoint"]).parents[1], "moved")
    shutil.copy(photos.path, "train.beton")
    config = Config(**SMALL, train=Path("train.beton"), run=Path("moved"))
    assert pretrain_moco.pretrain_moco(config) == trained


@pytest.mark.parametrize("setting", ["batch_per", "lr_per"])
def test_a_rate_or_batch_of_each_process_makes_their_number_part_of_the_run(
    setting: str, configure: Callable[..., Config], photos: Images
) -> None:
    def of(config: Config, world: int) -> dict[str, Any]:
        return pretrain_moco._fingerprint(config, photos.index, None, world)

    assert of(configure(), 2) == of(configure(), 4)
    each = configure(**{setting: "process"})
    assert of(each, 2) == of(each, 2)
    assert of(each, 2) != of(each, 4)


def test_a_selection_trains_on_what_it_retains(
    configure: Callable[..., Config], photos: Images, tmp_path: Path
) -> None:
    selection = Selection.of_classes(photos.index, [1, 4, 8])
    selection.save(tmp_path / "three.npz")
    config = configure(selection=tmp_path / "three.npz", batch_size=12, queue=24, iterations=4)
    result = pretrain_moco.pretrain_moco(config)
    assert result["retained_samples"] == 36
    assert result["steps"] == 4
    loader = pretrain_moco.two_views(config, CPU, selection, 12)
    assert set(photos.labels[loader.indices.astype(int)].tolist()) == {1, 4, 8}


def test_a_selection_of_another_beton_is_refused(
    configure: Callable[..., Config], other_photos: Images, tmp_path: Path
) -> None:
    Selection.of_classes(other_photos.index, [1]).save(tmp_path / "other.npz")
    with pytest.raises(StaleArtifactError, match="made for another beton"):
        pretrain_moco.pretrain_moco(configure(selection=tmp_path / "other.npz"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"queue": 100}, "queue"), ({"batch_size": 121, "queue": 242}, "batch_size")],
    ids=str,
)
def test_a_batch_that_fits_neither_queue_nor_data_is_refused(
    changes: dict[str, Any], name: str, configure: Callable[..., Config]
) -> None:
    with pytest.raises(ValueError, match=f"^`{name}` must"):
        pretrain_moco.pretrain_moco(configure(**changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue", 0),
        ("epochs", 0),
        ("seed", -1),
        ("temperature", 0.0),
        ("key_momentum", 1.5),
        ("hue", 0.6),
        ("resolution", 6),
        ("batch_per", "epoch"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(
    name: str, value: Any, configure: Callable[..., Config]
) -> None:
    with pytest.raises(ValueError, match=f"^`{name}` must"):
        configure(**{name: value})


def test_a_rate_that_loses_the_loss_is_an_error_and_no_result(
    configure: Callable[..., Config],
) -> None:
    with pytest.raises(ValueError, match="`lr`"):
        pretrain_moco.pretrain_moco(configure(lr=1e30, iterations=2))
    assert not (configure().run / "result.json").exists()


def test_without_lightly_the_command_says_what_to_install(
    fail: Callable[..., str], photos: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightly", None)
    line = fail("train.pretrain_moco", train=photos.path, run=tmp_path / "run")
    assert "pip install lightly" in line


def test_configurations_are_those_of_moco_v2() -> None:
    configs = {name: make(train=Path("a"), run=Path("b")) for name, make in CONFIGS.items()}
    assert configs["moco_rn50_200"] == Config(train=Path("a"), run=Path("b"))
    assert {config.arch for config in configs.values()} == {"resnet18", "resnet50", "resnet101"}
    for name, config in configs.items():
        assert name.endswith(f"_{config.epochs}")
        assert (config.lr, config.weight_decay, config.momentum) == (0.03, 1e-4, 0.9)
        assert (config.queue, config.temperature, config.key_momentum) == (65536, 0.2, 0.999)
        assert (config.batch_size, config.resolution, config.min_scale) == (256, 224, 0.2)


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu(configure: Callable[..., Config]) -> None:
    parts = pretrain_moco.set_up(configure(), Processes(torch.device("cuda", 0)), None, 40)
    first, second = batch_of(parts)
    pretrain_moco.train_step(parts, first, second, Progress())
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = pretrain_moco.train_step(parts, first, second, Progress(step=1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


# -- several processes -----------------------------------------------------------------------------
def train_as(rank: int, port: int, config: Config, results: Any) -> None:
    """Train in one of two processes; report the result, the queue and what follows from them."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    kept: list[pretrain_moco.Parts] = []
    set_up = pretrain_moco.set_up
    pretrain_moco.set_up = lambda *args: kept.append(set_up(*args)) or kept[-1]
    with processes():
        result = pretrain_moco.pretrain_moco(config)
        (parts,) = kept
        digest = {
            name: float(value.double().sum()) for name, value in parts.moco.named_parameters()
        }
        digest["queue"] = float(parts.moco.loss.memory_bank.bank.double().sum())
        digest["ids"] = parts.loader.batch_size
    results.put((rank, result, digest))


def test_two_processes_share_batches_and_keep_the_same_networks_and_queue(
    configure: Callable[..., Config], trained: dict[str, Any]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=train_as, args=(rank, port, configure(), results))
        for rank in range(2)
    ]
    try:
        for worker in workers:
            worker.start()
        found = sorted((results.get(timeout=PATIENCE) for _ in workers), key=lambda item: item[0])
        for worker in workers:
            worker.join(PATIENCE)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.terminate()
    (_, first, digest), (_, second, other_digest) = found
    assert digest == other_digest
    assert digest["ids"] == 20
    assert first == second
    assert first["world"] == 2
    assert (first["steps"], first["images"]) == (6, 240)
    assert first["loss"] == pytest.approx(trained["loss"], abs=0.3)


# -- what follows ----------------------------------------------------------------------------------
def test_the_encoder_gives_pseudo_classes_scores_and_a_pruned_run(
    trained: dict[str, Any],
    photos: Images,
    other_photos: Images,
    configure: Callable[..., Config],
    tmp_path: Path,
) -> None:
    """The command line from the encoder's features to a selection, and MoCo on that."""

    def dp4tl(*words: Any) -> None:
        main([*map(str, words), "--json"])

    for name, images in (("source", photos), ("target", other_photos)):
        options = ("--resolution", 32, "--crop-ratio", 1.0, "--num-workers", 1)
        checkpoint = ("--checkpoint", trained["checkpoint"])
        dp4tl("features", images.path, *checkpoint, *options, "--out", tmp_path / name)
    clusters, scores, selection = (tmp_path / f"{name}.npz" for name in ("c", "fm", "selection"))
    dp4tl("cluster", tmp_path / "source", "--num-clusters", 6, "--out", clusters)
    features = ("--target", tmp_path / "target", "--source", tmp_path / "source")
    dp4tl("score", "fm", *features, "--clusters", clusters, "--out", scores)
    chosen = ("--scores", scores, "--clusters", clusters, "--beton", photos.path, "--keep", 0.5)
    dp4tl("select", *chosen, "--out", selection)

    votes = Scores.load(scores).scores
    assert len(votes) == 6
    assert votes.sum() == 40  # images of the target
    retained = len(Selection.load(selection))
    assert 0 < retained < 120
    config = configure(selection=selection, batch_size=10, queue=20, iterations=3, norm_batch=None)
    assert pretrain_moco.pretrain_moco(config)["retained_samples"] == retained


def test_the_encoder_is_finetuned_with_a_new_head(
    trained: dict[str, Any], photos: Images, other_photos: Images, tmp_path: Path
) -> None:
    for name, ids in (("val", range(20)), ("test", range(20, 40))):
        compact(other_photos.path, list(ids), tmp_path / f"{name}.beton")
    result = finetune.finetune(
        finetune.Config(
            checkpoint=Path(trained["checkpoint"]),
            train=photos.path,
            val=tmp_path / "val.beton",
            test=tmp_path / "test.beton",
            run=tmp_path / "probe",
            mode="linear_probe",
            resolution=32,
            epochs=2,
            num_workers=1,
        )
    )
    model = load_checkpoint(result["checkpoint"])
    assert model.num_classes == 10
    encoder = load_checkpoint(trained["checkpoint"]).network.state_dict()
    body = {name: value for name, value in model.network.state_dict().items() if name in encoder}
    assert_same_states(body, encoder)
