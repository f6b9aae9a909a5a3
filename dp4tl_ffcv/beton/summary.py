"""Summary of a beton, as `dp4tl inspect` prints it."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .index import BetonIndex


def summarise(index: "BetonIndex", label_field: str) -> dict[str, Any]:
    """Return sizes, fields, images and classes of a beton as JSON-able values."""
    result: dict[str, Any] = {
        "beton": str(index.path),
        "fingerprint": index.fingerprint,
        "samples": len(index),
        "file_bytes": index.path.stat().st_size,
        "sample_bytes": int(index.sample_bytes().sum()),
        "page_bytes": index.page_size,
        "fields": {part.name: part.kind for part in index.fields},
    }
    for part in index.fields:
        if part.kind == "rgb_image" and len(index):
            images = index.column(part.name)
            jpg, raw = (int((images["mode"] == mode).sum()) for mode in (0, 1))
            result[f"{part.name}_stored"] = {"jpg": jpg, "raw": raw}
            for side in ("width", "height"):
                sides = images[side]
                result[f"{part.name}_{side}"] = [int(sides.min()), int(sides.max())]
    if label_field != "label" or "label" in result["fields"]:
        counts = index.class_counts(label_field)
        result["classes"] = len(counts)
        result["classes_without_samples"] = int((counts == 0).sum())
        result["samples_per_class"] = {
            "min": int(counts.min(initial=len(index))),
            "median": float(np.median(counts)) if len(counts) else 0.0,
            "max": int(counts.max(initial=0)),
        }
    if index.manifest:
        result["class_names"] = list(index.manifest.class_names)
        result["written_by"] = index.manifest.written_by
    return result
