"""Rules for ghost norms, one for each kind of layer.

A rule takes a layer, and for each of its calls the input and the gradient at the output. It returns
the squared norms `(B,)` of the gradients of the layer's trainable parameters. A layer that is
called several times has one gradient, summed over the calls.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

Pairs = Sequence[tuple[Tensor, Tensor]]
Rule = Callable[[Any, Pairs], Tensor]

SHORT = 16  # for fewer positions, the fused sums of batch normalisation are slower


class UnsuitedError(Exception):
    """A method does not suit a model."""


def kind_of(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class whose rule applies to a layer, or None.

    A rule also applies to subclasses that do not change the forward pass, but not to layers with
    hooks.
    """
    changed = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    for kind in () if changed else RULES:
        if isinstance(layer, kind) and all(
            getattr(type(layer), name, None) is getattr(kind, name, None)
            for name in ("forward", "_conv_forward")
        ):
            return kind
    return None


# -- matrices: A (B, T, I) and G (B, T, O), for T positions where a sample uses the weight ---------
def _linear(layer: nn.Linear, pairs: Pairs) -> Tensor:
    a, g = (
        _joined([values.reshape(len(values), -1, values.shape[-1]) for values in calls])
        for calls in zip(*pairs, strict=True)
    )
    total = _bias(layer, [g.sum(1)])
    return total + _matrix_squares(a, g) if layer.weight.requires_grad else total


def _convolution(layer: Any, pairs: Pairs) -> Tensor:
    """Treat a convolution as a linear layer whose inputs are windows."""
    total = _bias(layer, [gradient.flatten(2).sum(2) for _, gradient in pairs])
    if not layer.weight.requires_grad:
        return total
    calls = [(_padded(layer, fed), _as_image(gradient)) for fed, gradient in pairs]
    if layer.groups > 1:
        return total + _squares([_weight_gradients(layer, fed, g) for fed, g in calls])
    if len(calls) == 1 and _pixels_pay(layer, *calls[0]):
        ((fed, g),) = calls
        products = g.flatten(2).mT @ g.flatten(2)
        return total + _sum_of_products(_window_products(layer, fed, g.shape[2:]), products)
    a = _joined([_windows(layer, fed, g.shape[2:]) for fed, g in calls])
    g = _joined([gradient.flatten(2).mT for _, gradient in calls])
    return total + _matrix_squares(a, g)


def _matrix_squares(a: Tensor, g: Tensor) -> Tensor:
    """Return `||G^T A||^2`, as `sum(A A^T * G G^T)` where that is cheaper."""
    positions, inputs, outputs = a.shape[1], a.shape[2], g.shape[2]
    if positions * (inputs + outputs) >= inputs * outputs:
        return _squares([g.mT @ a])
    return _sum_of_products(a @ a.mT, g @ g.mT)


def _sum_of_products(a: Tensor, g: Tensor) -> Tensor:
    # Rounding can make the sum negative.
    return (a * g).flatten(1).sum(1).clamp(min=0)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _as_image(values: Tensor) -> Tensor:
    """Turn `(B, C, T)` into images of one row."""
    return values[:, :, None] if values.ndim == 3 else values


def _geometry(layer: Any) -> list[tuple[int, ...]]:
    return [(1, *sizes)[-2:] for sizes in (layer.kernel_size, layer.stride, layer.dilation)]


