"""The registry of methods, and their results for Features, paths and tensors."""

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import (
    Clusters,
    Features,
    Scores,
    StaleArtifactError,
    build_model,
    class_means,
    evaluation_loader,
    save_checkpoint,
    scoring,
)
from dp4tl_ffcv.scoring import (
    class_influence,
    class_list,
    coverage_centric,
    el2n,
    feature_mapping,
    grand,
    label_mapping,
    methods,
    moderate,
    prototype_distance,
    score,
    soft_label_mapping,
)
from dp4tl_ffcv.scoring.combine import mean_scores
from dp4tl_ffcv.utils import Classifier, gradient_norms, sha256_of_file
from tests.conftest import Images


def same(found: Scores, expected: Scores) -> None:
    assert (found.method, found.unit) == (expected.method, expected.unit)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.tie_break, expected.tie_break)


# The registry.


@pytest.mark.parametrize("name", methods.names())
def test_a_method_has_one_name_and_its_flags_are_documented_arguments(name: str) -> None:
    method = methods.get(name)
    assert method.name == name
    assert method.function.__name__ in (name, f"{name}_scores")
    assert getattr(scoring, method.function.__name__) is method.function
    assert set(method.flags) <= set(signature(method.function).parameters)
    assert all(f"\n    {flag}: " in str(method.flags_class().__doc__) for flag in method.flags)
    assert set(method.units) <= {"class", "sample"}
    assert method.summary.endswith(".")
    assert f"`{name.replace('_', '-')}`" in methods.table()


def test_the_documentation_lists_all_methods() -> None:
    root = Path(__file__).resolve().parents[2]
    pages = [root / "README.md", *root.glob("docs/**/*.md")]
    # By `python -m benchmarks.harness.tables`.
    assert any(methods.table() in page.read_text() for page in pages)


def test_an_unknown_method_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"^`method` must be one of .*class_influence, .*'lm'"):
        score("lm", target=[1])
    with pytest.raises(AttributeError, match="no attribute 'lm'"):
        scoring.lm  # noqa: B018  # reading it is the test


def test_scores_are_written_where_asked(tmp_path: Path) -> None:
    made = score("random", beton=3, seed=5, out=tmp_path / "s.npz")
    same(Scores.load(tmp_path / "s.npz"), made)


# Features and paths give what arrays give.


@pytest.mark.parametrize("name", ["target", "target_logits_only"])
def test_label_mapping_of_features(name: str, given: Path) -> None:
    features = Features.load(given / name)
    for target in (given / name, str(given / name), features):
        for method in (label_mapping, soft_label_mapping):
            found = method(target)
            same(found, method(features.logits))
            assert found.provenance == {"target": dict(features.provenance)}
    same(soft_label_mapping(given / "target_votes_only"), soft_label_mapping(given / "target"))


def test_scores_of_outputs_have_their_names_outside_of_the_provenance(given: Path) -> None:
    names = tuple("abcdefghij")

    def named(name: str) -> Features:
        features = Features.load(given / name)
        return replace(features, provenance={**features.provenance, "class_names": list(names)})

    source, target, both = named("source"), named("target"), {}
    for method in (label_mapping, soft_label_mapping):
        both[method] = method(target)
        assert method(named("target_logits_only")).class_names == names
    assert soft_label_mapping(named("target_votes_only")).class_names == names
    both[el2n] = el2n(source)
    both[coverage_centric] = coverage_centric(both[el2n])
    for scores in both.values():
        assert scores.class_names == names
    # These do not use the outputs.
    others = [feature_mapping(target, source), moderate(source)]
    assert [scores.class_names for scores in others] == [(), ()]
    assert not any("class_names" in str(each.provenance) for each in (*both.values(), *others))


@pytest.mark.parametrize("name", ["source", "shuffled", "no_outputs", "incomplete"])
def test_feature_mapping_of_features(name: str, given: Path, photos: Images) -> None:
    rows, target = Features.load(given / name), Features.load(given / "target")
    found = feature_mapping(given / "target", given / name)
    same(found, feature_mapping(target.features, class_means(rows.features, rows.labels, 10)))
    assert found.provenance == {
        "target": dict(target.provenance),
        "source": dict(rows.provenance),
        "source_fingerprint": photos.index.fingerprint,
    }


