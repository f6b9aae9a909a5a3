"""InfoBatch: leave out some of the samples that the network predicts well, in an unbiased way."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .processes import Processes


class InfoBatch:
    """Chooses the samples of each epoch, and scales their losses.

    The score of a sample is its loss when it was last trained on. A sample whose score is below the
    mean of all scores is left out of the next epoch with probability r. If it is not left out, its
    loss is multiplied by 1 / (1 - r). The gradient, summed over the epoch, is therefore expected to
    be that of all samples. A sample without a score is never left out. The draws follow from the
    seed and the epoch. (Qin et al. 2024, arXiv 2303.04947.)

    Args:
        ids: the samples `(M,)`, ascending.
        ratio: r, in (0, 1).
        seed: seed of the draws.
        processes: processes of the run.
    """

    def __init__(
        self, ids: NDArray[np.int64], ratio: float, seed: int, processes: Processes
    ) -> None:
        self._ids = ids
        self._ratio = ratio
        self._seed = seed
        self._processes = processes
        self._scores = np.full(len(ids), np.nan, dtype=np.float32)
        self._losses = self._scores.copy()  # of the current epoch
        self._weights = np.ones(len(ids), dtype=np.float32)
        self._waiting: list[tuple[NDArray[np.int64], Tensor]] = []

    def start_epoch(self, epoch: int, *, at_least: int, prune: bool = True) -> NDArray[np.int64]:
        """Return the samples of an epoch. All processes get the same.

        Args:
            epoch: number of the epoch.
            at_least: samples that make a step. If fewer would be left, all samples are taken.
            prune: False takes all samples.
        """
        has_score = ~np.isnan(self._scores)
        is_kept = np.ones(len(self._ids), dtype=np.bool_)
        self._weights = np.ones(len(self._ids), dtype=np.float32)
        if not prune or not has_score.any():
            return self._ids
        is_easy = self._scores < self._scores[has_score].mean(dtype=np.float64)
        drawn = np.random.default_rng((self._seed, epoch, 1)).random(len(self._ids))
        is_kept[is_easy] = drawn[is_easy] >= self._ratio
        if is_kept.sum() < at_least:
            return self._ids
        self._weights[is_easy] = 1 / (1 - self._ratio)
        return self._ids[is_kept]

    def mean(self, ids: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Return the mean of the scaled losses `(B,)` of a batch, and note the losses."""
        places = np.searchsorted(self._ids, ids)
        self._waiting.append((places, losses.detach()))
        weights = torch.from_numpy(self._weights[places]).to(losses.device, non_blocking=True)
        return (losses * weights).mean()

    def end_epoch(self) -> None:
        """Replace the scores of the samples of the epoch. All processes call it."""
        self.synchronize()
        self._scores = np.where(np.isnan(self._losses), self._scores, self._losses)
        self._losses = np.full_like(self._losses, np.nan)

    # -- the saved state -------------------------------------------------------------------------
    def synchronize(self) -> None:
        """Share the losses of all processes."""
        sums = torch.zeros((2, len(self._ids)), dtype=torch.float64)
        for places, losses in self._waiting:
            sums[0].index_add_(0, torch.from_numpy(places), losses.double().cpu())
            sums[1].index_add_(0, torch.from_numpy(places), torch.ones(len(places)).double())
        self._waiting.clear()
        total, count = self._processes.sum_over(sums).numpy()
        seen = count > 0  # twice where an order repeats samples to give processes equal shares
        self._losses[seen] = total[seen] / count[seen]

    def state_dict(self) -> dict[str, Any]:
        """Return the scores, and the losses of the current epoch."""
        return {name: torch.from_numpy(getattr(self, f"_{name}")) for name in ("scores", "losses")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state.

        Raises:
            ValueError: the state is of other samples.
        """
        for name in ("scores", "losses"):
            values = state[name].numpy().copy()
            if values.shape != self._ids.shape or values.dtype != np.float32:
                raise ValueError(f"it holds the {name} of {len(values)} samples")
            setattr(self, f"_{name}", values)
