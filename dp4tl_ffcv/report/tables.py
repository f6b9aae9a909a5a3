"""Tables of a study. The report, Markdown pages and the terminal show the same ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .findings import PLACE, Findings, Row, grouped, target_name
from .names import AUTO
from .words import keep_label, method_label, percent, summarise_auto, words

# Columns of text. All others hold numbers.
_TEXT = {"target", "finetuning", "budget", "method", "verdict", "verdict of auto", "warning"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: int = 0
    """Leading columns whose values are equal in rows that belong together."""
    note: str = ""
    """Explanation, in sentences."""

    @property
    def is_text(self) -> list[bool]:
        """Whether each column holds text, not numbers."""
        return [column in _TEXT for column in self.columns]


def tables_of(findings: Findings) -> Iterator[Table]:
    """Yield all tables, target by target."""
    for target in findings.targets:
        yield pruning_table(findings, target)
        for mode in modes_of(findings, target):
            yield verdict_table(findings, target, mode)
        yield from ahead_tables(findings, target)
    yield from auto_tables(findings)
    yield from warning_tables(findings)


def as_text(table: Table) -> str:
    """Return a table for the terminal."""
    lines = [table.columns, *table.rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    shown = [
        "  ".join(
            cell.ljust(width) if is_text else cell.rjust(width)
            for cell, width, is_text in zip(line, widths, table.is_text, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, *([table.note] if table.note else []), *shown])


def standing_table(findings: Findings) -> Table:
    """Return all differences to the full source in short, a line for each method and place."""
    fractions = {row["keep"] for row in findings.comparisons}
    keeps = [*sorted(fractions - {AUTO}, reverse=True), *(fractions & {AUTO})]
    lines = []
    for rows in grouped(findings.comparisons, *PLACE, "method"):
        first, by_keep = rows[0], {row["keep"]: row for row in rows}
        seeds = str(min(row["seeds"] for row in rows))
        place = (target_name(first), words(first["mode"]), words(first["budget"]))
        cells = [_standing(by_keep[keep]) if keep in by_keep else "" for keep in keeps]
        lines.append([*place, _method(first), seeds, *cells])
    return Table(
        title="Difference to the full source so far, in points, by fraction kept",
        columns=["target", "finetuning", "budget", "method", "seeds", *map(str, keeps)],
        rows=lines,
    )


def modes_of(findings: Findings, target: str) -> list[str]:
    """Return the ways of finetuning on a target."""
    return list(dict.fromkeys(row["mode"] for row in _rows_of(findings, target)))


def pruning_table(findings: Findings, target: str) -> Table:
    """Return the largest prunings without loss for a target."""
    rows = [row for row in findings.prunings if target_name(row) == target]
    columns, lines = _by_place(rows, {"method": _method}, lambda row: percent(row["pruned"]))
    return Table(
        title=f"{target}: largest pruning without loss",
        columns=columns,
        rows=lines,
        note="The largest fraction pruned up to which every tested pruning is without loss. 0 % "
        "means that not even the smallest tested pruning is shown to be without loss.",
    )


def verdict_table(findings: Findings, target: str, mode: str) -> Table:
    """Return the comparisons with the full source for a target and a way of finetuning."""
    rows = [row for row in _rows_of(findings, target) if row["mode"] == mode]
    columns: dict[str, Callable[[Row], str]] = {
        "budget": lambda row: words(row["budget"]),
        "keep": keep_label,
        "method": _method,
        "classes": lambda row: f"{row['classes']:,.0f}",
        "samples": lambda row: f"{row['samples']:,.0f}",
        "accuracy, %": lambda row: f"{100 * row['accuracy']:.2f}",
        "full, %": lambda row: f"{100 * row['full_accuracy']:.2f}",
        "difference [95 %], points": lambda row: _points(row, "mean", "low", "high"),
        "missed, points": lambda row: _number(row["missed"], 100),
        "verdict": lambda row: row["verdict"],
        "speed-up [95 %]": lambda row: _times(row, "speedup"),
        "with cost [95 %]": lambda row: _times(row, "speedup_with_selection"),
        "seeds": lambda row: str(row["seeds"]),
    }
    return Table(
        title=f"{target}, {words(mode)}: difference to the full source",
        columns=list(columns),
        rows=[[cell(row) for cell in columns.values()] for row in rows],
        groups=2,
    )


def ahead_tables(findings: Findings, target: str) -> Iterator[Table]:
    """Yield the differences to random classes for a target, if the study has this control."""
    rows = [row for row in _rows_of(findings, target) if row["ahead"] is not None]
    if rows:
        columns, lines = _by_place(
            rows,
            {"keep": keep_label, "method": _method},
            lambda row: _points(row, "ahead", "ahead_low", "ahead_high"),
        )
        yield Table(
            title=f"{target}: points ahead of random classes [95 %]",
            columns=columns,
            rows=lines,
            groups=1,
            note="Test accuracy minus that of random classes at the same fraction, budget and "
            "seed, in points. An interval above 0 shows that the method beats random classes.",
        )


def auto_tables(findings: Findings) -> Iterator[Table]:
    """Yield what keep `auto` saves, if the study has it."""
    columns: dict[str, Callable[[Row], str]] = {
        "target": target_name,
        "finetuning": lambda row: words(row["mode"]),
        "method": _method,
        "kept": lambda row: f"{row['kept']:.2f}",
        "coverage (lower bound), %": lambda row: (
            f"{_number(row['coverage'], 100)} ({_number(row['lower_bound'], 100)})"
        ),
        "steps saved, %": lambda row: _number(row["saved"], 100),
        "best keep": _best_keep,
        "steps saved by it, %": lambda row: _number(row["saved_best"], 100),
        "ratio": lambda row: "none" if row["ratio"] is None else _number(row["ratio"]),
        "verdict of auto": lambda row: row["verdict"],
    }
    if sentence := summarise_auto(findings):
        yield Table(
            title="Keep auto against the best fraction known afterwards",
            columns=list(columns),
            rows=[[cell(row) for cell in columns.values()] for row in findings.regrets],
            note=f"{sentence} At equal epochs. The best keep is the largest pruning without loss.",
        )


def _best_keep(row: Row) -> str:
    if row["best_keep"] is None:
        return "none" if row["tested"] else "not tested"
    return f"{row['best_keep']:g}"


def warning_tables(findings: Findings) -> Iterator[Table]:
    """Yield the warnings of scores and selections, if there are any."""
    if findings.warnings:
        yield Table(
            title="Warnings",
            columns=("target", "method", "seeds", "warning"),
            rows=[
                (target, method_label(method), f"{seeds} of {of}", text)
                for target, method, seeds, of, text in findings.warnings
            ],
            note="Of several seeds, the warnings of the first are shown.",
        )


def _rows_of(findings: Findings, target: str) -> list[Row]:
    """Return the comparisons of a target, by budget and keep, the largest first."""
    rows = [row for row in findings.comparisons if target_name(row) == target]
    budgets = list(dict.fromkeys(row["budget"] for row in findings.comparisons))
    return sorted(
        rows,
        key=lambda row: (
            budgets.index(row["budget"]), -row["kept"], findings.methods.index(row["method"]),
        ),
    )  # fmt: skip


def _by_place(
    rows: Sequence[Row],
    labels: Mapping[str, Callable[[Row], str]],
    cell: Callable[[Row], str],
) -> tuple[list[str], list[list[str]]]:
    """Return columns and lines of a table with a column per way of finetuning and budget."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(label(row) for label in labels.values()), {})
        line[f"{words(row['mode'])}, {words(row['budget'])}"] = cell(row)
    places = list(dict.fromkeys(place for line in lines.values() for place in line))
    return [*labels, *places], [
        [*label, *(line.get(place, "") for place in places)] for label, line in lines.items()
    ]


def _method(row: Row) -> str:
    return method_label(row["method"])


def _standing(row: Row) -> str:
    """Return a difference in points, and its verdict if there is one."""
    verdict = "?" if row["verdict"] == "cannot tell" else row["verdict"]
    return f"{_number(row['mean'], 100, '+')} {verdict}"


def _points(row: Row, *names: str) -> str:
    """Return a difference and its interval in points."""
    value, low, high = (_number(row[name], 100, "+") for name in names)
    return f"{value} [{low}, {high}]"


def _times(row: Row, name: str) -> str:
    """Return a speed-up and its interval."""
    return "{} [{}, {}]".format(*(_number(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _number(value: float | None, factor: float = 1, sign: str = "") -> str:
    return "?" if value is None else f"{factor * value:{sign}.2f}"
