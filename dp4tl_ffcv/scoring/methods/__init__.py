"""Scoring methods, one module each.

A module declares `METHOD`. Nothing else names the method: the command line, the documentation and
the benchmarks iterate this registry.
"""

import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ...validate import check_choice
from ..scores import Scores, Unit


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to score the classes or the samples of a source."""

    function: Callable[..., Scores]
    """Takes the fields of `inputs` as arguments of the same names."""
    inputs: type[Any]
    """Dataclass whose fields are the method's flags; their docstrings are the help texts."""
    units: tuple[Unit, ...]
    """What the method can score."""
    reference: str = ""
    """Paper that the method comes from."""

    @property
    def name(self) -> str:
        """Name of the method's module."""
        return self.function.__module__.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """First line of the help text."""
        return str(self.inputs.__doc__).partition("\n")[0]

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the inputs without a default."""
        given = fields(self.inputs)
        missing = (MISSING, MISSING)
        return tuple(f.name for f in given if (f.default, f.default_factory) == missing)


def names() -> list[str]:
    """Return the names of all methods."""
    return sorted(module.name for module in iter_modules(__path__))


def get(name: str) -> Method:
    """Return the method called `name`."""
    module = import_module(f".{check_choice('method', name, names())}", __name__)
    method: Method = module.METHOD
    return method


def name_of(inputs: Any) -> str:
    """Return the name of the method that an instance of its inputs belongs to."""
    return type(inputs).__module__.rpartition(".")[2]


def score(name: str, /, *, out: str | os.PathLike[str] | None = None, **inputs: Any) -> Scores:
    """Score by the method called `name`.

    Args:
        name: `label_mapping`, say; `names()` lists all.
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
        verb = method.name.replace("_", "-")
        needs = ", ".join(f"`{name}`" for name in method.required)
        cells = (
            f"`{verb}`",
            method.summary.rstrip("."),
            ", ".join(method.units),
            needs,
            method.reference,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
