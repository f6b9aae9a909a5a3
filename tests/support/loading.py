"""Helpers for tests of loaders."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.pipeline.operation import Operation
from numpy.typing import NDArray

from dp4tl_ffcv import PrunedLoader, Selection
from dp4tl_ffcv.loading import CACHES, ORDERS

CACHE_OPTIONS = [*CACHES, "auto"]
ORDER_NAMES = list(ORDERS)
Guarded = Callable[[Callable[[], Any]], Any]  # the fixture `guarded`


class Step(Operation):
    """An operation that `make` returns the function of, compiled unless `jit` is False."""

    def __init__(self, make: Callable[[], Callable[..., Any]], jit: bool = True) -> None:
        super().__init__()
        self.make, self.jit = make, jit

    def generate_code(self) -> Callable[..., Any]:
        return self.make()

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        return replace(previous_state, jit_mode=self.jit), None


def plus(number: Any) -> Callable[..., Any]:
    """Return a function that adds a number to a batch."""
    return lambda batch, _: batch + number


def loader_of(beton: Any, batch_size: int, **options: Any) -> PrunedLoader:
    """Return a loader with two workers that keeps the last batch. `beton` may be a dataset."""
    options = {"num_workers": 2, "drop_last": False, **options}
    return PrunedLoader(getattr(beton, "path", beton), batch_size, **options)


def ids_of(batches: Any, dataset: Any) -> list[int]:
    """Return the sample ids that the pixels of an epoch show."""
    return [int(number) for pixels, *_ in batches for number in dataset.ids_of(pixels)]


def samples_of(batches: Any, dataset: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids that the pixels of an epoch show, and the labels of the batches."""
    ids, labels = [], []
    for pixels, shown, *_ in batches:
        ids.append(dataset.ids_of(pixels))
        labels.append(torch.as_tensor(shown).numpy().reshape(-1).copy())
    return np.concatenate(ids), np.concatenate(labels)


def of_classes(dataset: Any, classes: Any) -> Selection:
    return Selection.of_classes(dataset.index, classes)


def pretend_rank(patch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """Let torch.distributed report this rank and world size."""
    patch.setattr(torch.distributed, "get_rank", lambda: rank)
    patch.setattr(torch.distributed, "get_world_size", lambda: world_size)
    patch.setattr(torch.distributed, "is_available", lambda: True)


def run_script(script: str, *arguments: str | Path, **options: Any) -> str:
    """Run Python code in another process, which must succeed; return its output."""
    command = [sys.executable, *options.pop("flags", ()), "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def only(**pipelines: Any) -> dict[str, Any]:
    """Return these pipelines, with all other fields of an image beton disabled."""
    return {"image": None, "label": None, "identifier": None, **pipelines}
