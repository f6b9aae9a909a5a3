"""Adversarial images, and training losses on them.

All attacks are bounded in the L-infinity norm and follow the sign of the gradient (Madry et al.,
ICLR 2018). Bounds and steps are on the scale 0 to 255, and apply to pixels: the model normalises
inside. An attack computes no gradient of a weight, and does not change the model: neither its
running statistics, nor its `.grad`s, nor its mode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Kind = Literal["pgd", "fgsm", "trades"]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Bounds and steps of a projected gradient ascent on the loss, from a random start."""

    epsilon: float
    """Largest change of a pixel value, on the scale 0 to 255."""
    step_size: float
    """Change of a pixel value in a step, on the scale 0 to 255."""
    steps: int
    """Number of steps."""


def make_attack(
    kind: Kind, *, epsilon: float, steps: int, step_size: float | None = None
) -> Attack:
    """Return the attack of a kind of adversarial training.

    "fgsm" takes one step of 1.25 epsilon (fast adversarial training, Wong et al., ICLR 2020);
    "pgd" and "trades" take `steps` steps of 2 epsilon / steps, as DP4TL does. `step_size` replaces
    the size of a step.
    """
    if kind == "fgsm":
        steps, usual = 1, 1.25 * epsilon
    else:
        usual = 2 * epsilon / steps
    return Attack(epsilon=epsilon, step_size=usual if step_size is None else step_size, steps=steps)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    *,
    loss: Literal["cross_entropy", "kl"] = "cross_entropy",
) -> Tensor:
    """Return adversarial images, by gradient ascent on the loss within the bounds.

    The start is uniformly random within `epsilon` of the images. The model is attacked in
    evaluation mode and without its DistributedDataParallel, which would broadcast in every step.
    The caller's autocast applies.

    Args:
        model: a model that takes pixel values.
        images: pixel values 0 to 255 `(B, 3, H, W)`, uint8 or float.
        labels: true classes `(B,)`.
        attack: bounds and steps.
        loss: the loss to raise: the cross-entropy with the labels, or the divergence KL(clean ||
            adversarial) of the model's outputs, as in TRADES, which does not use the labels.

    Returns:
        Float32 `(B, 3, H, W)` within [0, 255], and within `epsilon` (rounded to float32) of the
        images, exactly. A pixel with a NaN gradient stays at its start.
    """
    network = model.module if isinstance(model, DistributedDataParallel) else model
    # The caller may be in inference mode, where nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad(), _untouched(network):
        clean = images.detach().float()
        lower, upper = _bounds(clean, attack.epsilon)
        noise = torch.empty_like(clean).uniform_(-attack.epsilon, attack.epsilon)
        adversarial = (clean + noise).clamp(lower, upper)
        objective = _objective(network, clean, labels, loss)
        for _ in range(attack.steps):
            leaf = adversarial.detach().requires_grad_()
            logits = network(leaf)
            (gradient,) = torch.autograd.grad(logits, leaf, _slope(objective, logits))
            step = attack.step_size * gradient.sign()  # 0 for NaN
            adversarial = (adversarial + step).clamp(lower, upper)
    return adversarial.detach()


def adversarial_loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    kind: Kind,
    attack: Attack,
    criterion: nn.Module,
    beta: float = 6.0,
) -> Tensor:
    """Return the loss of a training step, from one forward pass of `model`.

    For "pgd" and "fgsm" the loss is the criterion on adversarial images. For "trades" it is the
    criterion on the clean images plus beta times the mean KL(clean || adversarial) (Zhang et al.,
    ICML 2019). Clean and adversarial images then form one batch of `2 B`: batch statistics include
    both, and DistributedDataParallel sees one forward pass per backward pass.

    Args:
        model: the model in training mode, bare or wrapped.
        images: pixel values 0 to 255 `(B, 3, H, W)`, uint8 or float.
        labels: true classes `(B,)`.
        kind: kind of adversarial training, as above.
        attack: bounds and steps.
        criterion: function of logits `(B, C)` and labels that returns a scalar.
        beta: weight of the divergence in TRADES.
    """
    loss: Tensor
    if kind != "trades":
        loss = criterion(model(pgd(model, images, labels, attack)), labels)
        return loss
    adversarial = pgd(model, images, labels, attack, loss="kl")
    on_clean, on_adversarial = model(torch.cat((images.float(), adversarial))).chunk(2)
    loss = criterion(on_clean, labels)
    return loss + beta * _divergence(_log_softmax(on_clean), on_adversarial) / len(labels)


def _objective(
    network: nn.Module, clean: Tensor, labels: Tensor, loss: str
) -> Callable[[Tensor], Tensor]:
    """Return the loss to raise as a function of the logits, summed over the batch."""
    if loss == "cross_entropy":
        return lambda logits: F.cross_entropy(logits, labels, reduction="sum")
    with torch.no_grad():
        reference = _log_softmax(network(clean))
    return lambda logits: _divergence(reference, logits)


def _slope(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Return the gradient of the objective by the logits, scaled to a maximum of 1 in each sample.

    The scale does not change the sign of the gradient by the pixels. It keeps the gradient of a
    confident sample from vanishing in float16.
    """
    leaf = logits.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(objective(leaf), leaf)
    largest = slope.abs().amax(dim=1, keepdim=True)
    return (slope / largest.clamp(min=torch.finfo(slope.dtype).tiny)).to(logits.dtype)


def _divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return KL(reference || softmax(logits)), summed over the batch, from log-probabilities."""
    return F.kl_div(_log_softmax(logits), reference, reduction="sum", log_target=True)


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits.float(), dim=1)


def _bounds(clean: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value of each pixel.

    Bounds that float32 rounds away from the image are moved to the next number towards the image.
    """
    lower, upper = clean - epsilon, clean + epsilon
    lower = torch.where(clean - lower > epsilon, lower.nextafter(clean), lower)
    upper = torch.where(upper - clean > epsilon, upper.nextafter(clean), upper)
    return lower.clamp_(0.0, 255.0), upper.clamp_(0.0, 255.0)


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Keep the network in evaluation mode and its weights without gradients until the block ends.

    Without gradients of the weights, the backward pass of a compiled network is shorter, and
    autocast does not cache half-precision weights that have no gradient.
    """
    modes = [(part, part.training) for part in network.modules()]
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    network.eval()
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for weight in weights:
            weight.requires_grad_(True)
