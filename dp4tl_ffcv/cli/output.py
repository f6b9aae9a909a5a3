"""Options of every verb, and results as text or JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..text import printable

_SHOWN = 12  # entries of a list that text shows; JSON has all


@dataclass(frozen=True, kw_only=True)
class Output:
    """How results and errors are shown."""

    json: bool = False
    """Print the result as JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def show(self, result: Mapping[str, Any]) -> None:
        """Print a result on stdout."""
        print(json.dumps(result, indent=2) if self.json else _as_text(result))


def _as_text(result: Mapping[str, Any]) -> str:
    width = max(map(len, result))
    return "\n".join(
        f"{'' if number else name:<{width}}  {printable(cell)}"
        for name, value in result.items()
        for number, cell in enumerate(_as_cells(value))
    )


def _as_cells(value: Any) -> list[str]:
    """Return the lines of a value: one line per record of a list of records, otherwise one."""
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
        return [_as_cell(value)]
    more = [f"... ({len(value)})"] if len(value) > _SHOWN else []
    return [*map(_as_cell, value[:_SHOWN]), *more]


def _as_cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_as_cell(part)}" for name, part in value.items())
    if isinstance(value, list):
        shown = ", ".join(map(_as_cell, value[:_SHOWN]))
        return f"{shown}, ... ({len(value)})" if len(value) > _SHOWN else shown
    return f"{value:.6g}" if isinstance(value, float) else str(value)
