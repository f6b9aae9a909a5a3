"""MoCo v2: its loss against the formula, the encoder of a run, two processes, and FM on it."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dp4tl_ffcv import Scores, Selection, build_model, compact, load_checkpoint
from dp4tl_ffcv.cli import main
from tests.conftest import Colours, Images
from tests.support.models import assert_same_state
from tests.support.training import MOCO, Configure, rows
from train import finetune, pretrain_moco
from train.components.augmentations import augment, draw
from train.components.data import open_source
from train.components.moco import GroupedBatchNorm
from train.components.processes import Processes
from train.configs.pretrain_moco import Config

RECIPE = "pretrain_moco"  # for `configure`
CPU = Processes(torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(photos: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run without interruption."""
    run = tmp_path_factory.mktemp("moco") / "run"
    return pretrain_moco.pretrain_moco(Config(**MOCO, train=photos.path, run=run))


# -- one step --------------------------------------------------------------------------------------
def set_up(config: Config, group: Processes = CPU) -> pretrain_moco.TrainState:
    source = open_source(config.train, config.selection)
    return pretrain_moco.set_up(config, group, source, config.batch_size)


def views(config: Config) -> Any:
    """Return the loader of a run in one process."""
    source = open_source(config.train, config.selection)
    return pretrain_moco.two_views(config, CPU, source, config.batch_size)


def batch_of(state: pretrain_moco.TrainState) -> list[Tensor]:
    return [crops.clone() for crops in next(iter(state.loader))]


def test_the_loss_is_that_of_queries_against_their_keys_and_the_queue(
    configure: Configure,
) -> None:
    config = configure(temperature=0.3, seed=5)
    state = set_up(config)
    moco = copy.deepcopy(state.moco)
    with torch.no_grad():
        for weights in state.moco.key.parameters():  # no longer those of the queries
            weights.mul_(0.5)
    first, second = batch_of(state)
    queue = state.moco.loss.memory_bank.bank.clone()

    torch.manual_seed(1)
    loss = pretrain_moco.loss_of(state, first, second, (3, 7))

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

    bank = state.moco.loss.memory_bank
    torch.testing.assert_close(bank.bank[:40], keys)
    assert torch.equal(bank.bank[40:], queue[40:])
    assert int(bank.bank_ptr) == 40
    loss.backward()
    assert all(weights.grad is None for weights in state.moco.key.parameters())
    assert all(weights.grad is not None for weights in state.moco.query.parameters())


