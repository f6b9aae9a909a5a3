"""The verb score: a sub-verb for each scoring method."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from ..scoring import methods
from .output import Output

if TYPE_CHECKING:
    MethodInputs = Any
else:
    _VERBS = {name.replace("_", "-"): methods.get(name).inputs for name in methods.names()}
    MethodInputs = Union[  # noqa: UP007  # of a tuple that is known at run time alone
        tuple(Annotated[inputs, tyro.conf.subcommand(verb)] for verb, inputs in _VERBS.items())
    ]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score the source's classes, or its samples, by a method."""

    method: MethodInputs
    out: Path
    """Scores file (.npz) to write."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Score and save."""
        from ..scoring import score

        return score(methods.name_of(self.method), out=self.out, **vars(self.method))
