"""The variables that `torchrun` sets for each process."""

import os
from typing import NamedTuple


class Torchrun(NamedTuple):
    """Number of this process among all processes and among those on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def torchrun() -> Torchrun:
    """Read the variables. Without them, there is one process."""
    names = (name for name in Torchrun._fields if name.upper() in os.environ)
    return Torchrun(**{name: int(os.environ[name.upper()]) for name in names})
