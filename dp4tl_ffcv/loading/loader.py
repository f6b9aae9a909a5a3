"""`PrunedLoader`: ffcv's Loader on the retained samples of a selection."""

import inspect
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.loader.loader import ORDER_MAP, Loader, OrderOption
from ffcv.memory_managers import OSCacheManager
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import ToTensor
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray

from ..beton import BetonIndex
from ..beton.index import check_indices
from ..selection import Selection
from .compilation import shared_compilation
from .iterator import EpochBatches
from .memory import MappedFile
from .orders import ORDERS, Order
from .remap import RemapLabel

__all__ = ["PrunedLoader"]

_SIGNATURE = inspect.signature(Loader.__init__)


class PrunedLoader(Loader):
    """Drop-in for `ffcv.loader.Loader` that loads the retained samples of a selection.

    Every argument of `Loader` works as it does there, with these differences: the file is checked
    before it is used; the caller's pipeline lists are left as they are; an error in the loading
    thread is raised in the training loop; leaving a loop early stops the thread; a second loader
    with the same pipeline compiles nothing; `num_workers` is at most the cores there are.

    Args:
        fname: the beton.
        batch_size: samples per batch.
        *args: further arguments of `Loader`, by position.
        selection: a `Selection` or the path of one, made for this very beton. None loads all.
        relabel: give the retained classes the labels 0 to K - 1 (`RemapLabel` is put behind the
            decoder of the selection's label field).
        **kwargs: further arguments of `Loader`, by name. `order` takes ffcv's options, a name in
            `dp4tl_ffcv.loading.ORDERS`, a function of that kind, or a `TraversalOrder` class.

    Raises:
        BetonError: the file is no finished, whole beton.
        StaleArtifactError: the selection was made for another beton.
        TypeError: `indices` are not integers.
        ValueError: `indices` are none, out of range or given beside a selection; `relabel` without
            a selection; an unknown order.
    """

    def __init__(
        self,
        fname: str | os.PathLike[str],
        batch_size: int,
        *args: Any,
        selection: Selection | str | os.PathLike[str] | None = None,
        relabel: bool = False,
        **kwargs: Any,
    ) -> None:
        bound = _SIGNATURE.bind(self, os.fspath(fname), batch_size, *args, **kwargs)
        bound.apply_defaults()
        options = dict(list(bound.arguments.items())[1:])
        index = BetonIndex.open(fname, custom_fields=options["custom_fields"])
        self.selection = _load_selection(selection, index)
        options["indices"] = _choose_indices(self.selection, options["indices"], index)
        options["pipelines"] = _copy_pipelines(options["pipelines"])
        if relabel:
            _insert_remap(options["pipelines"], self.selection)
        options["num_workers"] = _clamp_workers(options["num_workers"])
        self._options = {**options, "pipelines": _copy_pipelines(options["pipelines"])}
        self._make_order = _order_factory(options["order"], options.get("order_kwargs") or {})
        options["order"] = _HOOK
        if options["seed"] is None and options["distributed"]:
            options["seed"] = 0  # a seed of its own on every rank would repeat and miss samples
        with shared_compilation():
            super().__init__(**options)

    def __iter__(self) -> EpochBatches:
        """Start the next epoch."""
        Compiler.set_num_threads(self.num_workers)  # another loader may have changed it
        order = np.asarray(self.next_traversal_order())
        self.next_epoch += 1
        if self.recompile:
            self.generate_code()
        return EpochBatches(self, order[: len(self) * self.batch_size])

    def generate_code(self) -> None:
        """Compile the pipelines, taking over what the process has compiled before."""
        with shared_compilation():
            super().generate_code()

    def filter(self, field_name: str, condition: Callable[[Any], bool]) -> "PrunedLoader":
        """Return a loader of the samples whose value in `field_name` meets `condition`."""
        pipelines: dict[str, Any] = dict.fromkeys(self.reader.handlers)
        pipelines[field_name] = self._options["pipelines"].get(field_name, [])
        whole = {"pipelines": pipelines, "order": OrderOption.SEQUENTIAL, "drop_last": False}
        values = PrunedLoader(**{**self._options, **whole, "distributed": False})
        meets = [bool(condition(value)) for (batch,) in values for value in batch]
        return PrunedLoader(**{**self._options, "indices": values.indices[np.array(meets)]})


