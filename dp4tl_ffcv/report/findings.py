"""Compare the selections of a study with the full source and with random classes."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import t

from .names import AUTO, BUDGETS, COSTS, FULL, LEVEL
from .rule import compare, smallest_keep

Row = Mapping[str, Any]
PLACE = ("scored_on", "target", "mode", "budget")
_RULE = (*PLACE, "method")
_WITH_FULL = ("target", "mode", "budget", "seed")  # equal for a run and its full run
_WITH_RANDOM = (*PLACE, "keep", "seed")  # equal for a run and its run of random classes
EVIDENCE = ("coverage", "lower_bound")
"""Expected coverage of the target at the fraction that `auto` chose, and its lower bound."""


class Findings:
    """Comparisons of the runs of a study, which may be unfinished.

    Args:
        rows: a row for each run, in the order of the plan, as `results.jsonl` has them.

    Raises:
        ValueError: two rows have the same run.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        names = Counter(_key(row, (*_RULE, "keep", "seed")) for row in rows)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two rows have the same run: {', '.join(map(str, repeated[0]))}.")

    @cached_property
    def randoms(self) -> dict[str, str]:
        """Methods that select at random, with the unit that they draw: class or sample.

        Rows of earlier versions do not say so: there the method `random` draws classes.
        """
        names = {row["method"]: row.get("random") for row in self.rows}
        found = {method: unit for method, unit in names.items() if unit is not None}
        return found or ({"random": "class"} if "random" in names else {})

    @cached_property
    def shared(self) -> list[str]:
        """Methods whose selection is the same for all seeds, since their surrogate is."""
        groups = grouped((row for row in self.rows if row.get("selection")), *_RULE, "keep")
        shared = (
            rows[0]["method"]
            for rows in groups
            if len({row["seed"] for row in rows}) > 1
            and len({row["selection"] for row in rows}) == 1
        )
        return list(dict.fromkeys(shared))

    @cached_property
    def control(self) -> str | None:
        """The first method of the study that prunes classes at random; None if there is none."""
        pruning = {row["method"] for row in self.rows if row["keep"] != 1}
        return next(
            (name for name, unit in self.randoms.items() if unit == "class" and name in pruning),
            None,
        )

    @cached_property
    def methods(self) -> list[str]:
        """Methods of the comparisons, in the order of the study."""
        return list(dict.fromkeys(row["method"] for row in self.comparisons))

    @cached_property
    def targets(self) -> list[str]:
        """Names of the targets, as `target_name` gives them."""
        return list(dict.fromkeys(map(target_name, self.comparisons)))

    @cached_property
    def clock(self) -> str:
        """Clock of all seconds. Rows of earlier versions do not name it."""
        return str(self.rows[0].get("clock", "wall")) if self.rows else "wall"

    @cached_property
    def comparisons(self) -> list[dict[str, Any]]:
        """The paired differences to the full source of each selection rule, as JSON values.

        Each has the run's targets, mode, budget, method and keep; the means of the fraction kept,
        the classes, the samples and the seconds; the mean accuracies of the selection and of the
        full source with their 95 % intervals; the fields of `Comparison` and its verdict; `ahead`,
        the paired difference to random classes at the same fraction, with its interval and number
        of seeds; and the speed-up of pretraining over the full source, alone and with the cost of
        the selection, as the ratio of sums over seeds, with its 95 % interval. None stands for
        the interval of a single seed, and for what is unknown.
        """
        full = {_key(row, _WITH_FULL): row for row in self.rows if row["method"] == FULL}
        control = {
            _key(row, _WITH_RANDOM): row for row in self.rows if row["method"] == self.control
        }
        groups = grouped(
            (row for row in self.rows if row["method"] != FULL and _key(row, _WITH_FULL) in full),
            *_RULE,
            "keep",
        )
        return [
            {
                **{name: group[0][name] for name in (*_RULE, "keep")},
                **_against_full(group, [full[_key(row, _WITH_FULL)] for row in group]),
                **_ahead([] if group[0]["method"] == self.control else group, control),
                "clock": self.clock,
            }
            for group in groups
        ]

    @cached_property
    def selections(self) -> list[dict[str, Any]]:
        """The comparisons whose runs prune. With keep 1, or if `auto` keeps all, none do."""
        return [row for row in self.comparisons if row["kept"] < 1]

    @cached_property
    def best(self) -> dict[tuple[str, ...], Row | None]:
        """The comparison at the largest pruning without loss, by what a rule has but its keep.

        None if no pruning is without loss. The keep `auto` is a rule of its own and does not count.
        """
        groups = grouped((row for row in self.selections if row["keep"] != AUTO), *_RULE)
        found: dict[tuple[str, ...], Row | None] = {}
        for rows in groups:
            by_keep = {row["keep"]: row for row in rows}
            keep = smallest_keep({keep: row["verdict"] for keep, row in by_keep.items()})
            found[_key(rows[0], _RULE)] = None if keep is None else by_keep[keep]
        return found

    @cached_property
    def prunings(self) -> list[dict[str, Any]]:
        """The largest fraction that can be pruned without loss, by rule; 0 if there is none."""
        return [
            {**dict(zip(_RULE, rule, strict=True)), "pruned": 1 - row["keep"] if row else 0.0}
            for rule, row in self.best.items()
        ]

    @cached_property
    def regrets(self) -> list[dict[str, Any]]:
        """Training steps that each `auto` saves, next to those that the best fraction saves.

        `saved` is the share of the full source's training steps that `auto` saves, `saved_best`
        that of the largest pruning without loss, or 0 if there is none. `ratio` is their quotient,
        but at most 1, since pruning more than that earns nothing, and 0 if `auto` loses; None if
        `saved_best` is 0. `tested` is False if the study has no fraction beside `auto`. Only equal
        epochs count: at equal steps, no selection saves any.
        """
        found = []
        for row in self.comparisons:
            if row["keep"] == AUTO and row["budget"] == BUDGETS[0]:
                best = self.best.get(_key(row, _RULE))
                saved, saved_best = _saved(row), 0.0 if best is None else _saved(best)
                earned = 0.0 if row["verdict"] == "loss" else saved
                found.append(
                    {
                        **{name: row[name] for name in (*_RULE, "kept", *EVIDENCE)},
                        "verdict": row["verdict"] if row["kept"] < 1 else "nothing pruned",
                        "tested": _key(row, _RULE) in self.best,
                        "best_keep": None if best is None else best["keep"],
                        "saved": saved,
                        "saved_best": saved_best,
                        "ratio": min(earned / saved_best, 1.0) if saved_best > 0 else None,
                    }
                )
        return found

    @cached_property
    def warnings(self) -> list[tuple[str, str, int, int, str]]:
        """Target that is scored for, method, seeds with warnings, all seeds, the first's texts."""
        found = []
        for rows in grouped(
            (row for row in self.rows if row["method"] != FULL), "scored_on", "method"
        ):
            texts: dict[int, dict[str, None]] = {}
            for row in rows:
                if row.get("warnings"):
                    texts.setdefault(row["seed"], {}).update(dict.fromkeys(row["warnings"]))
            if texts:
                seeds = len({row["seed"] for row in rows})
                text = " ".join(next(iter(texts.values())))
                found.append((rows[0]["scored_on"], rows[0]["method"], len(texts), seeds, text))
        return found


