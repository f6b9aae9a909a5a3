"""GraNd: norm of each sample's gradient, averaged over training runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..combine import mean_scores
from ..scores import Scores
from . import Method

if TYPE_CHECKING:
    import torch

    from ...beton import BetonIndex
    from ..surrogate.checkpoints import ModelLike

Engine = Literal["auto", "ghost", "vmap", "loop"]


def grand(  # noqa: PLR0913  # options are named at the call
    models: "ModelLike | Sequence[ModelLike]",
    beton: "str | os.PathLike[str] | BetonIndex",
    *,
    arch: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resolution: int = 224,
    crop_ratio: float = 224 / 256,
    batch_size: int = 256,
    num_workers: int | None = None,
    timeout: float | None = 10.0,
    method: Engine = "auto",
    device: "str | torch.device | None" = None,
) -> Scores:
    """Score samples by the norm of their gradient, averaged over training runs.

    `s[n] = ||grad_theta CE(h(x_n), y_n)||_2`, on centre crops and in evaluation mode. The hardest
    samples are kept first. (Paul et al. 2021, arXiv 2107.07075, who average over runs early in
    training.)

    Args:
        models: checkpoints trained on the source for a few epochs, one per run. In Python also
            classifiers.
        beton: source beton, with fields `image` and `label`.
        arch: architecture (torchvision's name, or timm:NAME). Needed for other programs'
            checkpoints.
        mean: mean per channel, for pixels in [0, 1], of checkpoints that do not record it.
        std: standard deviation per channel, of checkpoints that do not record it.
        resolution: side of the centre crop in pixels, after resizing.
        crop_ratio: side of the centre crop / shorter side of the image.
        batch_size: images loaded at a time; does not change the scores.
        num_workers: loading threads. Default: all cores, shared by the processes.
        timeout: seconds without a read that ends, before an error. None waits for ever.
        method: how to compute the norms; all methods give the same norms. auto takes the fastest
            that supports the model. In Python, see `gradient_norms`.
        device: where the models run. Default: the GPU if there is one.

    Raises:
        CheckpointError: see `load_checkpoint`.
        StaleArtifactError: a model's classes have other names than those of the source.
    """
    from ...beton import BetonIndex
    from ...distributed import best_device
    from ...loading import evaluation_loader
    from ...progress import track
    from ...validate import check_class_names
    from ..gradients.norms import gradient_norms
    from ..surrogate.checkpoints import load_model
    from ..surrogate.models import Classifier

    index = BetonIndex.of(beton)
    device = best_device() if device is None else device
    runs = []
    if isinstance(models, Classifier | str | os.PathLike):
        models = [models]
    for number, each in enumerate(models, 1):
        model, weights = load_model(each, arch=arch, mean=mean, std=std)
        check_class_names(
            model.class_names,
            index.class_names(),
            where=f"model {number} of `models`",
            elsewhere=repr(str(index.path)),
            advice="Pass models that were trained on this source.",
        )
        loader = evaluation_loader(
            index,
            batch_size=batch_size,
            resolution=resolution,
            crop_ratio=crop_ratio,
            num_workers=num_workers,
            timeout=timeout,
            device=device,
        )
        batches = track(
            loader,
            total=index.num_samples,
            description=f"gradients of model {number}",
            unit="images",
            scale=batch_size,
        )
        provenance = {
            **weights,
            "arch": model.arch,
            "mean": list(model.channels[0]),
            "std": list(model.channels[1]),
            "resolution": resolution,
            "crop_ratio": crop_ratio,
            "source_fingerprint": index.fingerprint,
        }
        norms = gradient_norms(model.to(device), batches, method=method)
        runs.append(Scores(scores=norms, method="grand", unit="sample", provenance=provenance))
    return mean_scores(runs)


METHOD = Method(
    function=grand,
    flags={
        "models": tuple[Path, ...],
        "beton": Path,
        "arch": str | None,
        "mean": tuple[float, float, float] | None,
        "std": tuple[float, float, float] | None,
        "resolution": int,
        "crop_ratio": float,
        "batch_size": int,
        "num_workers": int | None,
        "timeout": float | None,
        "method": Engine,
    },
    units=("sample",),
    outputs="logits",
    reference="[Paul et al. 2021](https://arxiv.org/abs/2107.07075)",
)
