"""A study that is killed again and again while it runs, and continued after each kill.

A third each of the kills, at random times, meet the group of processes, the first process alone,
and one worker, without which the study goes on. The results, weights and selections must equal
those of an undisturbed run, apart from times.
"""

import time
from collections.abc import Iterator

import numpy as np

from .. import results
from . import trees
from .disturbance import check_end, outcome_of
from .faults import Shim
from .kills import FORMS
from .processes import HANG, Child
from .tally import Tally
from .verbs import Place, Verb, make_photos

_PATIENCE = 1800.0  # seconds; a study of 60 runs takes minutes on a busy machine
_COMPARED = ("/results.jsonl", ".pt", ".npz", ".part")
_RUNS_PER_SEED = 10  # 4 pretraining runs, each but the surrogate finetuned in two ways
_FILE = """
data: {{photos: [imagefolder, --root, {data}/photos, --val, "0.2", --test, "0.2"]}}
source: photos/{{split}}.beton
targets: {{photos: "photos/{{split}}.beton"}}
methods: {{label_mapping: {{}}}}
keeps: [0.5]
seeds: {seeds}
images: {{resolution: 16}}
pretrain: {{arch: resnet8_w16, epochs: 2, batch_size: 8, lr: 0.1}}
surrogates: {{default: {{epochs: 1}}}}
finetune:
  linear_probe: {{epochs: 1, batch_size: 8}}
  full_finetuning: {{epochs: 1, batch_size: 8}}
"""


def run(
    place: Place, shim: Shim, seed: int, *, quick: bool, only: str = ""
) -> Iterator[results.Line]:
    """Kill a study of 60 runs 20 times, or a smaller one 3 times; yield a result line."""
    seeds, kills, jobs = (1, 3, 1) if quick else (6, 20, 2)
    name = f"kill: study of {seeds * _RUNS_PER_SEED} runs"
    if only in name:
        data = place.data / "killed_study"
        make_photos(data / "photos", data / "shards")
        (data / "study.yaml").write_text(_FILE.format(data=data, seeds=seeds))
        command = f"study {data}/study.yaml --out {{out}}/study --jobs {jobs}"
        yield _Campaign(place, Verb("study", command), seed, name).line(kills)


class _Campaign:
    """One study, run undisturbed and then killed."""

    def __init__(self, place: Place, verb: Verb, seed: int, name: str) -> None:
        self._place, self._verb, self._out = place, verb, place.out / "study"
        self._rng = np.random.default_rng((seed, *name.encode()))
        self._tally = Tally("chaos", name, seed)

    def line(self, kills: int) -> results.Line:
        """Kill the study so many times; return the result line."""
        stages, seconds = self._undisturbed()
        self._place.clear(self._verb)
        child = self._place.start(self._verb)
        for number, done in enumerate(sorted(self._rng.integers(stages - 2, size=kills))):
            # Within two stages from then on, or while the processes start if it is reached already.
            moment = float(self._rng.uniform(0, 2 * seconds))
            if self._is_over(child, done, moment):
                self._tally.figures["kills"] = number
                break
            form = FORMS[number % len(FORMS)]
            case = f"kill {number}, {form}, {moment:.3f} s after {done} stages"
            child = self._kill(child, form, case)
        self._finish(child)
        return self._tally.line()

    def _undisturbed(self) -> tuple[int, float]:
        """Run the study; return the number of its stages, and the seconds for each."""
        self._place.clear(self._verb)
        child = self._place.start(self._verb)
        if child.wait(_PATIENCE) != 0:
            raise RuntimeError(f"dp4tl study ended with {child.status}: {child.text}")
        seconds = time.monotonic() - child.started
        self._expected = self._files()
        for kind in ("pretrain", "finetune"):
            self._tally.figures[f"{kind} runs"] = self._finished(kind)
        return self._finished(), seconds / self._finished()

    def _finished(self, kind: str = "*") -> int:
        return sum(1 for _ in self._out.glob(f"{kind}/*/result.json"))

    def _is_over(self, child: Child, stages: int, seconds: float) -> bool:
        """Wait for stages, and for seconds more; return whether the study ended meanwhile."""
        while child.poll() is None and self._finished() < stages:
            time.sleep(0.02)
        deadline = time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return child.status is not None

    def _kill(self, child: Child, form: str, case: str) -> Child:
        """Kill processes; return the study, started again if it was killed."""
        if form == "worker" and child.kill_a_worker(int(self._rng.integers(100))):
            self._tally.add(case, "went on", [])
            return child
        if form == "group":
            child.kill_group()
        else:
            child.kill()
        child.wait()
        # A worker that still imports ends only then.
        problems = [f"orphan: process {pid} lives on" for pid in child.orphans(3 * HANG)]
        self._tally.add(case, "continued", problems)
        return self._place.start(self._verb)

    def _finish(self, child: Child) -> None:
        """Wait for the end of the study, and compare its results."""
        happened = outcome_of(child, child.wait(_PATIENCE))
        problems = check_end(child, happened, child.text)
        if happened == "completed":
            problems += trees.differences(self._files(), self._expected)
        self._tally.add("the end", "same results" if not problems else happened, problems)

    def _files(self) -> trees.Tree:
        """Return the results, weights, selections and unfinished files, by path."""
        files = trees.read_tree([self._out])
        return {path: data for path, data in files.items() if path.endswith(_COMPARED)}
