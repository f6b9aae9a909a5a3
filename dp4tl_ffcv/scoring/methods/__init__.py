"""Scoring methods, one module each.

A module declares `METHOD`. Nothing else names the method: the command line, the documentation and
the benchmarks iterate this registry.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from importlib import import_module
from inspect import getdoc, signature
from pkgutil import iter_modules
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...validate import check_choice
from ..scores import Scores, Unit


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to score the classes or the samples of a source.

    The help of the command is the docstring of the function's module. The help of a flag is the
    description of the argument in the function's docstring, up to "In Python".
    """

    function: Callable[..., Scores]
    flags: Mapping[str, Any]
    """Arguments that are flags of `dp4tl score`, and their types there."""
    units: tuple[Unit, ...]
    """Units that the method can score."""
    votes: Callable[..., NDArray[np.int64]] | None = None
    """Returns the class that each image of the target votes for `(n,)`, given the function's
    arguments. None: the scores are not votes, which `select(keep="auto")` needs."""
    outputs: Literal["logits", "predictions"] | None = None
    """Outputs of the surrogate's classifier that the method reads. None: needs no classifier."""
    reference: str = ""
    """Paper that the method comes from."""

    @property
    def name(self) -> str:
        """Name of the method's module."""
        return self.function.__module__.rpartition(".")[2]

    @property
    def _description(self) -> str:
        return str(sys.modules[self.function.__module__].__doc__)

    @property
    def summary(self) -> str:
        """First line of the help text."""
        return self._description.partition("\n")[0]

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the flags without a default."""
        return tuple(name for name in self.flags if self._default(name) == ())

    def _default(self, flag: str) -> tuple[Any, ...]:
        parameter = signature(self.function).parameters[flag]
        return () if parameter.default is parameter.empty else (parameter.default,)

    def flags_class(self) -> type[Any]:
        """Return a dataclass of the flags, for the command line. Its name is the method's."""
        fields = [(name, kind, *self._default(name)) for name, kind in self.flags.items()]
        made = make_dataclass(self.name, fields, kw_only=True)
        documented = str(getdoc(self.function)).partition("\nArgs:\n")[2].partition("\n\n")[0]
        helps = []
        for entry in re.split(r"\n    (?=\w)", f"\n{documented}")[1:]:
            name, _, text = " ".join(entry.split()).partition(": ")
            text = text.partition(" In Python")[0]
            helps.append(f"    {name}: {text[:1].upper()}{text[1:]}")
        made.__doc__ = "\n".join((self._description, "Args:", *helps))
        return made


def names() -> list[str]:
    """Return the names of all methods."""
    return sorted(module.name for module in iter_modules(__path__))


def get(name: str) -> Method:
    """Return the method called `name`."""
    module = import_module(f".{check_choice('method', name, names())}", __name__)
    method: Method = module.METHOD
    return method


def score(name: str, /, *, out: str | os.PathLike[str] | None = None, **inputs: Any) -> Scores:
    """Score by the method called `name`.

    Args:
        name: such as `label_mapping`; `names()` lists all.
        out: file (`.npz`) to write the scores to.
        inputs: arguments of the method's function.
    """
    scores = get(name).function(**inputs)
    if out is not None:
        scores.save(out)
    return scores


def table() -> str:
    """Return a Markdown table of all methods, for the documentation."""
    lines = [
        "| `dp4tl score ...` | scores | units | inputs | reference |",
        "|---|---|---|---|---|",
    ]
    for method in map(get, names()):
        cells = (
            f"`{method.name.replace('_', '-')}`",
            method.summary.rstrip("."),
            ", ".join(method.units),
            ", ".join(f"`{name}`" for name in method.required),
            method.reference,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
