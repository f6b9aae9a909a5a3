"""The tables of README and evidence are those of the kept result files."""

import json

import pytest

from benchmarks.harness import tables


@pytest.fixture
def kept() -> dict[str, object]:
    content: dict[str, object] = json.loads(tables.KEPT.read_text())
    return content


def test_the_pages_show_the_kept_results() -> None:
    for page in tables.PAGES:
        assert tables.filled(page) == page.read_text()
    text = "".join(page.read_text() for page in tables.PAGES)
    for name in ("methods", "demo", "loader", "writing", "scoring", *tables.END_TO_END):
        assert text.count(f"<!-- {name} table -->") == 1


def test_every_figure_of_the_loader_benchmark_is_in_its_table() -> None:
    lines = [json.loads(line) for line in tables.LOADER.read_text().splitlines()]
    table = tables.loader_table(lines)
    assert len([line for line in table.splitlines() if line.startswith("|")]) == len(lines) + 1
    for row in lines[1:]:
        assert tables.FIGURES[row["figure"]] in table
    assert lines[0]["environment"]["cpu"] in table


def test_every_figure_of_the_writing_benchmark_is_in_its_table() -> None:
    lines = [json.loads(line) for line in tables.WRITING.read_text().splitlines()]
    table = tables.writing_table(lines)
    found = [line for line in table.splitlines() if line.startswith("|")]
    assert len(found) == len(lines) + 1
    assert len(set(found)) == len(found)  # what is told apart in the results is so here
    assert {row["figure"] for row in lines[1:]} == set(tables.WRITING_FIGURES)
    for row in lines[1:]:
        assert tables.WRITING_FIGURES[row["figure"]] in table
    assert lines[0]["environment"]["cpu"] in table


def test_every_figure_of_the_scoring_benchmark_is_in_its_table() -> None:
    lines = [json.loads(line) for line in tables.SCORING.read_text().splitlines()]
    table = tables.scoring_table(lines)
    found = [line for line in table.splitlines() if line.startswith("|")]
    assert len(found) == len(lines) + 1
    assert len(set(found)) == len(found)
    assert {row["figure"] for row in lines[1:]} == set(tables.SCORING_FIGURES)
    for row in lines[1:]:
        assert tables.SCORING_FIGURES[row["figure"]] in table
    assert lines[0]["environment"]["cpu"] in table


def test_every_row_of_the_result_is_in_the_table(kept: dict[str, object]) -> None:
    rows = kept["rows"]
    assert isinstance(rows, list)
    lines = [line for line in tables.demo_table(kept).splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(rows) / 2  # the two finetunings share a line
    for row in rows:
        accuracy = f"{100 * row['test_accuracy_mean']:.1f} ± "
        assert any(accuracy in line and f"| {row['keep']:g} |" in line for line in lines)


def test_a_page_without_markers_is_rejected() -> None:
    with pytest.raises(ValueError, match="no markers"):
        tables.fill("# no table here", "demo", "table")


def test_the_kept_result_names_its_machine_and_no_path(kept: dict[str, object]) -> None:
    environment = kept["environment"]
    assert isinstance(environment, dict)
    assert environment["cores"] >= 1
    assert environment["torch"] != "absent"
    assert "out" not in kept["config"]  # type: ignore[operator]  # a JSON object
