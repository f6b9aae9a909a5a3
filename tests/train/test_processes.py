"""Two real processes over gloo: they train, validate and resume as one does."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dp4tl_ffcv import BetonIndex, Dynamics, Selection, training_loader
from dp4tl_ffcv.utils import Classifier
from tests.conftest import Images
from tests.support.models import assert_same_state
from tests.support.training import RECIPES, Configure, accuracy_of, rows, weights
from train import pretrain
from train.components.attacks import make_attack
from train.components.processes import Processes
from train.components.validation import Validation

LONGEST = 500  # seconds; it takes a few when the machine is free
# All that a rank does. It prints one line of JSON, through a file of its own.
RANK = """
import json, pickle, sys
from pathlib import Path
import numpy as np
import torch
from tests.train.test_processes import crops_of, plain_model, validate_on_39
from dp4tl_ffcv.utils import on_rank_zero
from train import finetune, pretrain, pretrain_moco
from train.components.processes import processes
from train.components.throughput import Throughput

settings = json.loads(sys.argv[1])
out = Path(settings.pop("out"))
shared = {name: Path(settings.pop(name)) for name in ("train", "val")}
selection = Path(settings.pop("selection"))


def run(name, **changes):
    config = pretrain.Config(**{**shared, "run": out / name, **settings, **changes})
    return pretrain.pretrain(config)


def fail_on_rank_zero():
    raise RuntimeError("no room")


with processes() as group:
    mine = torch.arange(3.0) + group.rank
    found = {"sum": group.sum_over(mine).tolist(), "after": mine.tolist()}
    group.average_statistics([("0.running_mean", mine), ("0.weight", torch.ones(3))])
    found["mean"] = mine.tolist()
    named = [("0.running_var", torch.arange(2.0) + group.rank), ("0.bias", torch.ones(2))]
    rows = group.statistics(named)
    named[0][1].zero_()
    group.set_statistics(named, rows)
    found["statistics"] = rows.tolist(), named[0][1].tolist()
    found["agreed"] = group.from_rank_zero(group.rank, 5 + group.rank)
    found["share"] = group.share(np.arange(5)).tolist()
    try:
        on_rank_zero(fail_on_rank_zero)
    except Exception as error:
        found["failure"] = f"{type(error).__name__}: {error}"
    group.seed(0, 0)
    found["draw"] = torch.rand(1).item()

    build_model, pretrain.build_model = pretrain.build_model, plain_model
    found["plain"] = run("plain")
    found["infobatch"] = run("infobatch", infobatch=0.5, epochs=4, batch_size=16)
    found["odd"] = run("odd", selection=selection, batch_size=16)
    found["validation"] = validate_on_39(shared["train"], out / "one", group)
    pretrain.build_model = build_model

    options = {"ema": 0.9, "val_every": 1, "record_dynamics": True}
    found["normalised"] = run("normalised", **options)
    step, crops = pretrain.train_step, {}

    def stopped(state, images, labels, number):
        if number == 4:
            raise InterruptedError
        crops.update({number: crops_of(images)})
        return step(state, images, labels, number)

    for name in ("resumed", "handed_over"):
        pretrain.train_step = stopped
        try:
            run(name, **options, save_every_minutes=1e-9)
        except InterruptedError:
            pretrain.train_step = step
    found["crops"] = crops
    found["resumed"] = run("resumed", **options, save_every_minutes=1e-9)

    configs = pickle.loads((out / "configs.pkl").read_bytes())
    states, set_up = [], pretrain_moco.set_up
    pretrain_moco.set_up = lambda *arguments: states.append(set_up(*arguments)) or states[0]
    found["moco"] = pretrain_moco.pretrain_moco(configs["pretrain_moco"])
    moco = states[0].moco
    found["sums"] = [float(value.detach().double().sum()) for value in moco.parameters()]
    found["sums"].append(float(moco.loss.memory_bank.bank.double().sum()))
    found["batch_size"] = states[0].loader.batch_size
    Throughput.stalled = property(lambda _: 2.0 * group.rank)  # seconds in each epoch
    found["finetuned"] = finetune.finetune(configs["finetune"])
    (out / f"{group.rank}.json").write_text(json.dumps(found))
