"""Settings: the published values by name, the command line, files, and what is rejected."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.configs import finetune, pretrain_moco
from train.configs.command_line import parse
from train.configs.pretrain import CONFIGS, Config

PATHS: dict[str, Any] = {"train": Path("train.beton"), "run": Path("run")}
TARGET: dict[str, Any] = {**PATHS, "val": Path("val.beton"), "test": Path("test.beton")}
FLAGS = ["--train", "train.beton", "--run", "run"]


def named(name: str) -> Config:
    return Config(**PATHS, **CONFIGS[name])


def parsed(*args: str) -> Config:
    return parse(Config, CONFIGS, description="Pretrain.", args=[*FLAGS, *args])


# Values by name, from the configuration files of DP4TL, ffcv-imagenet and MoCo v2.

RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}
# Name, architecture, epochs, images a step over all GPUs; learning rate and weight decay.
DP4TL = [
    *((f"rn18_{epochs}", "resnet18", epochs, 1024, 0.5, 5e-5) for epochs in RAMPS),
    *((f"rn50_{epochs}", "resnet50", epochs, 512, 0.5, 5e-5) for epochs in RAMPS),
    ("rn101_16", "resnet101", 16, 256, 0.5, 5e-5),
    ("rn152_16", "resnet152", 16, 256, 0.5, 5e-5),
]
FFCV = [
    *((f"ffcv_rn18_{epochs}", "resnet18", epochs, 1024, 0.5, 5e-5) for epochs in RAMPS),
    *((f"ffcv_rn50_{epochs}", "resnet50", epochs, 4096, 1.7, 1e-4) for epochs in RAMPS),
]


@pytest.mark.parametrize(
    ("name", "arch", "epochs", "batch_size", "lr", "weight_decay"), [*DP4TL, *FFCV]
)
def test_resnets(
    name: str, arch: str, epochs: int, batch_size: int, lr: float, weight_decay: float
) -> None:
    config = named(name)
    assert (config.arch, config.epochs, config.batch_size) == (arch, epochs, batch_size)
    assert (config.batch_per, config.lr_per) == ("step", "step")
    assert (config.optimizer, config.momentum, config.nesterov) == ("sgd", 0.9, False)
    assert (config.lr, config.weight_decay) == (lr, weight_decay)
    assert config.schedule == "cyclic"
    assert config.warmup * epochs == pytest.approx(2)
    assert (config.resolution, config.end_resolution, config.val_resolution) == (160, 192, 256)
    assert config.ramp == RAMPS[epochs]
    assert (config.min_scale, config.flip, config.crop_ratio) == (0.08, True, 224 / 256)
    assert (config.amp, config.full_head) == ("fp16", True)
    assert (config.attack, config.ema, config.grad_clip) == ("none", 0, None)
    assert config.iterations is None
    if name.startswith("ffcv"):
        assert (config.start_factor, config.end_factor) == (1e-4, 0.0)
        assert not config.norm_weight_decay
        assert (config.label_smoothing, config.blurpool, config.tta) == (0.1, True, True)
    else:
        assert config.lr * config.start_factor == pytest.approx(1e-4)
        assert config.lr * config.end_factor == pytest.approx(1e-4)
        assert config.norm_weight_decay
        assert (config.label_smoothing, config.blurpool, config.tta) == (0.0, False, False)


def test_dp4tls_vision_transformer() -> None:
    config = named("vit_b_16_100")
    assert (config.arch, config.epochs, config.batch_size) == ("vit_b_16", 100, 100 * 4)
    assert (config.optimizer, config.lr, config.weight_decay) == ("adamw", 3e-3, 0.3)
    assert (config.schedule, config.warmup, config.start_factor) == ("cosine", 0.1, 1e-3)
    assert (config.resolution, config.ramp, config.val_resolution) == (224, None, 224)
    assert (config.label_smoothing, config.blurpool, config.tta) == (0.11, False, False)
    assert CONFIGS.keys() == {row[0] for row in (*DP4TL, *FFCV)} | {"vit_b_16_100"}


TARGETS = (
    *("cifar10", "cifar100", "dtd", "flowers102", "food101"),
    *("oxford_pets", "stanford_cars", "sun397", "ucf101", "waterbirds"),
)
MODES = ("linear_probe", "full_finetuning", "from_scratch")
SGD_FINETUNED = {"food101", "stanford_cars", "sun397", "waterbirds"}


def named_target(name: str, **changes: Any) -> finetune.Config:
    checkpoint = {} if name.endswith("scratch") else {"checkpoint": Path("last.pt")}
    return finetune.Config(**{**checkpoint, **TARGET, **finetune.CONFIGS[name], **changes})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", TARGETS)
def test_dp4tls_targets(target: str, mode: str) -> None:
    config = named_target(f"{target}_{mode}")
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
    else:
        assert (config.optimizer, config.weight_decay) == ("adam", 0)
    assert len(finetune.CONFIGS) == len(TARGETS) * len(MODES)


def test_moco_v2() -> None:
    configs = {
        name: pretrain_moco.Config(**PATHS, **values)
        for name, values in pretrain_moco.CONFIGS.items()
    }
    assert configs["moco_rn50_200"] == pretrain_moco.Config(**PATHS)
    assert {config.arch for config in configs.values()} == {"resnet18", "resnet50", "resnet101"}
    for name, config in configs.items():
        assert name.endswith(f"_{config.epochs}")
        assert (config.optimizer, config.momentum, config.nesterov) == ("sgd", 0.9, False)
        assert (config.lr, config.weight_decay) == (0.03, 1e-4)
        assert (config.schedule, config.warmup, config.end_factor) == ("cosine", 0.0, 0.0)
        assert (config.queue, config.temperature, config.key_momentum) == (65536, 0.2, 0.999)
        assert (config.batch_size, config.resolution, config.min_scale) == (256, 224, 0.2)


# What is rejected.

REJECTED: dict[str, tuple[Any, dict[str, Any], list[tuple[str, Any]]]] = {
    "pretrain": (
        Config,
        PATHS,
        [
            ("epochs", 0), ("iterations", 0), ("batch_size", -1), ("resolution", 0),
            ("val_resolution", 0), ("lr", -0.1), ("lr", float("nan")), ("warmup", 1.1),
            ("ema", -0.1), ("label_smoothing", float("nan")), ("schedule", "cyclical"),
            ("attack", "PGD"), ("amp", "float16"), ("batch_per", "gpu"), ("ramp", (11, 13)),
            ("end_resolution", 192), ("val_every", -1), ("save_every", 0), ("num_workers", 0),
            ("save_every_minutes", -1), ("timeout", 0), ("timeout", float("nan")),
            ("attack_epsilon", -1.0), ("attack_step_size", 0.0), ("attack_step_size", 256.0),
            ("attack_steps", 0), ("val_batch_size", 0), ("step_length", 0), ("seed", -1),
        ],
    ),
    "finetune": (
        finetune.Config,
        {**TARGET, "checkpoint": Path("last.pt")},
        [
            ("epochs", 0), ("log_every", 0), ("lr_per", "gpu"), ("batch_size", 0),
            ("resolution", 0), ("val_resolution", 0), ("checkpoint", None), ("mode", "half"),
            ("optimizer", "lamb"), ("label_smoothing", 1.5),
        ],
    ),
    "pretrain_moco": (
        pretrain_moco.Config,
        PATHS,
        [
            ("queue", 0), ("epochs", 0), ("seed", -1), ("temperature", 0.0), ("hue", 0.6),
            ("key_momentum", 1.5), ("resolution", 6), ("batch_per", "epoch"),
            ("jitter_probability", 1.1), ("blur_probability", -0.1), ("brightness", -1.0),
            ("saturation", -1.0), ("blur_sigma", (0.0, 1.0)), ("blur_sigma", (2.0, 1.0)),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "name", "value"),
    [(recipe, *case) for recipe, (_, _, cases) in REJECTED.items() for case in cases],
)
def test_settings_that_no_run_can_have_are_rejected(recipe: str, name: str, value: Any) -> None:
    config_type, paths, _ = REJECTED[recipe]
    with pytest.raises(ValueError, match=f"`{name}`"):
        config_type(**{**paths, name: value})


def test_settings_that_contradict_each_other_are_rejected() -> None:
    with pytest.raises(ValueError, match="`ramp`"):
        Config(**PATHS, end_resolution=192, ramp=(13, 11))
    assert Config(**PATHS, end_resolution=192, ramp=(13, 13)).ramp == (13, 13)
    for epsilon in (0.0, 256.0):
        with pytest.raises(ValueError, match=r"^`attack_epsilon` must"):
            Config(**PATHS, attack="pgd", attack_epsilon=epsilon)
    assert Config(**PATHS, attack_epsilon=0.0).attack == "none"
    with pytest.raises(ValueError, match="`arch`"):
        finetune.Config(**TARGET, mode="from_scratch")


# The command line.


def test_without_a_name_flags_change_the_defaults() -> None:
    assert parsed() == Config(**PATHS)
    assert parsed("--lr", "0.1", "--no-flip") == Config(**PATHS, lr=0.1, flip=False)


def test_a_flag_overrides_a_name() -> None:
    config = parsed("--lr=0.1", "--config=ffcv_rn18_24", "--no-tta", "--ramp", "1", "2")
    changes: dict[str, Any] = {"lr": 0.1, "tta": False, "ramp": (1, 2)}
    assert config == dataclasses.replace(named("ffcv_rn18_24"), **changes)


def test_a_folder_stands_for_its_betons(tmp_path: Path) -> None:
    config = Config(data=tmp_path, run=tmp_path)
    assert (config.beton("train"), config.val_beton) == (tmp_path / "train.beton", None)
    (tmp_path / "val.beton").touch()
    assert config.val_beton == tmp_path / "val.beton"
    given = dataclasses.replace(config, train=Path("a.beton"), val=Path("b.beton"))
    assert (given.beton("train"), given.val_beton) == (Path("a.beton"), Path("b.beton"))
    with pytest.raises(ValueError, match=r"`data` must be a folder of betons; .* is a file"):
        Config(data=tmp_path / "val.beton", run=tmp_path)
    with pytest.raises(ValueError, match=r"`test` is missing. Name the beton, or pass a folder"):
        finetune.Config(checkpoint=Path("last.pt"), train=Path("a"), val=Path("b"), run=tmp_path)


@pytest.mark.parametrize("given", [[], ["--config", "rn18_16"]])
def test_paths_must_be_given(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Config, CONFIGS, description=None, args=["--run", "run", *given])
    assert caught.value.code == 2
    assert "`train` is missing" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config", "rn18_17"], ["rn18_17", "rn18_16"]),
        (["--lr", "fast"], ["--lr", "fast"]),
        (["--learning-rate", "1"], ["--learning-rate"]),
        (["--epochs", "0"], ["`epochs` must be at least 1"]),
    ],
)
def test_wrong_arguments_exit_with_status_2(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*args)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)


@pytest.mark.parametrize(("given", "rate"), [([], 0.5), (["--config", "vit_b_16_100"], 0.003)])
def test_help_names_the_configurations_and_shows_the_values_of_the_chosen_one(
    given: list[str], rate: float, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*given, "--help")
    assert caught.value.code == 0
    message = " ".join(capsys.readouterr().out.replace("│", "").split())
    for word in ("Pretrain.", "--config", "vit_b_16_100", "--config-file", "--attack-epsilon"):
        assert word in message
    assert f"see --lr-per. (default: {rate})" in message


def test_help_imports_nothing_that_is_slow() -> None:
    code = """
