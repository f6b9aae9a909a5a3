"""The whole state of an unfinished run in one file, so that a killed run goes on where it was.

Nothing random is part of it: an epoch's order and crops follow from the loader's seed and the
epoch, and all else that an epoch draws from the seed that `Processes.seed` sets at its start.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from dp4tl_ffcv import atomic_open

__all__ = ["Progress", "Snapshot", "Stateful"]


class Stateful(Protocol):
    """A part of a run that has a state: model, optimiser, averaged weights, loss scale."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take a state over."""


@dataclass
class Progress:
    """How far a run has come, over all its sessions."""

    epoch: int = 0
    """Epochs that are finished."""
    step: int = 0
    """Optimiser steps that are taken."""
    images: int = 0
    """Images that they have seen, in all processes."""
    seconds: float = 0.0
    """Seconds of training, without set-up and validation."""
    stalled: float = 0.0
    """Seconds of these that the training has waited for its loader."""
    warm_up_seconds: float = 0.0
    """Seconds of set-up at first use."""
    loss: float = float("nan")
    """Mean loss of the last epoch."""


class Snapshot:
    """A file with the state of everything that changes in a run.

    Args:
        path: the file.
        parts: what has a state, by name.
    """

    def __init__(self, path: Path, parts: Mapping[str, Stateful]) -> None:
        self.path = path
        self.parts = dict(parts)

    def save(self, progress: Progress) -> None:
        """Replace the file atomically; a run that is killed meanwhile keeps the old one."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_open(self.path) as stream:
            torch.save({"progress": asdict(progress), "states": states}, stream)

    def load(self) -> Progress:
        """Give every part its saved state, and return how far the run had come.

        Raises:
            ValueError: the file is damaged, or of a run with other parts.
        """
        try:
            values = torch.load(self.path, map_location="cpu", weights_only=True)
            progress, states = Progress(**values["progress"]), values["states"]
            if states.keys() != self.parts.keys():
                raise KeyError(f"it has {sorted(states)}")
            for name, part in self.parts.items():
                part.load_state_dict(states[name])
        except OSError:
            raise
        except Exception as error:  # what torch raises on a damaged file is not documented
            raise ValueError(
                f"`resume` must find the state of this very run; got {str(self.path)!r}, which "
                f"does not fit ({type(error).__name__}: {error}). Start over without resuming."
            ) from error
        return progress

    def remove(self) -> None:
        """Delete the file, once the run is finished."""
        self.path.unlink(missing_ok=True)
