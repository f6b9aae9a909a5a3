"""The fuzz campaign notices each way to break the promise, and can repeat a case."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.campaigns.fuzz import coverage, mutate
from tests.campaigns.fuzz.planted import PLANTED
from tests.campaigns.fuzz.supervise import Campaign
from tests.campaigns.fuzz.targets import TARGETS

WORKER = "tests.campaigns.fuzz.planted"
CASES = range(20, 22)
_ALONE = ("held", "hang", "endless loop")
PATIENCE = 3.0  # for a case that sleeps for minutes


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    """One process for all planted faults that leave it alive."""
    with Campaign(tmp_path_factory.mktemp("planted"), seed=0, jobs=1, worker=WORKER) as one:
        yield one


@pytest.mark.parametrize("name", [name for name in PLANTED if name not in _ALONE])
def test_a_planted_fault_is_counted_by_its_class(name: str, campaign: Campaign) -> None:
    tally = campaign.run(name, CASES)
    assert tally.faults == {getattr(PLANTED[name], "fault", name): len(CASES)}
    assert not tally.outcomes
    assert [report["case"] for report in tally.reports] == list(CASES)


@pytest.mark.parametrize(("name", "tries"), [("hang", 1), ("endless loop", 2)])
def test_a_hang_that_works_is_tried_again(name: str, tries: int, tmp_path: Path) -> None:
    with Campaign(tmp_path, seed=0, jobs=1, worker=WORKER, patience=PATIENCE) as campaign:
        starts = _count_starts(campaign)
        tally = campaign.run(name, CASES[:1])
    assert tally.faults == {"hang": 1}
    assert not tally.outcomes
    assert len(starts) == tries
    assert "planted.py" in tally.reports[0]["message"]  # where it hung


def _count_starts(campaign: Campaign) -> list[None]:
    (worker,), starts = campaign._workers, []
    start = worker._start
    worker._start = lambda: (starts.append(None), start())[1]
    return starts


def test_cases_are_equal_for_any_number_of_processes(tmp_path: Path) -> None:
    counts = []
    for jobs in (1, 2):
        with Campaign(tmp_path / str(jobs), seed=3, jobs=jobs, worker=WORKER) as campaign:
            counts.append(campaign.run("held", range(60)).outcomes)
    assert counts[0] == counts[1]
    assert counts[0].total() == 60
    assert len(counts[0]) > 1


def test_every_mutation_is_a_function_of_its_generator() -> None:
    data, spans = bytes(range(200)), [(0, 8), (16, 2), (40, 4)]
    for case in range(300):
        first, again = (
            mutate.mutated(np.random.default_rng(case), data, spans, data[::-1]) for _ in range(2)
        )
        assert first == again
        text = mutate.mutated_text(np.random.default_rng(case), "keep: 0.4\nname: [a, b]\n")
        assert text == mutate.mutated_text(np.random.default_rng(case), "keep: 0.4\nname: [a, b]\n")


def test_mutations_reach_every_number_and_differ() -> None:
    data, spans = bytes(64), [(at, 8) for at in range(0, 64, 8)]
    made = [mutate.mutated(np.random.default_rng(case), data, spans) for case in range(2000)]
    changed = {at for each in made for at in range(min(64, len(each))) if each[at]}
    assert changed == set(range(64))
    assert len(set(made)) > 1000


def test_the_full_form_has_as_many_cases_as_promised() -> None:
    cases = {name: target.cases for name, target in TARGETS.items()}
    assert sum(count for name, count in cases.items() if name.startswith("beton")) >= 200_000
    assert min(cases.values()) >= 20_000


@pytest.mark.parametrize(
    ("status", "errors", "faults"),
    [
        (0, "#2 INITED\nDone 812 runs in 10 second(s)\n", {}),
        (77, "#512 NEW\nUncaught Python exception: ", {"crash or undocumented exception": 1}),
        (70, "#512 NEW\nALARM: working on the last Unit for 11 seconds: timeout", {"hang": 1}),
        (0, "", {"crash or undocumented exception": 1}),
    ],
    ids=["held", "an exception", "a hang", "nothing ran"],
)
def test_the_end_of_the_coverage_guided_fuzzer_is_understood(
    status: int, errors: str, faults: dict[str, int], tmp_path: Path, monkeypatch: Any
) -> None:
    done = subprocess.CompletedProcess([], status, "", errors)
    monkeypatch.setattr(coverage.subprocess, "run", lambda *_, **__: done)
    tally = coverage.run(10, 0, tmp_path)
    assert tally.faults == faults
    assert tally.outcomes.total() == (812 if "Done" in errors else 512 if errors else 0)
