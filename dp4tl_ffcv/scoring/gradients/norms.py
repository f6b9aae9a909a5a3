"""Norms of per-sample gradients (GraNd), without forming the gradients where that is cheaper."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .ghost import check_apart, check_same, ghost_norms
from .rules import UnsuitedError

Method = Literal["auto", "ghost", "vmap", "loop"]

GHOST_VALUES, GHOST_IMAGES = 1 << 20, 128  # at once: of pixels, as 85 images of 64 x 64 have them
VMAP_BYTES = 1 << 28  # of gradients at once


def gradient_norms(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, method: Method = "auto"
) -> NDArray[np.float64]:
    """Return the norm of each sample's gradient of the cross-entropy.

    `||grad_theta CE(model(x_n), y_n)||_2` over all trainable parameters theta, in evaluation mode,
    each sample as if it were alone. Exact up to rounding (on a GPU that of TF32 convolutions, where
    torch allows them). The model is left as it was: modes, parameters, gradients, hooks.

    Args:
        model: maps images `(B, ...)` to logits `(B, C)`.
        batches: images and integer labels `(B,)` or `(B, 1)`; moved to the model's device.
        method: `ghost` takes one forward pass and one backward pass of the data for a batch. The
            norm of a weight's gradient comes from the layer's inputs A and the gradients G at its
            outputs, as `sum(A A^T * G G^T)` where that is cheaper than `||G^T A||^2`. It knows
            linear layers, convolutions and batch, layer and group normalisation. `vmap` forms the
            gradients of a few samples at a time, for any model that torch.func can transform.
            `loop` runs one sample at a time. `auto` takes the first that suits the whole model.
            The first ghost pass is checked on three of its samples: none may bear on another's
            logits, and their norms must be those of backward passes of their own.

    Returns:
        Norms `(n,)`.

    Raises:
        ValueError: there are no samples or no trainable parameters, logits or labels do not fit,
            a norm is not finite, or the method does not suit the model.
    """
    if method not in get_args(Method):
        raise ValueError(f"`method` must be one of {get_args(Method)}; got {method!r}. Choose one.")
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not parameters:
        raise ValueError(
            "`model` must have trainable parameters; got none. "
            "Set requires_grad of those whose gradients count."
        )
    job = _Job(model, parameters)
    suitable = _Suitable(job, ("ghost", "vmap", "loop") if method == "auto" else (method,))
    norms: list[NDArray[np.float64]] = []
    with _evaluating(model), _plain_float(job.device):
        for images, labels in batches:
            first = sum(map(len, norms))
            norms.append(_norms_of(suitable, *_prepared(job, images, labels, first), first))
    if not sum(map(len, norms)):
        raise ValueError("`batches` must hold at least one sample; got none. Check the dataset.")
    return np.concatenate(norms)


# -- batches ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Job:
    model: nn.Module
    parameters: dict[str, nn.Parameter]  # those that are trained

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def logits(self, images: Tensor) -> Tensor:
        logits: Any = self.model(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"`model` must return logits of shape ({len(images)}, C) in evaluation mode; got "
                f"{shape}. Wrap it in a module that does."
            )
        return logits


@dataclass
class _Suitable:
    """The methods that may suit the model, best first; what does not is dropped for good."""

    job: _Job
    left: Sequence[str]
    checked: int = 0  # ghost passes of this many samples agree with backward passes; 2: of any

    def norms(self, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
        start = 0
        while start < len(images):
            stop = start + self._at_once(images)
            try:
                yield self._norms(images[start:stop], labels[start:stop])
                start = stop
            except UnsuitedError as error:
                if len(self.left) == 1:
                    raise ValueError(
                        f'`method` must suit the model; got "{self.left[0]}". {error} Use "auto".'
                    ) from error
                self.left = self.left[1:]

    def _at_once(self, images: Tensor) -> int:
        if self.left[0] == "ghost":
            return min(max(GHOST_VALUES // max(images[0].numel(), 1), 1), GHOST_IMAGES)
        each = sum(value.numel() * value.element_size() for value in self.job.parameters.values())
        return max(1, VMAP_BYTES // each) if self.left[0] == "vmap" else 1

    def _norms(self, images: Tensor, labels: Tensor) -> Tensor:
        check = self.left[0] == "ghost" and self.checked < min(len(images), 2)
        some = sorted({0, len(images) // 2, len(images) - 1})
        if check:
            check_apart(self.job.model, self.job.parameters, self.job.logits, images[some])
        norms = _METHODS[self.left[0]](self.job, images, labels)
        if check:
            check_same(norms[some], _loop(self.job, images[some], labels[some]))
            self.checked = min(len(images), 2)
        return norms


def _norms_of(
    suitable: _Suitable, images: Tensor, labels: Tensor, first: int
) -> NDArray[np.float64]:
    parts = [norms.double().cpu() for norms in suitable.norms(images, labels)]
    norms: NDArray[np.float64] = torch.cat(parts).numpy() if parts else np.empty(0)
    wrong = np.flatnonzero(~np.isfinite(norms))
    if wrong.size:
        raise ValueError(
            f"`model` must have finite gradients; got {norms[wrong[0]]} for sample "
            f"{first + wrong[0]} of the batches. Check the checkpoint and the images."
        )
    return norms


def _prepared(job: _Job, images: Tensor, labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Check a batch and move it to the model's device."""
    labels = labels.reshape(-1)
    if labels.is_floating_point() or labels.is_complex() or len(labels) != len(images):
        raise ValueError(
            f"`batches` must hold one integer label per image; got {len(labels)} of {labels.dtype} "
            f"for {len(images)} images, from sample {first} on. Check the loader."
        )
    return _kept(images.to(job.device)), _kept(labels.to(job.device, torch.int64))


