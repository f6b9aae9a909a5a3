"""The verb score: a sub-verb for each scoring method."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from ..scoring import methods
from .output import Output

if TYPE_CHECKING:
    Flags = Any
else:
    Flags = Union[  # noqa: UP007  # of a tuple that is known at run time alone
        tuple(
            Annotated[methods.get(name).flags_class(), tyro.conf.subcommand(name.replace("_", "-"))]
            for name in methods.names()
        )
    ]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score the classes or the samples of a source. Each method has its own --help."""

    method: Flags
    out: Path
    """Scores file (.npz) to write."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Score and save."""
        from ..scoring import score

        return score(type(self.method).__name__, out=self.out, **vars(self.method))
