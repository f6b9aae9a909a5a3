"""The verb compact."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Copy the retained samples into a new beton, which any FFCV recipe can read."""

    beton: Annotated[Path, tyro.conf.Positional]
    """Beton to copy from."""
    out: Path
    """Beton to write. Its manifest is written next to it."""
    selection: Path | None = None
    """Selection file. Default: copy all samples."""
    layout: Literal["shuffled", "class"] = "shuffled"
    """Order of the samples in the new file: random, or by class."""
    seed: int = 0
    """Seed of the shuffled order."""
    relabel: bool = False
    """Number the retained classes 0 to K - 1."""
    max_resolution: int | None = None
    """Shrink images whose longer side exceeds this many pixels."""
    images: Literal["keep", "jpeg", "raw"] = "keep"
    """How to store images: unchanged, as JPEG, or as raw pixels."""
    raw_budget: str | None = None
    """Size of the new file, such as 64GiB. Stores as many images as fit as raw pixels."""
    fields: tuple[str, ...] | None = None
    """Fields to copy, such as `image label`. Default: all."""
    num_workers: int | None = None
    """Threads that copy, or processes that encode. Default: one per core."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Copy the samples."""
        from .. import compact

        return compact(
            self.beton,
            self.selection,
            self.out,
            layout=self.layout,
            seed=self.seed,
            relabel=self.relabel,
            max_resolution=self.max_resolution,
            images=self.images,
            raw_budget=self.raw_budget,
            fields=self.fields,
            num_workers=self.num_workers,
        )