import runpy, sys
sys.argv = ["recipe", "--help"]
for recipe in ("pretrain", "finetune", "pretrain_moco", "demo"):
    try:
        runpy.run_module(f"train.{recipe}", run_name="__main__")
    except SystemExit as error:
        assert not error.code
print(sorted({"torch", "ffcv", "numba"} & sys.modules.keys()))
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, text=True, check=True, capture_output=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "[]"


# Files.


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    def file(name: str, content: Any) -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return file


YAML = """
arch: resnet50
weight_decay: 5e-5      # YAML 1.1 takes this for text
amp: off                # and this for false
flip: false
channels_last: True
ramp: [11, 13]
end_resolution: 192
selection: null
iterations: ~
val: some/val.beton
num_workers: null
"""


def test_a_yaml_file_sets_fields_and_flags_override_it(write: Callable[..., str]) -> None:
    pytest.importorskip("yaml")
    file = write("config.yaml", YAML)
    expected = Config(
        **PATHS,
        arch="resnet50",
        weight_decay=5e-5,
        amp="off",
        flip=False,
        ramp=(11, 13),
        end_resolution=192,
        val=Path("some/val.beton"),
    )
    assert parsed("--config-file", file) == expected
    config = parsed("--config-file", file, "--flip", "--ramp", "1", "2", "--arch", "resnet18")
    changes: dict[str, Any] = {"flip": True, "ramp": (1, 2), "arch": "resnet18"}
    assert config == dataclasses.replace(expected, **changes)


