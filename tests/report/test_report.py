"""The report: self-contained, complete, and written in one step."""

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp4tl_ffcv import Scores, Selection, image_fields, write_beton, write_report

NASTY = '<b>&"$x$'
NAMES = [NASTY, *(f"digit {number}, rotated" for number in range(1, 12))]
SCORES = np.array([0.0, 9, 8, 7, 1, 1, 0, 0, 0, 0, 0, 0])
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
            rows.append(row("label_mapping", keep, 0.95, finetuning=finetuning, relevant_share=1.0))
            rows.append(
                row("feature_mapping", keep, 0.90 + 0.1 * (keep - 0.25), finetuning=finetuning)
            )
            rows.append(row("random", keep, 0.7, finetuning=finetuning))
        rows.append(
            row(
                "label_mapping",
                0.25,
                0.96,
                finetuning=finetuning,
                budget="equal_iterations",
                speedup=0.99,
            )
        )
    return {
        "environment": {"cpu": "a <fast> one", "cores": 2},
        "seeds": [0, 1],
        "rows": rows,
        "stages": [{"stage": "surrogate", "seconds": 12.3}, {"stage": "pretrain", "seconds": 1.1}],
        "definitions": {"speedup": "full seconds < or > row seconds"},
        "classes": {
            "source": "source.beton",
            "relevant": [0, 1, 2],
            "scores": {
                "label_mapping": "label_mapping.npz",
                "feature_mapping": "feature_mapping.npz",
            },
            "selections": {"label_mapping, keep 0.25": "label_mapping_0.25.npz"},
        },
    }


def write_run(folder: Path, **other: Any) -> Path:
    """Write the files of a finished demo with 12 classes of one image each."""
    rng = np.random.default_rng(0)
    sizes = [(8, 8), (300, 20), (9, 400), *[(32, 32)] * 9]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    samples = [(image, label, 0) for label, image in enumerate(images)]
    path = folder / "source.beton"
    index = write_beton(path, samples, image_fields(mode="raw"), class_names=NAMES, seed=None)
    for method, scores in (("label_mapping", SCORES), ("feature_mapping", SCORES[::-1])):
        Scores(scores=scores, tie_break=np.zeros(12), method=method).save(folder / f"{method}.npz")
    Selection.of_classes(index, [0, 1, 2]).save(folder / "label_mapping_0.25.npz")
    (folder / "result.json").write_text(json.dumps(result() | other))
    return folder


