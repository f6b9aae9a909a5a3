"""The verb inspect."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what a beton contains, without decoding any image."""

    beton: Annotated[Path, tyro.conf.Positional]
    """Beton to read."""
    label_field: str = "label"
    """Integer field with the class ids."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Read the tables."""
        from .. import BetonIndex

        return BetonIndex.open(self.beton).summary(self.label_field)