def _padded(layer: Any, fed: Tensor) -> Tensor:
    """Return the input of a convolution as images, with its padding."""
    amounts: list[int] = []  # for both ends of each axis, the last axis first
    for axis in reversed(range(fed.ndim - 2)):
        both = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        if layer.padding == "same":
            amounts += [both // 2, both - both // 2]
        else:
            amounts += 2 * [0 if layer.padding == "valid" else layer.padding[axis]]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return _as_image(F.pad(fed, amounts, mode=mode) if any(amounts) else fed)


def _windows(layer: Any, fed: Tensor, outputs: Sequence[int]) -> Tensor:
    """Return the window of each output of a convolution, `(B, T, I)`, with channels last.

    F.unfold puts channels first, where rows of a window are not contiguous: 3 to 8 times slower.
    """
    channels_last = fed.permute(0, 2, 3, 1).contiguous()
    sample, row, column, channel = channels_last.stride()
    kernel, stride, dilation = _geometry(layer)
    windows = channels_last.as_strided(
        (len(fed), *outputs, *kernel, fed.shape[1]),
        (sample, row * stride[0], column * stride[1],
         row * dilation[0], column * dilation[1], channel),
    )  # fmt: skip
    return windows.reshape(len(fed), math.prod(outputs), -1)


def _pixels_pay(layer: Any, fed: Tensor, g: Tensor) -> bool:
    """Return whether products of pixels cost less than products of windows and than `G^T A`."""
    positions, pixels, outputs = g[0, 0].numel(), fed[0, 0].numel(), g.shape[1]
    entries = layer.weight[0].numel()
    cost = pixels**2 * fed.shape[1] + positions**2 * (outputs + entries // fed.shape[1])
    return bool(cost < positions * min(entries * outputs, positions * (entries + outputs)))


def _window_products(layer: Any, fed: Tensor, outputs: Sequence[int]) -> Tensor:
    """Return `A A^T` `(B, T, T)` of windows A, as sums of products of pixels.

    Windows overlap, so this needs fewer products, and it does not copy the windows.
    """
    pixels = fed.flatten(2)
    products = (pixels.mT @ pixels).view(len(fed), *fed.shape[2:], *fed.shape[2:])
    kernel, stride, dilation = _geometry(layer)
    total = products.new_zeros(len(fed), *outputs, *outputs)
    for place in itertools.product(*map(range, kernel)):
        rows, columns = (
            slice(first := at * dilation[axis], first + stride[axis] * outputs[axis], stride[axis])
            for axis, at in enumerate(place)
        )
        total += products[:, rows, columns, rows, columns]
    positions = math.prod(outputs)
    return total.view(len(fed), positions, positions)


def _weight_gradients(layer: Any, fed: Tensor, g: Tensor) -> Tensor:
    """Return the weight's gradients `(B, entries)`, by one convolution with a group per sample."""
    count, channels = len(fed), layer.out_channels
    kernel, stride, dilation = _geometry(layer)
    gradients: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        fed.reshape(1, -1, *fed.shape[2:]),
        (count * channels, layer.in_channels // layer.groups, *kernel),
        g.reshape(1, -1, *g.shape[2:]),
        stride,
        0,
        dilation,
        count * layer.groups,
    )
    return gradients.reshape(count, -1)


# -- vectors: y = w x + b of normalised x, per channel ---------------------------------------------
def _normalisation(sums_of: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Rule:
    """Return the rule for a kind of layer, given its gradients `(B, C)` of weight and bias."""

    def squares(layer: Any, pairs: Pairs) -> Tensor:
        sums = [sums_of(layer, fed, gradient) for fed, gradient in pairs]
        total = _bias(layer, [bias for _, bias in sums])
        if layer.weight is not None and layer.weight.requires_grad:
            total = total + _squares([weight for weight, _ in sums])
        return total

    return squares


def _batch_norm(layer: Any, fed: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    if layer.running_mean is None:
        raise UnsuitedError(f"{layer} uses the statistics of the batch.")
    mean, var, eps = layer.running_mean, layer.running_var, layer.eps
    fed, g = fed.flatten(2) if fed.ndim > 2 else fed[..., None], g.reshape(*g.shape[:2], -1)
    if g.shape[2] < SHORT:
        return (F.batch_norm(fed, mean, var, eps=eps) * g).sum(2), g.sum(2)
    # Torch's kernel reads both tensors once. It gets the channels of all samples as one sample's.
    count, channels, positions = g.shape
    one = 1, count * channels, positions
    _, weight, bias = torch.ops.aten.native_batch_norm_backward(
        g.reshape(one), fed.reshape(one), None, mean.repeat(count), var.repeat(count),
        None, None, False, eps, (False, True, True),
    )  # fmt: skip
    return weight.view(count, channels), bias.view(count, channels)


def _group_norm(layer: nn.GroupNorm, fed: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    normal = F.group_norm(fed, layer.num_groups, eps=layer.eps)
    shape = (*g.shape[:2], -1)
    return (normal * g).reshape(shape).sum(2), g.reshape(shape).sum(2)


def _layer_norm(layer: nn.LayerNorm, fed: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    normal = F.layer_norm(fed, layer.normalized_shape, eps=layer.eps)
    shape = len(g), -1, math.prod(layer.normalized_shape)
    return (normal * g).reshape(shape).sum(1), g.reshape(shape).sum(1)


def _bias(layer: Any, gradients: Sequence[Tensor]) -> Tensor:
    """Return the squared norms, given each call's gradients `(B, C)`; 0 without a trained bias."""
    if layer.bias is None or not layer.bias.requires_grad:
        return gradients[0].new_zeros(len(gradients[0]))
    return _squares(gradients)


def _squares(gradients: Sequence[Tensor]) -> Tensor:
    """Return the squared norms `(B,)` of the gradients summed over the calls."""
    whole = gradients[0] if len(gradients) == 1 else torch.stack(list(gradients)).sum(0)
    squares: Tensor = torch.linalg.vector_norm(whole.flatten(1), dim=1).square()
    return squares


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _normalisation(_batch_norm),
    nn.BatchNorm2d: _normalisation(_batch_norm),
    nn.SyncBatchNorm: _normalisation(_batch_norm),
    nn.GroupNorm: _normalisation(_group_norm),
    nn.LayerNorm: _normalisation(_layer_norm),
}
