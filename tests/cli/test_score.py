"""`dp4tl score METHOD` gives the same scores as the library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import Scores, build_model, save_checkpoint
from dp4tl_ffcv.scoring import methods, score
from tests.cli.conftest import flags_of
from tests.conftest import Images
from tests.support.dynamics import dynamics_of

SMALL = {"resolution": 32, "batch_size": 50, "num_workers": 2, "method": "loop"}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("label_mapping", {"target": "target"}),
    ("soft_label_mapping", {"target": "target"}),
    ("feature_mapping", {"target": "target", "source": "shuffled"}),
    ("feature_mapping", {"target": "target", "source": "source", "clusters": "clusters.npz"}),
    ("similarity", {"target": "target", "source": "source", "neighbors": 3}),
    ("semdedup", {"source": "source", "clusters": "clusters.npz"}),
    ("random", {"beton": "BETON", "seed": 3, "unit": "sample"}),
    ("el2n", {"source": ("source", "second_run")}),
    ("grand", {"models": ("model.pt",), "beton": "BETON", **SMALL}),
    ("moderate", {"source": "source", "unit": "class"}),
    ("forgetting", {"dynamics": ("dynamics.npz",)}),
    ("aum", {"dynamics": ("dynamics.npz",), "prefer": "low"}),
    ("dyn_unc", {"dynamics": ("dynamics.npz",), "window": 3}),
    ("tdds", {"dynamics": ("dynamics.npz",), "window": 4, "decay": 0.5}),
    ("coverage_centric", {"difficulty": "samples.npz", "strata": 3, "cutoff": 0.1}),
    ("prototype_distance", {"source": "source", "clusters": "clusters.npz", "prefer": "near"}),
    ("class_influence", {"outcomes": "outcomes.npy", "included": "included.npy"}),
    ("class_list", {"classes": "list.csv", "beton": "BETON", "column": "1", "exclude": True}),
]


@pytest.fixture(scope="module")
def files(given: Path, photos: Images) -> Callable[[Any], Any]:
    """Return a function that replaces a file's name by its path."""
    Scores(scores=np.arange(9.0), method="el2n", unit="sample").save(given / "samples.npz")
    dynamics_of(9, 5).save(given / "dynamics.npz")
    np.save(given / "outcomes.npy", np.random.default_rng(0).random((3, 2)))
    np.save(given / "included.npy", np.eye(3, dtype=bool))
    (given / "list.csv").write_text("rank,class\n0,7\n1,2\n2,5\n")
    torch.manual_seed(0)
    save_checkpoint(given / "model.pt", build_model("resnet8_w16", 10))

    def path(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(path, value))
        if value == "BETON":
            return photos.path
        return given / value if isinstance(value, str) and (given / value).exists() else value

    return path


def test_every_method_is_called() -> None:
    assert {name for name, _ in CALLS} == set(methods.names())


@pytest.mark.parametrize(("name", "inputs"), CALLS)
def test_flags_are_the_arguments_of_the_method(
    name: str, inputs: dict[str, Any], run: Callable[..., Any], files: Any, tmp_path: Path
) -> None:
    inputs = {flag: files(value) for flag, value in inputs.items()}
    result = run("score", name.replace("_", "-"), *flags_of(inputs), "--out", tmp_path / "s.npz")
    found, expected = Scores.load(tmp_path / "s.npz"), score(name, **inputs)
    assert result == {"out": str(tmp_path / "s.npz"), **expected.summary()}
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.tie_break, expected.tie_break)
    assert found.provenance == expected.provenance


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("el2n --source", "is empty"),
        ("feature-mapping --target target --source source --clusters samples.npz", "clusters file"),
        ("class-list --classes list.csv --beton BETON", "needs --column"),
        ("grand --beton BETON --models nowhere.pt", "nowhere.pt"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, says: str, fail: Callable[..., str], files: Any, tmp_path: Path
) -> None:
    line = fail("score", *map(files, arguments.split()), "--out", tmp_path / "never.npz")
    assert says in line
    assert not list(tmp_path.iterdir())
