"""Where the beton of a split lies."""

import os
from pathlib import Path


def split_path(data: str | os.PathLike[str], split: str = "train") -> Path:
    """Return a beton's path: `data` itself, or `data/SPLIT.beton` if it is a folder of a writer."""
    path = Path(data)
    return path / f"{split}.beton" if path.is_dir() else path
