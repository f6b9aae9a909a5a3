"""The verb verify."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a beton for damage: header, tables and manifest, and with --decode every image."""

    beton: Annotated[Path, tyro.conf.Positional]
    """Beton to check."""
    decode: bool = False
    """Read and decode every image."""
    num_workers: int | None = None
    """Threads that decode. Default: one per core."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Check the file. Problems set exit status 1."""
        from .. import verify

        return verify(self.beton, decode=self.decode, num_workers=self.num_workers)