def target_name(row: Row) -> str:
    """Return the target in words: `few of both` is `few`, with scores for `both`."""
    target, scored_on = row["target"], row["scored_on"]
    return str(target if target == scored_on else f"{target} of {scored_on}")


def grouped(rows: Iterable[Row], *names: str) -> Iterator[list[Row]]:
    """Yield the rows with equal values of `names`, in the order of the first of each."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(_key(row, names), []).append(row)
    yield from found.values()


def _key(row: Row, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def _saved(row: Row) -> float:
    return float(1 - row["steps"] / row["full_steps"])


def _against_full(group: Sequence[Row], full: Sequence[Row]) -> dict[str, Any]:
    """Return the comparison of the runs of a selection rule with the full runs of their seeds."""
    result = compare(_differences(group, full), _step(group))
    full_seconds = [row["pretrain_seconds"] for row in full]
    seconds = [row["pretrain_seconds"] for row in group]
    with_cost = [row["pretrain_seconds"] + row["selection_seconds"] for row in group]
    return {
        **{name: _mean(row[name] for row in group) for name in ("kept", "classes", "samples")},
        **_with_interval("accuracy", group),
        **_with_interval("full_accuracy", full),
        "seeds": result.seeds,
        "mean": result.mean,
        **{name: _finite(getattr(result, name)) for name in ("low", "high", "missed")},
        "verdict": result.verdict,
        **_speedup("speedup", full_seconds, seconds),
        **_speedup("speedup_with_selection", full_seconds, with_cost),
        "steps": _mean(row["steps"] for row in group),
        "full_steps": _mean(row["steps"] for row in full),
        "pretrain_seconds": _mean(seconds),
        "full_pretrain_seconds": _mean(full_seconds),
        **{name: _mean(row[name] for row in group) for name in COSTS},
        **{name: _mean(row[name] for row in group if name in row) for name in EVIDENCE},
    }


def _ahead(group: Sequence[Row], control: Mapping[tuple[Any, ...], Row]) -> dict[str, Any]:
    """Return the paired difference to random classes, for the seeds that have both."""
    pairs = [
        (row, control[place]) for row in group if (place := _key(row, _WITH_RANDOM)) in control
    ]
    if not pairs:
        return {**dict.fromkeys(("ahead", "ahead_low", "ahead_high")), "ahead_seeds": 0}
    found = compare(_differences(*zip(*pairs, strict=True)), _step(group))
    return {
        "ahead": found.mean,
        "ahead_low": _finite(found.low),
        "ahead_high": _finite(found.high),
        "ahead_seeds": found.seeds,
    }


def _differences(group: Sequence[Row], others: Sequence[Row]) -> list[float]:
    return [
        row["test_accuracy"] - other["test_accuracy"]
        for row, other in zip(group, others, strict=True)
    ]


def _step(group: Sequence[Row]) -> float:
    """Return the smallest change of an accuracy; 0 if the number of test images is unknown."""
    return max(1 / row["test_images"] if "test_images" in row else 0.0 for row in group)


def _with_interval(name: str, rows: Sequence[Row]) -> dict[str, float | None]:
    """Return the mean test accuracy, and both ends of its 95 % interval over the seeds."""
    found = compare([row["test_accuracy"] for row in rows])
    return {
        name: found.mean,
        f"{name}_low": _finite(found.low),
        f"{name}_high": _finite(found.high),
    }


def _speedup(name: str, full: Sequence[float], pruned: Sequence[float]) -> dict[str, float | None]:
    """Return a speed-up over paired seeds, and both ends of its 95 % interval.

    The speed-up is the ratio R of the sums. With the standard deviation s of the logarithms of the
    n ratios, the interval is `R exp(-w)` to `R exp(w)` with `w = t(0.975, n - 1) s / sqrt(n)`.
    """
    ratio = sum(full) / sum(pruned)
    if (count := len(full)) == 1:
        return {name: ratio, f"{name}_low": None, f"{name}_high": None}
    spread = float(np.std(np.log(full) - np.log(pruned), ddof=1))
    width = float(t.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count)
    with np.errstate(over="ignore"):
        low, high = (float(ratio * np.exp(each)) for each in (-width, width))
    return {name: ratio, f"{name}_low": low, f"{name}_high": _finite(high)}


def _mean(values: Iterable[float]) -> float | None:
    """Return the mean, or None if there is no value."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None


def _finite(value: float) -> float | None:
    """Return the number, or None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
