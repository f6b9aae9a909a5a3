"""The verb compact."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Copy what a selection retains into a beton of its own, which any ffcv recipe reads."""

    source: Annotated[Path, tyro.conf.Positional]
    """Beton to copy from."""
    out: Path
    """Beton to write; its manifest goes beside it."""
    selection: Path | None = None
    """Selection file; all samples unless given."""
    layout: Literal["shuffled", "class"] = "shuffled"
    """Order of the samples: random, or by class."""
    seed: int = 0
    """Of the shuffled order."""
    relabel: bool = False
    """Number the retained classes from 0."""
    max_resolution: int | None = None
    """Longer side in pixels above which images are shrunk."""
    images: Literal["keep", "jpeg", "raw"] = "keep"
    """How images are stored."""
    raw_budget: str | None = None
    """Bytes of the file, such as 64GiB: as many JPEGs are stored as raw pixels as fit."""
    fields: tuple[str, ...] = ()
    """Fields to keep, such as `image label`, for recipes that take no others; all unless given."""
    jobs: int | None = None
    """Threads that copy, or processes that encode; one per core unless given."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Compact, and say how much in what time."""
        from ..compaction.compact import compact

        started = time.perf_counter()
        index = compact(
            self.source,
            self.selection,
            self.out,
            layout=self.layout,
            seed=self.seed,
            relabel=self.relabel,
            max_resolution=self.max_resolution,
            images=self.images,
            raw_budget=self.raw_budget,
            fields=self.fields or None,
            jobs=self.jobs,
        )
        seconds = time.perf_counter() - started
        sample_bytes = int(index.sample_bytes().sum())
        result: dict[str, Any] = {
            "out": str(self.out),
            "samples": index.num_samples,
            "sample_bytes": sample_bytes,
            "file_bytes": self.out.stat().st_size,
        }
        for part in index.fields:
            if part.kind == "rgb_image":
                modes = index.column(part.name)["mode"]
                result[f"{part.name}_stored"] = {
                    "jpg": int((modes == 0).sum()),
                    "raw": int((modes == 1).sum()),
                }
        return {**result, "seconds": seconds, "bytes_per_second": sample_bytes / seconds}
