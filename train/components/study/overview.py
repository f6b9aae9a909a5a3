"""Describe the planned work and the progress of a study as text."""

from collections import Counter
from collections.abc import Iterable, Sequence

from .estimate import Estimate, UnknownError, estimate, is_estimated
from .stages import Stage

_HEAD = f"{'stages':>7}{'left':>7}{'time':>17}{'disk':>10}"


def estimates_of(stages: Sequence[Stage]) -> str:
    """Return tables of the expected time and disk of the unfinished stages: by run, and by kind.

    A line of the first table has the seeds of a pretraining with its finetuning runs, or of another
    stage that runs a network.
    """
    runs: dict[str, list[Stage]] = {}
    kinds: dict[str, list[Stage]] = {}
    for stage in stages:
        kinds.setdefault(stage.kind, []).append(stage)
        if is_estimated(stage):
            owner = stage.needs.get("pretrained", stage)
            runs.setdefault(f"{owner.kind} {owner.label.text}", []).append(stage)
    left = [stage for stage in stages if stage.result() is None]
    places = {stage.key for stage in left}
    lines = [_HEAD + "  stage (all seeds, with its finetuning)"]
    lines += [_line(group, places, name) for name, group in runs.items()]
    lines += ["", _HEAD + "  kind"]
    lines += [
        _line(group, places, f"{kind}, such as {group[0].name!r}") for kind, group in kinds.items()
    ]
    return "\n".join([*lines, "", _summary(left)])


def states_of(stages: Sequence[Stage]) -> str:
    """Return how many stages of each kind are finished, and the names of those that failed."""
    states = [(stage, stage.state) for stage in stages]
    counts = Counter((stage.kind, state) for stage, state in states)
    lines = [f"{kind:<14}{state:<14}{count:>6}" for (kind, state), count in sorted(counts.items())]
    lines += [
        f"failed: {stage.name}: {stage.failure} ({stage.folder})"
        for stage, state in states
        if state == "failed"
    ]
    return "\n".join(lines)


def _line(group: Sequence[Stage], left: set[str], name: str) -> str:
    remaining = [stage for stage in group if stage.key in left]
    time, disk = "not estimated", ""
    if is_estimated(group[0]):
        cost = _total(remaining)
        time, disk = ("unknown", "") if cost is None else (_time(cost), _size(cost))
    return f"{len(group):>7}{len(remaining):>7}{time:>17}{disk:>10}  {name}"


def _summary(left: Sequence[Stage]) -> str:
    cost = _total(stage for stage in left if is_estimated(stage))
    if cost is None:
        return (
            f"{len(left)} stages are left. Some times are unknown: first write the betons with "
            "`--only write`. Features by a surrogate given as weights have no estimate."
        )
    return (
        f"{len(left)} stages are left: {_time(cost)} of one core or GPU, without loading and "
        f"augmentation, and {_size(cost)}."
    )


def _total(stages: Iterable[Stage]) -> Estimate | None:
    """Return the sum of the estimates, or None if one of them is unknown."""
    try:
        return sum((estimate(stage) for stage in stages), Estimate())
    except UnknownError:
        return None


def _time(cost: Estimate) -> str:
    seconds = cost.seconds
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{_bound(cost)}{seconds / size:.1f} {unit}"
    return f"{_bound(cost)}{seconds:.0f} s"


def _bound(cost: Estimate) -> str:
    return "at most " if cost.at_most else ""


def _size(cost: Estimate) -> str:
    unit, size = ("GB", 1e9) if cost.num_bytes >= 1e9 else ("MB", 1e6)
    return f"{cost.num_bytes / size:.1f} {unit}"
