"""The verb export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the retained sample ids for other loaders."""

    selection: Annotated[Path, tyro.conf.Positional]
    """Selection file."""
    out: Path
    """File to write: .npy (numpy), .indices (torch, as DP4TL reads) or .txt (one id per line)."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Export the ids."""
        from .. import export_indices

        return export_indices(self.selection, self.out)
