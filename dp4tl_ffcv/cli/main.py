"""Entry point: choose the verb, run it, print its result, turn errors into one line."""

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from .commands import Export, Features, Inspect, Select
from .output import Output
from .score import Score

__all__ = ["main"]

Verb = Inspect | Features | Score | Select | Export


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
    try:
        result = verb.run()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the user gets one line, whatever went wrong
        if output.debug:
            traceback.print_exc()
        else:
            print(f"dp4tl: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(result, indent=2) if output.json else _as_text(result))


def _one_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {str(error.filename)!r}. Check the path."
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"


def _as_text(result: Mapping[str, Any]) -> str:
    width = max(len(name) for name in result)
    return "\n".join(f"{name:<{width}}  {_as_cell(value)}" for name, value in result.items())


def _as_cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_as_cell(part)}" for name, part in value.items())
    if isinstance(value, list):
        shown = ", ".join(map(_as_cell, value[:12]))
        return f"{shown}, ... ({len(value)})" if len(value) > 12 else shown
    return f"{value:.6g}" if isinstance(value, float) else str(value)
