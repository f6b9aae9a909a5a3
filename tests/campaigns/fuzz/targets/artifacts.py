"""Files between stages: scores, selections, clusters, features, manifests, lists of ids."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from dp4tl_ffcv import (
    BetonIndex,
    Clusters,
    Features,
    PrunedLoader,
    Scores,
    Selection,
    export_indices,
    import_indices,
    label_mapping,
    select,
    verify,
)
from dp4tl_ffcv.beton.manifest import Manifest, manifest_path, new_manifest, read_manifest
from dp4tl_ffcv.loading import CACHES
from tests.campaigns.fuzz import betons
from tests.campaigns.fuzz.arrays import check_artifact, mutated_npy, mutated_npz, plain_npz
from tests.campaigns.fuzz.mutate import mutated, mutated_text
from tests.campaigns.fuzz.target import FaultError, Sample, Target

BETON = "a.beton"
CLASSES = 3
NAMES = ("cat", "dog", "owl")


def _beton(folder: Path) -> bytes:
    return betons.write(folder / BETON, ("label", "score"), 1).read_bytes()


def _named_beton(folder: Path) -> tuple[dict[str, bytes], str]:
    """Return the files of a beton whose classes are named, and the name of its manifest."""
    data = _beton(folder)
    index = BetonIndex.open(folder / BETON)
    manifest = Manifest(
        fields={field.name: field.kind for field in index.fields},
        num_samples=len(index), class_names=NAMES,
        class_counts=tuple(index.class_counts().tolist()),
        written_by={"writer": "imagefolder"}, fingerprint=index.fingerprint,
        skipped=({"sample": 3, "name": "3.png", "error": "damaged"},),
    )  # fmt: skip
    with new_manifest(folder / BETON, manifest):
        pass
    name = manifest_path(folder / BETON).name
    return {BETON: data, name: (folder / name).read_bytes()}, name


class NpzTarget(Target):
    """An `.npz` file next to the beton that it was made for."""

    file: ClassVar[str]
    words: ClassVar[tuple[str, ...]] = ("kind", "format", "fingerprint", "label", "provenance")

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate one array, the header or the container."""
        return mutated_npz(rng, sample.data, (*self.words, *self.paths_outside()))


class SelectionFiles(NpzTarget):
    name = "selection"
    file = "selection.npz"

    def prepare(self, folder: Path) -> list[Sample]:
        data = _beton(folder)
        samples = []
        for number, classes in enumerate(([0], [0, 2], [1, 2], [0, 1, 2])):
            path = folder / f"{number}.npz"
            selection = Selection.of_classes(folder / BETON, classes)
            selection.save(path)
            files = {BETON: data, self.file: path.read_bytes()}
            samples.append(Sample(files, self.file))
        return samples

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load the selection, check that its arrays agree, and load an epoch with new labels."""
        selection = Selection.load(folder / self.file)
        check_selection(selection)
        loader = PrunedLoader(
            folder / BETON, 4, num_workers=1, selection=folder / self.file, relabel=True,
            cache=str(rng.choice(CACHES)), order="sequential", drop_last=False,
            pipelines={"score": None},
        )  # fmt: skip
        labels = BetonIndex.open(folder / BETON).labels()
        found = [int(label) for (batch,) in loader for label in batch.flatten()]
        wanted = selection.label_map[labels[selection.indices]].tolist()
        if found != wanted:
            raise FaultError("wrong label", f"{found} instead of {wanted}")
        return check_artifact(selection, data, sample.data)


def check_selection(selection: Selection) -> None:
    """Raise `FaultError` if the arrays of a selection contradict each other."""
    classes, indices, label_map = selection.classes, selection.indices, selection.label_map
    numbered = np.full(len(label_map), -1)
    fits = classes.ndim == indices.ndim == label_map.ndim == 1
    fits = fits and all((np.diff(ids) > 0).all() for ids in (classes, indices))
    fits = fits and not any((ids < 0).any() for ids in (classes, indices))
    fits = fits and (not len(classes) or int(classes.max()) < len(label_map))
    if fits:
        numbered[classes] = np.arange(len(classes))
    if not fits or not np.array_equal(numbered, label_map):
        about = {name: getattr(selection, name).tolist() for name in selection.ARRAYS}
        raise FaultError("accepted a contradiction", f"{about}")


class ScoreFiles(NpzTarget):
    name = "scores"
    file = "scores.npz"
    words = ("kind", "format", "method", "unit", "class", "sample", "class_names", *NAMES)

    def prepare(self, folder: Path) -> list[Sample]:
        (beton, _), rng = _named_beton(folder), np.random.default_rng(0)
        samples = []
        for number, (unit, count) in enumerate((("class", CLASSES), ("sample", betons.SAMPLES))):
            path = folder / f"{number}.npz"
            Scores(
                scores=rng.normal(size=count), tie_break=rng.normal(size=count),
                method="label_mapping", unit=unit, class_names=NAMES,  # type: ignore[arg-type]
            ).save(path)  # fmt: skip
            files = {**beton, self.file: path.read_bytes()}
            samples.append(Sample(files, self.file))
        return samples

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load the scores, rank them and select by them, if the names are those of the beton."""
        scores = Scores.load(folder / self.file)
        if sorted(scores.ranking()) != list(range(len(scores))):
            raise FaultError("accepted a contradiction", "the ranking is no permutation")
        json.dumps(scores.summary())
        check_selection(select(folder / self.file, folder / BETON, keep=0.5))
        found = tuple(plain_npz(data)[1].get("class_names", ()))
        if found[:CLASSES] != NAMES[: len(found)]:
            raise FaultError("wrong label", f"selected from {NAMES} by scores of {found}")
        outcome = check_artifact(scores, data, sample.data)
        return outcome if len(found) >= CLASSES else "class names lost"


