"""InfoBatch: which samples an epoch has, what their losses weigh, and what the run makes of it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp4tl_ffcv import Selection
from tests.reference.infobatch import infobatch
from tests.support.training import Configure, rows
from train import pretrain
from train.components.infobatch import InfoBatch
from train.components.processes import Processes
from train.components.schedules import learning_rate_factor
from train.configs.common import facts_of

IDS = np.arange(3, 603, 3)
PATHS: dict[str, Any] = {"train": Path("train.beton"), "run": Path("run")}


def made(ratio: float = 0.5, seed: int = 0) -> InfoBatch:
    return InfoBatch(IDS, ratio, seed, Processes(torch.device("cpu")))


def train(method: InfoBatch, ids: NDArray[np.int64], losses: NDArray[np.float64]) -> float:
    return float(method.mean(ids, torch.from_numpy(losses.astype(np.float32))))


def trained(losses: NDArray[np.float64], ratio: float = 0.5, seed: int = 0) -> InfoBatch:
    method = made(ratio, seed)
    method.start_epoch(0, at_least=1)
    train(method, IDS, losses)
    method.end_epoch()
    return method


def test_the_weighted_gradient_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    losses, gradients = rng.exponential(size=200), rng.normal(1.0, size=200)
    for ratio in (0.3, 0.8):
        method, found = trained(losses, ratio), []
        for epoch in range(4000):
            chosen = method.start_epoch(epoch, at_least=1)
            at = np.searchsorted(IDS, chosen)
            found.append(train(method, chosen, gradients[at]) * len(chosen))
            method._waiting.clear()
        error = np.mean(found) - gradients.sum()
        assert abs(error) < 3 * np.std(found) / np.sqrt(len(found))
        # Dropping without weights, or weighting without dropping, is far off.
        easy = losses < losses.mean()
        assert abs(ratio * gradients[easy].sum()) > 10 * np.std(found) / np.sqrt(len(found))


def test_samples_with_a_loss_below_the_mean_are_left_out_or_weighted() -> None:
    rng = np.random.default_rng(1)
    method, ratio = made(0.4, seed=7), 0.4
    scores: dict[int, float] = {}
    for epoch in range(6):
        chosen = method.start_epoch(epoch, at_least=1)
        draws = np.random.default_rng((7, epoch, 1)).random(len(IDS))
        expected = infobatch(scores, IDS.tolist(), draws.tolist(), ratio)
        assert chosen.tolist() == list(expected)
        assert (epoch == 0) == (len(chosen) == len(IDS))
        seen = chosen[: -len(chosen) // 5]  # the last ones are dropped with their batch
        for batch in np.array_split(rng.permutation(seen), 4):
            losses = rng.exponential(size=len(batch)).astype(np.float32)
            weights = np.array([expected[int(each)] for each in batch])
            mean = train(method, batch, losses.astype(np.float64))
            assert mean == pytest.approx(float((weights * losses).mean()), rel=1e-5)
            scores.update(zip(batch.tolist(), losses.tolist(), strict=True))
        method.end_epoch()


def test_a_state_in_mid_epoch_continues_the_epoch() -> None:
    losses = np.random.default_rng(2).exponential(size=200)
    whole, stopped = trained(losses), trained(losses)
    chosen = whole.start_epoch(1, at_least=1)
    assert stopped.start_epoch(1, at_least=1).tolist() == chosen.tolist()
    half = len(chosen) // 2
    for method in (whole, stopped):
        train(method, chosen[:half], np.arange(half) / half)
    stopped.synchronize()
    resumed = made()
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.start_epoch(1, at_least=1).tolist() == chosen.tolist()
    for method in (whole, resumed):
        train(method, chosen[half:], np.ones(len(chosen) - half))
        method.end_epoch()
    following = [method.start_epoch(2, at_least=1).tolist() for method in (whole, resumed)]
    assert following[0] == following[1]
    assert len(following[0]) < len(IDS)
    with pytest.raises(ValueError, match="200 samples"):
        InfoBatch(IDS[:9], 0.5, 0, Processes(torch.device("cpu"))).load_state_dict(
            whole.state_dict()
        )


def test_an_epoch_has_a_batch_at_least_and_all_samples_in_the_end() -> None:
    losses = np.random.default_rng(2).exponential(size=200)
    method = trained(losses, ratio=0.9)
    left = method.start_epoch(1, at_least=1)
    assert len(left) < 120
    for options in ({"at_least": len(left) + 1}, {"at_least": 1, "prune": False}):
        assert method.start_epoch(1, **options).tolist() == IDS.tolist()
        assert train(method, IDS, losses) == pytest.approx(losses.mean(), rel=1e-5)
    assert method.start_epoch(1, at_least=len(left)).tolist() == left.tolist()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The ids, the losses and the rate of every step that is taken from here on."""
    found: list[dict[str, Any]] = []
    mean, take_step = InfoBatch.mean, pretrain.take_step

    def spied_mean(self: InfoBatch, ids: NDArray[np.int64], losses: Tensor) -> Tensor:
        result = mean(self, ids, losses)
        found.append({"ids": ids.tolist(), "losses": losses.tolist(), "loss": result.item()})
        return result

    def spied_step(*arguments: Any, lr: float, **options: Any) -> None:
        found[-1]["lr"] = lr
        take_step(*arguments, lr=lr, **options)

    monkeypatch.setattr(InfoBatch, "mean", spied_mean)
    monkeypatch.setattr(pretrain, "take_step", spied_step)
    return found


