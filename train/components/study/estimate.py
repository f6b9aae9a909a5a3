"""Estimate the time and disk of a study's runs from a short measurement."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dp4tl_ffcv import BetonIndex, build_model
from dp4tl_ffcv.utils import best_device

from ...configs.pretrain import Config as PretrainConfig
from ...configs.study import AUTO
from .stages import Stage

_STEPS = 3  # measured after one step to warm up
_STATES = 3  # weights, momentum and the checkpoint of a finished run


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected cost of a stage."""

    seconds: float
    num_bytes: int


class Estimator:
    """Estimates pretraining runs, which take nearly all of a study's time.

    A few steps on random images give the images per second of each architecture, resolution and
    batch size. Loading is not measured: a loader that keeps up costs nothing.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[str, int, int], tuple[float, int]] = {}
        self._images: dict[str, int] = {}

    def of(self, stage: Stage) -> Estimate | None:
        """Return the expected cost, or None if the source is not written yet or it is no training.

        Without a beton the number of images is unknown.
        """
        if stage.kind != "pretrain" or not stage.paths["train"].exists():
            return None
        settings = _settings(stage.facts["settings"])
        rate, weights = self._rate(settings)
        share = 1.0
        if "selection" in stage.needs and "full" not in stage.needs:
            chosen = stage.needs["selection"]
            keep = (chosen.result() or {}).get("keep", chosen.facts["keep"])
            share = 1.0 if keep == AUTO else keep  # at most
        images = share * self._num_images(stage) * settings["epochs"]
        return Estimate(images / rate, _STATES * weights)

    def _num_images(self, stage: Stage) -> int:
        path = str(stage.paths["train"])
        if path not in self._images:
            self._images[path] = len(BetonIndex.open(path))
        return self._images[path]

    def _rate(self, settings: Mapping[str, Any]) -> tuple[float, int]:
        key = settings["arch"], settings["resolution"], settings["batch_size"]
        if key not in self._rates:
            self._rates[key] = measure(*key)
        return self._rates[key]


def total(estimates: Sequence[Estimate | None]) -> Estimate:
    """Return the sum of the known estimates."""
    known = [each for each in estimates if each is not None]
    return Estimate(sum(each.seconds for each in known), sum(each.num_bytes for each in known))


def measure(arch: str, resolution: int, batch_size: int) -> tuple[float, int]:
    """Return the images per second of training steps on one core or GPU, and bytes of weights."""
    device, threads = best_device(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build_model(arch, 100).to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
        images = torch.rand(batch_size, 3, resolution, resolution, device=device) * 255
        labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        for step in range(_STEPS + 1):
            if step == 1:
                _wait(device)
                started = time.perf_counter()
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        _wait(device)
        seconds = time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return _STEPS * batch_size / seconds, weights


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    names = ("arch", "resolution", "batch_size", "epochs")
    return {name: given.get(name, getattr(PretrainConfig, name)) for name in names}
