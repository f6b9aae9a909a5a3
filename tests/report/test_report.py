"""The report: self-contained, complete, honest in its summary, and written in one step."""

import copy
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp4tl_ffcv.report.figures import class_scores_plot, contact_sheet_png
from dp4tl_ffcv.report.page import parse_rows, summarise
from dp4tl_ffcv.report.report import ClassScores, ContactSheet, write_report

NASTY = '<b>&"$x$'
NAMES = [NASTY, *(f"digit {number}, rotated" for number in range(1, 12))]
VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use"}


def row(method: str, keep: float, accuracy: float, **other: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "method": method,
        "keep": keep,
        "finetuning": "linear_probe",
        "budget": "equal_epochs",
        "retained_classes": round(12 * keep),
        "retained_samples": round(1200 * keep),
        "pretrain_seconds": 30.0 * keep,
        "selection_seconds": 0.0 if method == "full" else 9.0,
        "speedup": 1 / keep,
        "speedup_with_selection": 30 / (30 * keep + 9.0 * (method != "full")),
        "test_accuracy_mean": accuracy,
        "test_accuracy_spread": 0.01,
        "test_accuracies": [accuracy - 0.00707, accuracy + 0.00707],
        "relevant_share": 0.25,
        "relevant_found": 1.0,
    }
    return values | other


def result() -> dict[str, Any]:
    rows = []
    for finetuning in ("linear_probe", "full_finetuning"):
        rows.append(row("full", 1.0, 0.93, finetuning=finetuning))
        for keep in (0.25, 0.5):
            rows.append(row("lm", keep, 0.95, finetuning=finetuning, relevant_share=1.0))
            rows.append(row("fm", keep, 0.90 + 0.1 * (keep - 0.25), finetuning=finetuning))
            rows.append(row("random", keep, 0.7, finetuning=finetuning))
        rows.append(
            row("lm", 0.25, 0.96, finetuning=finetuning, budget="equal_iterations", speedup=0.99)
        )
    return {
        "environment": {"cpu": "a <fast> one", "cores": 2},
        "seeds": [0, 1],
        "rows": rows,
        "stages": [{"stage": "surrogate", "seconds": 12.3}, {"stage": "pretrain", "seconds": 1.1}],
        "definitions": {"speedup": "full seconds < or > row seconds"},
    }


def scores() -> list[ClassScores]:
    relevant = np.arange(12) < 3
    counts = np.array([0.0, 9, 8, 7, 1, 1, 0, 0, 0, 0, 0, 0])
    return [
        ClassScores(method="lm", scores=counts, relevant=relevant),
        ClassScores(method="fm", scores=counts[::-1].copy(), relevant=None),
    ]


