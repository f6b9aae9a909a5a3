"""Result lines of the campaigns, and the page that shows them."""

from pathlib import Path

import pytest

from tests.campaigns import results, tables


def line_of(kind: str, **changes: object) -> results.Line:
    arguments = {"outcomes": {"equal": 3, "BetonError": 2}, "faults": {}, "seconds": 1.0, "seed": 7}
    return results.record("fuzz", kind, **{**arguments, **changes})


def test_a_line_replaces_the_line_of_its_kind_only(tmp_path: Path) -> None:
    results.keep(line_of("scores"), tmp_path)
    results.keep(line_of("selections"), tmp_path)
    results.keep(line_of("scores", faults={"hang": 1}), tmp_path)
    scores, selections = results.read("fuzz", tmp_path)
    assert (scores["kind"], scores["cases"], scores["faults"]) == ("scores", 6, {"hang": 1})
    assert (selections["kind"], selections["cases"]) == ("selections", 5)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([line_of("a")], 0),
        ([line_of("a"), line_of("b", faults={"crash": 1})], 1),
        ([line_of("a", outcomes={})], 1),
        ([], 1),
    ],
    ids=["held", "a fault", "no case", "no line"],
)
def test_a_campaign_fails_on_a_fault_and_where_nothing_ran(
    lines: list[results.Line], status: int
) -> None:
    assert results.exit_status(lines) == status


def test_the_page_shows_the_kept_results() -> None:
    assert tables.filled(tables.PAGE.read_text()) == tables.PAGE.read_text()


def test_a_table_shows_each_kind_with_its_counts_and_faults() -> None:
    lines = [line_of("scores", figures={"kills": 12}), line_of("pickles", faults={"hang": 1})]
    table = tables.table_of(lines)
    scores, pickles = (row for row in table.splitlines() if row.startswith(("| scores", "| pick")))
    assert "| 5 | 2 BetonError, 3 equal | none |" in scores
    assert "kills: 12" in scores
    assert "| 1 hang |" in pickles