def test_a_run_moves_the_query_network_at_the_rate_of_a_cosine(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[float, int]] = []
    take_step = pretrain_moco.take_step

    def noted(optimizer: Any, loss: Tensor, *, lr: float) -> None:
        take_step(optimizer, loss, lr=lr)
        taken.append((lr, len(optimizer.param_groups[0]["params"])))

    monkeypatch.setattr(pretrain_moco, "take_step", noted)
    config = configure(lr=0.2)
    pretrain_moco.pretrain_moco(config)
    rates = 0.2 * (1 + np.cos(np.pi * np.arange(6) / 6)) / 2
    count = len(list(set_up(config).moco.query.parameters()))
    assert taken == [(pytest.approx(rate), count) for rate in rates]
    other = set_up(configure(optimizer="adamw", schedule="constant", norm_weight_decay=False))
    assert isinstance(other.optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [1e-4, 0]
    assert other.learning_rate(5) == other.config.lr


def test_views_are_two_crops_of_the_same_image(
    colours: Colours, photos: Images, configure: Configure
) -> None:
    seen: list[int] = []
    loader = views(configure(train=colours.path))
    for first, second in loader:
        ids = colours.ids_of(first.permute(0, 2, 3, 1))
        assert ids.tolist() == colours.ids_of(second.permute(0, 2, 3, 1)).tolist()
        seen += ids.tolist()
    assert sorted(seen) == list(range(120))
    first, second = next(iter(views(configure())))
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
    assert_same_state(grouped.state_dict(), parts[0].state_dict())
    torch.testing.assert_close(grouped.eval()(images), parts[0].eval()(images))


# -- runs ------------------------------------------------------------------------------------------
def test_a_run_leaves_an_encoder_and_a_result(trained: dict[str, Any], photos: Images) -> None:
    run = Path(trained["checkpoint"]).parents[1]
    assert json.loads((run / "result.json").read_text()) == trained
    assert trained["steps"] == 6
    assert trained["images"] == 240
    assert trained["retained_samples"] == 120
    assert [row["step"] for row in rows(run) if row["event"] == "epoch"] == [3, 6]
    assert trained["loss"] == rows(run)[-1]["loss"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.pt"]
    model = load_checkpoint(trained["checkpoint"], arch="resnet8_w16")
    assert model.num_classes is None
    assert model.trained_on == photos.index.fingerprint
    assert model.state_dict().keys() == build_model("resnet8_w16", None).state_dict().keys()
    logits, features = model.eval().features(torch.zeros((2, 3, 32, 32), dtype=torch.uint8))
    assert logits is None
    assert features.shape == (2, 64)


def test_a_selection_trains_on_what_it_retains(
    configure: Configure, photos: Images, tmp_path: Path
) -> None:
    selection = Selection.of_classes(photos.index, [1, 4, 8])
    selection.save(tmp_path / "three.npz")
    config = configure(selection=tmp_path / "three.npz", batch_size=12, queue=24, iterations=4)
    result = pretrain_moco.pretrain_moco(config)
    assert result["retained_samples"] == 36
    assert result["steps"] == 4
    loader = views(config)
    assert set(photos.labels[loader.indices.astype(int)].tolist()) == {1, 4, 8}


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"queue": 100}, "queue"), ({"batch_size": 121, "queue": 242}, "batch_size")],
    ids=str,
)
def test_a_batch_that_fits_neither_queue_nor_data_is_rejected(
    changes: dict[str, Any], name: str, configure: Configure
) -> None:
    with pytest.raises(ValueError, match=f"^`{name}`"):
        pretrain_moco.pretrain_moco(configure(**changes))


def test_without_lightly_the_command_says_what_to_install(
    fail: Callable[..., str], photos: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightly", None)
    line = fail("train.pretrain_moco", train=photos.path, run=tmp_path / "run")
    assert "pip install lightly" in line


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu(configure: Configure) -> None:
    state = set_up(configure(), Processes(torch.device("cuda", 0)))
    first, second = batch_of(state)
    for mode in ("default", "error"):  # the first step makes the optimiser's state
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = pretrain_moco.loss_of(state, first, second, (0, 0))
            pretrain_moco.take_step(state.optimizer, loss, lr=0.1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


# -- what follows ----------------------------------------------------------------------------------
def test_the_encoder_gives_pseudo_classes_scores_and_a_pruned_run(
    trained: dict[str, Any],
    photos: Images,
    other_photos: Images,
    configure: Configure,
    tmp_path: Path,
) -> None:
    """The command line from the encoder's features to a selection, and MoCo on that."""

    def dp4tl(*words: Any) -> None:
        main([*map(str, words), "--json"])

    for name, images in (("source", photos), ("target", other_photos)):
        options = ("--resolution", 32, "--crop-ratio", 1.0, "--num-workers", 1)
        checkpoint = ("--model", trained["checkpoint"])
        dp4tl("features", images.path, *checkpoint, *options, "--out", tmp_path / name)
    clusters, scores, selection = (tmp_path / f"{name}.npz" for name in ("c", "fm", "selection"))
    dp4tl("cluster", tmp_path / "source", "--num-clusters", 6, "--out", clusters)
    features = ("--target", tmp_path / "target", "--source", tmp_path / "source")
    dp4tl("score", "feature-mapping", *features, "--clusters", clusters, "--out", scores)
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
    assert_same_state(body, encoder)
