"""The section on planted classes in benchmarks/README.md, made from the result file alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import t

from benchmarks.harness.rows import markdown
from benchmarks.planted.variants import COMBINED, variants

PLOT = "results/planted.png"  # in benchmarks/
MODES = {"linear_probe": "linear probe", "full_finetuning": "full finetuning"}
OURS = ("label_mapping", "feature_mapping")
COLOURS = ("#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00", "#009E73", "#8C564B")
RULES = ("mean", "t")
BASELINES, MARKERS = "#8C8C8C", "os^vDxP*+1234"

Runs = Mapping[tuple[str, str, float], Sequence[Mapping[str, Any]]]


def section(lines: Sequence[Mapping[str, Any]]) -> str:
    head, *rows = lines
    runs = runs_of(rows)
    machine, params = head["environment"], head["params"]
    targets, seeds = targets_in(runs), len(params["seeds"])
    parts = [
        f"`python -m benchmarks.planted`, on {machine['cores']} cores of {machine['cpu']}, GPU: "
        f"{machine['gpu']}, torch {machine['torch']}. Source: ten digits in eight renderings, 80 "
        "classes of 70 images (`writers.digits`). The classes of a target's digits in its "
        f"rendering count as relevant. {params['arch']} at {params['resolution']} px trains for "
        f"{params['epochs']} epochs of the retained samples, the surrogate for "
        f"{params['surrogate_epochs']} epochs of the full source. Means over {seeds} seeds; one "
        "surrogate serves all seeds. *combined* is all targets at once: scores by "
        "`combine_scores` (sum; influences, which may be negative, by rank), and the mean accuracy "
        "over targets.",
        f"![Accuracy of every method by the fraction kept]({PLOT})",
        "**How much LM, FM and the best baseline prune without loss.** No loss means that the mean "
        "paired difference to the full source is at least 0, for this and every smaller pruning. "
        "In bold: less than the 40 to 80 % that the paper reports. Baselines are the methods that "
        "do not see the target.",
        "\n".join(finding(runs, target, mode) for mode in MODES for target in targets),
        votes(rows),
        "**Largest pruning without loss**, in % of the classes or samples. Left of the slash, by "
        "the mean difference as above. Right, as long as a one-sided paired t-test at 5 % finds no "
        f"loss, which is a weak test with {seeds} seeds.",
    ]
    for mode, name in MODES.items():
        parts += [f"{name.capitalize()}:", pruning_table(runs, targets, mode)]
    parts += [
        "**With 80 % pruned.** Precision is the share of retained samples in relevant classes; "
        "recall is the share of relevant samples retained. Accuracy is by linear probe / full "
        "finetuning. All columns are means over the three targets. *Scoring* is the time for one "
        "target, with features, clusters and (GraNd) gradients. *With training* adds the "
        "surrogate, the encoder or the influence runs, which all targets share.",
        detail_table(rows, runs, targets, 0.2),
    ]
    return "\n\n".join(parts)


def finding(runs: Runs, target: str, mode: str) -> str:
    """Return a line: how much LM, FM and the best baseline can prune for a target."""
    by_method = {m: pruned(runs, m, target, mode, "mean") for m in methods_in(runs)}
    best = max(by_method[m] for m in by_method if is_baseline(m))
    names = [label_of(m) for m, share in by_method.items() if is_baseline(m) and share == best]
    rivals = f"{best:.0%} ({', '.join(names)})" if best > 0 else "0%"
    bold = {m: "" if share >= 0.4 - 1e-9 else "**" for m, share in by_method.items()}
    ours = ", ".join(
        f"{label_of(m)} {bold[m]}{by_method[m]:.0%}{bold[m]}" for m in OURS if m in by_method
    )
    return f"* {target}, {MODES[mode]}: {ours}; best baseline {rivals}."


def is_baseline(method: str) -> bool:
    return not variants()[method].sees_target


def label_of(method: str) -> str:
    if method == "full":
        return "full source"
    name = method.removesuffix("_label_free").replace("_", " ")
    return f"{name}, encoder without labels" if method.endswith("_label_free") else name


def votes(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["**Where the targets' votes go** (share of images; the relevant rendering first):", ""]
    for row in rows:
        if row["figure"] == "votes":
            shares = dict(row["votes"])
            own = f"{row['relevant']} {shares.pop(row['relevant']):.0%}"
            rest = sorted(shares.items(), key=lambda item: -item[1])[:3]
            others = ", ".join(f"{name} {share:.0%}" for name, share in rest if share > 0)
            lines.append(f"* {row['target']}, {label_of(row['method'])}: {own}; {others}")
    return "\n".join(lines)


def pruning_table(runs: Runs, targets: Sequence[str], mode: str) -> str:
    return markdown(
        ("method", *targets),
        [
            [label_of(method)]
            + [
                " / ".join(f"{pruned(runs, method, target, mode, rule):.0%}" for rule in RULES)
                for target in targets
            ]
            for method in methods_in(runs)
        ],
    )


def detail_table(
    rows: Sequence[Mapping[str, Any]], runs: Runs, targets: Sequence[str], keep: float
) -> str:
    single = [target for target in targets if target != COMBINED]
    costs = {(r["method"], r["target"]): r for r in rows if r["figure"] == "cost"}
    table = []
    for method in ("full", *methods_in(runs)):
        kept = 1.0 if method == "full" else keep
        found = [row for target in single for row in runs[method, target, kept]]
        unit, cost = "", ["", ""]
        if method != "full":
            of_targets = [costs[method, target] for target in single]
            unit = of_targets[0]["unit"]
            scoring = float(np.mean([c["scoring_seconds"] for c in of_targets]))
            cost = [f"{scoring:.2f} s", f"{scoring + of_targets[0]['training_seconds']:.1f} s"]
        shares = [f"{np.mean([r[name] for r in found]):.0%}" for name in ("precision", "recall")]
        accuracies = " / ".join(f"{100 * mean_of(found, mode):.1f}" for mode in MODES)
        table.append([label_of(method), unit, *shares, f"{accuracies} %", *cost])
    columns = ("method", "unit", "precision", "recall", "accuracy", "scoring", "with training")
    return markdown(columns, table)


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy by the fraction kept, a row of panels for each way of finetuning."""
    runs = runs_of(lines[1:])
    targets = targets_in(runs)
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(3.4 * len(targets), 6.6), layout="constrained")
        grid = figure.subplots(len(MODES), len(targets), squeeze=False, sharex=True)
        for axes, mode in zip(grid, MODES, strict=True):
            for panel, target in zip(axes, targets, strict=True):
                plot_panel(panel, runs, target, mode)
            axes[0].set_ylabel(f"test accuracy, {MODES[mode]}")
        for panel, target in zip(grid[0], targets, strict=True):
            panel.set_title(target)
        for panel in grid[-1]:
            panel.set_xlabel("fraction kept")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def plot_panel(panel: Any, runs: Runs, target: str, mode: str) -> None:
    """Draw the lines of one target: methods that see the target in colour, the others in grey."""
    full = mean_of(runs["full", target, 1.0], mode)
    panel.axhline(full, color="#444444", linewidth=1, label=label_of("full"))
    colours = iter(COLOURS)
    for number, method in enumerate(methods_in(runs)):
        keeps = keeps_of(runs, method, target)
        panel.plot(
            keeps,
            [mean_of(runs[method, target, keep], mode) for keep in keeps],
            color=BASELINES if is_baseline(method) else next(colours),
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.1,
            label=label_of(method),
        )
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.grid(color="#E3E3E3")