def test_a_file_overrides_a_name(write: Callable[..., str]) -> None:
    file = write("config.json", {"lr": 0.25, "blurpool": False, "val_resolution": None})
    config = parsed("--config-file", file, "--config", "ffcv_rn50_16", "--seed", "3")
    expected = named("ffcv_rn50_16")
    changes: dict[str, Any] = {"lr": 0.25, "blurpool": False, "val_resolution": None, "seed": 3}
    assert config == dataclasses.replace(expected, **changes)
    args = ["--config-file", write("paths.json", {"train": "train.beton", "run": "run"})]
    assert parse(Config, CONFIGS, description=None, args=args) == Config(**PATHS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"lr": 0.1, "rate": 2, "speed": 3}, "sets rate, speed, which"),
        ("a.json", {"flip": "perhaps"}, "`flip` must be true or false; got 'perhaps'"),
        ("a.json", [1], "must map fields"),
        ("a.json", "{", r"a\.json' as JSON"),
        ("a.yaml", "a: [", r"a\.yaml' as YAML"),
        ("a.yaml", "", "must map fields"),
    ],
)
def test_a_file_that_is_no_configuration_is_rejected(
    name: str, content: Any, message: str, write: Callable[..., str]
) -> None:
    with pytest.raises(ValueError, match=message):
        parsed("--config-file", write(name, content))


