"""The verb verify."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import BetonError
from .output import Output


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a whole beton: header, tables and manifest, and every image if asked for."""

    beton: Annotated[Path, tyro.conf.Positional]
    """The beton."""
    decode: bool = False
    """Read and decode every image."""
    num_workers: int | None = None
    """Threads that decode; one per core unless given."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Check, and list what is wrong."""
        from ..beton.verify.verification import verify

        return verify(self.beton, decode=self.decode, num_workers=self.num_workers).summary()

    def conclude(self, result: Mapping[str, Any]) -> None:
        """Fail, once the result was shown, if there are problems.

        Raises:
            BetonError: there are.
        """
        if count := result["problems"]:
            raise BetonError(
                f"`beton` must be whole; got {count} problem{'s' if count > 1 else ''}, listed on "
                f"stdout, in {str(self.beton)!r}. Copy the file again from where it is whole, or "
                "write it again."
            )
