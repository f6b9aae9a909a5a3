"""A resource that grows in each epoch is reported."""

from dataclasses import replace

import pytest

from tests.campaigns.soak.measure import Sample, growth_problems, measure

FLAT = Sample(memory=600 << 20, threads=7, descriptors=13, maps=1100, shared=0)
STEPS = {"memory": 1 << 20, "threads": 1, "descriptors": 1, "maps": 1, "shared": 1}


@pytest.mark.parametrize("name", STEPS)
def test_growth_in_every_fifth_epoch_is_reported(name: str) -> None:
    grown = [
        replace(FLAT, **{name: getattr(FLAT, name) + at // 5 * STEPS[name]}) for at in range(200)
    ]
    (problem,) = growth_problems(grown)
    assert problem.startswith(f"growth of {name}: ")


def test_what_comes_and_goes_is_no_growth() -> None:
    noisy = [
        replace(FLAT, memory=FLAT.memory + at % 7 * 100_000, shared=at % 2) for at in range(99)
    ]
    assert growth_problems(noisy) == []


def test_this_process_is_measured() -> None:
    found = measure()
    assert found.memory > 10 << 20
    assert min(found.threads, found.descriptors, found.maps) >= 1
