"""Settings of `train.demo`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from . import study


@dataclass(frozen=True, kw_only=True)
class Config(study.Config):
    """Settings of the demo."""

    file: tyro.conf.Suppress[Path] = Path(__file__).parent / "studies" / "demo.yaml"
    out: Path = Path("runs/demo")
    """Folder of everything that the demo writes."""
    fresh: bool = False
    """Delete the results of earlier runs and start over."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.fresh and (self.dry_run or self.status):
            raise ValueError("`fresh` deletes results, which `dry_run` and `status` only describe.")