@pytest.mark.parametrize("name", ["source", "shuffled"])
def test_feature_mapping_to_pseudo_classes(name: str, given: Path) -> None:
    clusters = Clusters.load(given / "clusters.npz")
    found = feature_mapping(given / "target", given / name, clusters=given / "clusters.npz")
    # The means do not depend on the order of the rows.
    features = Features.load(given / "source").features.astype(np.float64)
    means = np.stack([features[clusters.labels == k].mean(axis=0) for k in range(4)])
    targets = Features.load(given / "target").features
    gaps = ((targets[:, None] - means) ** 2).sum(axis=2)
    assert found.scores.tolist() == np.bincount(gaps.argmin(axis=1), minlength=4).tolist()
    assert found.provenance["clusters_sha256"] == clusters.digest()


def test_the_number_of_classes_is_the_betons_or_the_labels() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 3)), np.arange(30) % 5
    source = Features.from_arrays(features, labels)
    assert len(moderate(source, unit="class")) == len(feature_mapping(features, source)) == 5
    named = replace(source, provenance={"beton_classes": 7})
    assert moderate(named, unit="class").ranking()[-2:].tolist() == [5, 6]
    bare = Features.from_arrays(features)
    with pytest.raises(ValueError, match=r"^`source` has no labels"):
        feature_mapping(features, bare)
    clusters = Clusters(labels=np.zeros(30, int), centroids=np.zeros((1, 3), np.float32))
    same(prototype_distance(bare, clusters), prototype_distance(source, clusters))
    with pytest.raises(ValueError, match=r"^`clusters` need the source's Features"):
        feature_mapping(np.zeros((2, 3)), np.zeros((4, 3)), clusters=clusters)


@pytest.mark.parametrize("name", ["source", "shuffled"])
def test_sample_scores_of_features_are_in_the_order_of_ids(
    name: str, given: Path, photos: Images
) -> None:
    source = Features.load(given / "source")
    labelled = source.features, source.labels, 10
    clusters = Clusters.load(given / "clusters.npz")
    for found, expected in (
        (el2n(given / name), el2n(source.logits, source.labels)),
        (moderate(given / name), moderate(*labelled)),
        (moderate(given / name, median="all"), moderate(*labelled, median="all")),
        (moderate(given / name, unit="class"), moderate(*labelled, unit="class")),
        (
            prototype_distance(given / name, given / "clusters.npz", prefer="near"),
            prototype_distance(source.features, clusters, prefer="near"),
        ),
    ):
        same(found, expected)
        assert found.provenance["source"] == dict(source.provenance)
        assert found.provenance["source_fingerprint"] == photos.index.fingerprint


def test_el2n_is_averaged_over_runs(given: Path) -> None:
    runs = [Features.load(given / name) for name in ("source", "second_run")]
    expected = mean_scores([el2n(run.logits, run.labels) for run in runs])
    same(el2n([given / "shuffled", runs[1]]), expected)


