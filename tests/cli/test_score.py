"""`dp4tl score`: every method gives what the library gives, with where it came from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import (
    Features,
    Scores,
    build_model,
    class_means,
    feature_mapping,
    image_fields,
    label_mapping,
    save_checkpoint,
    write_beton,
)
from dp4tl_ffcv.scoring.clustering.clusters import Clusters
from dp4tl_ffcv.scoring.combine import mean_scores
from dp4tl_ffcv.scoring.methods.grand import grand
from dp4tl_ffcv.scoring.methods.influence import class_influence, class_list_scores
from dp4tl_ffcv.scoring.methods.label_mapping import soft_label_mapping
from dp4tl_ffcv.scoring.methods.samples import (
    coverage_centric,
    el2n,
    moderate,
    moderate_classes,
    prototype_distance,
)
from dp4tl_ffcv.utils import Classifier, sha256_of_file
from tests.conftest import Images

Run = Callable[..., dict[str, Any]]
Fail = Callable[..., str]
VIEWS = ("--resolution", "32", "--batch-size", "50", "--num-workers", "2")


@pytest.fixture(scope="module")
def few_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of 5 named classes, the last of which has no image."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("few") / "few.beton"
    samples = [(rng.integers(0, 256, (40, 40, 3), np.uint8), n % 4, n) for n in range(12)]
    write_beton(path, samples, image_fields(jpeg_quality=95), class_names="abcde", seed=None)
    return path


@pytest.fixture
def score(run: Run, tmp_path: Path) -> Callable[..., Scores]:
    """Run a method, check what is printed, and load the file."""

    def call(*arguments: object) -> Scores:
        out = tmp_path / "scores.npz"
        result = run("score", *arguments, "--out", out)
        scores = Scores.load(out)
        assert result == {
            "out": str(out),
            "method": scores.method,
            "unit": scores.unit,
            "scored": len(scores),
            "above_zero": int((scores.scores > 0).sum()),
            "best": scores.ranking()[:20].tolist(),
        }
        return scores

    return call


def same(found: Scores, expected: Scores) -> None:
    assert (found.method, found.unit) == (expected.method, expected.unit)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.tie, expected.tie)


# Classes.


@pytest.mark.parametrize("target", ["target", "target_logits_only"])
def test_lm_counts_predictions(target: str, score: Callable[..., Scores], given: Path) -> None:
    found = score("lm", "--target", given / target)
    features = Features.load(given / "target")
    same(found, label_mapping(features.logits))
    assert found.provenance["target"] == dict(features.provenance)


@pytest.mark.parametrize("target", ["target", "target_logits_only"])
def test_soft_lm_sums_outputs(target: str, score: Callable[..., Scores], given: Path) -> None:
    found = score("soft-lm", "--target", given / target)
    same(found, soft_label_mapping(Features.load(given / "target").logits))


@pytest.mark.parametrize("source", ["source", "shuffled", "no_outputs", "incomplete"])
def test_fm_counts_nearest_class_means(
    source: str, score: Callable[..., Scores], given: Path, photos: Images
) -> None:
    found = score("fm", "--target", given / "target", "--source", given / source)
    rows, target = Features.load(given / source), Features.load(given / "target")
    same(found, feature_mapping(target.features, class_means(rows.features, rows.labels, 10)))
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint
    assert found.provenance["source"] == dict(rows.provenance)
    assert "clusters_sha256" not in found.provenance


@pytest.mark.parametrize("source", ["source", "shuffled"])
def test_fm_of_pseudo_classes(
    source: str, score: Callable[..., Scores], given: Path, photos: Images
) -> None:
    clusters = Clusters.load(given / "clusters.npz")
    inputs = ("--target", given / "target", "--source", given / source)
    found = score("fm", *inputs, "--clusters", given / "clusters.npz")
    # By hand: the rows of each cluster, whatever the order of the rows.
    features = Features.load(given / "source").features.astype(np.float64)
    means = np.stack([features[clusters.labels == k].mean(axis=0) for k in range(4)])
    targets = Features.load(given / "target").features
    gaps = ((targets[:, None] - means) ** 2).sum(axis=2)
    assert found.scores.tolist() == np.bincount(gaps.argmin(axis=1), minlength=4).tolist()
    assert found.provenance["clusters_sha256"] == clusters.digest()
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint


def test_fm_scores_classes_that_only_the_labels_know(
    score: Callable[..., Scores], given: Path, tmp_path: Path
) -> None:
    source = Features.load(given / "no_outputs")
    labels = np.where(source.labels == 0, 12, source.labels)
    Features(features=source.features, labels=labels, indices=source.indices).save(
        tmp_path / "more"
    )
    target = Features.load(given / "target_no_outputs")
    Features(features=target.features, labels=target.labels, indices=target.indices).save(
        tmp_path / "target"
    )
    found = score("fm", "--target", tmp_path / "target", "--source", tmp_path / "more")
    same(found, feature_mapping(target.features, class_means(source.features, labels, 13)))


def test_fm_ranks_the_sources_classes_whatever_the_surrogate_has_for_outputs(
    score: Callable[..., Scores], run: Run, few_classes: Path, other_photos: Images, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "nine.pt", build_model("resnet8_w16", 9))
    for name, beton in (("source", few_classes), ("target", other_photos.path)):
        inputs = (beton, "--checkpoint", tmp_path / "nine.pt", "--out", tmp_path / name)
        run("features", *inputs, *VIEWS)
    inputs = ("--target", tmp_path / "target", "--source", tmp_path / "source")
    for number, arguments in enumerate((("fm", *inputs), ("moderate", *inputs[2:], "--classes"))):
        found = score(*arguments)
        assert len(found) == 5
        assert found.ranking()[-1] == 4
        files = ("--scores", tmp_path / "scores.npz", "--beton", few_classes)
        chosen = run("select", *files, "--keep", 0.5, "--out", tmp_path / f"{number}.npz")
        assert (chosen["retained_classes"], chosen["of_classes"]) == (2, 5)
        assert chosen["classes"] == sorted("abcde"[c] for c in found.ranking()[:2])
    # Label mapping ranks the outputs, which are another source's classes.
    assert len(score("lm", *inputs[:2])) == 9


def test_influence_of_given_runs(score: Callable[..., Scores], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outcomes, included = rng.random((12, 7)), rng.random((12, 5)) < 0.5
    included[0], included[1] = True, False
    np.save(tmp_path / "outcomes.npy", outcomes)
    for kind in (bool, np.int64, np.float32):
        np.save(tmp_path / "included.npy", included.astype(kind))
        inputs = ("--outcomes", tmp_path / "outcomes.npy", "--included", tmp_path / "included.npy")
        found = score("influence", *inputs)
        same(found, class_influence(outcomes, included))
    assert found.provenance["outcomes_sha256"] == sha256_of_file(tmp_path / "outcomes.npy")


@pytest.mark.parametrize("exclude", [False, True])
def test_a_list_of_classes(
    exclude: bool, score: Callable[..., Scores], photos: Images, tmp_path: Path
) -> None:
    np.save(tmp_path / "list.npy", np.array([7, 2, 5]))
    inputs = ("--list", tmp_path / "list.npy", "--beton", photos.path)
    found = score("classes", *inputs, *(("--exclude",) if exclude else ()))
    same(found, class_list_scores([7, 2, 5], 10, exclude=exclude))
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint
    assert found.provenance["list_sha256"] == sha256_of_file(tmp_path / "list.npy")


@pytest.mark.parametrize("column", ["class", "1"])
def test_a_ranking_in_a_table(
    column: str, score: Callable[..., Scores], photos: Images, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text("rank,class\n0,7\n1,2\n2,5\n")
    inputs = ("--list", tmp_path / "list.csv", "--beton", photos.path, "--column", column)
    same(score("classes", *inputs), class_list_scores([7, 2, 5], 10))


# Samples.


@pytest.mark.parametrize("source", ["source", "shuffled"])
def test_el2n_of_one_run(
    source: str, score: Callable[..., Scores], given: Path, photos: Images
) -> None:
    found = score("el2n", "--source", given / source)
    expected = Features.load(given / "source")
    same(found, el2n(expected.logits, expected.labels))
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint


def test_el2n_is_averaged_over_runs(
    score: Callable[..., Scores], given: Path, photos: Images
) -> None:
    found = score("el2n", "--source", given / "shuffled", given / "second_run")
    runs = [Features.load(given / name) for name in ("source", "second_run")]
    same(found, mean_scores([el2n(run.logits, run.labels) for run in runs]))
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint


def test_moderate_scores_samples_or_classes(
    score: Callable[..., Scores], given: Path, photos: Images
) -> None:
    source = Features.load(given / "source")
    of_all = partial(moderate, median="all")
    for more, rule in (
        ((), moderate),
        (("--median", "all"), of_all),
        (("--classes",), moderate_classes),
    ):
        found = score("moderate", "--source", given / "shuffled", *more)
        same(found, rule(source.features, source.labels, 10))
        assert found.provenance["source_fingerprint"] == photos.index.fingerprint


def test_ccs_spreads_over_difficulties(
    score: Callable[..., Scores], given: Path, photos: Images, tmp_path: Path
) -> None:
    difficulty = score("el2n", "--source", given / "source")
    difficulty.save(tmp_path / "difficulty.npz")
    options = ("--strata", "7", "--cutoff", "0.1", "--seed", "3")
    found = score("ccs", "--difficulty", tmp_path / "difficulty.npz", *options)
    same(found, coverage_centric(difficulty, strata=7, cutoff=0.1, seed=3))
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint


@pytest.mark.parametrize("prefer", ["far", "near"])
def test_prototypes_measure_to_the_nearest_centroid(
    prefer: Any, score: Callable[..., Scores], given: Path, photos: Images
) -> None:
    inputs = ("--source", given / "shuffled", "--clusters", given / "clusters.npz")
    found = score("prototypes", *inputs, "--prefer", prefer)
    features = Features.load(given / "source").features
    same(found, prototype_distance(features, Clusters.load(given / "clusters.npz"), prefer=prefer))
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint


def test_grand_is_averaged_over_checkpoints(
    score: Callable[..., Scores], other_photos: Images, tmp_path: Path
) -> None:
    paths, runs = [tmp_path / "one.pt", tmp_path / "two.pt"], []
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        model = build_model("resnet8_w16", 10)
        save_checkpoint(path, model)
        runs.append(grand(model, other_photos.index, resolution=32, crop_ratio=0.9, method="loop"))
    options = (*VIEWS, "--crop-ratio", "0.9")
    for count in (1, 2):
        inputs = ("--beton", other_photos.path, "--checkpoint", *paths[:count])
        found = score("grand", *inputs, *options)
        assert (found.method, found.unit) == ("grand", "sample")
        expected = np.mean([run.scores for run in runs[:count]], axis=0)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-3)
        assert found.provenance["source_fingerprint"] == other_photos.index.fingerprint
        about = found.provenance if count == 1 else found.provenance["parts"][0]["scores"]
        assert about["checkpoint_sha256"] == sha256_of_file(paths[0])


def test_grand_reads_another_programs_checkpoint(
    score: Callable[..., Scores], other_photos: Images, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build_model("resnet8_w16", 10)
    channels = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    model = Classifier(model.network, model.arch, 10, *channels)
    save_checkpoint(tmp_path / "ours.pt", model)
    wrapped = {f"module.{name}": value for name, value in model.network.state_dict().items()}
    torch.save({"state_dicts": {"network": wrapped}}, tmp_path / "theirs.pt")
    inputs = ("--beton", other_photos.path, "--checkpoint")
    ours = score("grand", *inputs, tmp_path / "ours.pt", *VIEWS)
    options = ("--arch", "resnet8_w16", "--mean", *channels[0], "--std", *channels[1])
    theirs = score("grand", *inputs, tmp_path / "theirs.pt", *VIEWS, *options)
    np.testing.assert_array_equal(theirs.scores, ours.scores)
    assert theirs.provenance["mean"] == [*channels[0]]


# Bad input: one line and status 1.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("lm --target target_no_outputs", "what the surrogate predicts"),
        ("soft-lm --target target_no_outputs", "what the surrogate predicts"),
        ("el2n --source no_logits", "--logits"),
        ("el2n --source incomplete", "each sample id from 0 to 118 once"),
        ("el2n --source repeated", "each sample id from 0 to 119 once"),
        ("el2n --source source target", "one number of entries"),
        ("el2n --source", "at least one"),
        ("moderate --source incomplete", "features of the whole source"),
        ("moderate --source source --classes --median all", "`median` must be left out"),
        ("prototypes --source incomplete --clusters clusters.npz", "whole source"),
        ("prototypes --source source --clusters few_clusters.npz", "clustered"),
        ("prototypes --source source --clusters foreign_clusters.npz", "one source"),
        ("fm --target target --source source --clusters foreign_clusters.npz", "one source"),
        ("fm --target target --source source --clusters few_clusters.npz", "ids up to 119"),
        ("fm --target target --source nowhere", "nowhere"),
        ("fm --target target --source source --clusters classes.npz", "clusters file"),
        ("ccs --difficulty classes.npz", "scores of samples"),
        ("ccs --difficulty samples.npz --cutoff 1.5", "`cutoff` must lie in [0, 1)"),
        ("ccs --difficulty samples.npz --strata 0", "`strata` must lie in [1, "),
        ("influence --outcomes outcomes.npy --included counts.npy", "1 and 0"),
        ("influence --outcomes objects.npy --included included.npy", "`outcomes` must be an array"),
        ("influence --outcomes outcomes.npy --included empty.npy", "`included` must be an array"),
        ("influence --outcomes archive.npz --included included.npy", "`outcomes` must be an array"),
        ("classes --list list.txt --beton BETON", "[0, 10)"),
        ("classes --list table.csv --beton BETON", "the `column` of its ids"),
        ("classes --list nowhere.txt --beton BETON", "nowhere.txt"),
        ("grand --beton BETON --checkpoint nowhere.pt", "nowhere.pt"),
        ("grand --beton BETON --checkpoint few.pt --resolution 32", "`batches` must hold labels"),
        ("grand --beton BETON --checkpoint foreign.pt", "`arch` must name the architecture"),
        ("grand --beton BETON --checkpoint", "at least one"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, says: str, fail: Fail, bad: Path, photos: Images, tmp_path: Path
) -> None:
    paths = [
        photos.path if word == "BETON" else bad / word if _is_path(word) else word
        for word in arguments.split()
    ]
    line = fail("score", paths[0], *paths[1:], "--out", tmp_path / "never.npz")
    assert says in line
    assert not list(tmp_path.iterdir())


def _is_path(word: str) -> bool:
    first = word.replace("-", "_").partition(".")[0]
    return not word.startswith("--") and not first.isdigit() and word not in {*METHODS, "all"}


METHODS = {
    *("lm", "soft-lm", "fm", "el2n", "grand", "moderate", "ccs", "prototypes"),
    *("influence", "classes"),
}


@pytest.fixture(scope="module")
def bad(given: Path) -> Path:
    """More files beside the given ones."""
    zeros = np.zeros(5)
    Scores(scores=zeros, tie=zeros, method="lm").save(given / "classes.npz")
    Scores(scores=zeros, tie=zeros, method="el2n", unit="sample").save(given / "samples.npz")
    np.save(given / "outcomes.npy", np.ones((3, 2)))
    np.save(given / "included.npy", np.eye(3, dtype=bool))
    np.save(given / "counts.npy", np.arange(9).reshape(3, 3))
    np.save(given / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(given / "archive.npz", a=np.ones(3))
    (given / "empty.npy").write_bytes(b"")
    (given / "list.txt").write_text("3\n10\n")
    (given / "table.csv").write_text("rank,class\n0,3\n1,5\n")
    few = build_model("resnet8_w16", 3)
    save_checkpoint(given / "few.pt", few)
    torch.save(few.network.state_dict(), given / "foreign.pt")
    return given
