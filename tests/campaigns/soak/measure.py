"""Measure the resources that a process holds, and find those that grow."""

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

_PAGE = os.sysconf("SC_PAGE_SIZE")
WARM_UP = 0.25  # share of the epochs in which memory and threads may still grow
# Growth from the first to the last third after the warm-up that counts as noise: the allocator
# keeps free memory. Leaking one batch of 600 kB in one epoch of five is three times more.
MEMORY_NOISE = 4 << 20
MAPS_NOISE = 8


@dataclass(frozen=True)
class Sample:
    """The resources that this process holds at one moment."""

    memory: int
    """Resident bytes."""
    threads: int
    descriptors: int
    maps: int
    """Ranges of mapped memory."""
    shared: int
    """Entries of /dev/shm that this process has mapped."""


def measure() -> Sample:
    """Measure this process."""
    me = Path("/proc/self")
    maps = (me / "maps").read_text().splitlines()
    return Sample(
        memory=int((me / "statm").read_text().split()[1]) * _PAGE,
        threads=_count(me / "task"),
        descriptors=_count(me / "fd"),
        maps=len(maps),
        shared=len({line.split()[-1] for line in maps if "/dev/shm/dp4tl_ffcv-" in line}),
    )


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def growth(samples: Sequence[Sample]) -> Sample:
    """Return the growth from the first to the last third after the warm-up, of the medians."""
    values = np.array([astuple(sample) for sample in samples[int(len(samples) * WARM_UP) :]])
    third = max(1, len(values) // 3)
    grown = np.median(values[-third:], axis=0) - np.median(values[:third], axis=0)
    return Sample(*grown.astype(int).tolist())


def growth_problems(samples: Sequence[Sample]) -> list[str]:
    """Describe what has grown by more than noise."""
    noise = Sample(MEMORY_NOISE, 0, 0, MAPS_NOISE, 0)
    grown = growth(samples)
    return [
        f"growth of {field.name}: {getattr(grown, field.name):,}"
        for field in fields(Sample)
        if getattr(grown, field.name) > getattr(noise, field.name)
    ]


def show(samples: Sequence[Sample]) -> dict[str, float | str]:
    """Return the figures for the result line."""
    after, grown = samples[int(len(samples) * WARM_UP) :], growth(samples)
    epochs = np.arange(len(after))
    slope = float(np.polyfit(epochs, [sample.memory for sample in after], 1)[0])
    figures: dict[str, float | str] = {
        "memory after warm-up": f"{after[0].memory / 2**20:.1f} MiB",
        "memory growth": f"{grown.memory / 2**20:.2f} MiB",
        "memory slope": f"{slope / 1024:.2f} KiB/epoch",
    }
    for name in ("threads", "descriptors", "maps", "shared"):
        values = [getattr(sample, name) for sample in after]
        figures[name] = f"{min(values)} to {max(values)}"
    return figures
