"""Surrogates: build, load and save a classifier, and run it over a dataset."""

from .checkpoints import load_checkpoint, save_checkpoint
from .models import BlurPoolConv, Classifier, build_model, replace_head

__all__ = [
    "BlurPoolConv",
    "Classifier",
    "build_model",
    "load_checkpoint",
    "replace_head",
    "save_checkpoint",
]