# DP4TL's files, of which these have every key of a pretraining.


def dp4tl_file(**train: Any) -> dict[str, Any]:
    """DP4TL's file for rn18_16, with other values in the section `train`."""
    return {
        "network": {"architecture": "resnet18", "blurpool": 0},
        "dataset": {
            "train_path": "train.beton",
            "val_path": "val.beton",
            "num_workers": 12,
            "in_memory": 0,
            "prune": 0,
            "indices": {"training": None, "testing": None},
        },
        "train": {
            "seed": 43856,
            "epoch": 16,
            "batch_size": 1024,
            "label_smoothing": 0.0,
            "scheduler_type": "cyclic",
            "optimizer": {"lr": 0.5, "weight_decay": 5e-05, "momentum": 0.9},
            "scheduler": {
                "step": {"step_ratio": None, "step_size": None},
                "cyclic": {"lr_peak_epoch": 2},
            },
            "resolution": {"min_res": 160, "max_res": 192, "end_ramp": 13, "start_ramp": 11},
            **train,
        },
        "validation": {"batch_size": 512, "resolution": 256, "lr_tta": 0},
        "logging": {"save_intermediate_frequency": None},
    }


MACHINE: dict[str, Any] = {"seed": 43856, "num_workers": 12, "val": Path("val.beton")}


def other_yaml_words(text: str) -> str:
    for word, other in (("null", "~"), ("0.5", ".5"), ("5.0e-05", "5e-5")):
        text = text.replace(f": {word}\n", f": {other}\n")
    for switch, off in (("blurpool", "False"), ("prune", "no"), ("lr_tta", "off")):
        text = text.replace(f"{switch}: 0\n", f"{switch}: {off}\n")
    return text


@pytest.mark.parametrize("kind", ["json", "yaml", "other yaml"])
def test_dp4tls_file_is_the_configuration_of_that_name(
    kind: str, write: Callable[..., str]
) -> None:
    yaml = pytest.importorskip("yaml")
    content = dp4tl_file() if kind == "json" else yaml.dump(dp4tl_file())
    if kind == "other yaml":
        content = other_yaml_words(content)
    file = write(f"rn18_16.{kind.split()[-1]}", content)
    config = parsed("--config", "ffcv_rn50_88", "--config-file", file)
    assert config == dataclasses.replace(named("rn18_16"), **MACHINE)


def test_dp4tls_file_for_the_vision_transformer(write: Callable[..., str]) -> None:
    content = dp4tl_file(
        epoch=100,
        batch_size=100,
        distributed=1,
        label_smoothing=0.11,
        scheduler_type="cosine_with_warmup",
        optimizer={"type": "AdamW", "lr": 3e-3, "weight_decay": 0.3, "momentum": 0.9},
        scheduler={"cosine_with_warmup": {"warmup_epoch": 10, "starting_factor": 0.001}},
        resolution={"min_res": 224, "max_res": 224, "end_ramp": 13, "start_ramp": 11},
    )
    content["network"]["architecture"] = "vit_b_16"
    content["validation"]["resolution"] = 224
    content["distributed"] = {"world_size": 4}
    config = parsed("--config-file", write("vit.json", content))
    assert config == dataclasses.replace(named("vit_b_16_100"), **MACHINE)


