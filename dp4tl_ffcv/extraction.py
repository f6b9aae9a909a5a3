"""Run a surrogate over a dataset, once: features, predictions and softmax mass, in a folder."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .artifacts import sha256_of_file
from .distributed import barrier, on_rank_zero, rank, world_size
from .progress import track
from .scoring.features.blocks import FeatureBlocks, Plan
from .scoring.features.features import Features
from .scoring.surrogate.models import Classifier

Batch = tuple[Tensor, Tensor]
Load = Callable[[NDArray[np.int64]], Iterable[Batch]]


def extract_features(
    model: Classifier,
    load: Load,
    indices: ArrayLike,
    out: str | os.PathLike[str],
    *,
    logits: bool = False,
    dtype: Literal["float16", "float32"] = "float32",
    amp: bool = True,
    restart: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Features:
    """Run a surrogate in evaluation mode over samples, once, and keep what it says in a folder.

    What a killed run leaves is continued by the same call, which then gives the same bytes; what is
    finished is taken over. Where torch.distributed is initialised, each process calls this with the
    same arguments but its own device: process r of R takes blocks r, r + R, ... of those that are
    missing, all write to the same folder, and all return the same.

    Args:
        model: the surrogate, on its device. Its method `features` returns logits `(B, C)`, or None
            from an encoder without a classifier, and pooled features `(B, D)`.
        load: returns batches of given sample ids, in that order: images `(B, 3, H, W)` on the
            model's device and labels `(B,)`.
        indices: sample ids `(n,)`.
        out: folder to write.
        logits: keep the logits `(n, C)`; predictions and softmax mass are kept either way.
        dtype: of the features on the disk.
        amp: on a GPU, compute in half precision where torch deems that safe.
        restart: delete an earlier run's folder instead of continuing it.
        checkpoint: file that the surrogate came from, recorded by its SHA-256.
        provenance: further facts to record; a folder with others is not continued.

    Raises:
        BlockingIOError: another run writes `out` now.
        StaleArtifactError: `out` comes from another model, other samples or other settings.
        ValueError: an argument is wrong, `load` returns more or fewer samples, or a value is not
            finite (float16 ends at 65504).
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"`dtype` must be float16 or float32; got {dtype!r}. Choose one.")
    device = next(chain(model.parameters(), model.buffers())).device
    amp = amp and device.type == "cuda"
    source = {"checkpoint_sha256": sha256_of_file(checkpoint)} if checkpoint else {}
    plan = Plan(
        folder=Path(out),
        indices=_check_indices(indices),
        logits=logits,
        dtype=dtype,
        facts={"weights_sha256": _digest(model), "device": device.type},
        provenance={
            "arch": model.arch,
            "trained_on": model.trained_on,
            "mean": list(model.channels[0]),
            "std": list(model.channels[1]),
            "amp": amp,
            **source,
            **(provenance or {}),
        },
    )
    model.eval()
    with ExitStack() as held, torch.inference_mode(), torch.autocast(device.type, enabled=amp):

        def prepare() -> list[int] | None:
            prepared = plan.prepared(lambda: _shapes(model, load, plan.indices), restart=restart)
            return held.enter_context(prepared)

        missing = on_rank_zero(prepare)
        if missing is not None:
            _extract(model, load, plan, missing[rank() :: world_size()])
            barrier()
            on_rank_zero(plan.finish)
    return Features.load(out)


def _extract(model: Classifier, load: Load, plan: Plan, mine: Sequence[int]) -> None:
    """Compute and store the blocks `mine`."""
    if not mine:
        return
    blocks = FeatureBlocks(plan)
    ids = [plan.indices[plan.rows(block)] for block in mine]
    passes: Iterable[Batch] = _passes(load(np.concatenate(ids)), list(map(len, ids)))
    if rank() == 0:
        passes = track(
            passes,
            total=sum(map(len, ids)),
            description="features",
            unit="images",
            scale=lambda batch: len(batch[1]),
        )
    waiting = iter(passes)
    for block, block_ids in zip(mine, ids, strict=True):
        parts: list[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32] | None]] = []
        while sum(len(part[1]) for part in parts) < len(block_ids):
            images, labels = next(waiting)
            outputs, pooled = model.features(images)
            parts.append(
                (
                    pooled.float().cpu().numpy(),
                    labels.reshape(-1).cpu().numpy().astype(np.int64),
                    None if outputs is None else outputs.float().cpu().numpy(),
                )
            )
        features, numbers, logits = zip(*parts, strict=True)
        blocks.write(
            block,
            np.concatenate(features),
            np.concatenate(numbers),
            None if logits[0] is None else np.concatenate(logits),
        )
    for _ in waiting:  # tells of samples beyond the last block, and ends the progress bar
        pass


def _passes(batches: Iterable[Batch], lengths: Sequence[int]) -> Iterator[Batch]:
    """Cut batches anew: passes begin at the same rows of a block, whichever blocks are missing.

    How a network rounds depends on what else is in the pass. Where the size of the batches divides
    the blocks nothing is copied.
    """
    total, seen, gathered = sum(lengths), 0, 0
    sizes: Iterator[int] | None = None
    wanted = 0
    pieces: list[Batch] = []
    for images, labels in batches:
        if sizes is None:
            sizes = _pass_sizes(max(1, len(images)), lengths)
            wanted = next(sizes)
        if seen + len(images) > total:
            raise _other_count(total, f"{seen + len(images)} or more")
        start = 0
        while start < len(images):
            end = min(start + wanted - gathered, len(images))
            pieces.append((images[start:end], labels[start:end]))
            gathered += end - start
            start = end
            if gathered == wanted:
                yield _joined(pieces)
                pieces, gathered, wanted = [], 0, next(sizes, 0)
        seen += len(images)
        pieces = [(image.clone(), label.clone()) for image, label in pieces]  # ffcv uses its again
    if seen < total:
        raise _other_count(total, str(seen))


def _pass_sizes(size: int, lengths: Sequence[int]) -> Iterator[int]:
    for length in lengths:
        for start in range(0, length, size):
            yield min(size, length - start)


def _joined(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    images, labels = zip(*pieces, strict=True)
    return torch.cat(images), torch.cat(labels)


def _shapes(model: Classifier, load: Load, indices: NDArray[np.int64]) -> tuple[int, int | None]:
    """Return the columns of features and of logits, from a pass over one sample."""
    for images, _ in load(indices[:1]):
        outputs, pooled = model.features(images)
        return pooled.shape[1], None if outputs is None else outputs.shape[1]
    raise _other_count(1, "0")


def _digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of everything that the model computes with."""
    digest = hashlib.sha256()
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _check_indices(indices: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(indices)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise ValueError(
            f"`indices` must be sample ids (n,), n >= 1; got shape {array.shape} of {array.dtype}. "
            "Name the samples to load."
        )
    return array.astype(np.int64)


def _other_count(wanted: int, found: str) -> ValueError:
    return ValueError(
        f"`load` must return the {wanted} samples that it is asked for; got {found}. "
        "Load without drop_last."
    )
