"""The report: self-contained, complete, and written in one step."""

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp4tl_ffcv import Selection, write_report
from tests.support.images import write_images
from tests.support.reports import result, row
from tests.support.scores import scores_of

NASTY = '<b>&"$x$'
NAMES = [NASTY, *(f"digit {number}, rotated" for number in range(1, 12))]
SCORES = np.array([0.0, 9, 8, 7, 1, 1, 0, 0, 0, 0, 0, 0])
VOID = {"meta", "br", "img"}


def write_run(folder: Path, images: Any = None, names: Any = NAMES, **other: Any) -> Path:
    """Write the files of a finished demo with one image of each class."""
    rng = np.random.default_rng(0)
    if images is None:
        sizes = [(8, 8), (300, 20), (9, 400), *[(32, 32)] * 9]
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    count = len(images)
    index = write_images(folder / "source.beton", images, range(count), class_names=names)
    scores = SCORES if count == len(SCORES) else rng.poisson(1.0, count)
    scores_of(scores, method="label_mapping").save(folder / "label_mapping.npz")
    scores_of(scores[::-1], method="feature_mapping").save(folder / "feature_mapping.npz")
    Selection.of_classes(index, np.arange(3 if count == 12 else 400)).save(
        folder / "label_mapping_0.25.npz"
    )
    (folder / "result.json").write_text(json.dumps(result() | other))
    return folder


