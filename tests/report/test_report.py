"""The report of a study: self-contained, complete, and written in one step."""

import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import write_report
from dp4tl_ffcv.report.curves import logs_of
from dp4tl_ffcv.report.results import Results
from tests.support.reports import COUNT, row, rows, write_results, write_study
from tests.support.reports import NAMES as METHODS
from tests.support.scores import scores_of

NASTY = '<b>&"$x$'
NAMES = [NASTY, *(f"digit {number}, rotated" for number in range(1, COUNT))]
VOID = {"meta", "br", "img"}


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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open[-2:]):
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = write_study(tmp_path_factory.mktemp("study"), rows(), names=NAMES)
    assert write_report(study) == study / "report.html"
    return study


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "report.html")


def words_of(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_page_is_whole_and_loads_nothing(page: Page) -> None:
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"://|@import|@font-face|url\((?!#|data:)", page.source)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value for name, value in page.attributes if name == "href"]
    links += [f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", page.source)]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert not {"xlink:href", "src"} & {name for name, _ in page.attributes}


def test_the_page_has_colours_for_light_and_dark_and_fits_a_phone(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.source
    assert ("content", "width=device-width, initial-scale=1") in page.attributes
    panels = re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)
    assert panels
    for panel in panels:
        head = panel[: panel.index(">")]
        assert "viewBox" in head
        assert "width" not in head
        assert "currentColor" in panel
        assert not re.search(r"#010203|#040506|#262626|#000000", panel)


def table_of(page: Page) -> list[list[str]]:
    return [[" ".join(cell.split()) for cell in cells] for cells in page.cells]


def test_every_comparison_has_a_row_with_its_verdict(page: Page) -> None:
    table = table_of(page)
    for method, keep, difference, verdict in (
        ("LM", "0.5", "+0.00 [+0.00, +0.00]", "✓ no loss"),
        ("LM", "0.25", "-0.20 [-0.20, -0.20]", "✓ no loss"),
        ("FM", "0.25", "-4.01 [-4.02, -4.01]", "✗ loss"),
        ("random", "0.5", "-10.03 [-10.06, -10.01]", "✗ loss"),
    ):
        for budget in ("equal epochs", "equal steps"):
            mine = [cells for cells in table if cells[:3] == [budget, keep, method]]
            assert len(mine) == 2, (method, keep, budget)  # one for each finetuning
            assert {(cells[7], cells[9]) for cells in mine} == {(difference, verdict)}
            speed = f"{1 / float(keep):.2f}"
            cost = 0 if method == "random" else 9
            total = f"{30 / (30 * float(keep) + cost):.2f}"
            assert mine[0][10:] == [
                f"{speed} [{speed}, {speed}]", f"{total} [{total}, {total}]", "8",
            ]  # fmt: skip
    for method, pruned in (("LM", "75 %"), ("FM", "50 %"), ("random", "0 %")):
        assert [method, *[pruned] * 4] in table
    # Seed s is 0.198 + 0.000198 s ahead: the mean of 8 is 0.19869, and t(0.975, 7) s / sqrt(8) is
    # 0.000198 * 2.4495 * 2.3646 / 2.8284 = 0.00041.
    assert ["0.25", "LM", *["+19.87 [+19.83, +19.91]"] * 4] in table
    assert ["upright", "LM", "6.0", "2.0", "0.8", "0.2", "9.0", "30.0", "30 %", ""] in table


def test_sentences_say_what_was_found(page: Page) -> None:
    for sentence in (
        "This study pretrains on the full source and on selections by LM, FM and random with 8 "
        "seeds, and finetunes each model on 1 target in 2 ways; all 224 runs are finished.",
        "The largest pruning without loss is 75 % by LM (upright, linear probe, equal epochs), "
        "where pretraining is 4.0 times as fast, or 1.8 times with the cost of the selection; "
        "random classes reach 0 % there.",
        "Of 16 comparisons with random classes at the same fraction, 16 are ahead and 0 behind",
        "Of 24 comparisons, 12 show no loss, 12 show a loss, 0 cannot tell; in half of the "
        "comparisons, the verdict loss has a chance of 80 % or more only if the true loss is at "
        "least 1.0 points.",
        "Times and speed-ups are by processor time.",
    ):
        assert sentence in words_of(page)
    assert "images/s" not in page.text
    assert "Warnings" not in page.text


def test_classes_are_listed_with_rank_score_picture_and_seeds(page: Page) -> None:
    assert "b" not in re.findall(r"<(\w+)>&amp;", page.source)
    text = words_of(page)
    assert f"1. {NASTY}12, keep 0.25, 8/8" in text
    assert "4. digit 3, rotated9, keep 0.5, 0/8" in text
    assert "7. digit 6, rotated6, pruned, 0/8" in text
    pictures = [v for n, v in page.attributes if n == "style" and "position" in v]
    assert len(pictures) == 3 * COUNT
    assert len(set(pictures)) == COUNT  # each picture is embedded once
    assert page.source.count("data:image") == 1


def test_scores_of_as_many_pseudo_classes_do_not_rank_the_classes(tmp_path: Path) -> None:
    study = write_study(tmp_path, rows(seeds=1, methods=["feature_mapping"]))
    clusters = {"clusters_sha256": "ab"}
    for path in study.glob("score/*/scores.npz"):
        scores_of(np.arange(COUNT), **clusters).save(path)  # in the opposite order
    page = Page(write_report(study))
    assert "share of the retained samples" in words_of(page)
    assert re.search(r"1\. digit 0\S*, keep 0\.25", words_of(page))


def test_provenance_names_command_machine_versions_and_fingerprints(page: Page) -> None:
    table = page.cells
    assert ["source train", "f1"] in table
    assert ["target upright train", "f2"] in table
    assert ["pretrain", "224", "1", "0"] in table
    assert "dp4tl study <a>.yaml" in page.text
    assert "cpu: a <fast> one, gpu: none" in page.text
    assert '"method": "feature_mapping"' in page.text


def test_the_same_study_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_report(write_study(tmp_path, rows(), names=NAMES))
    assert dict(mpl.rcParams) == before
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()


# -- studies that lack something -------------------------------------------------------------------
def test_a_study_without_a_finished_run_has_a_page(tmp_path: Path) -> None:
    write_results(tmp_path, [], runs=224)
    page = Page(write_report(tmp_path))
    assert "nothing to compare yet: 0 of 224 runs are finished" in words_of(page)
    assert page.open == []


def test_an_unfinished_study_says_so(tmp_path: Path) -> None:
    write_results(tmp_path, rows(seeds=2)[:9], runs=56)
    text = words_of(Page(write_report(tmp_path)))
    assert "9 of 56 runs are finished, so the figures may still change." in text


def test_one_seed_shows_nothing(tmp_path: Path) -> None:
    write_results(tmp_path, rows(seeds=1))
    page = Page(write_report(tmp_path))
    assert "with one seed, nothing can be shown." in words_of(page)
    assert "A verdict needs 8 seeds." in words_of(page)
    assert sum("[?, ?]" in cells[7] for cells in page.cells if len(cells) == 13) == 24
    assert "No method is shown to prune anything without loss." in words_of(page)


def test_betons_logs_and_selections_may_be_gone(folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(folder, study)
    (study / "source.beton").unlink()
    for kind in ("pretrain", "finetune"):
        shutil.rmtree(study / kind)
    without = Page(write_report(study))
    assert f"1. {NASTY}12, keep 0.25, 8/8" in words_of(without)
    assert "data:image" not in without.source
    assert "Learning curves" not in without.text
    shutil.rmtree(study / "selection")
    assert "Classes by" not in Page(write_report(study)).text


def test_another_way_to_train_on_the_full_source_has_curves(tmp_path: Path) -> None:
    longer = [row("random", 0.5, seed) | {"keep": 1.0, "method": "longer"} for seed in (0, 1)]
    text = Page(write_report(write_study(tmp_path, [*rows(2, METHODS[:1]), *longer]))).text
    assert "Pretraining, keep 1.0, equal epochs" in text


def test_curves_of_auto_are_not_averaged(tmp_path: Path) -> None:
    """Seeds keep different fractions, so their epochs have different numbers of steps."""
    given = rows(2, METHODS[:1], keeps=(0.5,))
    automatic = [row(METHODS[0], 0.5, seed) | {"keep": "auto", "kept": 0.5} for seed in (0, 1)]
    curves = logs_of(Results.read(write_study(tmp_path, [*given, *automatic]))).curves
    assert {keep for _, _, keep, _ in curves} == {0.5, 1.0}


def test_a_beton_outside_of_the_folder_is_read_only_if_it_is_given(
    folder: Path, tmp_path: Path
) -> None:
    study, other = tmp_path / "study", tmp_path / "other.beton"
    shutil.copytree(folder, study)
    (study / "source.beton").rename(other)
    summary = json.loads((study / "summary.json").read_text())
    for path in (str(other), "../other.beton"):
        (study / "summary.json").write_text(json.dumps(summary | {"source": path}))
        assert "data:image" not in Page(write_report(study)).source
    assert "data:image" in Page(write_report(study, source=other)).source


def test_many_methods_and_classes_give_a_page_of_bounded_size(tmp_path: Path) -> None:
    names = [f"method_{number}" for number in range(20)]
    given = [row("full", 1.0, seed) for seed in range(2)]
    given += [
        row("random", keep, seed) | {"method": name} | _places(f"{name}_{keep}_{seed}")
        for name in names for keep in (0.5, 0.25) for seed in range(2)
    ]  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (1000, 2, 2, 3), dtype=np.uint8)
    labels = [str(number) for number in range(1000)]
    page = Page(write_report(write_study(tmp_path, given, images, labels)))
    assert all(f"Classes by {name.replace('_', ' ')}" in page.text for name in names)
    assert "600 more classes are not listed." in words_of(page)
    assert len(page.source) < 2_500_000
    styles = re.findall(r'color:(#\w+)">(.)</span> method \d+', page.source)
    assert len(set(styles)) == 20


def _places(stage: str) -> dict[str, str]:
    stage = stage.replace(".", "")
    kinds = {"selection": "selection", "scores": "score", "pretrained": "pretrain"}
    return {name: f"{kind}/{stage}" for name, kind in kinds.items()}


def test_keep_auto_is_placed_by_its_samples_and_compared_with_the_best_keep(
    tmp_path: Path,
) -> None:
    given = rows()
    given += [
        each
        | {"keep": "auto", "kept": 0.4, "steps": 40, "pretrain_seconds": 12.0, "coverage": 0.985}
        | {"lower_bound": 0.972, "warnings": [f"The votes <of seed {each['seed']}> mean little."]}
        | _places(f"auto_{each['seed']}")
        for each in given
        if each["method"] == "label_mapping" and each["keep"] == 0.5
    ]  # fmt: skip
    write_results(tmp_path, given)
    page = Page(write_report(tmp_path))
    table = table_of(page)
    assert any(cells[:3] == ["equal epochs", "auto 0.40", "LM"] for cells in table)
    for mode in ("linear probe", "full finetuning"):
        assert [
            "upright", mode, "LM", "0.40", "98.50 (97.20)", "60.00", "0.25", "75.00", "0.80",
            "✓ no loss",
        ] in table  # fmt: skip
    assert (
        "Keep auto saves 60 % of the training steps on average, and the best fraction known "
        "afterwards 75 %, a ratio of 0.80; of 2 comparisons of auto, 2 show no loss, 0 show a "
        "loss, 0 cannot tell."
    ) in words_of(page)
    warning = ["upright", "LM", "8 of 8", "The votes <of seed 0> mean little."]
    assert warning in table


# -- damage ----------------------------------------------------------------------------------------
def test_a_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(tmp_path, rows())
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr("dp4tl_ffcv.report.report._template", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("results.jsonl", lambda given: given.pop("seed"), "it has no entry 'seed'"),
        ("results.jsonl", lambda given: given.update(seed="0"), "its entry 'seed' is not of"),
        (
            "results.jsonl",
            lambda given: given.update(test_accuracy=math.nan),
            "its entry 'test_accuracy' is out of range",
        ),
        (
            "results.jsonl",
            lambda given: given.update(pretrained="../x"),
            "it names '../x', which is no stage",
        ),
        (
            "results.jsonl",
            lambda given: given.update(scores="/etc/x"),
            "it names '/etc/x', which is no stage",
        ),
        (
            "results.jsonl",
            lambda given: given.update(pretrain_seconds=0.0),
            "its entry 'pretrain_seconds' is out of range",
        ),
        (
            "results.jsonl",
            lambda given: given.update(selection_seconds=-1.0),
            "its entry 'selection_seconds' is out of range",
        ),
        (
            "results.jsonl",
            lambda given: given.update(test_images=10**400),
            "its entry 'test_images' is out of range",
        ),
        (
            "results.jsonl",
            lambda given: given.update(keep="most"),
            "its entry 'keep' is neither a fraction nor auto",
        ),
        ("results.jsonl", lambda given: given.update(seed=1), "two rows have the same run"),
        ("summary.json", lambda given: given.pop("runs"), "it has no entry 'runs'"),
        ("config.json", lambda given: given.update(study=[]), "its entry 'study' is not of"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    file: str, spoil: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    write_results(tmp_path, rows())
    path = tmp_path / file
    first, *rest = path.read_text().splitlines() if file.endswith("l") else [path.read_text()]
    given = json.loads(first)
    spoil(given)
    path.write_text("\n".join([json.dumps(given), *rest]))
    with pytest.raises(ValueError, match=f"{file} is damaged: {message}") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        write_report(tmp_path)
