"""Sum up the findings of a study in sentences, and name what its tables and figures show."""

import statistics
from collections.abc import Iterable, Iterator

from .findings import Findings, Row, target_name
from .names import AUTO, CLOCKS, FEWEST_SEEDS, MARGIN

_LABELS = {"label_mapping": "LM", "feature_mapping": "FM", "full": "full source"}
_VERDICTS = {"no loss": "show no loss", "loss": "show a loss", "cannot tell": "cannot tell"}
_UNEVEN = 1.25  # largest ratio between the images per second of two runs on an idle machine


def method_label(method: str) -> str:
    """Return the name of a method for tables and legends."""
    return _LABELS.get(method, words(method))


def words(name: str) -> str:
    """Return a name of the results, such as `linear_probe`, in words."""
    return name.replace("_", " ")


def keep_label(row: Row) -> str:
    """Return the fraction kept. With `auto`, it is the mean over the seeds."""
    return f"{AUTO} {row['kept']:.2f}" if row["keep"] == AUTO else f"{row['keep']:g}"


def percent(value: float) -> str:
    """Return a share in percent with three digits."""
    return f"{100 * value:.3g} %"


def summarise(findings: Findings, planned: int) -> list[str]:
    """Return a few sentences: what was compared, what it shows, and how sure that is.

    Args:
        findings: of the study.
        planned: number of runs of the whole study.
    """
    sentences = (_compared(findings, planned), _best(findings), _ahead(findings),
                 summarise_auto(findings), _sure(findings))  # fmt: skip
    return [sentence for sentence in sentences if sentence]


def notes_of(findings: Findings) -> Iterator[str]:
    """Yield what limits the findings: the clock, runs of uneven speed, too few seeds."""
    yield f"Times and speed-ups are by {CLOCKS.get(findings.clock, findings.clock)}."
    if _is_uneven(findings):
        rates = _rates(findings)
        yield (
            f"Pretraining ran at {min(rates):,.0f} to {max(rates):,.0f} images/s. The machines "
            "differed or were busy with other work, so the times and speed-ups may be wrong by "
            "this factor."
        )
    unpruned = [row for row in findings.comparisons if row["keep"] == 1 and row["low"] is not None]
    for row in (row for row in unpruned if row["mean"] > MARGIN and row["low"] > 0):
        yield (
            f"{method_label(row['method']).capitalize()}, without pruning, gains "
            f"{100 * row['mean']:.1f} points ({_place(row)}): the full source is trained too "
            "little there, so that losses by pruning look smaller than they are."
        )
    if shared := findings.shared:
        yield (
            f"The seeds of {_listed(map(method_label, shared))} share one selection for each "
            "target and fraction, so these intervals cover the training alone."
        )
    if any(row["seeds"] < FEWEST_SEEDS for row in findings.comparisons):
        yield f"A verdict needs {FEWEST_SEEDS} seeds."


def _rates(findings: Findings) -> list[float]:
    return [row["images_per_second"] for row in findings.rows if row["images_per_second"] > 0]


def _is_uneven(findings: Findings) -> bool:
    rates = _rates(findings)
    return bool(rates) and max(rates) > _UNEVEN * min(rates)


def summarise_auto(findings: Findings) -> str:
    """Return the share of the training steps that `auto` saves, or nothing without `auto`."""
    if not (rows := findings.regrets):
        return ""
    saved, best = (sum(row[name] for row in rows) for name in ("saved", "saved_best"))
    counted = sum(row["ratio"] * row["saved_best"] for row in rows if row["ratio"] is not None)
    ratio = f", a ratio of {counted / best:.2f}" if best > 0 else ""
    return (
        f"Keep {AUTO} saves {percent(saved / len(rows))} of the training steps on average, and "
        f"the best fraction known afterwards {percent(best / len(rows))}{ratio}; of "
        f"{_counted(len(rows), 'comparison')} of {AUTO}, {_verdicts(rows)}."
    )


def _verdicts(rows: Iterable[Row]) -> str:
    verdicts = [row["verdict"] for row in rows]
    found = [f"{verdicts.count(name)} {shown}" for name, shown in _VERDICTS.items()]
    if count := verdicts.count("nothing pruned"):
        found.append(f"{count} prune{'s' * (count == 1)} nothing")
    return ", ".join(found)


def _compared(findings: Findings, planned: int) -> str:
    methods = list(dict.fromkeys(method_label(row["method"]) for row in findings.selections))
    seeds = max((row["seeds"] for row in findings.comparisons), default=0)
    done = len(findings.rows)
    state = f"all {planned} runs are finished" if done == planned else f"{done} of {planned} runs"
    if done != planned:
        state += " are finished, so the figures may still change"
    if not methods:
        return f"This study has nothing to compare yet: {state}."
    modes = {row["mode"] for row in findings.comparisons}
    return (
        f"This study pretrains on the full source and on selections by {_listed(methods)} with "
        f"{_counted(seeds, 'seed')}, and finetunes each model on "
        f"{_counted(len(findings.targets), 'target')} in {_counted(len(modes), 'way')}; {state}."
    )


def _best(findings: Findings) -> str:
    found = {rule: row for rule, row in findings.best.items() if row is not None}
    ours = [row for row in found.values() if row["method"] not in findings.randoms]
    if not ours:
        return "No method is shown to prune anything without loss."
    best = max(ours, key=lambda row: (-row["keep"], row["budget"] == "equal_epochs"))
    control = ""
    *place, _ = next(rule for rule, row in found.items() if row is best)
    if (rule := (*place, str(findings.control))) in findings.best:
        row = findings.best[rule]
        control = f"; random classes reach {percent(1 - row['keep'] if row else 0)} there"
    gain = (
        f"pretraining takes {best['steps'] / best['full_steps']:.2f} of the steps"
        if findings.clock == "wall" and _is_uneven(findings)  # speed-ups are of little worth
        else f"pretraining is {best['speedup']:.1f} times as fast, or "
        f"{best['speedup_with_selection']:.1f} times with the cost of the selection"
    )
    return (
        f"The largest pruning without loss is {percent(1 - best['keep'])} by "
        f"{method_label(best['method'])} ({_place(best)}), where {gain}{control}."
    )


def _ahead(findings: Findings) -> str:
    rows = [row for row in findings.comparisons if row["ahead_low"] is not None]
    if not rows:
        return ""
    ahead = sum(row["ahead_low"] > 0 for row in rows)
    behind = sum(row["ahead_high"] < 0 for row in rows)
    return (
        f"Of {_counted(len(rows), 'comparison')} with random classes at the same fraction, {ahead} "
        f"are ahead and {behind} behind (by a 95 % interval without 0)."
    )


def _sure(findings: Findings) -> str:
    rows = findings.selections
    missed = [row["missed"] for row in rows if row["missed"] is not None]
    sentence = f"Of {_counted(len(rows), 'comparison')}, {_verdicts(rows)}"
    if not missed:
        return f"{sentence}; with one seed, nothing can be shown."
    return (
        f"{sentence}; in half of the comparisons, the verdict loss has a chance of 80 % or more "
        f"only if the true loss is at least {100 * statistics.median(missed):.1f} points."
    )


def _place(row: Row) -> str:
    return ", ".join((target_name(row), words(row["mode"]), words(row["budget"])))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
