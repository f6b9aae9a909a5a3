"""`PrunedLoader`: ffcv's Loader on the retained samples of a selection."""

import copy
import hashlib
import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from ffcv.loader.loader import Loader, OrderOption
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import DecoderNode, Graph
from numpy.typing import ArrayLike, NDArray

from ..beton import BetonIndex
from ..beton.index import check_indices
from ..errors import BetonError
from ..selection import Selection
from ..version import __version__
from .caches.base import Cache, choose_cache, open_cache
from .decoding.workspace import Workspace
from .ffcv_adapter.compilation import shared_compilation
from .ffcv_adapter.iterator import EpochBatches
from .ffcv_adapter.memory import RetainedMemory
from .ffcv_adapter.pipelines import copy_pipelines, insert_remap, pipeline_specs
from .ffcv_adapter.reader import IndexReader
from .options import at_least_one, cache_option, clamp_workers, order_factory
from .reading.extents import retained_extents
from .reading.file_reader import FileReader
from .reading.plan import ALIGNMENT, MERGED_GAP, EpochPlan, plan_epoch

_SIGNATURE = inspect.signature(Loader.__init__)


class PrunedLoader(Loader):
    """Drop-in for `ffcv.loader.Loader` that reads the retained samples of a selection, and no more.

    Every argument of `Loader` works as it does there, with these differences: the file is checked
    before it is used; what is kept of its tables is that of the retained samples, in numpy, and one
    record of metadata per sample; the caller's pipeline lists are left as they are; an error in a
    background thread is raised in the training loop; leaving a loop early stops all threads; a
    second loader with the same pipeline compiles nothing; `num_workers` is at most the cores there
    are; `OrderOption.QUASI_RANDOM` is `quasi_random_order`, which can be distributed.

    Args:
        fname: the beton.
        batch_size: samples per batch.
        *args: further arguments of `Loader`, by position.
        selection: a `Selection` or the path of one, made for this very beton. None loads all.
        relabel: give the retained classes the labels 0 to K - 1 (`RemapLabel` is put behind the
            decoder of the selection's label field).
        cache: where the samples' bytes are. "extents" reads those of the coming batches into a
            pool of bounded size, in any order. "ram" packs all that is retained into memory before
            the first epoch, one copy for all processes of the machine if `distributed`. "os" maps
            the file into memory: the system reads what is touched, with what lies beside it, and
            ends the process if the file is cut short meanwhile. "auto" takes "os" where what is
            retained fits into half of the free memory, else "extents". None asks `os_cache` if
            that is given (True: "os", False: "extents"), else "auto".
        read_ahead: windows that "extents" reads ahead of the one in use. A window is one batch, or
            about 4,096 samples in quasi-random order.
        **kwargs: further arguments of `Loader`, by name. `order` takes ffcv's options, a name in
            `dp4tl_ffcv.loading.ORDERS`, a function of that kind, or a `TraversalOrder` class.

    Raises:
        BetonError: the file is no finished, whole beton.
        StaleArtifactError: the selection was made for another beton.
        TypeError: `indices` are not integers.
        ValueError: `indices` are none, out of range or given beside a selection; `relabel` without
            a selection; an unknown order or cache.
    """

    def __init__(
        self,
        fname: str | os.PathLike[str],
        batch_size: int,
        *args: Any,
        selection: Selection | str | os.PathLike[str] | None = None,
        relabel: bool = False,
        cache: str | None = None,
        read_ahead: int = 2,
        **kwargs: Any,
    ) -> None:
        # Not the parent's constructor: it makes Python objects for every sample and page there is.
        given = _SIGNATURE.bind(self, os.fspath(fname), batch_size, *args, **kwargs)
        self._cache_option = cache_option(cache, given.arguments.get("os_cache"))
        given.apply_defaults()
        options = dict(list(given.arguments.items())[1:])
        options["pipelines"] = copy_pipelines(options["pipelines"])

        self.fname: str = options["fname"]
        self.batch_size = at_least_one("batch_size", batch_size)
        self.batches_ahead = at_least_one("batches_ahead", options["batches_ahead"])
        self.num_workers = clamp_workers(options["num_workers"])
        self.drop_last: bool = options["drop_last"]
        self.distributed: bool = options["distributed"]
        self.recompile: bool = options["recompile"]
        self.seed = _choose_seed(options["seed"], self.distributed)
        self._read_ahead = at_least_one("read_ahead", read_ahead)
        self._make_order = order_factory(
            options["order"], options.get("order_kwargs") or {}, self.batch_size
        )

        self._index = BetonIndex.open(self.fname, custom_fields=options["custom_fields"])
        self.reader = IndexReader(self._index, options["custom_fields"])
        self._file = FileReader(self.fname)
        self.selection = _load_selection(selection, self._index)
        self._options = {**options, "cache": self._cache_option, "read_ahead": read_ahead}
        options["pipelines"] = copy_pipelines(options["pipelines"])
        self._remap = insert_remap(options["pipelines"], self.selection) if relabel else None
        self.pipeline_specs = pipeline_specs(options["pipelines"], self.reader.handlers)
        self.field_name_to_f_ix = {name: at for at, name in enumerate(self.reader.handlers)}
        self.next_epoch = 0
        self._retain(_choose_indices(self._index, self.selection, options["indices"]))
        self._build_graph()

    def _build_graph(self) -> None:
        """Compile the pipelines, for all epochs and selections."""
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
        """Compile the pipelines, taking over what the process has compiled before."""
        with shared_compilation():
            super().generate_code()

    # What is retained.

    @property
    def indices(self) -> NDArray[np.uint64]:
        """Ids of the retained samples; assigning others is `set_selection`."""
        return self._indices

    @indices.setter
    def indices(self, ids: ArrayLike) -> None:
        self.set_selection(ids)

    def set_selection(
        self, selection: Selection | str | os.PathLike[str] | ArrayLike | None
    ) -> None:
        """Load other samples from the next epoch on; an epoch that has begun goes on as it is.

        Nothing is compiled anew, but for `relabel`: the classes are numbered anew.

        Args:
            selection: a `Selection`, the path of one, or sample ids; None for all.

        Raises:
            StaleArtifactError: the selection was made for another beton.
            TypeError: the ids are not integers.
            ValueError: the ids are none or out of range, or come without a selection that says how
                to `relabel` them.
        """
        chosen = None
        if isinstance(selection, Selection | str | os.PathLike):
            chosen = _load_selection(selection, self._index)
        ids = _choose_indices(self._index, chosen, selection if chosen is None else None)
        if self._remap is not None and chosen is None:
            raise ValueError(
                "`selection` must be a Selection for a loader with `relabel`; got sample ids. "
                "Use Selection.of_indices."
            )
        before, labels = self.__dict__.copy(), self._remap.label_map if self._remap else None
        try:
            self.selection = chosen
            self._retain(ids)
            if self._remap is not None and chosen is not None:
                self._remap.set_label_map(chosen)
                self.generate_code()
        except BaseException:  # an order of the caller's may refuse what is retained
            self.__dict__.update(before)
            if self._remap is not None and labels is not None:
                self._remap.set_label_map(labels)
            raise

    def _retain(self, ids: NDArray[np.uint64]) -> None:
        self._indices = ids
        used = {spec.source for spec in self.pipeline_specs.values()}
        extents = retained_extents(self._index, ids.astype(np.int64), used)
        auto = self._cache_option == "auto"
        self.cache: str = choose_cache(extents) if auto else self._cache_option
        shared = self.distributed and self.cache == "ram"
        cache: Cache = open_cache(
            self.cache,
            self._file,
            extents,
            read_ahead=self._read_ahead,
            shared_as=self._shared_name(extents.ptrs) if shared else None,
        )
        self._index.release_allocations()  # the one large table that no epoch needs
        self._extents = extents
        self._largest: dict[str, tuple[int, int]] = {}
        self.memory_manager = RetainedMemory(self._index, cache, self.seed, self._make_workspace)
        self.traversal_order = self._make_order(self)
        self.memory_manager.window_size = self._window_size
        self._length: int | None = None

    def _shared_name(self, ptrs: NDArray[np.uint64]) -> str:
        # The layout of the memory is part of what two processes must agree on.
        state = (self._index.fingerprint, self._file.identity, __version__, ALIGNMENT, MERGED_GAP)
        digest = hashlib.sha256(repr(state).encode())
        digest.update(ptrs.data)
        return digest.hexdigest()[:32]

    # Epochs.

    def __iter__(self) -> EpochBatches:
        """Start the next epoch."""
        Compiler.set_num_threads(self.num_workers)  # another loader may have changed it
        order = self._check_order(self.next_traversal_order())
        self.memory_manager.epoch = self.next_epoch
        self.memory_manager.window_size = self._window_size
        self.next_epoch += 1
        self._length = len(order)
        if self.recompile:
            self.generate_code()
        # A copy, so that an epoch goes on as it began whatever becomes of the loader.
        return EpochBatches(copy.copy(self), order[: len(self) * self.batch_size])

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        if self._length is None:
            self._length = len(self.next_traversal_order())
        whole, rest = divmod(self._length, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def first_traversal_order(self) -> NDArray[Any]:
        """What ffcv's Loader calls the order that it takes its length from."""
        return np.asarray(self.next_traversal_order())

    def plan_epoch(self, epoch: int) -> EpochPlan:
        """Return the order of an epoch and what the cache "extents" reads for it.

        Cost: O(retained), in numpy; nothing is read.
        """
        order = self._check_order(self.traversal_order.sample_order(epoch)).astype(np.int64)
        if self.drop_last:
            order = order[: len(order) // self.batch_size * self.batch_size]
        return plan_epoch(self._extents, order, self._window_size)

    @property
    def _window_size(self) -> int:
        """Samples that are read together: as many as the order asks for, in whole batches."""
        wanted = getattr(self.traversal_order, "window_size", self.batch_size)
        return max(1, -(-int(wanted) // self.batch_size)) * self.batch_size

    def _check_order(self, order: Any) -> NDArray[Any]:
        ids = np.asarray(order)
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise TypeError(
                f"`order` must yield sample ids (M,); got {ids.dtype} {ids.shape}. Check it."
            )
        retained = np.zeros(self._index.num_samples, dtype=np.bool_)
        retained[self._extents.samples] = True
        inside = (ids >= 0) & (ids < len(retained))
        if not inside.all() or not retained[ids].all():
            foreign = ids[~inside] if not inside.all() else ids[~retained[ids]]
            raise ValueError(
                f"`order` must yield retained samples; got {len(foreign)} others, {foreign[0]} for "
                "one. Permute the ids that it is given."
            )
        return ids

    @property
    def bytes_read(self) -> int:
        """Bytes that this loader has asked the kernel for; the cache "os" asks for none."""
        return self._file.bytes_read

    @property
    def pool_bytes(self) -> int:
        """Memory that the cache takes in the coming epoch, in bytes."""
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
        filtered.selection, filtered._remap, filtered._options = (
            self.selection,
            remap,
            self._options,
        )
        return filtered

    # What the decoders need.

    def _make_workspace(self) -> Workspace:
        """Give each thread the memory for the largest image that it may meet."""
        needs = [
            node.decoder.scratch_bytes(*self._largest_image(node.field_name))
            for node in self.graph.nodes
            if isinstance(node, DecoderNode) and hasattr(node.decoder, "scratch_bytes")
        ]
        try:
            return Workspace(self.num_workers, max(needs, default=0))
        except MemoryError as error:
            sizes = [(height * width, height, width) for height, width in self._largest.values()]
            raise BetonError(
                f"`fname` must hold images that fit into memory; got {max(sizes)[1:]} pixels in "
                f"{self.fname!r}. Check its metadata, or leave that image out."
            ) from error

    def _largest_image(self, field_name: str) -> tuple[int, int]:
        """Return the largest height and width of the retained images."""
        if field_name not in self._largest:
            images = self._index.column(field_name)
            sizes = (images[side][self._extents.samples].max() for side in ("height", "width"))
            self._largest[field_name] = (int(next(sizes)), int(next(sizes)))
        return self._largest[field_name]


def _choose_seed(seed: int | None, distributed: bool) -> int:
    if seed is not None:
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"`seed` must lie in [0, 2^63); got {seed}. Pass a whole number.")
        return int(seed)
    # A seed of its own on every rank would repeat and miss samples.
    return 0 if distributed else int(np.random.randint(0, np.iinfo(np.int32).max))  # noqa: NPY002


def _load_selection(
    selection: Selection | str | os.PathLike[str] | None, index: BetonIndex
) -> Selection | None:
    if selection is None:
        return None
    loaded = selection if isinstance(selection, Selection) else Selection.load(selection)
    loaded.check(index)
    return loaded


def _choose_indices(
    index: BetonIndex, selection: Selection | None, indices: Any
) -> NDArray[np.uint64]:
    if selection is not None:
        if indices is not None:
            raise ValueError(
                f"`indices` must not be given beside `selection`; got {len(indices)} indices. "
                "Choose one."
            )
        indices = selection.indices
    if indices is None:
        return np.arange(index.num_samples, dtype=np.uint64)
    ids = check_indices(indices, index.num_samples)
    if not ids.size:
        raise ValueError(
            "`indices` must name at least one sample; got none. Check what chose them."
        )
    return ids.astype(np.uint64)  # ffcv's type for "all samples", so that both share compiled code
