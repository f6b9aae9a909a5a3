"""Read and verify betons, the dataset files of FFCV (format version 2)."""

from .images import read_image
from .index import BetonIndex
from .manifest import Manifest, read_manifest
from .tables import FieldInfo

__all__ = ["BetonIndex", "FieldInfo", "Manifest", "read_image", "read_manifest"]