class ClusterFiles(NpzTarget):
    name = "clusters"
    file = "clusters.npz"

    def prepare(self, folder: Path) -> list[Sample]:
        data, rng = _beton(folder), np.random.default_rng(0)
        path = folder / self.file
        centroids = rng.normal(size=(CLASSES, 4)).astype(np.float32)
        labels = np.arange(betons.SAMPLES) % CLASSES
        Clusters(labels=labels, centroids=centroids, provenance={"seed": 0}).save(path)
        Scores(scores=np.arange(CLASSES), method="random").save(folder / "scores.npz")
        files = {name: (folder / name).read_bytes() for name in (self.file, "scores.npz")}
        return [Sample({BETON: data, **files}, self.file)]

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load the clusters, describe them, and select pseudo-classes."""
        clusters = Clusters.load(folder / self.file)
        json.dumps(clusters.summary())
        selected = select(
            folder / "scores.npz", folder / BETON, keep=0.5, clusters=folder / self.file
        )
        check_selection(selected)
        return check_artifact(clusters, data, sample.data)


class FeatureFolders(Target):
    name = "features folder"

    def prepare(self, folder: Path) -> list[Sample]:
        rng, rows = np.random.default_rng(0), betons.SAMPLES
        logits = rng.normal(size=(rows, CLASSES)).astype(np.float32)
        Features(
            features=rng.normal(size=(rows, 5)).astype(np.float32),
            labels=np.arange(rows) % 2,
            indices=np.arange(rows),
            logits=logits,
            predictions=logits.argmax(1),
            provenance={"class_names": list(NAMES)},
        ).save(folder / "features")
        paths = sorted((folder / "features").iterdir())
        files = {f"features/{path.name}": path.read_bytes() for path in paths}
        # The header is attacked as often as all arrays together.
        attacked = [*files, *["features/header.json"] * (len(files) - 2)]
        return [Sample(files, name) for name in attacked]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the header as text, an array as such."""
        if sample.attacked.endswith(".json"):
            words = ("class_names", "provenance", "files", "kind", *self.paths_outside("features"))
            return mutated_text(rng, sample.data.decode(), words)
        return mutated_npy(rng, sample.data)

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load the folder and score by it."""
        features = Features.load(folder / "features")
        json.dumps(features.summary())
        scores = label_mapping(folder / "features")
        if len(features) != len(features.labels) or not np.isfinite(scores.scores).all():
            raise FaultError("accepted a contradiction", repr(scores))
        features.class_means(CLASSES)
        header = json.loads((folder / "features" / "header.json").read_bytes())
        names = tuple(header["provenance"].get("class_names", ()))
        if not names == features.class_names == scores.class_names:
            raise FaultError("differs from a plain reading", f"{scores.class_names}")
        for name in ("features", "labels", "indices", "logits", "predictions"):
            plain = np.load(folder / "features" / f"{name}.npy", allow_pickle=False)
            if not np.array_equal(getattr(features, name), plain):
                raise FaultError("differs from a plain reading", name)
        return "equal" if data == sample.data else "read as the bytes say"


class Manifests(Target):
    name = "manifest"

    def prepare(self, folder: Path) -> list[Sample]:
        files, name = _named_beton(folder)
        return [Sample(files, name, truth=NAMES)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the JSON."""
        words = ("fields", "num_samples", "class_names", "class_counts", "label_field", "skipped")
        return mutated_text(rng, sample.data.decode(), (*words, *self.paths_outside()))

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Read the manifest, verify the beton, name and select its classes."""
        path = folder / BETON
        verify(path, num_workers=0)
        manifest = read_manifest(path)
        plain, found = json.loads(data), asdict(manifest) if manifest else {}
        for entry in plain.keys() & found.keys():
            if json.dumps(found[entry]) != json.dumps(plain[entry]):
                raise FaultError("differs from a plain reading", f"{entry}: {found[entry]!r}")
        index = BetonIndex.open(path)
        names = index.class_names()
        json.dumps(index.summary())
        json.dumps(Selection.of_classes(index, [0, 2]).summary(index))
        is_equal = names == sample.truth and plain == json.loads(sample.data)
        return "equal" if is_equal else "read as the bytes say"


class IndexLists(Target):
    name = "list of sample ids"
    raised = (ValueError, TypeError)  # ids that are no integers

    def prepare(self, folder: Path) -> list[Sample]:
        data = _beton(folder)
        selection = Selection.of_indices(folder / BETON, [0, 2, 5])
        samples = []
        for suffix in (".npy", ".txt", ".indices"):
            export_indices(selection, folder / f"ids{suffix}")
            files = {BETON: data, f"ids{suffix}": (folder / f"ids{suffix}").read_bytes()}
            samples.append(Sample(files, f"ids{suffix}", truth=selection.digest()))
        old = io.BytesIO()
        ids = torch.tensor([0, 2, 5])
        torch.save(ids, old, _use_new_zipfile_serialization=False)
        files = {BETON: data, "ids.indices": old.getvalue()}
        return [*samples, Sample(files, "ids.indices", truth=selection.digest())]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate by the format."""
        if sample.attacked.endswith(".npy"):
            return mutated_npy(rng, sample.data)
        if sample.attacked.endswith(".txt"):
            return mutated_text(rng, sample.data.decode())
        return mutated(rng, sample.data, (), donor.data)

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Import the ids."""
        selection = import_indices(folder / sample.attacked, folder / BETON)
        check_selection(selection)
        return "equal" if selection.digest() == sample.truth else "accepted, not compared"
