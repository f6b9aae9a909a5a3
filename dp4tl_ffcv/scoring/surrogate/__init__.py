"""Surrogates: build, load and save a classifier, and run it over a dataset."""

from .checkpoints import load_checkpoint, save_checkpoint
from .extraction import extract_features
from .models import BlurPoolConv, Classifier, best_device, build_model, replace_head
from .processes import in_first

__all__ = [
    "BlurPoolConv",
    "Classifier",
    "best_device",
    "build_model",
    "extract_features",
    "in_first",
    "load_checkpoint",
    "replace_head",
    "save_checkpoint",
]