"""


def plain_model(arch: str, num_classes: int | None) -> Classifier:
    """A network whose output for an image does not depend on the batch; called `resnet8_w16`."""
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    )
    return Classifier(nn.Sequential(layers, nn.Linear(128, num_classes or 1)), arch, num_classes)


def crops_of(images: torch.Tensor) -> list[int]:
    """Return a number for each crop of a batch, which no other crop has."""
    return [int(crop.double().pow(2).sum()) for crop in images]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return weights({"checkpoint": run / "checkpoints" / "last.pt"})


def validate_on_39(beton: Path, run: Path, group: Processes) -> dict[str, Any]:
    """Validate a finished run on samples that two processes cannot share equally."""
    model = plain_model("resnet8_w16", 10)
    model.network.load_state_dict(weights_of(run))
    validation = Validation(
        index=BetonIndex.open(beton), ids=np.arange(0, 117, 3), label_map=None, batch_size=7,
        resolution=32, crop_ratio=1.0, num_workers=1, timeout=60.0, tta=True,
        attack=make_attack("pgd", epsilon=0.001, steps=1),
    )  # fmt: skip
    return validation.accuracies(model, group)


@pytest.fixture(scope="module")
def settings(
    photos: Images, other_photos: Images, settings_of_recipe: Configure, tmp_path_factory: Any
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("processes")
    finetuning = {"mode": "full_finetuning", "lr": 1e-3, "epochs": 2, "batch_size": 4}
    configs = {
        "finetune": settings_of_recipe("finetune", out / "finetune", **finetuning),
        "pretrain_moco": settings_of_recipe("pretrain_moco", out / "moco"),
    }
    (out / "configs.pkl").write_bytes(pickle.dumps(configs))
    # 31 samples: two processes that filled their shares up would make a step more than one does.
    chosen = np.flatnonzero(np.isin(photos.labels, [1, 4, 8]))[:31]
    Selection.of_indices(BetonIndex.open(photos.path), chosen).save(out / "odd.npz")
    return {
        "train": str(photos.path), "val": str(other_photos.path), "out": str(out),
        "selection": str(out / "odd.npz"), "arch": "resnet8_w16", "resolution": 32,
        "crop_ratio": 1.0, "batch_size": 32, "epochs": 2, "lr": 0.05, "num_workers": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def single(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the results of runs in one process."""
    paths = {name: Path(settings[name]) for name in ("train", "val")}
    out = Path(settings["out"])
    changes = {k: v for k, v in settings.items() if k not in ("train", "val", "out", "selection")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "build_model", plain_model)
        plain = pretrain.Config(run=out / "one", **paths, **changes)
        odd = pretrain.Config(
            run=out / "one_odd",
            selection=Path(settings["selection"]),
            **{**paths, **changes, "batch_size": 16},
        )
        easy = {**changes, "infobatch": 0.5, "epochs": 4, "batch_size": 16}
        infobatch = pretrain.Config(run=out / "one_infobatch", **{**paths, **easy})
        configs = {"plain": plain, "odd": odd, "infobatch": infobatch}
        return {name: pretrain.pretrain(config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def ranks(settings: dict[str, Any], single: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of each of two processes."""
    out = Path(settings["out"])
    script = out / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    root = Path(pretrain.__file__).parent.parent
    ended = subprocess.run(
        [*command, str(script), json.dumps(settings)], timeout=LONGEST, text=True, check=False,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


Ranks = list[dict[str, Any]]


def test_sums_means_draws_and_failures_of_both(ranks: Ranks) -> None:
    for rank, found in enumerate(ranks):
        assert found["sum"] == [1, 3, 5]
        assert found["after"] == [rank, 1 + rank, 2 + rank]
        assert found["mean"] == [0.5, 1.5, 2.5]
        assert found["statistics"] == [[[0, 1], [1, 2]], [rank, 1 + rank]]
        assert found["agreed"] == [0, 5]
    assert sorted(ranks[0]["share"] + ranks[1]["share"]) == [0, 1, 2, 3, 4]
    assert ranks[0]["draw"] != ranks[1]["draw"]
    assert [found["failure"] for found in ranks] == ["RuntimeError: no room", "ValueError: no room"]


@pytest.mark.parametrize(
    ("name", "of_one", "steps"),
    [("plain", "one", 6), ("odd", "one_odd", 2), ("infobatch", "one_infobatch", 24)],
)
def test_two_processes_train_as_one_does(
    name: str, of_one: str, steps: int, ranks: Ranks, single: dict[str, Any], settings: Any
) -> None:
    out = Path(settings["out"])
    assert ranks[0][name] == ranks[1][name]
    both, one = ranks[0][name], single[name]
    assert (both["world_size"], one["world_size"]) == (2, 1)
    assert both["steps"] == one["steps"] == steps
    assert both["images"] == one["images"]
    assert both["loss"] == pytest.approx(one["loss"], rel=1e-4)
    expected = weights_of(out / of_one)
    for key, value in weights_of(out / name).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5)
    assert both["val_accuracy"] == pytest.approx(one["val_accuracy"], abs=1 / 40)


def test_validation_counts_each_sample_once(ranks: Ranks, settings: Any) -> None:
    group = Processes(torch.device("cpu"))
    run = Path(settings["out"]) / "one"
    expected = validate_on_39(Path(settings["train"]), run, group)
    assert 0 < expected["val_accuracy"] < 1
    assert expected["val_accuracy"] * 39 == pytest.approx(round(expected["val_accuracy"] * 39))
    assert ranks[0]["validation"] == ranks[1]["validation"] == expected


def test_two_processes_resume_to_the_same_weights_and_rank_0_alone_logs(
    ranks: Ranks, settings: Any
) -> None:
    out = Path(settings["out"])
    for found in ranks:
        assert found["resumed"]["loss"] == found["normalised"]["loss"]
        assert found["resumed"]["val_accuracy"] == found["normalised"]["val_accuracy"]
    expected = weights_of(out / "normalised")
    assert any(key.endswith("running_mean") for key in expected)
    assert_same_state(weights_of(out / "resumed"), expected)
    assert [row["step"] for row in rows(out / "resumed") if row["event"] == "continue"] == [4]
    events = [(row["event"], row.get("step")) for row in rows(out / "normalised")]
    assert events == [("start", None), ("epoch", 3), ("validation", 3), ("epoch", 6)]


def test_one_process_trains_on_what_two_processes_have_left_of_an_epoch(
    ranks: Ranks, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: Path(settings[name]) for name in ("train", "val")}
    changes = {k: v for k, v in settings.items() if k not in ("train", "val", "out", "selection")}
    run = Path(settings["out"]) / "handed_over"
    options = {"ema": 0.9, "val_every": 1, "record_dynamics": True}
    config = pretrain.Config(run=run, **{**options, **changes, **paths})
    crops, step = {3: ranks[0]["crops"]["3"] + ranks[1]["crops"]["3"]}, pretrain.train_step

    def noted(state: Any, images: Any, labels: Any, number: int) -> Any:
        crops[number] = crops_of(images)
        return step(state, images, labels, number)

    monkeypatch.setattr(pretrain, "train_step", noted)
    result = pretrain.pretrain(config)
    assert (result["steps"], result["images"], result["world_size"]) == (6, 6 * 32, 1)
    loader = training_loader(
        config.train, batch_size=32, resolution=32, seed=0, min_scale=config.min_scale
    )
    loader.set_epoch(1)
    whole = {3 + number: sorted(crops_of(images)) for number, (images, _) in enumerate(loader)}
    assert {number: sorted(found) for number, found in crops.items()} == whole
    both = Dynamics.load(run.parent / "normalised" / "dynamics.npz")
    one = Dynamics.load(run / "dynamics.npz")
    for name in ("probability", "change"):  # each sample in its epoch, whoever trained on it
        is_recorded = [~np.isnan(getattr(each, name)) for each in (both, one)]
        np.testing.assert_array_equal(*is_recorded)
    assert np.isfinite(one.probability).sum(axis=0).tolist() == [96, 96]
    # The batches of the first epoch were those of two processes in both runs.
    np.testing.assert_array_equal(one.margin[:, 0], both.margin[:, 0])


def test_two_processes_record_what_each_of_them_predicts(ranks: Ranks, settings: Any) -> None:
    out = Path(settings["out"])
    whole, resumed = (
        Dynamics.load(out / run / "dynamics.npz") for run in ("normalised", "resumed")
    )
    for name in ("indices", "probability", "margin", "change"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(resumed, name))
    assert np.isfinite(whole.probability).sum(axis=0).tolist() == [96, 96]
    assert not (out / "normalised" / "checkpoints" / "resume").exists()


def test_two_processes_finetune_one_model(ranks: Ranks, target: dict[str, Path]) -> None:
    result = ranks[0]["finetuned"]
    assert ranks[1]["finetuned"] == result
    assert result["world_size"] == 2
    assert result["stall_share"] * result["finetune_seconds"] == pytest.approx(2 * (0 + 2) / 2)
    assert result["test_samples"] == 16
    log = rows(Path(result["checkpoint"]).parents[1])
    assert [row["step"] for row in log if row["event"] == "epoch"] == [6, 12]  # 24 images, 4 a step
    assert list(result["test_accuracy_per_class"]) == ["0", "1", "2", "3"]
    for split in ("val", "test"):
        accuracy = accuracy_of(result["checkpoint"], target[split])
        assert result[f"{split}_accuracy"] == pytest.approx(accuracy)


def test_two_processes_of_moco_share_batches_and_keep_the_same_networks_and_queue(
    ranks: Ranks, settings_of_recipe: Configure, tmp_path: Path
) -> None:
    first, second = ranks
    assert first["sums"] == second["sums"]
    assert first["batch_size"] == 20
    assert first["moco"] == second["moco"]
    assert first["moco"]["world_size"] == 2
    assert (first["moco"]["steps"], first["moco"]["images"]) == (6, 240)
    alone = RECIPES["pretrain_moco"](settings_of_recipe("pretrain_moco", tmp_path / "run"))
    assert first["moco"]["loss"] == pytest.approx(alone["loss"], abs=0.3)


def test_the_batch_size_is_per_step_or_per_process(settings_of_recipe: Configure) -> None:
    def config(**changes: Any) -> Any:
        return settings_of_recipe("pretrain", Path("run"), batch_size=32, **changes)

    four, three = (Processes(torch.device("cpu"), 0, count) for count in (4, 3))
    assert four.batch_size(config()) == 8
    assert three.batch_size(config(batch_per="process")) == 32
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the 3 processes"):
        three.batch_size(config())


def test_one_process_takes_the_mean_statistics_of_several() -> None:
    named = [("running_mean", torch.zeros(2)), ("weight", torch.zeros(2))]
    Processes(torch.device("cpu")).set_statistics(named, torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert [tensor.tolist() for _, tensor in named] == [[2, 4], [0, 0]]


def test_draws_follow_from_the_seed_and_the_step() -> None:
    group, draws = Processes(torch.device("cpu")), []
    for seed, step in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        group.seed(seed, step)
        draws.append(torch.rand(4).tolist())
    assert draws[0] == draws[3]
    assert len({tuple(draw) for draw in draws}) == 3
