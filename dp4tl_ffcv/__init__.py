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
    from .beton.checks import Problem
    from .beton.image_field import ImageField
    from .beton.sources import ImageFiles, TarImages, TarMembers, list_tar
    from .beton.verify import Verification, verify
    from .beton.write import image_fields, write_beton
    from .errors import BetonError, CheckpointError, StaleArtifactError, one_line_errors
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
    from .scoring.clustering import cluster, sweep_clusters
    from .scoring.clusters import Clusters
    from .scoring.combine import combine_scores, mean_scores
    from .scoring.features import Features
    from .scoring.gradients import gradient_norms, grand
    from .scoring.influence import (
        class_influence,
        class_influences,
        class_list_scores,
        read_class_list,
    )
    from .scoring.label_mapping import soft_label_mapping
    from .scoring.samples import (
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
        extract_features,
        in_first,
        load_checkpoint,
        replace_head,
        save_checkpoint,
    )
    from .selection import Selection, export_indices, import_indices, select
    from .selection.compact import compact

_HOMES = {
    "BetonError": "errors",
    "BetonIndex": "beton",
    "BlurPoolConv": "scoring.surrogate",
    "CenterCropRGBImageDecoder": "loading",
    "CheckpointError": "errors",
    "Classifier": "scoring.surrogate",
    "Clusters": "scoring.clusters",
    "Features": "scoring.features",
    "ImageField": "beton.image_field",
    "ImageFiles": "beton.sources",
    "Manifest": "beton",
    "Problem": "beton.checks",
    "PrunedLoader": "loading",
    "RandomResizedCropRGBImageDecoder": "loading",
    "RemapLabel": "loading",
    "RunFolder": "runs",
    "Scores": "scoring",
    "Selection": "selection",
    "StaleArtifactError": "errors",
    "TarImages": "beton.sources",
    "TarMembers": "beton.sources",
    "Verification": "beton.verify",
    "atomic_open": "artifacts",
    "best_device": "scoring.surrogate",
    "build_model": "scoring.surrogate",
    "class_influence": "scoring.influence",
    "class_influences": "scoring.influence",
    "class_list_scores": "scoring.influence",
    "class_means": "scoring",
    "cluster": "scoring.clustering",
    "combine_scores": "scoring.combine",
    "compact": "selection.compact",
    "coverage_centric": "scoring.samples",
    "el2n": "scoring.samples",
    "environment": "runs",
    "evaluation_loader": "loading",
    "export_indices": "selection",
    "extract_features": "scoring.surrogate",
    "feature_mapping": "scoring",
    "gradient_norms": "scoring.gradients",
    "grand": "scoring.gradients",
    "image_fields": "beton.write",
    "import_indices": "selection",
    "in_first": "scoring.surrogate",
    "label_mapping": "scoring",
    "list_tar": "beton.sources",
    "load_checkpoint": "scoring.surrogate",
    "mean_scores": "scoring.combine",
    "moderate": "scoring.samples",
    "moderate_classes": "scoring.samples",
    "one_line_errors": "errors",
    "prototype_distance": "scoring.samples",
    "random_scores": "scoring",
    "read_class_list": "scoring.influence",
    "read_image": "beton",
    "read_manifest": "beton",
    "replace_head": "scoring.surrogate",
    "save_checkpoint": "scoring.surrogate",
    "select": "selection",
    "settings_of": "runs",
    "sha256_of_file": "artifacts",
    "soft_label_mapping": "scoring.label_mapping",
    "sweep_clusters": "scoring.clustering",
    "track": "progress",
    "training_loader": "loading",
    "verify": "beton.verify",
    "view_pipelines": "loading",
    "write_beton": "beton.write",
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
