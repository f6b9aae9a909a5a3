"""Read and verify betons, the dataset files of FFCV (format version 2)."""

from .descriptors import FieldInfo
from .images import read_image
from .index import BetonIndex
from .manifest import Manifest, read_manifest

__all__ = ["BetonIndex", "FieldInfo", "Manifest", "read_image", "read_manifest"]