class Page(HTMLParser):
    """Attributes, tags, table rows and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in {"td", "th"}:
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open[-2:]):
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("run"))
    assert write_report(run) == run / "report.html"
    return run


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "report.html")


def test_the_page_is_whole_and_loads_nothing(page: Page) -> None:
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"://|@import|@font-face|url\(", page.source)
    ids = [value for name, value in page.attributes if name == "id"]
    links = [value for name, value in page.attributes if name == "href"]
    assert {link.removeprefix("#") for link in links} == set(ids)
    assert len(ids) == len(set(ids))
    sources = [value for name, value in page.attributes if name == "src"]
    for kind, count in (("svg+xml", 4), ("png", 2)):
        assert sum(each.startswith(f"data:image/{kind};base64,") for each in sources) == count
    assert len(sources) == 6


def test_the_tables_contain_every_row(page: Page) -> None:
    table = [[cell.strip() for cell in cells] for cells in page.cells]
    wanted = result()["rows"]
    assert sum(len(cells) == 13 and cells[0] != "Method" for cells in table) == len(wanted)
    label = {"full": "full source", "label_mapping": "LM", "feature_mapping": "FM"}
    for each in wanted:
        accuracy = f"{100 * each['test_accuracy_mean']:.2f}% ± 1.00"
        method, keep = each["method"], each["keep"]
        reaches = method == "label_mapping" or (method, keep) == ("feature_mapping", 0.5)
        start = [
            label.get(method, method),
            f"{keep:g}",
            f"✓ {accuracy}" if reaches else accuracy,
            f"{each['speedup']:.2f}×",
        ]
        budget = each["budget"].replace("_", " ")
        matching = [cells for cells in table if cells[:4] == start and cells[5] == budget]
        assert len(matching) == 2, start  # one per finetuning
    for cells in (["surrogate", "12.3"], ["all", "13.4"], ["cores", "2"]):
        assert cells in table


def test_names_are_escaped_and_the_best_classes_listed_in_rank_order(page: Page) -> None:
    assert "b" not in page.tags
    for text in (f"{NASTY}: 0", "full seconds < or > row seconds", "a <fast> one"):
        assert text in page.text
    assert ("alt", f"Kept: {NASTY}, {NAMES[1]}, {NAMES[2]}") in page.attributes
    listed = re.findall(r"(digit \d+, rotated): (\d)( ●)?", page.text)[:5]
    assert listed == [
        (NAMES[1], "9", " ●"), (NAMES[2], "8", " ●"), (NAMES[3], "7", ""),
        (NAMES[4], "1", ""), (NAMES[5], "1", ""),
    ]  # fmt: skip


def test_figures_are_png_files_and_the_same_in_every_run(folder: Path, tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_report(write_run(tmp_path))
    assert dict(mpl.rcParams) == before
    figures = {path.stem: path for path in (folder / "figures").iterdir()}
    assert figures.keys() == {
        "accuracy_vs_keep", "speedup_vs_keep", "class_scores_label_mapping",
        "class_scores_feature_mapping",
        "classes_label_mapping_keep_0.25_kept", "classes_label_mapping_keep_0.25_pruned",
    }  # fmt: skip
    for path in figures.values():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_a_report_of_a_thousand_classes_stays_small(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1000, 2, 2, 3), dtype=np.uint8)
    classes = result()["classes"] | {"scores": {"label_mapping": "label_mapping.npz"}}
    names = [str(number) for number in range(1000)]
    run = write_run(tmp_path, images, names, classes=classes)
    page = Page(write_report(run))
    assert "400 classes, the first 40 shown" in page.text
    assert len(page.source) < 900_000


def test_the_summary_names_the_smallest_keep_that_reaches_the_full_run(page: Page) -> None:
    for words in (
        "Linear probe: the full source (12 classes, 1,200 samples) reaches 93.00% ± 1.00",
        "Its mean minus its spread, 92.00%, is the mark.",
        "LM reaches it at 25% kept (3 classes, 95.00%), where pretraining is 4.00× as fast, "
        "or 1.82× counting the selection.",
        "FM reaches it at 50% kept (6 classes, 92.50%)",
        "Random never reaches it: its best is 70.00% at 25% kept.",
        "With 25% of the classes kept, the fraction",
        "100% for LM, 25% for FM, 25% for random.",
    ):
        assert words in page.text
    assert "Note:" not in page.text


def summary(folder: Path, rows: list[Any], **other: Any) -> str:
    return Page(write_report(write_run(folder, rows=rows, **other))).text


def test_the_summary_admits_misses(tmp_path: Path) -> None:
    control = row("label_mapping", 0.25, 0.95, budget="equal_iterations")  # does not count
    runs = [
        ("label_mapping", 0.25, 0.9), ("label_mapping", 0.5, 0.9199),
        ("feature_mapping", 0.25, 0.92), ("feature_mapping", 0.5, 0.91),
    ]  # fmt: skip
    text = summary(tmp_path, [row("full", 1.0, 0.93), control, *(row(*run) for run in runs)])
    assert "LM never reaches it: its best is 91.99% at 50% kept." in text
    assert "; it misses it at 50% kept." in text


def test_a_single_seed_has_no_spread(tmp_path: Path) -> None:
    one: dict[str, Any] = {"test_accuracy_spread": None, "test_accuracies": [0.93]}
    rows = [row("full", 1.0, 0.93, **one), row("label_mapping", 0.5, 0.93, **one)]
    text = summary(tmp_path, rows, seeds=[0], warning="the machine was busy")
    assert "93.00% test accuracy over 1 seed. Its mean, without a spread, 93.00%, is" in text
    assert "Note: the machine was busy." in text


def test_a_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr("dp4tl_ffcv.report.report.render", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: given.update(rows=[]), "a finetuning has no row of the full source"),
        (lambda given: given["rows"].pop(0), "a finetuning has no row of the full source"),
        (lambda given: given.pop("environment"), "it has no entry 'environment'"),
        (lambda given: given["rows"][2].pop("keep"), "row 2 .* no entry 'keep'"),
        (
            lambda given: given["rows"][1].update(keep=None),
            "row 1 .*'keep' is not of the type int | float",
        ),
        (lambda given: given["rows"][1].update(test_accuracies=0.5), "row 1 .*'test_accuracies'"),
        (lambda given: given["rows"][1].update(test_accuracies=["a"]), "row 1 .*'test_accuracies'"),
        (lambda given: given["stages"][0].pop("seconds"), "it has no entry 'seconds'"),
        (lambda given: given["classes"].update(scores=["a.npz"]), "its entry 'scores' is not of"),
        (
            lambda given: given["classes"].update(source="../a.beton"),
            "it names '../a.beton', which",
        ),
        (lambda given: given["classes"]["scores"].update(lm="/a.npz"), "it names '/a.npz', which"),
        (lambda given: given["classes"].pop("scores"), "it has no entry 'scores'"),
        (lambda given: given.update(rows=None), "its entry 'rows' is not of the type"),
        (lambda given: given["rows"][1].update(keep=0.0), "row 1 .*'keep' is out of range"),
        (lambda given: given["rows"][1].update(speedup=-1.0), "row 1 .*'speedup' is out of range"),
        (
            lambda given: given["rows"][1].update(test_accuracies=[0.5, math.nan]),
            "row 1 .*'test_accuracies' is out of range",
        ),
        (
            lambda given: given["rows"][1].update(test_accuracy_spread=-0.1),
            "row 1 .*'test_accuracy_spread' is out of range",
        ),
        (
            lambda given: given["classes"]["scores"].update({"../lm": "lm.npz"}),
            r"'\.\./lm' is not the name of a method",
        ),
        (lambda given: given["stages"][0].update(seconds=10**400), "its entry 'seconds' is out of"),
        (lambda given: given.update(rows=given["rows"][::8]), "no fraction kept occurs in all"),
        (
            lambda given: [e.update(keep=0.3) for e in given["rows"] if e["method"] == "random"],
            "no fraction kept occurs in all methods",
        ),
    ],
)
def test_an_incomplete_result_is_rejected(
    spoil: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    given = result()
    spoil(given)
    (tmp_path / "result.json").write_text(json.dumps(given))
    match = f"result.json is not the result of a finished demo: {message}"
    with pytest.raises(ValueError, match=match):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
