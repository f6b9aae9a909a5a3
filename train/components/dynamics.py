"""Record how training goes for each sample, for the scoring methods that need it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp4tl_ffcv import Dynamics
from dp4tl_ffcv.utils import adding_filename, atomic_open

from .processes import Processes

_LARGEST = float(np.finfo(np.float16).max)
_ROWS = 1024  # samples that are converted at a time, if batches are smaller
_AT_ONCE = 1 << 22  # outputs that are compared at a time
_SUMMARY = np.dtype([("id", "<i8"), ("values", "<f2", (3,))])


class DynamicsRecorder:
    """Records the predictions of each sample in each epoch, as they are in the training step.

    Each process appends the outputs of its samples to a file of the epoch: 2 bytes per sample and
    class. At the end of the epoch, they are compared with those of the epoch before, and 14 bytes
    per sample are kept. A killed run appends the rows of the steps that it repeats; the last row of
    a sample counts. No step waits for the GPU.

    Args:
        folder: folder of the files, which all processes see. The files of the last two epochs
            before the saved state, and of later epochs, are kept in it.
        processes: processes of the run.
        num_classes: number of outputs C.
    """

    def __init__(self, folder: Path, processes: Processes, num_classes: int) -> None:
        self._folder = folder
        self._processes = processes
        columns = 2 + num_classes  # probability and margin of the true class, log-probabilities
        self._dtype = np.dtype([("id", "<i8"), ("values", "<f2", (columns,))])
        self._epoch = 0
        self._saved_epoch = 0
        self._batches: list[tuple[NDArray[np.int64], Tensor, Tensor]] = []
        self._waiting: list[tuple[NDArray[np.int64], Tensor, torch.cuda.Event | None]] = []
        self._stream: IO[bytes] | None = None

    def add(self, ids: NDArray[np.int64], outputs: Tensor, labels: Tensor) -> None:
        """Record the logits `(B, C)` of a batch with sample ids and labels `(B,)`."""
        # Later steps may reuse the memory of both.
        self._batches.append((ids, outputs.detach().clone(), labels.clone()))
        if sum(len(each) for each, *_ in self._batches) >= _ROWS:
            self._convert()
            self._write(wait=False)

    def end_epoch(self) -> None:
        """Compare the outputs of the epoch with those of the epoch before. All processes call it.

        Each process compares its own file, and those of processes that a stopped run had in
        addition.
        """
        self._close()
        before = _Outputs(self._files(self._epoch - 1, "rows"), self._dtype)
        for path in self._files(self._epoch, "rows"):
            if _rank_of(path) % self._processes.world_size == self._processes.rank:
                with atomic_open(path.with_suffix(".summary")) as stream:
                    for rows in _blocks(_map(path, self._dtype), self._dtype):
                        stream.write(self._summary(rows, before).tobytes())
        self._epoch += 1

    def result(
        self, ids: NDArray[np.int64], num_samples: int, provenance: Mapping[str, Any]
    ) -> Dynamics:
        """Return the dynamics of all epochs.

        Args:
            ids: the retained samples `(M,)`, ascending.
            num_samples: samples of the beton.
            provenance: facts to record.
        """
        table = np.full((3, len(ids), self._epoch), np.nan, dtype=np.float16)
        for epoch in range(self._epoch):
            for path in self._files(epoch, "summary"):
                rows = np.fromfile(path, _SUMMARY)
                table[:, np.searchsorted(ids, rows["id"]), epoch] = rows["values"].T
        probability, margin, change = table
        return Dynamics(
            indices=ids,
            probability=probability,
            margin=margin,
            change=change,
            num_samples=num_samples,
            provenance=provenance,
        )

    # -- the saved state -------------------------------------------------------------------------
    def synchronize(self) -> None:
        """Write all rows to disk, and delete the outputs that no resumed run needs."""
        self._close()
        # The state before the one that is written now may be the one to resume from.
        for path in self._folder.glob("*.rows"):
            mine = _rank_of(path) % self._processes.world_size == self._processes.rank
            if mine and _epoch_of(path) < self._saved_epoch - 1:
                path.unlink()
        self._saved_epoch = self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the number of whole epochs; the rows are in files."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after this number of epochs."""
        self._epoch = self._saved_epoch = state["epoch"]

    # -- files -----------------------------------------------------------------------------------
    def _files(self, epoch: int, kind: str) -> list[Path]:
        return sorted(self._folder.glob(f"{epoch}-*.{kind}"))

    @torch.no_grad()
    def _convert(self) -> None:
        """Compute the rows of the batches so far, without waiting for the GPU."""
        if not self._batches:
            return
        ids, outputs, labels = zip(*self._batches, strict=True)
        self._batches.clear()
        log_p, places = torch.cat(outputs).float().log_softmax(dim=1), torch.cat(labels)[:, None]
        own = log_p.gather(1, places)
        others = log_p.scatter(1, places, -torch.inf).amax(dim=1, keepdim=True)
        values = torch.cat((own.exp(), own - others, log_p), dim=1)
        rows = values.clamp(-_LARGEST, _LARGEST).half().to("cpu", non_blocking=True)
        arrived = None
        if values.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append((np.concatenate(ids), rows, arrived))

    def _write(self, *, wait: bool) -> None:
        """Append the rows that have arrived from the GPU; with `wait`, all rows."""
        while self._waiting:
            ids, values, arrived = self._waiting[0]
            if arrived is not None and not wait and not arrived.query():
                return
            if arrived is not None:
                arrived.synchronize()
            del self._waiting[0]
            rows = np.empty(len(ids), dtype=self._dtype)
            rows["id"], rows["values"] = ids, values.numpy()
            path = self._folder / f"{self._epoch}-{self._processes.rank}.rows"
            with adding_filename(path):
                if self._stream is None:
                    self._stream = _open(path, self._dtype.itemsize)
                self._stream.write(rows.tobytes())

    def _close(self) -> None:
        self._convert()
        self._write(wait=True)
        if self._stream is not None:
            with self._stream as stream:
                stream.flush()
                os.fsync(stream.fileno())
            self._stream = None

    def _summary(self, rows: NDArray[Any], before: "_Outputs") -> NDArray[Any]:
        """Return id, probability, margin and change `sum_c |p[c] log(p[c] / q[c])|` of rows."""
        device = self._processes.device
        earlier, is_known = before.of(rows["id"])
        now = torch.from_numpy(rows["values"][:, 2:]).to(device).float()
        then = torch.from_numpy(earlier).to(device).float()
        change = (now.exp() * (now - then)).abs().sum(dim=1).clamp(max=_LARGEST).half().cpu()
        summary = np.empty(len(rows), dtype=_SUMMARY)
        summary["id"] = rows["id"]
        summary["values"][:, :2] = rows["values"][:, :2]
        summary["values"][:, 2] = np.where(is_known, change.numpy(), np.float16(np.nan))
        return summary


