"""Scores of source classes and samples: how relevant each is to the target.

Each module in `methods/` adds its function to this package: `from dp4tl_ffcv.scoring import el2n`.
"""

from typing import Any

from . import methods
from .features.reductions import class_means
from .methods import score
from .scores import Scores

__all__ = ["Scores", "class_means", "score"]


def __getattr__(name: str) -> Any:
    # The function of `random` is called `random_scores`: Python has a module called random.
    method = name.removesuffix("_scores")
    if method not in methods.names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return methods.get(method).function
