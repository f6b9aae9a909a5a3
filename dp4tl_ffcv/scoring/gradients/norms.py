"""Per-sample gradient norms, without computing the gradients themselves where that is cheaper."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...validate import check_choice
from .ghost import check_apart, check_same, ghost_norms
from .rules import UnsuitedError

Method = Literal["auto", "ghost", "vmap", "loop"]

# Most pixel values (85 images of 64 x 64) and images in one ghost pass.
GHOST_VALUES, GHOST_IMAGES = 1 << 20, 128
VMAP_BYTES = 1 << 28  # most bytes of gradients at a time


def gradient_norms(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, method: Method = "auto"
) -> NDArray[np.float64]:
    """Return the norm of each sample's gradient of the cross-entropy.

    The norm is `||grad_theta CE(model(x_n), y_n)||_2` over all trainable parameters theta, in
    evaluation mode. It is exact up to rounding, which on a GPU includes TF32 convolutions if torch
    allows them. The model is left unchanged: modes, parameters, gradients, hooks.

    Args:
        model: maps images `(B, ...)` to logits `(B, C)`.
        batches: images and integer labels `(B,)` or `(B, 1)`; moved to the model's device.
        method: `ghost` runs one forward and one backward pass per batch. It computes the norm of
            a weight's gradient from the layer's inputs A and the gradients G at its outputs, as
            `sum(A A^T * G G^T)` where that is cheaper than `||G^T A||^2`. It supports linear
            layers, convolutions, and batch, layer and group normalisation. On the first pass, it
            checks with three samples that no sample affects another's logits, and that the norms
            equal those of separate backward passes. `vmap` computes the gradients of a few samples
            at a time, for any model that torch.func can transform. `loop` runs one sample at a
            time. `auto` takes the first of these methods that suits the model.

    Returns:
        Norms `(n,)`.

    Raises:
        ValueError: there are no samples or no trainable parameters, logits or labels do not fit,
            a norm is not finite, or the method does not suit the model.
    """
    check_choice("method", method, get_args(Method))
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not parameters:
        raise ValueError("`model` has no trainable parameters. Set requires_grad.")
    runner = _Runner(
        model, parameters, ("ghost", "vmap", "loop") if method == "auto" else (method,)
    )
    parts: list[NDArray[np.float64]] = []
    without_autocast = torch.autocast(runner.device.type, enabled=False)
    with _evaluating(model), torch.inference_mode(False), torch.enable_grad(), without_autocast:
        for images, labels in batches:
            parts.append(runner.norms(images, labels, first=sum(map(len, parts))))
    if not sum(map(len, parts)):
        raise ValueError("`batches` holds no sample.")
    return np.concatenate(parts)


class _Runner:
    """Computes norms by the methods that may suit the model, best first.

    A method that fails is not tried again.
    """

    def __init__(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], methods: Sequence[str]
    ) -> None:
        self._model = model
        self._parameters = parameters  # the trainable ones
        self._left = methods
        # 1 after a checked ghost pass of one sample, which cannot show mixing, 2 after a larger one
        self._checked = 0
        self.device = next(iter(parameters.values())).device

    def norms(self, images: Tensor, labels: Tensor, first: int) -> NDArray[np.float64]:
        """Return the norms of a batch, whose first sample has the number `first`."""
        labels = labels.reshape(-1)
        if labels.is_floating_point() or labels.is_complex() or len(labels) != len(images):
            raise ValueError(
                f"`batches` must hold one integer label per image; got {len(labels)} of "
                f"{labels.dtype} for {len(images)} images, starting at sample {first}."
            )
        images = _outside_inference(images.to(self.device))
        labels = _outside_inference(labels.to(self.device, torch.int64))
        parts = [part.double().cpu() for part in self._parts(images, labels)]
        norms: NDArray[np.float64] = torch.cat(parts).numpy() if parts else np.empty(0)
        wrong = np.flatnonzero(~np.isfinite(norms))
        if wrong.size:
            raise ValueError(
                f"the gradient of sample {first + wrong[0]} is not finite: its norm is "
                f"{norms[wrong[0]]}. Check the checkpoint and the image."
            )
        return norms

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
        start = 0
        while start < len(images):
            stop = start + self._at_once(images)
            try:
                yield self._pass(images[start:stop], labels[start:stop])
                start = stop
            except UnsuitedError as error:
                if len(self._left) == 1:
                    raise ValueError(
                        f"method {self._left[0]!r} does not suit the model. {error} Use 'auto'."
                    ) from error
                self._left = self._left[1:]

    def _at_once(self, images: Tensor) -> int:
        if self._left[0] == "ghost":
            return min(max(GHOST_VALUES // max(images[0].numel(), 1), 1), GHOST_IMAGES)
        each = sum(value.numel() * value.element_size() for value in self._parameters.values())
        return max(1, VMAP_BYTES // each) if self._left[0] == "vmap" else 1

    def _pass(self, images: Tensor, labels: Tensor) -> Tensor:
        if self._left[0] != "ghost":
            return (self._vmap if self._left[0] == "vmap" else self._loop)(images, labels)
        check = self._checked < min(len(images), 2)
        some = sorted({0, len(images) // 2, len(images) - 1})
        if check:
            check_apart(self._model, self._parameters, self._logits, images[some])
        norms = ghost_norms(
            self._model, self._parameters, lambda: self._loss(images, labels), len(images)
        )
        if check:
            check_same(norms[some], self._loop(images[some], labels[some]))
            self._checked = min(len(images), 2)
        return norms

    def _logits(self, images: Tensor) -> Tensor:
        logits: Any = self._model(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"`model` must return logits ({len(images)}, C) in evaluation mode; got {shape}."
            )
        return logits

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over samples; in a mean, a sample's gradient would be divided by B."""
        logits = self._logits(images)
        _check_labels(labels, logits.shape[1])
        return F.cross_entropy(logits, labels, reduction="sum")

    def _loop(self, images: Tensor, labels: Tensor) -> Tensor:
        values = list(self._parameters.values())
        norms = []
        for image, label in zip(torch.split(images, 1), torch.split(labels, 1), strict=True):
            loss = self._loss(image, label)
            gradients = torch.autograd.grad(loss, values, allow_unused=True)
            norms.append(_norm([gradient for gradient in gradients if gradient is not None], loss))
        return torch.stack(norms)

    def _vmap(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradients of all samples at once, by torch.func."""
        model, known = self._model, self._parameters
        frozen = {name: v.detach() for name, v in model.named_parameters() if name not in known}
        frozen |= dict(model.named_buffers())

        def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            logits = torch.func.functional_call(model, (values, frozen), (image[None],))
            return F.cross_entropy(logits, label[None], reduction="sum")

        def norm(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return _norm(list(torch.func.grad(loss)(values, image, label).values()), image)

        with torch.no_grad():  # neither check is possible inside vmap
            _check_labels(labels, self._logits(images[:1]).shape[1])
        values = {name: value.detach() for name, value in known.items()}
        try:
            norms: Tensor = torch.func.vmap(norm, in_dims=(None, 0, 0))(values, images, labels)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            raise UnsuitedError(f"torch.func cannot transform the model: {error}") from error
        return norms


def _outside_inference(values: Tensor) -> Tensor:
    """Copy values made in inference mode, which autograd rejects."""
    return values.clone() if values.is_inference() else values


def _check_labels(labels: Tensor, classes: int) -> None:
    # cross_entropy ignores the label -100; other wrong labels end the CUDA context.
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(
            f"`batches` must hold labels from 0 to {classes - 1}, the model's classes; got "
            f"{labels.min().item()} to {labels.max().item()}. Check that model and data match."
        )


def _norm(gradients: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the norm over all gradients of one sample, summed in float64."""
    parts = [torch.linalg.vector_norm(gradient).double() for gradient in gradients]
    if not parts:
        return torch.zeros((), dtype=torch.float64, device=like.device)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return norm


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
