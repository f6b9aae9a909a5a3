"""The configurations of the ten targets have DP4TL's values (reference/paper.md 3.2 and 3.3)."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from train.configs import finetuning
from train.configs.command_line import parse
from train.configs.finetuning import CONFIGS, Config

TARGETS = (
    *("cifar10", "cifar100", "dtd", "flowers102", "food101"),
    *("oxford_pets", "stanford_cars", "sun397", "ucf101", "waterbirds"),
)
MODES = ("linear_probe", "full_finetuning", "from_scratch")
SGD_FINETUNED = {"food101", "stanford_cars", "sun397", "waterbirds"}
PATHS = {name: Path(name) for name in ("train", "val", "test", "run")}


def named(target: str, mode: str) -> Config:
    checkpoint = {} if mode == "from_scratch" else {"checkpoint": Path("last.pt")}
    return CONFIGS[f"{target}_{mode}"](**checkpoint, **PATHS)


def test_each_target_has_each_mode_by_name_and_as_a_function_of_the_module() -> None:
    assert set(CONFIGS) == {f"{target}_{mode}" for target in TARGETS for mode in MODES}
    for name, function in CONFIGS.items():
        assert getattr(finetuning, name) is function
        assert function.__name__ == name
        assert name.rpartition("_")[0].split("_")[0] in str(function.__doc__)
        required = {name for name in inspect.signature(function).parameters if name != "checkpoint"}
        assert required == set(PATHS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", TARGETS)
def test_the_values_are_dp4tls(target: str, mode: str) -> None:
    config = named(target, mode)
    assert config.mode == mode
    assert config.resolution == (160 if target.startswith("cifar") else 224)
    assert (config.batch_size, config.label_smoothing) == (128, 0.0)
    assert (config.schedule, config.warmup, config.end_factor) == ("cosine", 0.0, 0.0)
    assert config.epochs == (50 if mode == "linear_probe" else 200)
    if mode == "from_scratch":
        assert (config.arch, config.checkpoint) == ("resnet18", None)
        sgd, lr = True, 0.01 if target.startswith("cifar") else 0.1
    elif mode == "linear_probe":
        sgd, lr = False, 1e-2
    else:
        sgd = target in SGD_FINETUNED
        lr = 0.1 if sgd else 1e-4
    assert config.lr == lr
    if sgd:
        assert (config.optimizer, config.momentum, config.nesterov) == ("sgd", 0.9, False)
        assert config.weight_decay == 5e-4
    else:  # Adam and AdamW are the same without decay
        assert config.optimizer in ("adam", "adamw")
        assert config.weight_decay == 0


def words(**paths: Any) -> list[str]:
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


@pytest.mark.parametrize("mode", MODES)
def test_the_command_line_takes_a_name_and_changes_it(mode: str) -> None:
    given = {**PATHS} if mode == "from_scratch" else {"checkpoint": "last.pt", **PATHS}
    args = ["--config", f"dtd_{mode}", *words(**given)]
    assert parse(Config, CONFIGS, description="", args=args) == named("dtd", mode)
    changed = parse(Config, CONFIGS, description="", args=[*args, "--lr", "3", "--no-flip"])
    assert (changed.lr, changed.flip, changed.epochs) == (3.0, False, named("dtd", mode).epochs)


def test_a_named_configuration_without_its_paths_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["--config", "dtd_linear_probe", *words(**PATHS)]
    with pytest.raises(SystemExit) as caught:
        parse(Config, CONFIGS, description="", args=args)
    assert caught.value.code == 2
    assert "checkpoint" in capsys.readouterr().err