def runs_of(rows: Sequence[Mapping[str, Any]]) -> Runs:
    runs: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    found = [row for row in rows if row["figure"] == "run"]
    for row in sorted(found, key=lambda row: int(row["seed"])):
        runs.setdefault((row["method"], row["target"], row["keep"]), []).append(row)
    return runs


def pruned(runs: Runs, method: str, target: str, mode: str, rule: str) -> float:
    """Return the largest share that a method can prune with no loss on a target, 0.0 if none.

    By the rule `mean`, a fraction passes if the mean difference to the full run is at least 0. By
    the rule `t`, it passes unless a one-sided paired t-test finds a loss at the 5 % level:
    `mean + t_95 * sd / sqrt(n) >= 0`. All smaller prunings must pass too, so that one lucky small
    selection does not count.
    """
    full = [row["accuracy"][mode] for row in runs["full", target, 1.0]]
    smallest = 1.0
    for keep in reversed(keeps_of(runs, method, target)):
        kept = [row["accuracy"][mode] for row in runs[method, target, keep]]
        differences = np.subtract(kept, full)
        bound = float(differences.mean())
        if rule == "t" and len(differences) > 1:
            spread = differences.std(ddof=1) / np.sqrt(len(differences))
            bound += float(t.ppf(0.95, len(differences) - 1) * spread)
        if bound < -1e-9:
            break
        smallest = keep
    return 1.0 - smallest


def keeps_of(runs: Runs, method: str, target: str) -> list[float]:
    return sorted(keep for name, of, keep in runs if (name, of) == (method, target))


def mean_of(found: Sequence[Mapping[str, Any]], mode: str) -> float:
    return float(np.mean([row["accuracy"][mode] for row in found]))


def methods_in(runs: Runs) -> list[str]:
    return list(dict.fromkeys(method for method, _, _ in runs if method != "full"))


def targets_in(runs: Runs) -> list[str]:
    return list(dict.fromkeys(target for _, target, _ in runs))
