"""Dataset pruning for transfer learning, on FFCV.

Score the classes of a source dataset by how a target maps onto them, select the best, and pretrain
on those alone. Names load when first used: importing this package imports neither torch, numba
nor ffcv.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .artifacts import atomic_open, sha256_of_file, write_json
    from .beton import BetonIndex, Manifest, read_image, read_manifest
    from .beton.verify.allocations import Problem
    from .beton.verify.verification import Verification, verify
    from .compaction.compact import compact
    from .distributed import in_first
    from .errors import BetonError, CheckpointError, StaleArtifactError, one_line_errors
    from .extraction import extract_features
    from .loading import (
        CenterCropRGBImageDecoder,
        PrunedLoader,
        RandomResizedCropRGBImageDecoder,
        RemapLabel,
        evaluation_loader,
        training_loader,
        view_pipelines,
    )
    from .progress import track
    from .runs import RunFolder, environment, settings_of
    from .scoring import Scores, class_means, feature_mapping, label_mapping, random_scores
    from .scoring.clustering.clusters import Clusters
    from .scoring.clustering.kmeans import cluster, sweep_clusters
    from .scoring.combine import combine_scores, mean_scores
    from .scoring.features.features import Features
    from .scoring.gradients import gradient_norms, grand
    from .scoring.methods.influence import (
        class_influence,
        class_influences,
        class_list_scores,
        read_class_list,
    )
    from .scoring.methods.label_mapping import soft_label_mapping
    from .scoring.methods.samples import (
        coverage_centric,
        el2n,
        moderate,
        moderate_classes,
        prototype_distance,
    )
    from .scoring.surrogate import (
        BlurPoolConv,
        Classifier,
        best_device,
        build_model,
        load_checkpoint,
        replace_head,
        save_checkpoint,
    )
    from .selection import Selection, export_indices, import_indices, select
    from .writing.fields import ImageField
    from .writing.sources import ImageFiles, TarImages, TarMembers, list_tar
    from .writing.write import image_fields, write_beton

_HOMES = {
    "BetonError": "errors",
    "BetonIndex": "beton",
    "BlurPoolConv": "scoring.surrogate",
    "CenterCropRGBImageDecoder": "loading",
    "CheckpointError": "errors",
    "Classifier": "scoring.surrogate",
    "Clusters": "scoring.clustering.clusters",
    "Features": "scoring.features.features",
    "ImageField": "writing.fields",
    "ImageFiles": "writing.sources",
    "Manifest": "beton",
    "Problem": "beton.verify.allocations",
    "PrunedLoader": "loading",
    "RandomResizedCropRGBImageDecoder": "loading",
    "RemapLabel": "loading",
    "RunFolder": "runs",
    "Scores": "scoring",
    "Selection": "selection",
    "StaleArtifactError": "errors",
    "TarImages": "writing.sources",
    "TarMembers": "writing.sources",
    "Verification": "beton.verify.verification",
    "atomic_open": "artifacts",
    "best_device": "scoring.surrogate",
    "build_model": "scoring.surrogate",
    "class_influence": "scoring.methods.influence",
    "class_influences": "scoring.methods.influence",
    "class_list_scores": "scoring.methods.influence",
    "class_means": "scoring",
    "cluster": "scoring.clustering.kmeans",
    "combine_scores": "scoring.combine",
    "compact": "compaction.compact",
    "coverage_centric": "scoring.methods.samples",
    "el2n": "scoring.methods.samples",
    "environment": "runs",
    "evaluation_loader": "loading",
    "export_indices": "selection",
    "extract_features": "extraction",
    "feature_mapping": "scoring",
    "gradient_norms": "scoring.gradients",
    "grand": "scoring.gradients",
    "image_fields": "writing.write",
    "import_indices": "selection",
    "in_first": "distributed",
    "label_mapping": "scoring",
    "list_tar": "writing.sources",
    "load_checkpoint": "scoring.surrogate",
    "mean_scores": "scoring.combine",
    "moderate": "scoring.methods.samples",
    "moderate_classes": "scoring.methods.samples",
    "one_line_errors": "errors",
    "prototype_distance": "scoring.methods.samples",
    "random_scores": "scoring",
    "read_class_list": "scoring.methods.influence",
    "read_image": "beton",
    "read_manifest": "beton",
    "replace_head": "scoring.surrogate",
    "save_checkpoint": "scoring.surrogate",
    "select": "selection",
    "settings_of": "runs",
    "sha256_of_file": "artifacts",
    "soft_label_mapping": "scoring.methods.label_mapping",
    "sweep_clusters": "scoring.clustering.kmeans",
    "track": "progress",
    "training_loader": "loading",
    "verify": "beton.verify.verification",
    "view_pipelines": "loading",
    "write_beton": "writing.write",
    "write_json": "artifacts",
}

__all__ = [
    "BetonError",
    "BetonIndex",
    "BlurPoolConv",
    "CenterCropRGBImageDecoder",
    "CheckpointError",
    "Classifier",
    "Clusters",
    "Features",
    "ImageField",
    "ImageFiles",
    "Manifest",
    "Problem",
    "PrunedLoader",
    "RandomResizedCropRGBImageDecoder",
    "RemapLabel",
    "RunFolder",
    "Scores",
    "Selection",
    "StaleArtifactError",
    "TarImages",
    "TarMembers",
    "Verification",
    "__version__",
    "atomic_open",
    "best_device",
    "build_model",
    "class_influence",
    "class_influences",
    "class_list_scores",
    "class_means",
    "cluster",
    "combine_scores",
    "compact",
    "coverage_centric",
    "el2n",
    "environment",
    "evaluation_loader",
    "export_indices",
    "extract_features",
    "feature_mapping",
    "gradient_norms",
    "grand",
    "image_fields",
    "import_indices",
    "in_first",
    "label_mapping",
    "list_tar",
    "load_checkpoint",
    "mean_scores",
    "moderate",
    "moderate_classes",
    "one_line_errors",
    "prototype_distance",
    "random_scores",
    "read_class_list",
    "read_image",
    "read_manifest",
    "replace_head",
    "save_checkpoint",
    "select",
    "settings_of",
    "sha256_of_file",
    "soft_label_mapping",
    "sweep_clusters",
    "track",
    "training_loader",
    "verify",
    "view_pipelines",
    "write_beton",
    "write_json",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
