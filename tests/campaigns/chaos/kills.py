"""kill -9 while a command runs, at random times and at random writes, and the command repeated.

Half of the kills come at a random time within the duration of the command. The others come in its
n-th write, flush or rename of an output, for a random n; a write is then made by half. Of the kills
by time, a third each meet the group of processes, the first process alone, and one worker.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np

from .. import results
from .disturbance import disturb, ended, outcome_of, prepare
from .faults import RENAME, SYNC, WRITE, Fault, Shim
from .processes import HANG, Child
from .tally import Tally
from .verbs import VERBS, Place, Verb

_COUNT = Fault(name="count", kind="count", ops=WRITE | SYNC | RENAME)
_DIE = Fault(name="die", kind="die", ops=WRITE | SYNC | RENAME, most=1)
_TRIES = 4  # kills that come too late are repeated, this many times as many
FORMS = ("group", "first process", "worker")


def run(
    place: Place, shim: Shim, seed: int, *, quick: bool, only: str = ""
) -> Iterator[results.Line]:
    """Kill every command, some times each; yield a result line per command."""
    for verb in VERBS:
        if only in f"kill: {verb.name}":
            kills = max(1, verb.kills // 12) if quick else verb.kills
            yield _kill(place, shim, verb, kills, seed)


def _kill(place: Place, shim: Shim, verb: Verb, kills: int, seed: int) -> results.Line:
    rng = np.random.default_rng((seed, *verb.name.encode()))
    tally = Tally("chaos", f"kill: {verb.name}", seed)
    with shim.injected(_COUNT, f"{place.out}/"):
        started = time.monotonic()
        expected = prepare(place, verb)
        duration = time.monotonic() - started
        writes = shim.seen
    tally.figures["writes"] = writes
    how: Callable[[Child], str]
    meanwhile: AbstractContextManager[None]
    done = 0
    for trial in range(kills * _TRIES):
        if done == kills:
            break
        if trial % 2:
            number, group = int(rng.integers(writes)), bool(rng.integers(2))
            case = f"in write {number} of {writes}, {'group' if group else 'process'}"
            die = replace(_DIE, after=number, group=group)
            how, meanwhile = partial(ended, verb), shim.injected(die, f"{place.out}/")
        else:
            form, at = FORMS[trial // 2 % 3], float(rng.uniform(0, duration))
            case = f"{form} after {at:.3f} of {duration:.3f} s"
            how, meanwhile = _Killed(verb, form, at, rng), nullcontext()
        happened, _, problems = disturb(place, verb, expected, how, meanwhile)
        done += happened != "completed"
        if happened != "completed" or problems:
            tally.add(f"trial {trial}, {case}", happened, problems)
    if done < kills:
        tally.figures["kills that came too late"] = kills * _TRIES - done
    return tally.line()


class _Killed:
    """Kills a running command after some seconds."""

    def __init__(self, verb: Verb, form: str, seconds: float, rng: np.random.Generator) -> None:
        self.verb, self.form, self.seconds = verb, form, seconds
        self.number = int(rng.integers(100))

    def __call__(self, child: Child) -> str:
        deadline = child.started + self.seconds
        while time.monotonic() < deadline and child.poll() is None:
            time.sleep(min(0.001, max(0.0, deadline - time.monotonic())))
        if child.poll() is None:
            if self.form == "group":
                child.kill_group()
            elif self.form != "worker" or not child.kill_a_worker(self.number):
                child.kill()
        return outcome_of(child, child.wait(HANG))
