"""`prune`: from betons to a selection in one call."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..distributed import on_rank_zero, process_group
from ..extraction import extract_features, weights_digest
from ..runs import RunFolder, checkpoint_of
from ..scoring import methods
from ..scoring.combine import Combine
from ..scoring.surrogate.checkpoints import ModelLike, is_checkpoint
from ..scoring.surrogate.models import Classifier
from ..selection.budgets import one_budget
from ..stored import read_json, sha256_of_file
from .inputs import Data, betons_of
from .pruned import Pruned
from .steps import Steps


def prune(  # noqa: PLR0913  # options are named at the call
    source: Data,
    target: Data | Sequence[Data],
    out: Data,
    *,
    surrogate: ModelLike | Callable[[], ModelLike],
    method: str = "label_mapping",
    options: Mapping[str, Any] | None = None,
    clusters: int | None = None,
    keep: float | Literal["auto"] | None = None,
    keep_classes: int | None = None,
    keep_samples: int | None = None,
    keep_bytes: int | str | None = None,
    min_score: float | None = None,
    combine: Combine | None = None,
    weights: Sequence[float] | None = None,
    compact: bool = False,
    arch: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resolution: int | None = None,
    crop_ratio: float = 224 / 256,
    stretch_contrast: bool = False,
    batch_size: int = 256,
    num_workers: int | None = None,
    timeout: float | None = 10.0,
    overwrite: bool = False,
) -> Pruned:
    """Select the part of a source that its targets map to, from betons to a selection.

    Extracts the features that the method needs, scores, selects and, with `compact`, writes a
    smaller beton. All files go to `out`: `features/`, `scores.npz` (`scores_0.npz` and so on for
    several targets), `clusters.npz`, `selection.npz`, `train.beton`. A killed call
    continues when it is repeated, and a finished one returns at once. Processes that `torchrun`
    started share the work.

    Args:
        source: beton of the source, or a folder with train.beton.
        target: beton of a target's training split, or a folder with train.beton; or several.
        out: folder to write.
        surrogate: model that maps the target to the source, see `extract_features`; or a function
            that makes it, which is called after the arguments are checked, if the method needs a
            surrogate.
        method: scoring method, such as label_mapping, feature_mapping or similarity. Methods that
            need other files than features, clusters and betons are for `scoring.score`.
        options: other arguments of the method.
        clusters: score this many k-means clusters of the source instead of its classes.
        keep: fraction of classes (of samples, for sample scores) to keep, or `auto`; see `select`.
        keep_classes: number of classes to keep.
        keep_samples: keep at most this many samples.
        keep_bytes: keep at most this many bytes of samples.
        min_score: keep all classes or samples with at least this score.
        combine: how to combine the scores for several targets. None: the sum of votes, or the mean
            rank for other scores.
        weights: weight of each target.
        compact: also write the retained samples to a beton.
        arch: for a checkpoint of another program: its architecture.
        mean: for such a checkpoint: mean per channel.
        std: for such a checkpoint: standard deviation per channel.
        resolution: side of the centre crop in pixels, after resizing. None: 224.
        crop_ratio: side of the centre crop / shorter side of the image.
        stretch_contrast: scale the pixels of each image to 0 to 255.
        batch_size: images per forward pass, see `extract_features`.
        num_workers: loading threads per process, and threads that copy. None: all cores.
        timeout: seconds without a read that ends, as for `PrunedLoader`.
        overwrite: replace the files of a call with other arguments. Its features are kept if they
            would be the same.

    Raises:
        BlockingIOError: another process is writing `out`.
        StaleArtifactError: the surrogate's classes have other names than the source's.
        ValueError: an argument is wrong, `out` holds the files of a call with other arguments, or
            the method needs a file that is not made here.
    """
    budget = {
        "keep": keep,
        "keep_classes": keep_classes,
        "keep_samples": keep_samples,
        "keep_bytes": keep_bytes,
        "min_score": min_score,
    }
    one_budget(**budget)
    index, targets = betons_of(source, target)
    scoring = methods.get(method.replace("-", "_"))
    usual: Combine = "sum" if scoring.votes else "rank"  # only votes surely have a sum
    images: dict[str, Any] = {
        "arch": arch,
        "mean": mean,
        "std": std,
        "resolution": 224 if resolution is None else resolution,
        "crop_ratio": crop_ratio,
    }
    steps = Steps(
        folder=Path(out),
        source=index,
        targets=targets,
        method=scoring,
        options=dict(options or {}),
        clusters=clusters,
        images=images,
        rule={**budget, "combine": combine or usual, "weights": weights},
        compact=compact,
    )
    if not steps.needs_surrogate:
        surrogate = ""
    elif callable(surrogate) and not isinstance(surrogate, Classifier):
        surrogate = surrogate()
    facts = {
        **steps.facts,
        "stretch_contrast": stretch_contrast,
        "surrogate": _described(surrogate) if steps.needs_surrogate else None,
    }
    run = RunFolder(out, facts, overwrite=overwrite)
    with process_group():
        if not on_rank_zero(lambda: run.finished() is not None and steps.is_whole):
            on_rank_zero(lambda: _start(run, steps))
            extract = partial(
                extract_features,
                surrogate,
                **images,
                stretch_contrast=stretch_contrast,
                batch_size=batch_size,
                num_workers=num_workers,
                timeout=timeout,
            )
            steps.extract(extract, overwrite=overwrite)
            on_rank_zero(lambda: steps.finish(run, surrogate, num_workers=num_workers))
        return steps.result()


def _start(run: RunFolder, steps: Steps) -> None:
    """Start the run, unless the folder is that of another one."""
    before = run.config
    with suppress(FileNotFoundError, ValueError):  # missing or damaged
        before = read_json(run.path / "config.json")
    names = before.keys() | run.config.keys()
    changed = sorted(name for name in names if before.get(name) != run.config.get(name))
    if changed and not run.overwrite:
        raise ValueError(
            f"{str(run.path)!r} holds a run with other values of {', '.join(changed)}. Choose "
            "another folder, or pass `overwrite`."
        )
    run.start(resume=True)
    steps.delete_results()


def _described(surrogate: ModelLike) -> str:
    """Return the name of a model, or the hash of its checkpoint or weights."""
    if isinstance(surrogate, Classifier):
        return weights_digest(surrogate)
    return sha256_of_file(checkpoint_of(surrogate)) if is_checkpoint(surrogate) else str(surrogate)