def test_files_of_scores_runs_and_lists_may_be_given(photos: Images, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    difficulty = Scores(scores=rng.random(20), method="el2n", unit="sample")
    difficulty.save(tmp_path / "d.npz")
    options = {"strata": 7, "cutoff": 0.1, "seed": 3}
    same(coverage_centric(tmp_path / "d.npz", **options), coverage_centric(difficulty, **options))
    outcomes, included = rng.random((12, 7)), rng.random((12, 5)) < 0.5
    included[0], included[1] = True, False
    np.save(tmp_path / "o.npy", outcomes)
    for kind in (bool, np.int64, np.float32):
        np.save(tmp_path / "i.npy", included.astype(kind))
        found = class_influence(tmp_path / "o.npy", tmp_path / "i.npy")
        same(found, class_influence(outcomes, included))
    assert found.provenance["outcomes_sha256"] == sha256_of_file(tmp_path / "o.npy")
    (tmp_path / "list.csv").write_text("rank,class\n0,7\n1,2\n2,5\n")
    for column in ("class", "1", 1):
        found = class_list(tmp_path / "list.csv", photos.path, column=column, exclude=True)
        same(found, class_list([7, 2, 5], 10, exclude=True))
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint
    assert found.provenance["list_sha256"] == sha256_of_file(tmp_path / "list.csv")


def test_tensors_give_what_arrays_give() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 6
    tensor, ids = torch.from_numpy(features).requires_grad_(), torch.from_numpy(labels)
    means, mean_tensor = class_means(features, labels, 6), class_means(tensor, ids, 6)
    same(label_mapping(tensor), label_mapping(features))
    same(feature_mapping(tensor, mean_tensor), feature_mapping(features, means))
    same(el2n(tensor, ids), el2n(features, labels))
    same(moderate(tensor, ids, 6), moderate(features, labels, 6))
    same(class_list(ids[:6], 9), class_list(labels[:6], 9))


# GraNd, which runs models.


VIEWS: dict[str, Any] = {"resolution": 32, "batch_size": 50, "num_workers": 2}


def test_grand_is_averaged_over_models(other_photos: Images, tmp_path: Path) -> None:
    paths, norms = [tmp_path / "one.pt", tmp_path / "two.pt"], []
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        model = build_model("resnet8_w16", 10)
        save_checkpoint(path, model)
        loader = evaluation_loader(
            other_photos.path, batch_size=40, resolution=32, crop_ratio=0.9, num_workers=1
        )
        norms.append(gradient_norms(model, loader, method="vmap"))
    for given_models, expected in ((paths, np.mean(norms, axis=0)), (model, norms[1])):
        found = grand(given_models, other_photos.index, crop_ratio=0.9, **VIEWS)
        assert (found.method, found.unit) == ("grand", "sample")
        np.testing.assert_allclose(found.scores, expected, rtol=1e-3)
        assert found.provenance["source_fingerprint"] == other_photos.index.fingerprint
    one = grand(paths[:1], other_photos.path, method="vmap", **VIEWS)
    assert one.provenance["checkpoint_sha256"] == sha256_of_file(paths[0])


def test_grand_refuses_a_model_of_classes_in_another_order(other_photos: Images) -> None:
    model = build_model("resnet8_w16", 12)
    names = [*other_photos.index.class_names(), "more", "outputs"]
    model.class_names = names
    assert len(grand(model, other_photos.path, **VIEWS)) == 40
    model.class_names = [names[1], names[0], *names[2:]]
    with pytest.raises(
        StaleArtifactError,
        match=rf"^class 0 is '{names[1]}' in model 2 of `models`, but '{names[0]}' in .*\.beton'",
    ):
        grand([build_model("resnet8_w16", 12), model], other_photos.path, **VIEWS)


def test_grand_reads_another_programs_checkpoint(other_photos: Images, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("resnet8_w16", 10).network
    channels = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    wrapped = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dicts": {"network": wrapped}}, tmp_path / "theirs.pt")
    options = {"arch": "resnet8_w16", "mean": channels[0], "std": channels[1]}
    theirs = grand(tmp_path / "theirs.pt", other_photos.path, **options, **VIEWS)
    ours = grand(Classifier(network, "resnet8_w16", 10, *channels), other_photos.path, **VIEWS)
    np.testing.assert_array_equal(theirs.scores, ours.scores)
    assert theirs.provenance["mean"] == [*channels[0]]


# Bad input.


@pytest.mark.parametrize(
    ("method", "inputs", "says"),
    [
        (label_mapping, {"target": "target_no_outputs"}, "features without logits"),
        (label_mapping, {"target": "target_votes_only"}, "features without logits"),
        (soft_label_mapping, {"target": "target_no_outputs"}, "features without logits"),
        (el2n, {"source": "no_logits"}, "--logits"),
        (el2n, {"source": "incomplete"}, "each sample id from 0 to 118 once"),
        (el2n, {"source": "repeated"}, "each sample id from 0 to 119 once"),
        (el2n, {"source": ["source", "target"]}, "different lengths"),
        (el2n, {"source": []}, "is empty"),
        (moderate, {"source": "incomplete"}, "features of the whole source"),
        (prototype_distance, {"source": "incomplete", "clusters": "clusters.npz"}, "whole source"),
        (prototype_distance, {"source": "source", "clusters": "few_clusters.npz"}, "clusters"),
        (
            prototype_distance,
            {"source": "source", "clusters": "foreign_clusters.npz"},
            "different so",
        ),
        (feature_mapping, {"source": "source", "clusters": "foreign_clusters.npz"}, "different so"),
        (feature_mapping, {"source": "source", "clusters": "few_clusters.npz"}, "ids up to 119"),
        (class_influence, {"outcomes": "objects.npy", "included": "ones.npy"}, "`outcomes` must"),
        (class_influence, {"outcomes": "ones.npy", "included": "empty.npy"}, "`included` must be"),
        (class_influence, {"outcomes": "archive.npz", "included": "ones.npy"}, "`outcomes` must"),
        (grand, {"models": []}, "is empty"),
    ],
)
def test_bad_input_is_rejected(
    method: Any, inputs: dict[str, Any], says: str, given: Path, photos: Images
) -> None:
    np.save(given / "ones.npy", np.ones((3, 2)))
    np.save(given / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(given / "archive.npz", a=np.ones(3))
    (given / "empty.npy").write_bytes(b"")
    arguments: dict[str, Any] = {
        name: [given / part for part in value] if isinstance(value, list) else given / value
        for name, value in inputs.items()
    }
    if method is feature_mapping:
        arguments["target"] = given / "target"
    if method is grand:
        arguments["beton"] = photos.path
    with pytest.raises(ValueError, match=says):
        method(**arguments)
