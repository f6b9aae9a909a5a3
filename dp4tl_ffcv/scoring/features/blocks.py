"""Write a folder of features block by block, from one or several processes.

The arrays are allocated at full size. `done.npy` records which blocks of `BLOCK_ROWS` rows are on
disk. The header marks the folder as unfinished until all blocks are. After a killed run, the same
request continues the folder.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ...atomic import lock_folder
from ...errors import StaleArtifactError
from ...kernels import class_sums
from ...stored import adding_filename, map_array, read_array
from ..inputs import MOST_LABELS, check_finite
from .features import (
    DONE,
    FILES,
    HEADER,
    check_replaceable,
    empty_folder,
    read_header,
    write_header,
)
from .reductions import BLOCK_ROWS, softmax_sums

_REQUIRED = ("features", "labels", "indices")
_ROWS = (*_REQUIRED, "logits", "predictions", "confidences")  # arrays with one row per sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The contents of a folder of features; the same in every process of a run."""

    folder: Path
    indices: NDArray[np.int64]
    """Sample id of each row `(n,)`."""
    logits: bool
    """Keep the logits in addition to predictions and soft votes."""
    dtype: str
    """Type of the features."""
    facts: Mapping[str, Any]
    """Further facts that the values depend on, such as the weights."""
    provenance: Mapping[str, Any]

    @property
    def request(self) -> dict[str, Any]:
        """Facts that must be equal to continue a folder."""
        ids = hashlib.sha256(np.ascontiguousarray(self.indices, dtype="<i8").tobytes())
        return {
            "samples": len(self.indices),
            "indices_sha256": ids.hexdigest(),
            "logits": self.logits,
            "dtype": self.dtype,
            "block_rows": BLOCK_ROWS,
            **self.facts,
        }

    def rows(self, block: int) -> slice:
        """Return the rows of a block."""
        return slice(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(self.indices)))

    @contextmanager
    def prepared(
        self, shapes: Callable[[], tuple[int, int | None]], *, restart: bool
    ) -> Iterator[list[int] | None]:
        """Lock the folder for this run, create it if necessary, and yield its missing blocks.

        Yield None if the folder is finished. For a new folder, `shapes` returns the widths of
        features and of logits (None without a classifier).
        """
        folder = self.folder
        check_replaceable("out", folder)
        with _held(folder):
            if not restart and (folder / HEADER).exists():
                self._check_same()
            else:
                columns = shapes()  # first, so that a failure leaves the old folder
                empty_folder(folder)
                self._create(*columns)
            is_finished = read_header(folder)["finished"]
            if is_finished:  # a run may have been killed in its last step
                (folder / DONE).unlink(missing_ok=True)
            yield None if is_finished else self._missing()

    def _check_same(self) -> None:
        header = read_header(self.folder)
        found = {**header["provenance"], **header.get("request", {})}
        wanted = json.loads(json.dumps({**self.provenance, **self.request}))
        other = sorted(
            name for name in found.keys() | wanted if found.get(name) != wanted.get(name)
        )
        if other:
            raise StaleArtifactError(
                f"{str(self.folder)!r} holds features with another {', '.join(other)}. Use "
                "another folder, or start over with --restart (`restart=True`)."
            )

    def _missing(self) -> list[int]:
        count = len(self.indices)
        blocks = -(-count // BLOCK_ROWS)
        try:
            done = read_array(self.folder / DONE)
            lengths = {file: count for name, file in FILES.items() if name in _ROWS}
            lengths |= {DONE: blocks, FILES["soft_votes"]: blocks}
            # Checked here, because numpy extends a truncated file that it maps for writing.
            files = {DONE, *read_header(self.folder).get("files", ())}
            for file in files & lengths.keys():
                if len(map_array(self.folder / file)) != lengths[file]:
                    raise ValueError(f"{file} has another length")
            if done.dtype != np.bool_ or not {FILES[name] for name in _REQUIRED} <= files:
                raise ValueError(f"{DONE} or {HEADER} is damaged")
        except (FileNotFoundError, TypeError, ValueError) as error:
            raise ValueError(
                f"{str(self.folder)!r} cannot be continued: a file is missing or damaged. Start "
                "over with --restart (`restart=True`)."
            ) from error
        return [int(block) for block in np.flatnonzero(~done)]

    def _create(self, columns: int, outputs: int | None) -> None:
        if self.logits and outputs is None:
            raise ValueError(
                "`logits` cannot be kept: the model has no classifier. Leave out `logits`."
            )
        count = len(self.indices)
        blocks = -(-count // BLOCK_ROWS)
        _allocate(self.folder / FILES["features"], self.dtype, (count, columns))
        _allocate(self.folder / FILES["labels"], np.int64, (count,))
        if outputs is not None:
            _allocate(self.folder / FILES["predictions"], np.int64, (count,))
            _allocate(self.folder / FILES["confidences"], np.float64, (count,))
            _allocate(self.folder / FILES["soft_votes"], np.float64, (blocks, outputs))
            if self.logits:
                _allocate(self.folder / FILES["logits"], np.float32, (count, outputs))
        _save(self.folder / FILES["indices"], self.indices)
        _save(self.folder / DONE, np.zeros(blocks, dtype=np.bool_))
        self._write_header(finished=False)  # last: without a header, the folder counts as empty

    def finish(self) -> None:
        """Sum the features of each label, in the order of rows, and mark the folder as finished."""
        if missing := self._missing():
            raise ValueError(
                f"{str(self.folder)!r} lacks the blocks {missing[:8]}. Run the same command again "
                "to continue."
            )
        features = map_array(self.folder / FILES["features"])
        labels = read_array(self.folder / FILES["labels"])
        last = int(labels.max())
        if labels.min() >= 0 and last < max(MOST_LABELS, len(labels)):
            sums, counts = class_sums(features, labels, last + 1)
            _save(self.folder / FILES["sums"], sums)
            _save(self.folder / FILES["counts"], counts)
        self._write_header(finished=True)
        (self.folder / DONE).unlink()

    def _write_header(self, *, finished: bool) -> None:
        write_header(
            self.folder,
            finished=finished,
            provenance=self.provenance,
            request=self.request,
            files=sorted(path.name for path in self.folder.glob("*.npy") if path.name != DONE),
        )


class FeatureBlocks:
    """The arrays of an unfinished folder, mapped for writing."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._done = open_memmap(plan.folder / DONE, mode="r+")
        self._maps = {
            name: open_memmap(plan.folder / file, mode="r+")
            for name, file in FILES.items()
            if name not in ("indices", "sums", "counts") and (plan.folder / file).exists()
        }

    def write(
        self,
        block: int,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        logits: NDArray[np.float32] | None,
    ) -> None:
        """Write one block, and mark it as done when it is on disk."""
        rows, maps = self._plan.rows(block), self._maps
        ids = self._plan.indices[rows]
        with np.errstate(over="ignore"):  # check_finite reports the sample
            values = features.astype(self._plan.dtype, copy=False)
        check_finite("features", values, ids)
        maps["features"][rows], maps["labels"][rows] = values, labels
        if logits is not None:
            check_finite("logits", logits, ids)
            # On a tie, numpy's argmax returns the lowest class on every machine.
            maps["predictions"][rows] = logits.argmax(axis=1)
            maps["soft_votes"][block], confidences = softmax_sums(logits)
            if "confidences" in maps:  # earlier versions did not create the file
                maps["confidences"][rows] = confidences
            if "logits" in maps:
                maps["logits"][rows] = logits
        for stored in maps.values():
            stored.flush()
        self._done[block] = True
        self._done.flush()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make the folder if necessary, and lock it. A killed process releases its lock."""
    file = lock_folder(folder.resolve(), folder)
    try:
        yield
    finally:
        with suppress(OSError):  # only an empty folder is deleted, after a run that failed early
            folder.rmdir()
        os.close(file)


def _allocate(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    """Create an array's file at full size, so that a full disk is an error now, not a SIGBUS."""
    with adding_filename(path):
        array = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        size = path.stat().st_size
        del array
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `np.save` does. A full disk is an error that names the file."""
    data = io.BytesIO()  # numpy hides the error of the disk when it writes to a file
    np.save(data, array)
    with adding_filename(path), path.open("wb") as stream:
        stream.write(data.getbuffer())
