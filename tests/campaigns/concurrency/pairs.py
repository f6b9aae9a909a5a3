"""Two processes that make the same output at the same moment: one wins, or both make the same."""

import time
from collections.abc import Iterator

import numpy as np

from .. import results
from ..chaos import trees
from ..chaos.disturbance import check_end, outcome_of
from ..chaos.tally import Tally
from ..chaos.verbs import VERBS, Place, Verb


def run(place: Place, seed: int, *, quick: bool, only: str = "") -> Iterator[results.Line]:
    """Start every command twice, some times; yield a result line per command."""
    for verb in VERBS:
        tally = Tally("concurrency", f"two processes, one output: {verb.name}", seed)
        if only in tally.kind:
            _run_pairs(place, tally, verb, 1 if quick else 8, seed)
            yield tally.line()


def _run_pairs(place: Place, tally: Tally, verb: Verb, count: int, seed: int) -> None:
    rng = np.random.default_rng((seed, *verb.name.encode()))
    place.clear(verb)
    started = time.monotonic()
    place.run(verb)
    duration = time.monotonic() - started
    expected = place.files()
    for trial in range(count):
        # The first pair starts at once, others apart by up to the duration of the command.
        delay = float(rng.uniform(0, duration)) if trial else 0.0
        place.clear(verb)
        pair = [place.start(verb, log="first")]
        time.sleep(delay)
        pair.append(place.start(verb, log="second"))
        ends = [outcome_of(child, child.wait()) for child in pair]
        problems = [f"orphan: {pid}" for child in pair for pid in child.orphans()]
        for child, happened in zip(pair, ends, strict=True):
            problems += check_end(child, happened, child.text)
        if "completed" not in ends:
            problems.append(f"both failed: {[child.text[-300:] for child in pair]}")
        if not problems:
            problems = trees.differences(place.files(), expected)
        if problems:
            problems += [child.text[-300:] for child in pair]
        both = "both completed" if ends == ["completed"] * 2 else "one completed"
        tally.add(f"trial {trial}, {delay:.2f} s apart", both, problems)
