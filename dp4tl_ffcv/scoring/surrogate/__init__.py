"""Surrogates: build, load and save classifiers and encoders."""

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
