"""Counts the outcomes of one kind of case, and prints what fell."""

import time
from collections import Counter
from collections.abc import Sequence

from .. import results


class Tally:
    """Outcomes and faults of one kind of case, for its result line."""

    def __init__(self, campaign: str, kind: str, seed: int | None = None) -> None:
        self.campaign, self.kind, self.seed = campaign, kind, seed
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.figures: dict[str, float | str] = {}
        self._started = time.monotonic()

    def add(self, case: str, outcome: str, problems: Sequence[str]) -> None:
        """Count a case. Each problem reads `class of fault: details`; none means that it held."""
        if not problems:
            self.outcomes[outcome] += 1
            return
        self.faults[problems[0].partition(":")[0]] += 1
        print(f"FAULT {self.kind}, {case}, {outcome}:", *problems, sep="\n    ", flush=True)

    def line(self) -> results.Line:
        """Print and return the result line."""
        line = results.record(
            self.campaign,
            self.kind,
            outcomes=self.outcomes,
            faults=self.faults,
            seconds=time.monotonic() - self._started,
            seed=self.seed,
            figures=self.figures,
        )
        print(results.summary(line), flush=True)
        return line
