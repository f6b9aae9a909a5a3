"""Names and limits that studies, their results and their reports share."""

from typing import Literal

AUTO: Literal["auto"] = "auto"
"""Keep of a selection that chooses the fraction itself."""
FULL = "full"
"""Name of the full source in the results, which no method has."""
BUDGETS = ("equal_epochs", "equal_steps")
COSTS = ("surrogate_seconds", "features_seconds", "scoring_seconds", "select_seconds")
"""Parts of the cost of a selection."""
CLOCKS = {"processor": "processor time", "wall": "wall clock"}
"""Clocks of the seconds in the results, in words."""
MARGIN = 0.01
"""A smaller loss counts as none: one point of accuracy."""
LEVEL = 0.95
"""Confidence level of all intervals."""
FEWEST_SEEDS = 8
"""With fewer seeds no verdict is given: the spread over seeds is too uncertain."""
