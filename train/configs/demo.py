"""Settings of `train.demo`."""

from dataclasses import dataclass
from pathlib import Path

from .common import check_fields


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the demo. The defaults take about six minutes on two cores."""

    out: Path = Path("runs/demo")
    """Folder of everything that the demo writes."""
    fresh: bool = False
    """Delete the results of earlier runs and start over."""
    keeps: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Fractions of the source classes to retain."""
    control_keep: float = 0.25
    """Which of --keeps is also trained for as many steps as the full source."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of pretraining and finetuning."""
    surrogate_epochs: int = 6
    """Passes over the full source for the surrogate."""
    epochs: int = 6
    """Passes over the retained samples in pretraining."""
    probe_epochs: int = 50
    """Passes over the target's features for a linear probe."""
    finetune_epochs: int = 10
    """Passes over the target's images in full finetuning."""
    variants: int = 1
    """Renderings of each original per source class."""
    num_workers: int | None = None
    """Loading threads. None: all cores."""

    def __post_init__(self) -> None:
        """Check the settings."""
        check_fields(self, "num_workers", at_least=1)
        if self.control_keep not in self.keeps:
            raise ValueError(
                f"`control_keep` must be one of `keeps`, {self.keeps}; got {self.control_keep}."
            )
