"""Base of the benches: the data that the figures of a benchmark share."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

CORES = len(os.sched_getaffinity(0))

_Scale = TypeVar("_Scale")


@dataclass
class BaseBench(Generic[_Scale]):
    """Data of a benchmark, and processes that start once."""

    scale: _Scale
    data: Path
    """Folder of generated data, kept for the next run."""
    stack: ExitStack
    """Closed at the end of the benchmark."""
