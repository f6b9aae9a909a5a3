"""Dataset pruning for transfer learning, on FFCV.

Score the classes of a source dataset by how a target maps onto them, select the best, and pretrain
on those alone. Names load when first used: importing this package imports neither torch, numba
nor ffcv.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .beton import BetonIndex, Manifest, read_image, read_manifest
    from .beton.write import image_fields, write_beton
    from .errors import BetonError, CheckpointError, StaleArtifactError
    from .loading import PrunedLoader, RemapLabel
    from .progress import track
    from .runs import RunFolder, environment
    from .scoring import Scores, class_means, feature_mapping, label_mapping, random_scores
    from .scoring.features import Features
    from .scoring.surrogate import (
        build_model,
        extract_features,
        load_checkpoint,
        replace_head,
        save_checkpoint,
    )
    from .selection import Selection, export_indices, import_indices, select

_HOMES = {
    "BetonError": "errors",
    "BetonIndex": "beton",
    "CheckpointError": "errors",
    "Features": "scoring.features",
    "Manifest": "beton",
    "PrunedLoader": "loading",
    "RemapLabel": "loading",
    "RunFolder": "runs",
    "Scores": "scoring",
    "Selection": "selection",
    "StaleArtifactError": "errors",
    "build_model": "scoring.surrogate",
    "class_means": "scoring",
    "environment": "runs",
    "export_indices": "selection",
    "extract_features": "scoring.surrogate",
    "feature_mapping": "scoring",
    "image_fields": "beton.write",
    "import_indices": "selection",
    "label_mapping": "scoring",
    "load_checkpoint": "scoring.surrogate",
    "random_scores": "scoring",
    "read_image": "beton",
    "read_manifest": "beton",
    "replace_head": "scoring.surrogate",
    "save_checkpoint": "scoring.surrogate",
    "select": "selection",
    "track": "progress",
    "write_beton": "beton.write",
}

__all__ = [  # noqa: RUF022  # the order of the modules in the design
    "__version__",
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
