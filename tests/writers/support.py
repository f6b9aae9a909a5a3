"""What tests of writers share: small JPEGs, trees and archives of them, and what a beton stores."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dp4tl_ffcv import BetonIndex


def jpeg(seed: int, side: int = 16) -> bytes:
    """Return a JPEG that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def put_all(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by their paths below `root`."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tar_of(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """Return a tar archive of files, in the order given."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def stored(index: BetonIndex) -> dict[int, tuple[int, bytes]]:
    """Return label and image bytes by identifier, as they lie in the file."""
    data = index.path.read_bytes()
    found = {}
    for sample_id, identifier in enumerate(index.column("identifier").tolist()):
        (extent,) = index.extents([sample_id])
        content = data[extent["ptr"] : extent["ptr"] + extent["size"]]
        found[identifier] = (int(index.labels()[sample_id]), content)
    return found


def names_of(index: BetonIndex) -> tuple[str, ...]:
    assert index.manifest is not None
    return index.manifest.class_names