def test_dp4tls_step_schedule_and_attack(write: Callable[..., str]) -> None:
    scheduler = {"step": {"step_ratio": 0.2, "step_size": 5}, "cyclic": {"lr_peak_epoch": None}}
    content = dp4tl_file(scheduler_type="step", scheduler=scheduler)
    content["adv"] = {"attack_step": 7, "epsilon": 4.0}
    config = parsed("--config-file", write("step.json", content))
    assert (config.schedule, config.warmup) == ("step", 0.0)
    assert (config.step_ratio, config.step_length) == (0.2, 5)
    assert (config.attack, config.attack_steps, config.attack_epsilon) == ("pgd", 7, 4.0)


PROBING = {"pretrained_ckpt": "a.ckpt", "finetune_method": "lp"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            dp4tl_file(weight_averaging=1, optimizer={"lr": 1.0, "betas": None}),
            r"train\.optimizer\.betas, train\.weight_averaging",
        ),
        ({**dp4tl_file(), "dataset": {"prune": 1}}, "import_indices"),
        ({**dp4tl_file(), "network": PROBING}, "checkpoint, mode"),
        (dp4tl_file(epoch=None), r"train\.epoch"),
    ],
    ids=["unknown keys", "indices", "another task", "no epochs"],
)
def test_other_files_of_dp4tl_are_rejected(
    content: dict[str, Any], message: str, write: Callable[..., str]
) -> None:
    with pytest.raises(ValueError, match=message):
        parsed("--config-file", write("a.json", content))


# DP4TL's files of targets, for train.finetune.


def dp4tl_target_file(network: dict[str, Any], optimizer: dict[str, Any], **train: Any) -> Any:
    content = dp4tl_file(
        epoch=200,
        batch_size=128,
        scheduler_type="cosine",
        optimizer=optimizer,
        progressive_resize=0,
        static_resolution={"res": 224},
        progressive_resolution=dict.fromkeys(("min_res", "max_res", "end_ramp")),
    )
    del content["train"]["resolution"], content["dataset"]["val_path"], content["validation"]
    content["network"] |= network
    content["dataset"] |= {"test_path": "test.beton", "num_workers": 8}
    content["train"] |= train
    return {**content, "test": {"batch_size": 1024, "resolution": 224, "lr_tta": 0}}


def parsed_target(*args: str) -> finetune.Config:
    flags = ["--val", "val.beton", "--run", "run", *args]
    return parse(finetune.Config, finetune.CONFIGS, description=None, args=flags)


TRANSFERRED = {"pretrained_ckpt": "source.ckpt"}
ADAM = {"lr": 0.0001, "weight_decay": 0.0}
SGD = {"type": "SGD", "lr": 0.1, "weight_decay": 5e-4}
PROBE: dict[str, Any] = {"epoch": 50, "optimizer": {"lr": 0.01, "weight_decay": 0.0}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dtd_linear_probe", dp4tl_target_file({**TRANSFERRED, "finetune_method": "lp"}, **PROBE)),
        ("dtd_full_finetuning", dp4tl_target_file({**TRANSFERRED, "finetune_method": "ff"}, ADAM)),
        (
            "food101_full_finetuning",
            dp4tl_target_file({**TRANSFERRED, "finetune_method": "ff"}, SGD),
        ),
        ("dtd_from_scratch", dp4tl_target_file({}, {"lr": 0.1, "weight_decay": 5e-4})),
    ],
)
def test_dp4tls_file_of_a_target_is_the_configuration_of_that_name(
    name: str, content: dict[str, Any], write: Callable[..., str]
) -> None:
    config = parsed_target("--config-file", write("a.json", content))
    checkpoint = {} if "scratch" in name else {"checkpoint": Path("source.ckpt")}
    machine = {"arch": "resnet18", "seed": 43856, "num_workers": 8}
    assert config == named_target(name, **checkpoint, **machine)


def test_dp4tls_growing_resolution_of_a_target_is_named_as_missing(
    write: Callable[..., str],
) -> None:
    ramp = {"min_res": 160, "max_res": 192, "start_ramp": 1, "end_ramp": 3}
    content = dp4tl_target_file({}, SGD, progressive_resize=1, progressive_resolution=ramp)
    with pytest.raises(ValueError, match="end_resolution, ramp"):
        parsed_target("--config-file", write("a.json", content))
