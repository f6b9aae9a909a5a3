"""Scores of source classes: how much of the target maps onto each."""

from .methods.feature_mapping import class_means, feature_mapping
from .methods.label_mapping import label_mapping
from .methods.random import random_scores
from .scores import Scores

__all__ = ["Scores", "class_means", "feature_mapping", "label_mapping", "random_scores"]
