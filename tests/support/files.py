"""Files of small datasets: numbered JPEGs, folders, tar archives."""

import io
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from tests.support.images import jpeg


@lru_cache(None)
def numbered_jpeg(number: int) -> bytes:
    """Return a JPEG of 16 x 16 pixels that differs for each number."""
    rng = np.random.default_rng(number)
    return jpeg(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), quality=80)


def put_all(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by their paths below `root`."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def put(path: Path, data: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(data)
    return path


def tar_of(files: Mapping[str, bytes], mode: str = "w", **options: int) -> bytes:
    """Return a tar archive of files, in their order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, **options) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()
