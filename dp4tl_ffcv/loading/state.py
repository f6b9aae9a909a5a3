"""The state of a loader in mid-epoch: a small dict, and the loader that writes and reads it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.loader.loader import Loader
from numpy.typing import NDArray

from ..beton import BetonIndex
from ..validate import check_fingerprint, check_int, check_ints
from .ffcv_adapter.traversal import check_order, name_of, place_of
from .positions import Position, Progress, order_from
from .reading.extents import RetainedExtents

_VERSION = 1
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class Identity:
    """The beton, seed, order and samples that determine the batches of an epoch."""

    beton: str
    seed: int
    order: str
    samples: str

    @classmethod
    def of(cls, beton: str, seed: int, order: str, ids: NDArray[Any]) -> "Identity":
        """Describe a loader of the samples `ids`. Cost: O(retained)."""
        data = np.ascontiguousarray(ids, dtype=np.int64).data
        return cls(beton, seed, order, hashlib.sha256(data).hexdigest())


class StatefulLoader(Loader):
    """A loader that continues from a state, as torchdata's stateful loaders do.

    Subclasses set the attributes without a value.
    """

    seed: int
    next_epoch: int
    _index: BetonIndex
    _opened_here: bool
    _samples: NDArray[np.uint64]  # ids that the next epoch loads
    _extents: RetainedExtents
    _running: Progress | None = None  # of the epoch that began last
    _loaded: tuple[Position, NDArray[Any]] | None = None  # where the next epoch begins, and its ids

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch, which determines its order and its random crops.

        The epoch starts from its beginning, unless it is the epoch of a loaded state.
        """
        if check_int("epoch", epoch, 0) != self.next_epoch:
            self._loaded = None
        self.next_epoch = int(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loop, as numbers, text and lists.

        The position is after the last batch that the loop has received, or at the start of the next
        epoch if that batch was the epoch's last. All ranks have the same state. Cost: O(retained),
        for a digest of the sample ids.
        """
        running = self._running
        if running is None or running.finished:
            return write_state(self._next_position, self._identity(self._samples))
        return write_state(running.position, self._identity(running.ids))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict` in the next `iter(loader)`.

        The rest of the epoch has the samples that were not yet received, in any number of ranks.
        With the same number of ranks and batch size, the batches are those of an epoch without
        interruption. With another, "random" and "sequential" keep the order of the samples over all
        ranks. A `TraversalOrder` class allows no other number of ranks. `len` remains the length of
        a whole epoch. If `drop_last` leaves no batch, the epoch yields nothing.

        Cost: O(retained); with another number of ranks, for each rank with which the epoch began.

        Args:
            state: state of a loader with the same beton, samples, seed and order. The batch size,
                the cache and the number of workers may differ.

        Raises:
            StaleArtifactError: the state is of another beton.
            ValueError: the state is malformed, or of another seed, order or selection.
        """
        position = read_state(state, self._identity(self._samples), self._index.path)
        ids = order_from(self.traversal_order, position, *place_of(self))
        self._running = None
        self.next_epoch, self._loaded = position.epoch, None
        if position.segments:
            self._loaded = position, check_order(ids, self._extents.samples, len(self._index))

    @property
    def _next_position(self) -> Position:
        return self._loaded[0] if self._loaded else Position(self.next_epoch, self.batch_size)

    def _progress_of(self, order: NDArray[Any]) -> Progress:
        """Return the progress in the next epoch, which reads the ids `order`."""
        return Progress(self._next_position, self._samples, place_of(self)[1], len(order))

    def _identity(self, ids: NDArray[Any]) -> Identity:
        fingerprint = self._index.fingerprint
        if self._opened_here:
            self._index.release_allocations()
        return Identity.of(fingerprint, self.seed, name_of(self.traversal_order), ids)

    def _order_of(self, epoch: int) -> NDArray[Any]:
        """Return the ids to read in an epoch: of the next epoch, those after a loaded position."""
        if epoch != self.next_epoch:
            order = self.traversal_order.sample_order(epoch)
        elif self._loaded:
            return self._loaded[1]
        else:
            order = self.next_traversal_order()
        return check_order(order, self._extents.samples, len(self._index))


def write_state(position: Position, identity: Identity) -> dict[str, Any]:
    """Return a state of numbers, text and lists."""
    segments = [list(segment) for segment in position.segments]
    return {"version": _VERSION, **vars(position), "segments": segments, **vars(identity)}


def read_state(state: Mapping[str, Any], identity: Identity, path: Path) -> Position:
    """Return the position in a state, after checking that it is of a loader with this identity.

    Raises:
        StaleArtifactError: the state is of another beton than `path`.
        ValueError: the state is malformed, or of another seed, order or selection.
    """
    try:
        version = check_int("version", state["version"], 1)
        if version == _VERSION:
            position = _read_position(state)
            found = _read_identity(state)
    except (KeyError, TypeError, ValueError) as error:
        missing = f"it has no {error}." if isinstance(error, KeyError) else str(error)
        raise ValueError(f"`state` is not the state of a PrunedLoader: {missing}") from error
    if version != _VERSION:
        raise ValueError(
            f"`state` has version {version}, which a newer dp4tl_ffcv wrote; this one reads "
            f"version {_VERSION}. Upgrade dp4tl_ffcv."
        )
    check_fingerprint("state", found.beton, identity.beton, path)
    for name in ("seed", "order"):
        before, now = getattr(found, name), getattr(identity, name)
        if before != now:
            raise ValueError(
                f"`state` is of a loader with {name}={before!r}; this loader has {name}={now!r}. "
                f"Make the loader with the `{name}` of the state."
            )
    if found.samples != identity.samples:
        raise ValueError(
            "`state` is of an epoch over other samples than the loader retains. Call "
            "`set_selection` with the selection of that epoch, then load the state."
        )
    return position


def _read_position(state: Mapping[str, Any]) -> Position:
    epoch = check_int("epoch", state["epoch"], 0, _LARGEST)
    position = Position(epoch, check_int("batch_size", state["batch_size"], 1))
    for segment in state["segments"]:
        position = position.after(*check_ints("segments", segment, 2, at_least=1))
    return position


def _read_identity(state: Mapping[str, Any]) -> Identity:
    for name in ("beton", "order", "samples"):
        if not isinstance(state[name], str):
            raise TypeError(f"`{name}` must be text; got {state[name]!r}.")
    seed = check_int("seed", state["seed"], 0)
    return Identity(state["beton"], seed, state["order"], state["samples"])
