"""Which source classes the images of each target class are mapped to."""

import numpy as np
from numpy.typing import NDArray

from .features import Features


def vote_matrix(features: Features) -> NDArray[np.int64]:
    """Count the predictions of each source class among the images of each target class.

    `V[t, c] = |{n : labels[n] = t, predictions[n] = c}|`. The sum over t is the score of label
    mapping, if all images have labels.

    Args:
        features: the target's features, with predictions. Images without a label are left out.

    Returns:
        Counts `(T, C)`, for target classes up to the largest label.

    Raises:
        ValueError: the features have no predictions, or no image has a label.
    """
    classes = features.num_outputs
    if features.predictions is None or classes is None:
        raise ValueError("`features` have no predictions. Extract them with a classifier.")
    known = features.labels >= 0
    labels = features.labels[known]
    if not labels.size:
        raise ValueError("No image has a label. Votes by target class need a labelled target.")
    rows = int(labels.max()) + 1
    pairs = labels * classes + features.predictions[known]
    return np.bincount(pairs, minlength=rows * classes).reshape(rows, classes)
