"""Estimates of stages, from costs per image that are given."""

from pathlib import Path
from typing import Any

import pytest

from train.components.study import estimate as module
from train.components.study.estimate import UnknownError, _Network, estimate
from train.components.study.overview import estimates_of
from train.components.study.stages import Label, Stage

COUNTS = {"train": (100, 5), "beton": (100, 5), "val": (10, 5), "test": (20, 5)}
NETWORK = _Network(training=1.0, inference=0.1, head=0.01, features=8, num_bytes=1000)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_measured", lambda *_: NETWORK)
    monkeypatch.setattr(module, "_counts_of", lambda path: COUNTS[path.name])


def stage(folder: Path, kind: str, *, needs: Any = None, **settings: Any) -> Stage:
    """Return a stage of four epochs that reads betons with the sizes `COUNTS`."""
    paths = {name: folder / name for name in COUNTS}
    for path in paths.values():
        path.touch()
    runs = {"runs": 3} if kind == "halves" else {}
    facts = {"settings": {"arch": "resnet18", "epochs": 4, **settings}, **runs}
    label = Label("full", 0)
    return Stage(kind=kind, facts=facts, needs=needs or {}, paths=paths, root=folder, label=label)


def selection(folder: Path, keep: Any) -> Stage:
    return Stage(kind="selection", facts={"keep": keep}, root=folder)


@pytest.mark.parametrize(
    ("settings", "keep", "seconds", "at_most"),
    [
        ({}, None, 4 * 100 + 10 * 0.1, False),
        ({"val_every": 2}, None, 4 * 100 + 2 * 10 * 0.1, False),
        ({"infobatch": 0.5}, None, 4 * 100 + 10 * 0.1, True),
        ({"attack": "pgd", "attack_steps": 2}, None, 3 * 4 * 100 + 10 * 0.1, False),
        ({}, 0.25, 4 * 25 + 10 * 0.1, False),
        ({}, "auto", 4 * 100 + 10 * 0.1, True),
    ],
)
def test_pretraining(
    settings: dict[str, Any], keep: Any, seconds: float, at_most: bool, tmp_path: Path
) -> None:
    needs = {} if keep is None else {"selection": selection(tmp_path, keep)}
    found = estimate(stage(tmp_path, "pretrain", needs=needs, **settings))
    assert found.seconds == pytest.approx(seconds)
    assert (found.num_bytes, found.at_most) == (1000, at_most)
    # As many steps as the full source.
    steps = estimate(stage(tmp_path, "pretrain", needs={**needs, "full": selection(tmp_path, 1)}))
    assert steps.seconds == pytest.approx(401)


def test_a_finished_selection_gives_the_number_of_samples(tmp_path: Path) -> None:
    chosen = selection(tmp_path, "auto")
    chosen.run_folder.start(resume=True)
    chosen.run_folder.finish({"samples": 30})
    found = estimate(stage(tmp_path, "pretrain", needs={"selection": chosen}))
    assert (found.seconds, found.at_most) == (pytest.approx(4 * 30 + 1), False)


PROBE = (100 + 10 + 20) * 0.1 + 4 * 100 * 0.01


@pytest.mark.parametrize(
    ("kind", "settings", "seconds", "num_bytes"),
    [
        ("pretrain_moco", {}, 4 * 100 * 1.1, 1000),
        ("finetune", {"mode": "linear_probe"}, PROBE, 1000),
        ("finetune", {"mode": "full_finetuning"}, 4 * (100 + 1) + 2, 1000),
        ("features", {}, 100 * 0.1, 100 * (8 + 5) * 4),
        ("features", {"logits": False, "dtype": "float16"}, 100 * 0.1, 100 * 8 * 2),
        ("halves", {}, 3 * 4 * 50, 3 * 1000),
        ("influence", {"mode": "linear_probe"}, 3 * PROBE, 3 * 1000),
    ],
)
def test_other_stages(
    kind: str, settings: dict[str, Any], seconds: float, num_bytes: int, tmp_path: Path
) -> None:
    pretrained, halves = stage(tmp_path, "pretrain"), stage(tmp_path, "halves")
    needs = {"pretrained": pretrained, "surrogate": pretrained, "halves": halves}
    found = estimate(stage(tmp_path, kind, needs=needs, **settings))
    assert (found.seconds, found.num_bytes) == (pytest.approx(seconds), num_bytes)


def test_what_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    unwritten = stage(tmp_path, "pretrain")
    (tmp_path / "train").unlink()
    with pytest.raises(UnknownError, match="train is not written yet"):
        estimate(unwritten)
    named = Stage(kind="weights", facts={"name": "resnet18"}, root=tmp_path, label=Label("own"))
    with pytest.raises(UnknownError, match="the network of weights own is unknown"):
        estimate(stage(tmp_path, "features", needs={"surrogate": named}))


def test_tables_say_where_a_time_is_a_bound(tmp_path: Path) -> None:
    trained = stage(tmp_path, "pretrain", needs={"selection": selection(tmp_path, "auto")})
    tuned = stage(tmp_path, "finetune", needs={"pretrained": trained}, mode="full_finetuning")
    shown = estimates_of([trained, tuned])
    assert "      2      2 at most 13.4 min    0.0 MB  pretrain full\n" in shown
    assert "      1      1          6.8 min    0.0 MB  finetune, such as 'finetune full, s" in shown
    assert "2 stages are left: at most 13.4 min of one core or GPU" in shown
