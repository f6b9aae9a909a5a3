"""The scoring benchmark runs, on next to nothing, and prints what it should."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import scoring
from benchmarks.scoring import figures
from benchmarks.scoring.figures import NAMES, Scale
from benchmarks.scoring.sides import (
    PRODUCTS,
    READERS,
    check_nearest,
    check_same,
    features_file,
    loop_nearest,
    nearest_by_product,
    open_features,
    targets_and_means,
)
from dp4tl_ffcv.kernels import nearest_mean

TINY = Scale(targets=40, looped=2, samples=3000, images=4, backward=2, rounds=2, short_rounds=3)


def test_every_figure_is_measured() -> None:
    assert set(NAMES) == {
        "fm_assign",
        "fm_assign_roofline",
        "class_means",
        "histogram",
        "select_indices",
        "grand",
    }


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Rows of a run, by figure."""
    folder = tmp_path_factory.mktemp("scoring")
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "QUICK", TINY)
        scoring.main(scoring.Config(quick=True, data=folder, out=folder / "rows.jsonl"))
    torch.set_num_threads(before)
    head, *lines = (folder / "rows.jsonl").read_text().splitlines()
    assert "environment" in json.loads(head)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, lines):
        rows.setdefault(row["figure"], []).append(row)
    return rows


def test_all_figures_are_printed_with_a_ratio_and_a_bound(
    printed: dict[str, list[dict[str, Any]]],
) -> None:
    counts = {name: len(rows) for name, rows in printed.items()}
    assert counts == {
        "fm_assign": 1,
        "fm_assign_roofline": 1,
        "class_means": 2,
        "histogram": 2,
        "select_indices": 2,
        "grand": 1,
    }
    for rows in printed.values():
        for row in rows:
            assert row["bench"] == "scoring"
            assert row["ratio"] > 0
            assert row["params"]["bounded_by"]


def test_the_loop_is_measured_on_a_part_and_says_so(
    printed: dict[str, list[dict[str, Any]]],
) -> None:
    (loop,), (product,) = printed["fm_assign"], printed["fm_assign_roofline"]
    assert loop["params"]["other_images"] == TINY.looped
    assert "extrapolated" in loop["params"]["how"]
    assert product["other_name"] in PRODUCTS
    assert loop["ours"] == product["ours"]  # one measurement for both
    assert [row["other_name"] for row in printed["class_means"]] == list(READERS)


def test_only_a_full_run_of_all_figures_replaces_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(scoring, "RESULTS", results)
    monkeypatch.setattr(scoring, "measure", lambda *_: iter(()))
    scoring.main(scoring.Config(quick=True))
    scoring.main(scoring.Config(only=("histogram",)))
    assert not results.exists()
    scoring.main(scoring.Config())
    assert results.exists()


@pytest.mark.parametrize(
    ("kernel", "figure"),
    [
        ("class_histogram", "histogram"),
        ("class_members", "select_indices"),
        ("feature_mapping", "fm_assign"),
        ("class_means", "class_means"),
        ("gradient_norms", "grand"),
    ],
)
def test_a_result_that_differs_is_an_error(
    kernel: str, figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(figures, kernel)

    def wrong(*args: Any) -> Any:
        result = right(*args)
        array = result.scores if figure == "fm_assign" else result
        changed = np.array(array)
        changed[0] += 1
        return type("Wrong", (), {"scores": changed}) if figure == "fm_assign" else changed

    monkeypatch.setattr(figures, kernel, wrong)
    with pytest.raises(RuntimeError, match="must be the same; they differ"):
        list(figures.measure(TINY, tmp_path, [figure]))


def test_the_loop_and_all_products_find_the_nearest_means() -> None:
    features, means = targets_and_means(30, 7, 20)
    single = means.astype(np.float32)
    nearest, _ = nearest_mean(features, means)
    looped = loop_nearest(torch.from_numpy(features), torch.from_numpy(single))
    check_nearest(features, means, nearest, looped)
    for take in PRODUCTS.values():
        products = np.full((30, 7), np.nan, dtype=np.float32)
        take(features, single, products)
        np.testing.assert_allclose(products, features @ single.T, rtol=1e-5)
        check_nearest(features, means, nearest, nearest_by_product(products, single))
    with pytest.raises(RuntimeError, match="nearest means of 1 samples"):
        check_nearest(features, means, nearest, np.append(nearest[:-1], (nearest[-1] + 1) % 7))


def test_all_readers_read_every_byte(tmp_path: Path) -> None:
    features = open_features(features_file(101, 8, tmp_path))
    assert features.dtype == np.float16
    assert features.min() == 0 < features.max()
    total = int(np.asarray(features).view(np.uint64).sum())
    for read in READERS.values():
        assert read(features) == total


@pytest.mark.parametrize("other", [[1, 3], [1, 2, 2], [1.0, 2.001]])
def test_arrays_that_differ_are_told(other: Any) -> None:
    check_same("the numbers", [1, 2], [1, 2])
    with pytest.raises(RuntimeError, match="the numbers of both sides"):
        check_same("the numbers", np.array([1, 2]), np.array(other))
