"""The result files of the campaigns: one JSON line for each kind of case.

`record` makes a line, `keep` replaces the line of the same kind in `results/CAMPAIGN.jsonl`, and
`python -m tests.campaigns.tables` shows the lines in docs/reliability.md.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dp4tl_ffcv.utils import atomic_open, environment

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"

Line = dict[str, Any]


def record(
    campaign: str,
    kind: str,
    *,
    outcomes: Mapping[str, int],
    faults: Mapping[str, int],
    seconds: float,
    peak_bytes: int | None = None,
    seed: int | None = None,
    figures: Mapping[str, float | str] | None = None,
) -> Line:
    """Return the result line of one kind of case.

    Args:
        campaign: name of the campaign, and of its result file.
        kind: what was attacked, for example "scores" or "kill: compact". Unique in the campaign.
        outcomes: number of cases by outcome that the promise allows, for example
            `{"equal": 950, "BetonError": 50}`.
        faults: number of cases by class of fault, for example `{"hang": 1}`. Empty if all held.
        seconds: time on the clock.
        peak_bytes: largest growth of memory, where it was measured.
        seed: seed of the cases.
        figures: further numbers to show, by their name, with the unit in the name or the value.
    """
    machine = environment()
    return {
        "campaign": campaign,
        "kind": kind,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{machine['cores']} cores of {machine['cpu']}",
        "seed": seed,
        "cases": sum(outcomes.values()) + sum(faults.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "faults": dict(sorted(faults.items())),
        "seconds": round(seconds, 1),
        "peak_bytes": peak_bytes,
        "figures": dict(figures or {}),
    }


def keep(line: Line, folder: Path = RESULTS) -> None:
    """Write a line to its campaign's file, in place of the line of the same kind."""
    kept = {each["kind"]: each for each in read(line["campaign"], folder)}
    kept[line["kind"]] = line
    with atomic_open(folder / f"{line['campaign']}.jsonl") as stream:
        for each in kept.values():
            stream.write((json.dumps(each, allow_nan=False) + "\n").encode())


def read(campaign: str, folder: Path = RESULTS) -> list[Line]:
    """Return the lines of a campaign, in the order of their first run; empty if it never ran."""
    path = folder / f"{campaign}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def exit_status(lines: Sequence[Line]) -> int:
    """Return 1 if a line has a fault or no case at all, else 0."""
    return int(not lines or any(line["faults"] or not line["cases"] for line in lines))


def summary(line: Line) -> str:
    """Return a line for the terminal."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in line["outcomes"].items())
    faults = ", ".join(f"{count:,} {name}" for name, count in line["faults"].items())
    verdict = f"FAULTS: {faults}" if faults else "held"
    return f"{line['kind']}: {line['cases']:,} cases in {line['seconds']} s: {outcomes}; {verdict}"


def _commit() -> str:
    """Return the commit of this clone, with a + if more than results differ from it."""
    found = _git("rev-parse", "--short=10", "HEAD")
    is_changed = _git("status", "--porcelain", "-uno", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return found + "+" * bool(is_changed) if found else "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
