"""Sum up the findings of a study in three sentences."""

import statistics
from collections.abc import Iterable

from .results import Results, Row, target_name

_LABELS = {"label_mapping": "LM", "feature_mapping": "FM", "full": "full source"}
_ROUNDING = 1e-9


def method_label(method: str) -> str:
    """Return the name of a method for tables and legends."""
    return _LABELS.get(method, method.replace("_", " "))


def summarise(results: Results) -> list[str]:
    """Return three sentences: what was compared, the largest pruning, and how sure that is."""
    return [_compared(results), _best(results), _sure(results)]


def _compared(results: Results) -> str:
    methods = [method_label(method) for method in results.methods]
    seeds = max((row["seeds"] for row in results.comparisons), default=0)
    done, planned = len(results.rows), results.summary["runs"]
    state = f"all {planned} runs are finished" if done == planned else f"{done} of {planned} runs"
    if done != planned:
        state += " are finished, so the figures may still change"
    if not methods:
        return f"This study has nothing to compare yet: {state}."
    targets = {target_name(row) for row in results.comparisons}
    modes = {row["mode"] for row in results.comparisons}
    return (
        f"This study pretrains on the full source and on selections by {_listed(methods)} with "
        f"{_counted(seeds, 'seed')}, and finetunes each model on "
        f"{_counted(len(targets), 'target')} in {_counted(len(modes), 'way')}; {state}."
    )


def _best(results: Results) -> str:
    pruned = [row for row in results.summary["prunings"] if row["pruned"] > 0]
    ours = [row for row in pruned if row["method"] not in results.controls]
    if not ours:
        return "No method is shown to prune anything without loss."
    best = max(ours, key=lambda row: (row["pruned"], row["budget"] == "equal_epochs"))
    place = {name: best[name] for name in ("scored_on", "target", "mode", "budget")}
    here = [row for row in results.comparisons if place.items() <= row.items()]
    speed = "".join(
        f", where pretraining is {row['speedup']:.1f} times as fast, or "
        f"{row['speedup_with_selection']:.1f} times with the cost of the selection"
        for row in here
        if row["method"] == best["method"] and abs(1 - row["kept"] - best["pruned"]) < _ROUNDING
    )
    random = [
        each["pruned"]
        for each in results.summary["prunings"]
        if each["method"] in results.controls and place.items() <= each.items()
    ]
    control = f"; random selection reaches {_share(max(random))} there" if random else ""
    return (
        f"The largest pruning without loss is {_share(best['pruned'])} by "
        f"{method_label(best['method'])} ({_place(best)}){speed}{control}."
    )


def _sure(results: Results) -> str:
    verdicts = [row["verdict"] for row in results.comparisons]
    missed = [row["missed"] for row in results.comparisons if row["missed"] is not None]
    counts = (f"{verdicts.count(name)} {words}" for name, words in (
        ("no loss", "show no loss"), ("loss", "show a loss"), ("cannot tell", "cannot tell"),
    ))  # fmt: skip
    sentence = f"Of {_counted(len(verdicts), 'comparison')}, {', '.join(counts)}"
    needed = results.summary.get("fewest_seeds", 0)
    if max((row["seeds"] for row in results.comparisons), default=0) < needed:
        sentence += f" (a verdict needs {needed} seeds)"
    if not missed:
        return f"{sentence}; with one seed, nothing can be shown."
    return (
        f"{sentence}; in half of the comparisons, a true loss below "
        f"{100 * statistics.median(missed):.1f} points has a chance of less than 80 % of being "
        "detected."
    )


def _place(row: Row) -> str:
    words = target_name(row), row["mode"], row["budget"]
    return ", ".join(str(word).replace("_", " ") for word in words)


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
