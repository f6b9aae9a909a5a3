"""Scores of source classes: how much of the target maps onto each."""

from .baselines import random_scores
from .feature_mapping import class_means, feature_mapping
from .label_mapping import label_mapping
from .scores import Scores

__all__ = ["Scores", "class_means", "feature_mapping", "label_mapping", "random_scores"]
