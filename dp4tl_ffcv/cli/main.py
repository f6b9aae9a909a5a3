"""Entry point: choose the verb, run it, print its result, turn errors into one line."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from ..errors import one_line_errors
from .cluster import Cluster
from .commands import Export, Inspect, Select
from .compact import Compact
from .features import Features
from .output import Output
from .score import Score
from .verify import Verify

Verb = Inspect | Verify | Features | Cluster | Score | Select | Compact | Export


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `dp4tl` and leave with status 0, 1 (failed) or 2 (usage)."""
    verb = tyro.cli(
        Verb,
        prog="dp4tl",
        description="Prune a source dataset for a target, and load what is left with FFCV.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    output: Output = verb.output
    with one_line_errors("dp4tl", debug=output.debug):
        result = verb.run()
        if result is None:  # a process of `torchrun` whose first process prints
            return
        print(json.dumps(result, indent=2) if output.json else _as_text(result))
        if isinstance(verb, Verify):
            verb.conclude(result)


def _as_text(result: Mapping[str, Any]) -> str:
    width = max(len(name) for name in result)
    return "\n".join(
        f"{'' if number else name:<{width}}  {cell}"
        for name, value in result.items()
        for number, cell in enumerate(_as_cells(value))
    )


def _as_cells(value: Any) -> list[str]:
    """Return the lines of a value: records take one each, all else takes one."""
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
        return [_as_cell(value)]
    more = [f"... ({len(value)})"] if len(value) > 12 else []
    return [*map(_as_cell, value[:12]), *more]


def _as_cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_as_cell(part)}" for name, part in value.items())
    if isinstance(value, list):
        shown = ", ".join(map(_as_cell, value[:12]))
        return f"{shown}, ... ({len(value)})" if len(value) > 12 else shown
    return f"{value:.6g}" if isinstance(value, float) else str(value)
