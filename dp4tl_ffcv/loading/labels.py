"""Give the retained classes the labels 0 to K - 1, inside the compiled pipeline."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numpy.typing import ArrayLike

from ..selection import Selection


class RemapLabel(Operation):
    """Replace each label by `label_map[label]`. Put it right after the label's decoder.

    Args:
        label_map: a selection, or new labels `(C,)`. Labels of pruned classes, and labels outside
            `[0, C)`, become -1, which loss functions reject.
    """

    def __init__(self, label_map: Selection | ArrayLike) -> None:
        super().__init__()
        self.set_label_map(label_map)

    def set_label_map(self, label_map: Selection | ArrayLike) -> None:
        """Change the new labels. A loader must call `generate_code` to use them."""
        table = label_map.label_map if isinstance(label_map, Selection) else label_map
        self.label_map = np.array(table, dtype=np.int64)
        if self.label_map.ndim != 1 or not self.label_map.size:
            raise ValueError(
                f"`label_map` must have shape (C,), C >= 1; got {self.label_map.shape}."
            )

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that ffcv compiles."""
        table = self.label_map

        def remap(labels: Any, destination: Any) -> Any:
            source, target = labels.reshape(-1), destination.reshape(-1)
            for position in range(source.size):
                label = source[position]
                inside = (label >= 0) and (label < table.size)
                target[position] = table[label] if inside else -1
            return destination[: len(labels)]

        return remap

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Ask ffcv for an int64 destination of the labels' shape."""
        dtype = np.dtype("<i8")
        return (
            replace(previous_state, jit_mode=True, dtype=dtype),
            AllocationQuery(previous_state.shape, dtype),
        )
