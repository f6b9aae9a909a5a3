"""The loss of a batch whose samples are known, to record their predictions."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .dynamics import DynamicsRecorder


class SampleLoss(nn.CrossEntropyLoss):
    """Cross-entropy that records the predictions of each sample.

    Args:
        recorder: gets the predictions.
        label_smoothing: as for `torch.nn.CrossEntropyLoss`.
    """

    def __init__(self, recorder: DynamicsRecorder, label_smoothing: float) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self._recorder = recorder
        self._ids: NDArray[np.int64] | None = None

    def tell_ids(self, ids: NDArray[np.int64]) -> None:
        """Set the sample ids `(B,)` of the next batch. Without them, nothing is recorded."""
        self._ids = ids

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits `(B, C)` with labels `(B,)`."""
        loss = super().forward(outputs, labels)
        if self._ids is not None:
            self._recorder.add(self._ids, outputs, labels)
        return loss