def sheets() -> list[ContactSheet]:
    rng = np.random.default_rng(0)

    def picture(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    kept = [(NAMES[0], picture(8, 8)), (NAMES[1], picture(300, 20)), (NAMES[2], picture(9, 400))]
    return [
        ContactSheet(title="lm, keep 0.25", kept=kept, pruned=[(NAMES[3], picture(32, 32))]),
        ContactSheet(title="../lm, keep 0.25", kept=kept, pruned=[]),
    ]


def write(path: Path, **other: Any) -> Path:
    given: dict[str, Any] = {
        "result": result(),
        "class_names": NAMES,
        "class_scores": scores(),
        "sheets": sheets(),
    }
    given |= other
    return write_report(given.pop("result"), path, **given)


class Page(HTMLParser):
    """Collects what the tests ask about: attributes, tags, table rows, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in {"td", "th"}:
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open[-2:]):
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "new" / "report.html"
    assert write(path) == path
    return path.parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text("utf-8"))


def test_the_page_loads_nothing_from_outside(folder: Path, page: Page) -> None:
    for tag, name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:80])
        assert not name.startswith("on")
        assert all(inside.startswith("#") for inside in re.findall(r"url\(['\"]?(.)", value))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    text = (folder / "report.html").read_text("utf-8")
    assert "://" not in text
    assert "@import" not in text
    assert "@font-face" not in text


def test_every_element_is_closed_and_every_id_is_unique_and_every_anchor_has_a_target(
    page: Page,
) -> None:
    assert page.open == []
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    anchors = {value[1:] for _, name, value in page.attributes if name == "href"}
    anchors |= {each for _, _, v in page.attributes for each in re.findall(r"url\(#([^)]+)", v)}
    assert anchors
    assert anchors <= set(ids)


def test_the_tables_hold_every_row(page: Page) -> None:
    table = [[cell.strip() for cell in cells] for cells in page.cells]
    wanted = result()["rows"]
    assert sum(len(cells) == 13 and cells[0] != "Method" for cells in table) == len(wanted)
    label = {"full": "full source", "lm": "LM", "fm": "FM"}
    for each in wanted:
        accuracy = f"{100 * each['test_accuracy_mean']:.2f}% ± 1.00"
        reaches = each["method"] == "lm" or (each["method"], each["keep"]) == ("fm", 0.5)
        start = [
            label.get(each["method"], each["method"]),
            f"{each['keep']:g}",
            f"✓ {accuracy}" if reaches else accuracy,
            f"{each['speedup']:.2f}×",
        ]
        budget = each["budget"].replace("_", " ")
        matching = [cells for cells in table if cells[:4] == start and cells[5] == budget]
        assert len(matching) == 2, start  # one for each finetuning
    assert ["surrogate", "12.3"] in table
    assert ["all", "13.4"] in table
    assert ["cores", "2"] in table


def test_names_and_values_are_escaped(folder: Path, page: Page) -> None:
    assert "b" not in page.tags
    assert f"{NASTY}: 0" in page.text
    assert "full seconds < or > row seconds" in page.text
    assert "a <fast> one" in page.text
    alts = [value for _, name, value in page.attributes if name == "alt"]
    assert f"Kept: {NASTY}, {NAMES[1]}, {NAMES[2]}" in alts
    assert "<b>" not in (folder / "report.html").read_text("utf-8")


def test_figures_are_png_files_beside_the_page(folder: Path) -> None:
    names = {path.stem for path in (folder / "figures").iterdir()}
    sheet = "classes_lm_keep_0.25"
    assert {"accuracy_vs_keep", "speedup_vs_keep", "class_scores_lm", "class_scores_fm"} <= names
    assert {f"{sheet}_kept", f"{sheet}_pruned"} <= names
    assert len(names) == 7
    for path in (folder / "figures").iterdir():
        assert path.suffix == ".png"
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 100


def test_two_runs_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "other.html")
    assert again.read_bytes() == (folder / "report.html").read_bytes()
    for path in (folder / "figures").iterdir():
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes()


def test_the_caller_s_plots_are_left_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    class_scores_plot(scores()[0], NAMES, "name")
    assert dict(mpl.rcParams) == before


def test_summary_names_smallest_keep_that_reaches_full_run_and_its_speedup() -> None:
    text = summarise(parse_rows(result()))
    assert "Linear probe: the full source (12 classes, 1,200 samples) reaches 93.00% ± 1.00" in text
    assert "its mean less its spread, 92.00%, is the mark." in text
    assert (
        "LM reaches it at keep 0.25 (3 classes, 95.00%), where pretraining is 4.00× as fast, "
        "or 1.82× counting the selection." in text
    )
    assert "FM reaches it at keep 0.5 (6 classes, 92.50%)" in text
    assert "Random reaches it at no keep: its best is 70.00% at keep 0.25." in text
    assert "At keep 0.25, the share" in text
    assert "100% for LM, 25% for FM, 25% for random." in text


def test_summary_says_so_when_no_method_reaches_the_full_run() -> None:
    rows = [row("full", 1.0, 0.93), row("lm", 0.25, 0.9), row("lm", 0.5, 0.9199)]
    text = summarise(parse_rows(result() | {"rows": rows}))
    assert "LM reaches it at no keep: its best is 91.99% at keep 0.5." in text
    assert "LM reaches it at keep" not in text


def test_summary_counts_an_exact_tie_as_reached_and_admits_misses_at_larger_keeps() -> None:
    rows = [row("full", 1.0, 0.93), row("fm", 0.25, 0.92), row("fm", 0.5, 0.91)]
    text = summarise(parse_rows(result() | {"rows": rows}))
    assert "FM reaches it at keep 0.25" in text
    assert "; it misses it again at keep 0.5." in text


def test_summary_does_not_count_runs_at_equal_iterations() -> None:
    rows = [
        row("full", 1.0, 0.93),
        row("lm", 0.25, 0.95, budget="equal_iterations"),
        row("lm", 0.25, 0.8),
    ]
    assert "LM reaches it at no keep" in summarise(parse_rows(result() | {"rows": rows}))


@pytest.mark.parametrize("spread", [None, float("nan")])
def test_one_seed_has_no_spread_and_the_report_says_so(
    tmp_path: Path, spread: float | None
) -> None:
    one: dict[str, Any] = {"test_accuracy_spread": spread, "relevant_share": None}
    rows = [
        row("full", 1.0, 0.93, test_accuracies=[0.93], speedup_with_selection=None, **one),
        row("lm", 0.5, 0.93, test_accuracies=[0.93], speedup_with_selection=None, **one),
    ]
    given = result() | {"rows": rows, "seeds": [0]}
    text = write(tmp_path / "r.html", result=given, class_scores=[], sheets=[]).read_text("utf-8")
    assert "93.00% test accuracy over 1 seed; its mean, no spread known, 93.00%, is" in text
    assert "nan" not in Page(text).text.lower()
    assert "known to be relevant is" not in text


def test_a_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="`class_scores` must have one score for each of 2 class"):
        write(path, class_names=["a", "b"])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["report.html"]

    def full_disk(self: Path, target: Path) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(path, class_scores=[], sheets=[])
    assert path.read_text() == "old"
    assert not [each for each in tmp_path.rglob("*") if each.name.endswith(".tmp")]


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda given: given.pop(key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: given.update(rows=[]), r"`rows` must hold at least one row; got \[\]\. "),
        (without("rows"), r"`result` must have the keys environment.*; got none of \['rows'\]\. "),
        (without("environment"), "`result` must have the keys"),
        (lambda given: given["rows"][2].pop("keep"), r"`rows` must .* row 2 lacks \['keep'\]; got"),
        (lambda given: given["rows"][1].update(keep="x"), "`rows` must have finite numbers; row 1"),
        (lambda given: given["rows"][1].update(keep=1.5), r"`rows` must have a keep in \(0, 1\]"),
        (lambda given: given["rows"].pop(0), "`rows` must hold a row with method 'full'.*; got no"),
        (
            lambda given: given["rows"][0].update(test_accuracy_mean=float("nan")),
            "row 0, 'test_accuracy_mean' is not one; got nan",
        ),
    ],
)
def test_a_bad_result_is_refused_with_what_to_do(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    given = copy.deepcopy(result())
    spoil(given)
    with pytest.raises(ValueError, match=message) as caught:
        write(tmp_path / "report.html", result=given)
    assert re.search(r"\. (Give|Run) the .*\.$", str(caught.value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros(0), np.array([1.0, np.nan])])
def test_bad_scores_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="`scores` must be a non-empty vector of finite numbers"):
        ClassScores(method="lm", scores=bad, relevant=None)
    with pytest.raises(ValueError, match="`relevant` must have the shape of `scores`"):
        ClassScores(method="lm", scores=np.ones(3), relevant=np.ones(2, bool))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_pictures_that_are_not_8_bit_rgb_are_refused(image: Any) -> None:
    with pytest.raises(ValueError, match="must hold uint8 images"):
        ContactSheet(title="t", kept=[("a", image)], pruned=[])


def test_ranks_break_ties_by_class_id() -> None:
    assert list(scores()[0].order()) == [1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10, 11]


def test_a_histogram_of_a_thousand_classes_stays_small() -> None:
    rng = np.random.default_rng(0)
    many = ClassScores(
        method="new one",
        scores=rng.poisson(1.0, 1000).astype(np.float64),
        relevant=rng.random(1000) < 0.1,
    )
    plot = class_scores_plot(many, [str(number) for number in range(1000)], "name")
    assert len(plot.svg) < 300_000
    assert plot.svg.startswith('<svg role="img"')


def test_contact_sheet_is_a_grid_with_pictures_enlarged_without_blur() -> None:
    checks = np.zeros((2, 2, 3), np.uint8)
    checks[0, 0] = checks[1, 1] = (200, 10, 10)
    with Image.open(io.BytesIO(contact_sheet_png([("a", checks)] * 7))) as image:
        colours = np.asarray(image)
    assert colours.shape[1] == 5 * 184
    patch = colours[: colours.shape[0] // 2, :184].reshape(-1, 3)
    assert (patch == (200, 10, 10)).all(axis=1).sum() == 2 * 64 * 64


def test_a_warning_of_the_run_is_on_the_page(page: Page, tmp_path: Path) -> None:
    assert "Note:" not in page.text
    path = write(tmp_path / "report.html", result={**result(), "warning": "the machine was busy"})
    assert "Note: the machine was busy." in Page(path.read_text("utf-8")).text
