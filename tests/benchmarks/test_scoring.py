"""The scoring benchmark measures both sides, on very little data, and compares their results."""

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.harness.command import load_figures, measure
from benchmarks.harness.rows import Row
from benchmarks.scoring.bench import Bench, Scale, check_same
from benchmarks.scoring.figures import class_means, fm_assign, grand
from dp4tl_ffcv.kernels import nearest_mean

TINY = Scale(
    targets=40, looped=2, samples=3000, images=4, backward=2, arch="resnet8_w16", rounds=2,
    short_rounds=3,
)  # fmt: skip
COUNTS = {
    "class_means": 2,
    "fm_assign": 1,
    "fm_assign_roofline": 1,
    "grand": 1,
    "histogram": 2,
    "select_indices": 3,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(TINY, tmp_path_factory.mktemp("scoring"), ExitStack())


@pytest.fixture(scope="module")
def measured(tiny: Bench) -> dict[str, list[Row]]:
    """Rows of a run, by figure."""
    rows: dict[str, list[Row]] = {}
    for row in measure(load_figures("scoring"), [tiny]):
        rows.setdefault(row["figure"], []).append(row)
    return rows


def test_all_figures_have_a_ratio_and_a_bound(measured: dict[str, list[Row]]) -> None:
    assert {name: len(rows) for name, rows in measured.items()} == COUNTS
    for rows in measured.values():
        for row in rows:
            assert row["ratio"] > 0
            assert row["params"]["bounded_by"]


def test_the_published_loop_is_extrapolated_and_the_row_says_so(
    measured: dict[str, list[Row]],
) -> None:
    (loop,), (product,) = measured["fm_assign"], measured["fm_assign_roofline"]
    assert loop["params"]["other_images"] == TINY.looped
    assert "extrapolated" in loop["params"]["how"]
    assert product["other_name"] in fm_assign.PRODUCTS
    assert loop["ours"] == product["ours"]  # one measurement for both
    assert [row["other_name"] for row in measured["class_means"]] == list(class_means.READERS)


@pytest.mark.parametrize(
    ("figure", "function"),
    [
        ("histogram", "class_histogram"),
        ("select_indices", "class_members"),
        ("fm_assign", "feature_mapping"),
        ("grand", "gradient_norms"),
    ],
)
def test_a_wrong_result_is_an_error(
    figure: str, function: str, tiny: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = import_module(f"benchmarks.scoring.figures.{figure}")
    right = getattr(module, function)

    def wrong(*args: Any) -> Any:
        result = right(*args)
        changed = np.array(getattr(result, "scores", result))
        changed[0] += 1
        return type("Wrong", (), {"scores": changed}) if figure == "fm_assign" else changed

    monkeypatch.setattr(module, function, wrong)
    with pytest.raises(RuntimeError, match="differ"):
        module.measure(tiny)


def test_the_loop_and_all_products_find_the_nearest_means() -> None:
    features, means = fm_assign.targets_and_means(30, 7, 20)
    single = means.astype(np.float32)
    nearest, *_ = nearest_mean(features, means)
    looped = fm_assign.loop_nearest(torch.from_numpy(features), torch.from_numpy(single))
    fm_assign.check_nearest(features, means, nearest, looped)
    for take in fm_assign.PRODUCTS.values():
        products = np.full((30, 7), np.nan, dtype=np.float32)
        take(features, single, products)
        np.testing.assert_allclose(products, features @ single.T, rtol=1e-5)
        found = fm_assign.nearest_by_product(products, single)
        fm_assign.check_nearest(features, means, nearest, found)
    changed = np.append(nearest[:-1], (nearest[-1] + 1) % 7)
    with pytest.raises(RuntimeError, match="nearest means of 1 samples"):
        fm_assign.check_nearest(features, means, nearest, changed)


def test_all_readers_read_every_byte(tmp_path: Path) -> None:
    features = class_means.open_features(class_means.features_file(101, 8, tmp_path))
    assert features.dtype == np.float16
    assert features.min() == 0 < features.max()
    total = int(np.asarray(features).view(np.uint64).sum())
    for read in class_means.READERS.values():
        assert read(features) == total


@pytest.mark.parametrize("other", [[1, 3], [1, 2, 2], [1.0, 2.001]])
def test_different_arrays_are_an_error(other: Any) -> None:
    check_same("the numbers", [1, 2], [1, 2])
    with pytest.raises(RuntimeError, match="the numbers of the two sides differ"):
        check_same("the numbers", np.array([1, 2]), np.array(other))


def test_a_backward_pass_per_image_gives_the_norm_of_its_gradient() -> None:
    model = torch.nn.Linear(3, 2)
    images, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    errors = model(images).softmax(1) - torch.nn.functional.one_hot(labels)
    inputs = torch.cat([images, torch.ones(4, 1)], dim=1)
    expected = (errors.norm(dim=1) * inputs.norm(dim=1)).detach().numpy()
    norms = grand.loop_gradient_norms(model, images, labels)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