class Page(HTMLParser):
    """Attributes, tags, table rows and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
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
    run = write_run(tmp_path_factory.mktemp("run"))
    assert write_report(run) == run / "report.html"
    return run


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "report.html")


def test_the_page_loads_nothing(page: Page) -> None:
    for tag, name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:80])
        assert not name.startswith("on")
        assert all(inside.startswith("#") for inside in re.findall(r"url\(['\"]?(.)", value))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search("://|@import|@font-face", page.source)


def test_elements_are_closed_ids_unique_and_anchors_have_targets(page: Page) -> None:
    assert page.open == []
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    anchors = {value[1:] for _, name, value in page.attributes if name == "href"}
    anchors |= {each for _, _, v in page.attributes for each in re.findall(r"url\(#([^)]+)", v)}
    assert anchors
    assert anchors <= set(ids)


def test_the_tables_contain_every_row(page: Page) -> None:
    table = [[cell.strip() for cell in cells] for cells in page.cells]
    wanted = result()["rows"]
    assert sum(len(cells) == 13 and cells[0] != "Method" for cells in table) == len(wanted)
    label = {"full": "full source", "label_mapping": "LM", "feature_mapping": "FM"}
    for each in wanted:
        accuracy = f"{100 * each['test_accuracy_mean']:.2f}% ± 1.00"
        reaches = each["method"] == "label_mapping" or (each["method"], each["keep"]) == (
            "feature_mapping",
            0.5,
        )
        start = [
            label.get(each["method"], each["method"]),
            f"{each['keep']:g}",
            f"✓ {accuracy}" if reaches else accuracy,
            f"{each['speedup']:.2f}×",
        ]
        budget = each["budget"].replace("_", " ")
        matching = [cells for cells in table if cells[:4] == start and cells[5] == budget]
        assert len(matching) == 2, start  # one per finetuning
    for cells in (["surrogate", "12.3"], ["all", "13.4"], ["cores", "2"]):
        assert cells in table


def test_names_and_values_are_escaped(page: Page) -> None:
    assert "b" not in page.tags
    assert f"{NASTY}: 0" in page.text
    assert "full seconds < or > row seconds" in page.text
    assert "a <fast> one" in page.text
    alts = [value for _, name, value in page.attributes if name == "alt"]
    assert f"Kept: {NASTY}, {NAMES[1]}, {NAMES[2]}" in alts


def test_the_best_classes_are_listed_in_rank_order(page: Page) -> None:
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
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 2, 2, 3), dtype=np.uint8)
    samples = [(image, label, 0) for label, image in enumerate(images)]
    names = [str(number) for number in range(1000)]
    fields = image_fields(mode="raw")
    write_run(tmp_path)
    index = write_beton(tmp_path / "source.beton", samples, fields, class_names=names, seed=None)
    for method in ("label_mapping", "feature_mapping"):
        scores = rng.poisson(1.0, 1000).astype(np.float64)
        Scores(scores=scores, tie_break=np.zeros(1000), method=method).save(
            tmp_path / f"{method}.npz"
        )
    Selection.of_classes(index, np.arange(400)).save(tmp_path / "label_mapping_0.25.npz")
    page = Page(write_report(tmp_path))
    assert "400 classes, the first 40 shown" in page.text
    assert len(page.source) < 1_500_000


def text_with(tmp_path: Path, **other: Any) -> str:
    return Page(write_report(write_run(tmp_path, **other))).text


def test_the_summary_names_the_smallest_keep_that_reaches_the_full_run(page: Page) -> None:
    for words in (
        "Linear probe: the full source (12 classes, 1,200 samples) reaches 93.00% ± 1.00",
        "Its mean minus its spread, 92.00%, is the mark.",
        "LM reaches it at keep 0.25 (3 classes, 95.00%), where pretraining is 4.00× as fast, "
        "or 1.82× counting the selection.",
        "FM reaches it at keep 0.5 (6 classes, 92.50%)",
        "Random reaches it at no keep: its best is 70.00% at keep 0.25.",
        "At keep 0.25, the fraction",
        "100% for LM, 25% for FM, 25% for random.",
    ):
        assert words in page.text
    assert "Note:" not in page.text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [("label_mapping", 0.25, 0.9), ("label_mapping", 0.5, 0.9199)],
            "no keep: its best is 91.99% at keep 0.5.",
        ),
        (
            [("feature_mapping", 0.25, 0.92), ("feature_mapping", 0.5, 0.91)],
            "; it misses it at keep 0.5.",
        ),
    ],
    ids=["never reached", "missed at a larger keep"],
)
def test_the_summary_admits_misses(rows: list[Any], words: str, tmp_path: Path) -> None:
    control = row("label_mapping", 0.25, 0.95, budget="equal_iterations")  # does not count
    measured = [row("full", 1.0, 0.93), control, *(row(*each) for each in rows)]
    assert words in text_with(tmp_path, rows=measured)


@pytest.mark.parametrize("spread", [None, float("nan")])
def test_a_single_seed_has_no_spread(tmp_path: Path, spread: float | None) -> None:
    one: dict[str, Any] = {"test_accuracy_spread": spread, "relevant_share": None}
    one |= {"test_accuracies": [0.93], "speedup_with_selection": None}
    rows = [row("full", 1.0, 0.93, **one), row("label_mapping", 0.5, 0.93, **one)]
    text = text_with(tmp_path, rows=rows, seeds=[0], warning="the machine was busy")
    assert "93.00% test accuracy over 1 seed. Its mean, without a spread, 93.00%, is" in text
    assert "nan" not in text.lower()
    assert "known to be relevant is" not in text
    assert "Note: the machine was busy." in text


def test_a_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    (tmp_path / "report.html").write_text("old")

    def full_disk(self: Path, target: Path) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert not list(tmp_path.rglob("*.tmp"))


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda given: given.pop(key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: given.update(rows=[]), "it has no rows"),
        (without("rows"), "it has no rows"),
        (without("environment"), "it has no environment"),
        (without("classes"), "it has no classes"),
        (lambda given: given["rows"][2].pop("keep"), "row 2 has no keep"),
        (lambda given: given["rows"][1].update(keep="x"), "keep of row 1 is 'x' instead of a"),
        (lambda given: given["rows"][1].update(keep=1.5), r"keep 1.5, which is not in \(0, 1\]"),
        (lambda given: given["rows"].pop(0), "the full source was not trained for linear_probe"),
        (lambda given: given["rows"][0].update(test_accuracy_mean=float("nan")), "is nan instead"),
    ],
)
def test_an_incomplete_result_is_rejected(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    given = copy.deepcopy(result())
    spoil(given)
    (tmp_path / "result.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=message) as caught:
        write_report(tmp_path)
    assert "result.json is not the result of a finished demo" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
