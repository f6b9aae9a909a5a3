"""The loss of a batch whose samples are known: recorded, and weighted by InfoBatch."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .dynamics import DynamicsRecorder
from .infobatch import InfoBatch


class SampleLoss(nn.CrossEntropyLoss):
    """Cross-entropy of a batch whose sample ids are known.

    Args:
        label_smoothing: as for `torch.nn.CrossEntropyLoss`.
        recorder: gets the predictions.
        infobatch: gets the losses and weights them.
    """

    def __init__(
        self,
        label_smoothing: float,
        recorder: DynamicsRecorder | None = None,
        infobatch: InfoBatch | None = None,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self._recorder = recorder
        self._infobatch = infobatch
        self._ids: NDArray[np.int64] | None = None

    def tell_ids(self, ids: NDArray[np.int64]) -> None:
        """Set the sample ids `(B,)` of the next batch. Without them, this is a plain mean loss."""
        self._ids = ids

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits `(B, C)` with labels `(B,)`."""
        if self._ids is None:
            return super().forward(outputs, labels)
        if self._recorder is not None:
            self._recorder.add(self._ids, outputs, labels)
        if self._infobatch is None:
            return super().forward(outputs, labels)
        smoothing = self.label_smoothing
        losses = cross_entropy(outputs, labels, reduction="none", label_smoothing=smoothing)
        return self._infobatch.mean(self._ids, losses)