class _Outputs:
    """Log-probabilities of the samples of an epoch, in files. The last row of a sample counts."""

    def __init__(self, paths: list[Path], dtype: np.dtype[Any]) -> None:
        self._parts = [_map(path, dtype) for path in paths]
        self._width = dtype["values"].shape[0] - 2
        ids = [np.array(part["id"]) for part in self._parts]
        largest = max((int(each.max(initial=-1)) for each in ids), default=-1)
        self._part = np.full(largest + 1, -1, dtype=np.int32)
        self._row = np.zeros(largest + 1, dtype=np.int64)
        for number, each in enumerate(ids):
            self._part[each], self._row[each] = number, np.arange(len(each))

    def of(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return log-probabilities `(n, C)` of samples, and whether each sample has some `(n,)`."""
        found = np.zeros((len(ids), self._width), dtype=np.float16)
        is_known = np.zeros(len(ids), dtype=np.bool_)
        inside = np.flatnonzero(ids < len(self._part))
        for number, part in enumerate(self._parts):
            at = inside[self._part[ids[inside]] == number]
            found[at] = part["values"][self._row[ids[at]], 2:]
            is_known[at] = True
        return found, is_known


def _open(path: Path, row_size: int) -> IO[bytes]:
    """Open a file to append rows. A row that a kill has cut is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("ab")
    stream.truncate(stream.tell() // row_size * row_size)
    return stream


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    rows = path.stat().st_size // dtype.itemsize
    return np.memmap(path, dtype, "r", shape=(rows,)) if rows else np.empty(0, dtype)


def _blocks(rows: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    step = max(1, _AT_ONCE // dtype["values"].shape[0])
    for start in range(0, len(rows), step):
        yield np.array(rows[start : start + step])


def _epoch_of(path: Path) -> int:
    return int(path.stem.partition("-")[0])


def _rank_of(path: Path) -> int:
    return int(path.stem.partition("-")[2])
