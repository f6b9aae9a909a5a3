"""The tables of the pages match the kept result files."""

import json
from pathlib import Path

import pytest

from benchmarks.harness import tables
from benchmarks.harness.command import load_figures
from benchmarks.planted import table as planted


def test_the_pages_show_the_kept_results() -> None:
    for page in tables.PAGES:
        assert tables.filled(page) == page.read_text()
    text = "".join(page.read_text() for page in tables.PAGES)
    for name in ("methods", "demo", *tables.COMPARISONS, *tables.END_TO_END, "planted"):
        assert text.count(f"<!-- {name} table -->") == 1


@pytest.mark.parametrize("name", tables.COMPARISONS)
def test_every_row_of_a_benchmark_is_in_its_table(name: str) -> None:
    path = tables.RESULTS / f"{name}.jsonl"
    head, *rows = (json.loads(line) for line in path.read_text().splitlines())
    table, figures = tables.comparison_table(name), tables.COMPARISONS[name].figures
    found = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(found) == len(rows)
    assert len(set(found)) == len(found)  # no two rows look the same
    assert set(figures) == {each for names in load_figures(name) for each in names}
    for row, line in zip(rows, found, strict=True):
        assert figures[row["figure"]] in line
    assert head["environment"]["cpu"] in table


def test_every_row_of_the_demo_is_in_its_table_and_no_path_is_kept() -> None:
    kept = json.loads(tables.DEMO.read_text())
    rows = kept["rows"]
    lines = [line for line in tables.demo_table(kept).splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(rows) / 2  # the two finetunings share a line
    for row in rows:
        accuracy = f"{100 * row['test_accuracy_mean']:.1f} ± "
        assert any(accuracy in line and f"| {row['keep']:g} |" in line for line in lines)
    assert kept["environment"]["cores"] >= 1
    assert "out" not in kept["config"]


def test_the_plot_of_planted_classes_is_drawn(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in tables.PLANTED.read_text().splitlines()]
    planted.draw(lines, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_markers_is_rejected() -> None:
    with pytest.raises(ValueError, match="no markers"):
        tables.fill("# no table here", "demo", "table")