class _FunctionOrder(TraversalOrder):
    """An order function in the form that ffcv's Loader calls."""

    def __init__(self, loader: Any, function: Order) -> None:
        super().__init__(loader)
        self._function = function
        self._rank, self._world_size = _place_in_group(loader.distributed)

    def sample_order(self, epoch: int) -> NDArray[Any]:
        return self._function(
            self.indices,
            seed=self.seed,
            epoch=epoch,
            rank=self._rank,
            world_size=self._world_size,
        )


def _place_in_group(distributed: bool) -> tuple[int, int]:
    if not distributed:
        return 0, 1
    from torch import distributed as group  # not needed, nor always built, for a single process

    return group.get_rank(), group.get_world_size()


def _order_factory(order: Any, order_kwargs: Mapping[str, Any]) -> Callable[[Any], TraversalOrder]:
    """Return what makes a loader's traversal order; `order_kwargs` are of ffcv's main branch."""
    if isinstance(order, Hashable) and order in ORDER_MAP:
        return ORDER_MAP[order]  # type: ignore[no-any-return]  # ffcv has no types
    if isinstance(order, str) and order in ORDERS:
        order = ORDERS[order]
    if inspect.isclass(order) and issubclass(order, TraversalOrder):
        return partial(order, **order_kwargs)
    if callable(order) and not inspect.isclass(order):
        return lambda loader: _FunctionOrder(loader, order)
    raise ValueError(
        f"`order` must be an OrderOption, one of {sorted(ORDERS)}, a function or a TraversalOrder "
        f"class; got {order!r}. Choose one."
    )


def _prepare(loader: "PrunedLoader") -> TraversalOrder:
    """Make the order; ffcv asks for it before it compiles the reader of its memory manager."""
    if isinstance(loader.memory_manager, OSCacheManager):
        loader.memory_manager = MappedFile(loader.memory_manager)
    return loader._make_order(loader)


# An order under a key of our own is the one hook that ffcv 1.0.2 and its main branch share:
# 1.0.2 refuses order classes, and neither takes a memory manager.
_HOOK = "dp4tl_ffcv"
ORDER_MAP[_HOOK] = _prepare


def _load_selection(
    selection: Selection | str | os.PathLike[str] | None, index: BetonIndex
) -> Selection | None:
    if selection is None:
        return None
    loaded = selection if isinstance(selection, Selection) else Selection.load(selection)
    loaded.check(index)
    return loaded


def _choose_indices(
    selection: Selection | None, indices: Any, index: BetonIndex
) -> NDArray[np.uint64] | None:
    if selection is not None:
        if indices is not None:
            raise ValueError(
                f"`indices` must not be given beside `selection`; got {len(indices)} indices. "
                "Choose one."
            )
        indices = selection.indices
    if indices is None:
        return None
    ids = check_indices(indices, index.num_samples)
    if not ids.size:
        raise ValueError(
            "`indices` must name at least one sample; got none. Check what chose them."
        )
    return ids.astype(np.uint64)  # ffcv's type for "all samples", so that both share compiled code


def _copy_pipelines(pipelines: Mapping[str, Any]) -> dict[str, Any]:
    """Copy what ffcv would otherwise take apart; the operations themselves stay the caller's."""
    copies: dict[str, Any] = {}
    for name, spec in pipelines.items():
        if isinstance(spec, PipelineSpec):
            copies[name] = PipelineSpec(spec.source, spec.decoder, list(spec.transforms))
        else:
            copies[name] = list(spec) if isinstance(spec, Sequence) else spec
    return copies


def _insert_remap(pipelines: dict[str, Any], selection: Selection | None) -> None:
    if selection is None:
        raise ValueError("`relabel` must come with a `selection`; got none. Pass one.")
    name = selection.label_field
    steps = pipelines.get(name, [])
    if steps == []:  # ffcv's default
        steps = [IntDecoder(), ToTensor()]
    if not isinstance(steps, list):
        raise ValueError(
            f"`pipelines` must give {name!r} a list of operations for `relabel`; got {steps!r}. "
            "Put RemapLabel into your own pipeline instead."
        )
    at = 1 if isinstance(steps[0], IntDecoder) else 0
    pipelines[name] = [*steps[:at], RemapLabel(selection), *steps[at:]]


def _clamp_workers(num_workers: int) -> int:
    # numba refuses more
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]  # set at import
    return most if num_workers < 1 else min(num_workers, most)