def test_a_run_takes_fewer_steps_through_the_same_schedule(
    configure: Configure, three_classes: Path, seen: list[dict[str, Any]]
) -> None:
    ids = Selection.load(three_classes).indices.tolist()
    changes = {"selection": three_classes, "batch_size": 4, "epochs": 8, "val": None}
    result = pretrain.pretrain(configure(**changes, infobatch=0.5))
    ends = [0] + [row["step"] for row in rows(configure().run) if row["event"] == "epoch"]
    assert len(ends) == 9
    scores: dict[int, float] = {}
    for epoch, (start, end) in enumerate(pairwise(ends)):
        draws = np.random.default_rng((0, epoch, 1)).random(len(ids)).tolist()
        weights = infobatch(scores, ids, draws, 0.5) if epoch < 7 else dict.fromkeys(ids, 1.0)
        steps = seen[start:end]
        taken = [each for step in steps for each in step["ids"]]
        assert len(set(taken)) == len(taken) == len(weights) // 4 * 4
        assert set(taken) <= weights.keys()
        for number, step in enumerate(steps):
            weighted = [
                weights[sample] * loss
                for sample, loss in zip(step["ids"], step["losses"], strict=True)
            ]
            assert step["loss"] == pytest.approx(np.mean(weighted), rel=1e-5)
            position = 9 * (epoch + number / len(steps))
            factor = learning_rate_factor(position, num_steps=72, steps_per_epoch=9)
            assert step["lr"] == pytest.approx(0.1 * factor)
            scores.update(zip(step["ids"], step["losses"], strict=True))
    sizes = np.diff(ends).tolist()
    assert sizes[0] == sizes[7] == 9
    assert max(sizes[1:7]) < 9
    assert result["steps"] == ends[-1] == len(seen)
    assert result["images"] == 4 * len(seen)


def test_a_run_of_a_number_of_steps_takes_that_many(
    configure: Configure, seen: list[dict[str, Any]]
) -> None:
    changes = {"batch_size": 16, "epochs": 2, "val": None, "iterations": 40}
    result = pretrain.pretrain(configure(**changes, infobatch=0.5))
    assert result["steps"] == len(seen) == 40
    ends = [0] + [row["step"] for row in rows(configure().run) if row["event"] == "epoch"]
    late = [(start, end) for start, end in pairwise(ends) if start + 7 > 0.875 * 40]
    assert late
    assert all(end - start == min(7, 40 - start) for start, end in late)
    assert len(ends) - 1 > 40 / 7 + 1


def test_settings() -> None:
    for changes in ({"infobatch": 1.0}, {"infobatch": -0.1}, {"infobatch_until": 1.5}):
        with pytest.raises(ValueError, match=f"^`{next(iter(changes))}` must be"):
            pretrain.Config(**PATHS, **changes)
    with pytest.raises(ValueError, match=r"^`infobatch`.*`attack`"):
        pretrain.Config(**PATHS, infobatch=0.5, attack="fgsm")
    # A run without InfoBatch has the settings of earlier versions.
    assert not [name for name in facts_of(pretrain.Config(**PATHS), 1) if "infobatch" in name]
    assert facts_of(pretrain.Config(**PATHS, infobatch=0.5), 1)["infobatch"] == 0.5
