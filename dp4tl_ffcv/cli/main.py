"""Entry point: choose the verb, run it, print its result, turn an error into one line."""

import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

import tyro

from ..errors import one_line_errors
from ..torchrun import torchrun
from .programs import programs, run_program, write_verb
from .prune import Prune
from .verbs import Verb

_DESCRIPTION = "Prune a source dataset for a target task, and load the retained samples with FFCV."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `dp4tl` and exit with status 0, 1 (failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not run_program(words):
        run_verb(_parse(words))


def run_verb(verb: Verb) -> None:
    """Run a verb and print the summary of its result."""
    with one_line_errors(verb, program="dp4tl", debug=verb.output.debug or None):
        result = verb.run()
        if torchrun().rank == 0:  # all processes have the same result
            summary = result if isinstance(result, Mapping) else result.summary()
            verb.output.show({"out": str(verb.out), **summary} if hasattr(verb, "out") else summary)
        verb.finish(result)


def _parse(words: Sequence[str]) -> Any:
    in_write = words[:1] == ["write"]
    others = [verb for verb in Verb.__subclasses__() if verb is not Prune]
    verbs = [Prune, *others, write_verb(), *programs("train")]
    return tyro.cli(
        reduce(or_, programs("writers") if in_write else verbs),
        prog="dp4tl write" if in_write else "dp4tl",
        description="Write a dataset as betons." if in_write else _DESCRIPTION,
        args=words[in_write:],
        config=(
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.CascadeSubcommandArgs,  # options of `score` follow the method's name
        ),
    )
