"""One of two ranks is killed: the other ends with an error, and the repeated run completes."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import results
from . import trees
from .disturbance import check_end, outcome_of
from .faults import EARLY_END, EIO, Shim
from .processes import Child
from .read_faults import VICTIM, victim_range
from .tally import Tally
from .verbs import VERBS, Place, Verb, run_command

RANKS = 2
_LIMIT = 10.0  # seconds within which the other rank must end
_MORE = {"pretrain": "--cache ram --epochs 6", "finetune": "--epochs 6"}


@dataclass
class Run:
    """The processes of a run, one per rank."""

    children: list[Child]

    def wait(self, seconds: float = 60.0) -> list[int | None]:
        """Wait for the end of every rank; return the statuses."""
        return [child.wait(seconds) for child in self.children]


def run(
    place: Place, shim: Shim, seed: int, *, quick: bool, only: str = ""
) -> Iterator[results.Line]:
    """Kill one rank of some commands; yield a result line per command."""
    for verb in VERBS:
        tally = Tally("chaos", f"killed rank of two: {verb.name}", seed)
        if verb.name not in ("features", "pretrain", "finetune") or only not in tally.kind:
            continue
        if not quick or verb.name == "pretrain":
            tally_reads = Tally("chaos", f"read faults on two ranks: {verb.name}")
            _fail_reads(place, shim, tally_reads, verb)
            yield tally_reads.line()
            _kill_ranks(place, tally, verb, 1 if quick else 6, seed)
            yield tally.line()


def _fail_reads(place: Place, shim: Shim, tally: Tally, verb: Verb) -> None:
    """A sample that one of the ranks reads cannot be read: both end, and one names the sample."""
    beton = place.data / "train.beton"
    first, end = victim_range(beton)
    for fault in (EIO, EARLY_END):
        place.clear(verb)
        shim.start(fault, f"/{beton.name}", first, end)
        ranks = start(place, verb)
        _wait_until_joined(place, ranks)
        ends = [outcome_of(c, c.wait(2 * _LIMIT)) for c in ranks.children]
        shim.stop()
        texts = [child.text for child in ranks.children]
        problems = []
        for child, happened in zip(ranks.children, ends, strict=True):
            problems += check_end(child, happened, child.text)
        if not problems and ends != ["failed", "failed"]:
            problems.append(f"no error: the ranks have {ends}")
        if not problems and not any(f"sample {VICTIM} of '{beton}'" in text for text in texts):
            problems.append(f"unclear error: no rank names the sample: {texts}")
        problems += [f"orphan: {pid}" for child in ranks.children for pid in child.orphans()]
        if not shim.hits:
            problems.append("not reached: no read was hit")
        tally.add(f"{fault.name} on two ranks", "both failed", problems)


def _kill_ranks(place: Place, tally: Tally, verb: Verb, kills: int, seed: int) -> None:
    rng = np.random.default_rng((seed, *verb.name.encode()))
    place.clear(verb)
    started = time.monotonic()
    undisturbed = start(place, verb)
    joined = _wait_until_joined(place, undisturbed) - started
    statuses = undisturbed.wait()
    duration = time.monotonic() - started
    if statuses != [0, 0]:
        text = "".join(child.text for child in undisturbed.children)
        tally.add("undisturbed", "failed", [f"failed: {statuses}: {text[-900:]}"])
        return
    expected = place.files()
    for trial in range(kills):
        victim = trial % RANKS
        delay = float(rng.uniform(0, max(0.01, duration - joined)))
        place.clear(verb)
        ranks = start(place, verb)
        _wait_until_joined(place, ranks)
        time.sleep(delay)
        ranks.children[victim].kill_group()
        other = ranks.children[1 - victim]
        status = other.wait(_LIMIT)
        happened = outcome_of(other, status)
        problems = check_end(other, happened, other.text)
        if happened == "failed" and not problems and "rank" not in other.text:
            problems.append(f"unclear error: it names no rank: {other.text[-300:]}")
        ranks.wait()
        problems += [f"orphan: {pid}" for child in ranks.children for pid in child.orphans()]
        again = start(place, verb)
        if (statuses := again.wait()) != [0, 0]:
            texts = "".join(child.text[-300:] for child in again.children)
            problems.append(f"not completed: statuses {statuses}: {texts}")
        else:
            problems += trees.differences(place.files(), expected)
        tally.add(f"rank {victim} killed after {delay:.2f} s", happened, problems)


def start(place: Place, verb: Verb) -> Run:
    """Start a command as two ranks, with the variables that `torchrun` sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = place.words(verb, _MORE.get(verb.name, ""))

    def rank(number: int) -> Child:
        def work() -> None:
            both = {"RANK": number, "LOCAL_RANK": number}
            world = {"WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
            os.environ.update({k: str(v) for k, v in {**both, **world}.items()})
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            run_command(words)

        return Child(work, place.work / f"rank{number}")

    return Run([rank(number) for number in range(RANKS)])


def _wait_until_joined(place: Place, ranks: Run) -> float:
    """Wait for the first file that rank 0 writes after the ranks have met; return the time."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and all(c.poll() is None for c in ranks.children):
        if any(path.suffix in (".jsonl", ".npy") for path in place.out.rglob("*")):
            break
        time.sleep(0.002)
    return time.monotonic()
