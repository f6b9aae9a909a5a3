"""`PrunedLoader`: ffcv's Loader, reading only the samples of a selection."""

import copy
import inspect
import os
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from ffcv.loader.loader import Loader, OrderOption
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import DecoderNode, Graph
from numpy.typing import ArrayLike, NDArray

from ..beton import BetonIndex
from ..selection import Selection
from ..validate import check_int
from .arguments import choose_indices, choose_seed, choose_timeout, load_selection
from .caches import cache_name, choose_cache, open_cache, shared_name
from .ffcv_adapter.compilation import num_threads, shared_compilation
from .ffcv_adapter.iterator import EpochBatches
from .ffcv_adapter.memory import RetainedMemory
from .ffcv_adapter.pipelines import copy_pipelines, has_crops, insert_remap, pipeline_specs
from .ffcv_adapter.reader import IndexReader
from .ffcv_adapter.traversal import order_factory
from .reading.extents import retained_extents
from .reading.file_reader import FileReader
from .reading.plan import EpochPlan, plan_epoch
from .reading.reading_threads import STALLED_AFTER
from .state import StatefulLoader

_SIGNATURE = inspect.signature(Loader.__init__)


class PrunedLoader(StatefulLoader):
    """Drop-in for `ffcv.loader.Loader` that reads only the samples of a selection.

    Every argument of `Loader` works as in ffcv, with two differences. `num_workers` may be None:
    all cores, shared among the processes of this machine. `OrderOption.QUASI_RANDOM` is the order
    "quasi_random", which works with `distributed`.

    The file is checked before use. An error in a background thread is raised in the training loop.
    Leaving a loop early stops all threads. A second loader with the same pipeline compiles nothing.

    Args:
        fname: the beton: a path, or an open `BetonIndex`, whose tables are not read again.
        batch_size: samples per batch.
        *args: further arguments of `Loader`, by position.
        selection: a `Selection` for this beton, or its path. None loads all samples.
        relabel: give the retained classes the labels 0 to K - 1. `RemapLabel` is inserted after
            the decoder of the selection's label field.
        cache: where the samples' bytes are kept. "extents" reads the coming batches into a pool
            of bounded size, in any order. "ram" does so in the first epoch, but keeps the bytes for
            later epochs, and shares them between the processes of a machine if `distributed`.
            "auto" uses "ram" if the retained bytes take at most a quarter of the available memory,
            else "extents". None follows `os_cache` if it is False ("extents"), and else means
            "auto".
        read_ahead: number of windows that are read ahead. A window is one batch, or about 4,096
            samples in quasi-random order.
        jpeg_index: index the JPEGs in the first epoch, so that later epochs decode only the data of
            each crop. The indexes are kept in a file `NAME.beton.jpegs` next to the beton, or in
            the user's cache folder.
        timeout: seconds without any finished read after which a waiting batch raises a
            TimeoutError, which names the file, the byte offset and the sample. Each of 16 threads
            reads at most 1 MiB at a time, so 10 seconds are enough for a disk of 1.7 MB/s. A
            network file system may need minutes to recover from a failed server: pass 600, or None
            to wait for ever.
        **kwargs: further arguments of `Loader`, by name. `order` is one of ffcv's options, a name
            in `dp4tl_ffcv.loading.ORDERS`, a function like the ones there, or a `TraversalOrder`
            class.

    Raises:
        BetonError: the file is not a complete beton.
        StaleArtifactError: the selection was made for another beton.
        TypeError: `indices` are not integers, or `selection` is an array.
        ValueError: `indices` are empty, out of range or combined with a selection; `relabel`
            without a selection; an unknown order or cache.
    """

    selection: Selection | None
    cache: str
    memory_manager: RetainedMemory
    _indices: NDArray[np.uint64]
    _length: int | None

    def __init__(
        self,
        fname: str | os.PathLike[str] | BetonIndex,
        batch_size: int,
        *args: Any,
        selection: Selection | str | os.PathLike[str] | None = None,
        relabel: bool = False,
        cache: str | None = None,
        read_ahead: int = 2,
        jpeg_index: bool = True,
        timeout: float | None = STALLED_AFTER,
        **kwargs: Any,
    ) -> None:
        # ffcv's constructor is not called: it makes Python objects for every sample and page.
        given = _SIGNATURE.bind(self, fname, batch_size, *args, **kwargs)
        self._cache_option = cache_name(cache, given.arguments.get("os_cache"))
        given.apply_defaults()
        options = dict(list(given.arguments.items())[1:])
        options["pipelines"] = copy_pipelines(options["pipelines"])
        pipelines = copy_pipelines(options["pipelines"])

        self.batch_size = check_int("batch_size", batch_size, 1)
        self.batches_ahead = check_int("batches_ahead", options["batches_ahead"], 1)
        self.num_workers = num_threads(options["num_workers"])
        self.drop_last: bool = options["drop_last"]
        self.distributed: bool = options["distributed"]
        self.recompile: bool = options["recompile"]
        self.seed = choose_seed(options["seed"], self.distributed)
        self._read_ahead = check_int("read_ahead", read_ahead, 1)
        self._timeout = choose_timeout(timeout)
        self._make_order = order_factory(options["order"], options.get("order_kwargs") or {})

        self._index = BetonIndex.of(fname, custom_fields=options["custom_fields"])
        self._opened_here = self._index is not fname
        self.fname = str(self._index.path)
        self._file = FileReader(self.fname, self._index.identity)
        self.reader = IndexReader(self._index)
        options["fname"], options["cache"] = self._index, self._cache_option
        self._has_indexes = jpeg_index
        self._options = {**options, "read_ahead": self._read_ahead, "jpeg_index": jpeg_index}
        self._options["timeout"] = self._timeout
        chosen = load_selection(selection, self._index)
        self._remap = insert_remap(pipelines, chosen) if relabel else None
        self.pipeline_specs = pipeline_specs(pipelines, self.reader.handlers)
        self.field_name_to_f_ix = {name: at for at, name in enumerate(self.reader.handlers)}
        self.next_epoch = 0
        self._retain(chosen, choose_indices(self._index, chosen, options["indices"]))
        Compiler.set_num_threads(self.num_workers)
        with shared_compilation():
            self.graph = Graph(
                self.pipeline_specs,
                self.reader.handlers,
                self.field_name_to_f_ix,
                self.reader.metadata,
                self.memory_manager.compile_reader(),
            )
        self.generate_code()

    def generate_code(self) -> None:
        """Compile the pipelines, reusing what this process has compiled before."""
        with shared_compilation():
            super().generate_code()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, with advice."""
        raise TypeError(
            "a PrunedLoader has threads and open files, and cannot be sent to another process. "
            "Make the loader in the process that uses it."
        )

    def __copy__(self) -> "PrunedLoader":
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    @property
    def indices(self) -> NDArray[np.uint64]:
        """Ids of the retained samples. Assigning ids calls `set_selection`."""
        return self._indices

    @indices.setter
    def indices(self, ids: ArrayLike) -> None:
        self.set_selection(ids)

    def set_selection(
        self, selection: Selection | str | os.PathLike[str] | ArrayLike | None
    ) -> None:
        """Change the retained samples from the next epoch on. A running epoch is not affected.

        An epoch that `load_state_dict` was to continue starts from its beginning.

        Args:
            selection: a `Selection` or its path; sample ids, unless the loader has `relabel`; or
                None for all samples.

        Raises the errors of the constructor, and then keeps the old selection.
        """
        given: Any = selection
        is_selection = isinstance(given, Selection | str | os.PathLike)
        chosen = load_selection(given, self._index) if is_selection else None
        ids = choose_indices(self._index, chosen, None if is_selection else given)
        if self._remap is not None and chosen is None:
            raise ValueError(
                "a loader with `relabel` needs a Selection, which numbers the classes; got sample "
                "ids. Use Selection.of_indices."
            )
        self._retain(chosen, ids)
        if self._remap is not None and chosen is not None:
            self._remap.set_label_map(chosen)
            self.generate_code()

    def set_samples(self, ids: ArrayLike | None) -> None:
        """Load only some of the retained samples from the next epoch on.

        The retained samples, their labels and the bytes in the cache stay as they are, so that the
        samples may change in every epoch at little cost. A running epoch is not affected. An epoch
        that `load_state_dict` was to continue starts from its beginning.

        Args:
            ids: ids of retained samples; None for all.

        Raises:
            TypeError: `ids` are not integers.
            ValueError: `ids` are empty, or a sample is not retained.
        """
        chosen = self._indices
        if ids is not None:
            chosen = choose_indices(self._index, None, ids)
            is_retained = np.isin(chosen, self._indices)
            if not is_retained.all():
                raise ValueError(
                    f"`ids` must be retained samples; {chosen[~is_retained][0]} is not. Call "
                    "`set_selection` to retain others."
                )
        self.traversal_order = self._order_over(chosen, self.memory_manager)
        self._samples, self._length, self._loaded = chosen, None, None

    def _order_over(self, ids: NDArray[np.uint64], memory: RetainedMemory) -> Any:
        """Return the traversal order of samples, which it may reject."""
        changed = copy.copy(self)
        changed._indices, changed.memory_manager = ids, memory
        order = self._make_order(changed)
        order.loader = self
        return order

    def _retain(self, selection: Selection | None, ids: NDArray[np.uint64]) -> None:
        """Build all that depends on the retained samples. After an error, nothing has changed."""
        used = {spec.source for spec in self.pipeline_specs.values()}
        extents = retained_extents(self._index, ids.astype(np.int64), used)
        shared_as = None
        if self.distributed and self._cache_option != "extents":
            shared_as = shared_name(self._file, extents, self._index.fingerprint)
        name = choose_cache(self._cache_option, extents, shared_as)
        options = {"read_ahead": self._read_ahead, "timeout": self._timeout}
        cache = open_cache(name, self._file, extents, shared_as=shared_as, **options)
        if self._opened_here:
            if self._has_indexes and any(map(has_crops, self.pipeline_specs.values())):
                _ = self._index.fingerprint  # names the file of the indexes, and needs the table
            self._index.release_allocations()  # a large table that no epoch needs
        memory = RetainedMemory(
            self._index, cache, self.seed, self._decoders, self.num_workers, self._has_indexes
        )
        order = self._order_over(ids, memory)
        self.selection, self._indices, self._extents = selection, ids, extents
        self.cache, self.memory_manager, self.traversal_order = name, memory, order
        self._samples, self._length, self._loaded = ids, None, None

    def __iter__(self) -> EpochBatches:
        """Start the next epoch, or continue the epoch of a loaded state."""
        Compiler.set_num_threads(self.num_workers)  # another loader may have changed it
        order = self._order_of(self.next_epoch)
        if self._loaded is None:
            self._length = len(order)
        if self.drop_last:
            order = order[: len(order) // self.batch_size * self.batch_size]
        progress = self._progress_of(order)
        self.memory_manager.epoch = self.next_epoch
        self.memory_manager.window_size = self._window_size
        if self.recompile:
            self.generate_code()
        # A copy, so that changes to the loader do not affect a running epoch.
        batches = EpochBatches(copy.copy(self), order, progress)
        self._running, self._loaded = progress, None
        self.next_epoch += 1
        return batches

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, also while a part of one is left."""
        if self._length is None:
            self._length = len(self.next_traversal_order())
        whole, rest = divmod(self._length, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the decoded images. Assign `(h, w)`, or one int for a square.

        A new resolution takes effect in the next epoch, in all image decoders of the pipelines.
        """
        height, width = self._resizing_decoders()[0].output_size
        return height, width

    @resolution.setter
    def resolution(self, size: int | tuple[int, int]) -> None:
        for decoder in self._resizing_decoders():
            decoder.output_size = (size, size) if isinstance(size, int | np.integer) else size

    def _resizing_decoders(self) -> list[Any]:
        found = [decoder for _, decoder in self._decoders() if hasattr(decoder, "output_size")]
        if not found:
            raise ValueError("no image decoder of `pipelines` has a resolution that can be set.")
        return found

    def _decoders(self) -> list[tuple[str, Any]]:
        """Return the field and the decoder of each pipeline."""
        nodes = [node for node in self.graph.nodes if isinstance(node, DecoderNode)]
        return [(node.field_name, node.decoder) for node in nodes]

    @property
    def first_traversal_order(self) -> NDArray[Any]:
        """Order of the next epoch, under the name that ffcv's Loader gives it."""
        return np.asarray(self.next_traversal_order())

    def plan_epoch(self, epoch: int) -> EpochPlan:
        """Return the order of an epoch, and the reads that the cache "extents" makes for it.

        Reads nothing from the file. Cost: O(retained).
        """
        order = self._order_of(epoch).astype(np.int64)
        if self.drop_last:
            order = order[: len(order) // self.batch_size * self.batch_size]
        return plan_epoch(self._extents, order, self._window_size, self._file.sector)

    @property
    def _window_size(self) -> int:
        """Samples that are read together: the number that the order asks for, in whole batches."""
        wanted = getattr(self.traversal_order, "window_size", self.batch_size)
        return max(1, -(-int(wanted) // self.batch_size)) * self.batch_size

    @property
    def bytes_read(self) -> int:
        """Bytes that this loader has read from the file or the page cache, in whole sectors."""
        return self._file.bytes_read

    @property
    def pool_bytes(self) -> int:
        """Memory that the cache takes in the next epoch, in bytes."""
        return self.memory_manager.cache.num_bytes(self.plan_epoch(self.next_epoch))

    def filter(self, field_name: str, condition: Callable[[Any], bool]) -> "PrunedLoader":
        """Return a loader of the samples whose value in `field_name` meets `condition`."""
        pipelines = copy_pipelines(self._options["pipelines"])
        remap = insert_remap(pipelines, self.selection) if self._remap is not None else None
        options = {**self._options, "pipelines": pipelines, "indices": self.indices}
        alone = {**dict.fromkeys(self.reader.handlers), field_name: pipelines.get(field_name) or []}
        whole = {"pipelines": alone, "order": OrderOption.SEQUENTIAL, "drop_last": False}
        values = PrunedLoader(**{**options, **whole, "distributed": False})
        meets = [bool(condition(value)) for (batch,) in values for value in batch]
        filtered = PrunedLoader(**{**options, "indices": self.indices[np.array(meets)]})
        filtered.selection, filtered._remap = self.selection, remap
        filtered._options, filtered._opened_here = self._options, self._opened_here
        if self._opened_here:
            self._index.release_allocations()
        return filtered