def _kept(values: Tensor) -> Tensor:
    """Return values that autograd may keep: it takes none that come from inference mode."""
    return values.clone() if values.is_inference() else values


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum, not mean: the gradient at each sample's logits is then that of the sample alone."""
    _check_labels(labels, logits.shape[1])
    return F.cross_entropy(logits, labels, reduction="sum")


def _check_labels(labels: Tensor, classes: int) -> None:
    # cross_entropy would pass over label -100, and end a CUDA context on others.
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(
            f"`batches` must hold labels from 0 to {classes - 1}, the model's classes; got "
            f"{labels.min().item()} to {labels.max().item()}. Check that model and data belong "
            "together."
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode for a while, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _plain_float(device: torch.device) -> Iterator[None]:
    """Whatever the caller is in the middle of: gradients, and no half precision."""
    plain = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), plain:
        yield


# -- methods ---------------------------------------------------------------------------------------
def _ghost(job: _Job, images: Tensor, labels: Tensor) -> Tensor:
    def loss() -> Tensor:
        return _loss(job.logits(images), labels)

    return ghost_norms(job.model, job.parameters, loss, len(images))


def _loop(job: _Job, images: Tensor, labels: Tensor) -> Tensor:
    """Norms `(B,)` by a forward and a backward pass of each sample."""
    values = list(job.parameters.values())
    norms = []
    for image, label in zip(torch.split(images, 1), torch.split(labels, 1), strict=True):
        loss = _loss(job.logits(image), label)
        gradients = torch.autograd.grad(loss, values, allow_unused=True)
        norms.append(_norm([gradient for gradient in gradients if gradient is not None], loss))
    return torch.stack(norms)


def _vmap(job: _Job, images: Tensor, labels: Tensor) -> Tensor:
    """Norms `(B,)` by torch.func, which forms all gradients of the batch."""
    frozen = {k: v.detach() for k, v in job.model.named_parameters() if k not in job.parameters}
    frozen |= dict(job.model.named_buffers())

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(job.model, (values, frozen), (image[None],))
        return F.cross_entropy(logits, label[None], reduction="sum")

    def norm(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return _norm(list(torch.func.grad(loss)(values, image, label).values()), image)

    with torch.no_grad():
        # Neither can be checked inside of vmap.
        _check_labels(labels, job.logits(images[:1]).shape[1])
    values = {name: value.detach() for name, value in job.parameters.items()}
    try:
        norms: Tensor = torch.func.vmap(norm, in_dims=(None, 0, 0))(values, images, labels)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise UnsuitedError(f"torch.func cannot transform the model: {error}") from error
    return norms


def _norm(gradients: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the norm over all gradients of one sample; in float64 where it sums few values."""
    parts = [torch.linalg.vector_norm(gradient).double() for gradient in gradients]
    if not parts:
        return torch.zeros((), dtype=torch.float64, device=like.device)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return norm


_METHODS: dict[str, Callable[[_Job, Tensor, Tensor], Tensor]] = {
    "ghost": _ghost,
    "vmap": _vmap,
    "loop": _loop,
}
