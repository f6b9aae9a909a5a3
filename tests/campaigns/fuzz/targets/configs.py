"""Configurations of recipes: YAML and JSON files, and command lines."""

import contextlib
import io
import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.campaigns.fuzz.mutate import mutated_text
from tests.campaigns.fuzz.target import Sample, Target
from train.configs import command_line
from train.configs.pretrain import Config

_FIELDS = tuple(Config.__dataclass_fields__)
_OURS = """\
train: a.beton
run: runs/a
lr: 0.5
epochs: 6
ramp: [2, 5]
end_resolution: 192
blurpool: true
arch: resnet18
batch_size: 256
momentum: 0.9
seed: 7
"""
_DP4TL = """\
exp:
  identifier: test
network:
  architecture: resnet18
  blurpool: 1
dataset:
  train_path: a.beton
  num_workers: 4
train:
  seed: 1
  epoch: 16
  batch_size: 1024
  optimizer:
    type: sgd
    lr: 0.5
    weight_decay: 5e-5
    momentum: 0.9
  scheduler_type: cyclic
  scheduler:
    cyclic:
      lr_peak_epoch: 2
  label_smoothing: 0.1
  resolution:
    min_res: 160
    max_res: 192
    start_ramp: 3
    end_ramp: 9
"""
_RUN = ("--run", "runs/a")  # which DP4TL's files do not name
_YAML = (
    "&a", "*a", "<<: *a", "!!python/object/apply:os.system [true]", "!!set {a, b}", "!!binary aGk=",
    "? ", "- ", "|", ">", "---", "...", "%YAML 1.1", "{", "}", "{a: *a}", "[*a, *a, *a]", "0o7",
    "1:30",
)  # fmt: skip


def parse(arguments: list[str]) -> Config:
    """Parse a command line of `dp4tl pretrain`; an invalid one exits."""
    return command_line.parse(Config, {"small": {"epochs": 2}}, description=None, args=arguments)


class ConfigTarget(Target):
    allowed = (SystemExit,)

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Parse the settings, and print what a run would record."""
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                config = parse(self.arguments(folder, sample, data))
            except SystemExit as stop:
                return "equal" if stop.code == 0 else "usage error"
        json.dumps(asdict(config), default=str)
        return "equal" if asdict(config) == sample.truth else "accepted, not compared"

    def arguments(self, folder: Path, sample: Sample, data: bytes) -> list[str]:
        """Return the arguments of the command line."""
        return [*_RUN, "--config-file", str(folder / sample.attacked)]


class ConfigFiles(ConfigTarget):
    name = "configuration file"

    def prepare(self, folder: Path) -> list[Sample]:
        values = {
            "train": "a.beton",
            "run": "runs/a",
            "lr": 0.5,
            "ramp": [1, 2],
            "end_resolution": 192,
            "blurpool": True,
            "epochs": 3,
        }
        texts = {"a.yaml": _OURS, "b.yaml": _DP4TL, "c.json": json.dumps(values, indent=1)}
        samples = []
        for name, text in texts.items():
            (folder / name).write_text(text)
            truth = asdict(parse([*_RUN, "--config-file", str(folder / name)]))
            samples.append(Sample({name: text.encode()}, name, truth=truth))
        return samples

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the text; now and then let anchors multiply."""
        text = sample.data.decode()
        if rng.random() < 0.01 and sample.attacked.endswith(".yaml"):
            names = "abcdefghij"
            lines = [f"{n}: &{n} [{', '.join(['*' + p] * 9)}]" for p, n in pairwise(names)]
            text = "a: &a [x, x]\n" + "\n".join(lines) + "\n" + text
        relative, absolute = self.paths_outside()
        words = (*_YAML, *_FIELDS, f"!include {relative}", f"extends: {absolute}", absolute)
        return mutated_text(rng, text, words)


class CommandLines(ConfigTarget):
    name = "command line"

    def prepare(self, folder: Path) -> list[Sample]:
        lines = (
            "--run\nruns/a\n--train\na.beton\n--lr\n0.5\n--epochs\n3\n--ramp\n1\n2\n--end-resolution\n192\n--blurpool",
            "--run\nruns/a\n--config\nsmall\n--train\na.beton\n--no-tta\n--seed\n3\n--selection\ns.npz",
        )
        return [
            Sample({"line": each.encode()}, "line", truth=asdict(parse(each.split("\n"))))
            for each in lines
        ]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the arguments, one a line."""
        flags = [f"--{name.replace('_', '-')}" for name in _FIELDS]
        words = ("--", "None", "--help", "--config", f"@{self.secret}", *flags)
        return mutated_text(rng, sample.data.decode(), words)

    def arguments(self, folder: Path, sample: Sample, data: bytes) -> list[str]:
        """Return the arguments. A shell passes no NUL, and no file is read from outside."""
        text = data.decode("utf-8", "surrogateescape").replace("\0", "")
        return [each for each in text.split("\n") if not each.startswith("--config-f")]
