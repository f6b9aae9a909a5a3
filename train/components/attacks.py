"""Adversarial examples in pixel space, the training losses on them, and the accuracy under attack.

All attacks are bounded in L-infinity norm and take the sign of the gradient (Madry et al., ICLR
2018). Bounds and steps are in units of pixel values, 0 to 255, and applied to pixels: the model
normalises inside. An attack computes no gradient of a weight, and leaves the model as it was: its
running statistics, its `.grad`s, its mode.
"""

from collections.abc import Callable, Iterable, Iterator
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
    """Projected gradient descent on the loss, within `epsilon` of the image."""

    epsilon: float
    """Largest change of a pixel value, of 255."""
    step_size: float
    """Change of a pixel value in a step, of 255."""
    steps: int
    """Gradients that are followed."""
    random_start: bool = True
    """Start from a uniformly random point within `epsilon`, else from the image."""

    def __post_init__(self) -> None:
        """Refuse an attack that cannot change an image."""
        for name in ("epsilon", "step_size"):
            value = getattr(self, name)
            if not 0 < value <= 255:
                raise ValueError(
                    f"`{name}` must be above 0 and at most 255; got {value}. Give pixel values."
                )
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {self.steps}. Raise it.")


def make_attack(
    kind: Kind, *, epsilon: float, steps: int, step_size: float | None = None
) -> Attack:
    """Return the attack that a kind of training uses.

    Args:
        kind: "fgsm" takes one step of 1.25 epsilon (fast adversarial training, Wong et al., ICLR
            2020); "pgd" and "trades" take `steps` of 2 epsilon / steps, as DP4TL's configurations.
        epsilon: largest change of a pixel value, of 255.
        steps: gradients that are followed; "fgsm" follows one.
        step_size: change in a step, of 255; None takes the kind's own.
    """
    if kind == "fgsm":
        steps, usual = 1, 1.25 * epsilon
    else:
        usual = 2 * epsilon / max(1, steps)
    return Attack(epsilon=epsilon, step_size=usual if step_size is None else step_size, steps=steps)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    *,
    generator: torch.Generator | None = None,
    loss: Literal["cross_entropy", "kl"] = "cross_entropy",
) -> Tensor:
    """Return adversarial images: where gradient ascent on the loss ends within the bounds.

    The model is attacked in evaluation mode, and without its DistributedDataParallel, which would
    broadcast in every step and is not made for gradients of the images alone. Autocast applies as
    in the caller.

    Args:
        model: takes images of pixel values.
        images: pixel values 0 to 255 `(B, 3, H, W)`, uint8 or float.
        labels: true classes `(B,)`.
        attack: its bounds and steps.
        generator: of the random start, on the images' device; None takes torch's own.
        loss: what is raised: the cross-entropy with the labels, or the divergence KL(clean ||
            adversarial) of the model's outputs, which is TRADES' and does not use the labels.

    Returns:
        Float32 `(B, 3, H, W)` within [0, 255], and within `epsilon` (rounded to float32) of the
        images: exactly, in float32. A pixel whose gradient is not a number is not moved.

    Raises:
        ValueError: the divergence without a random start, whose gradient at the image is zero.
    """
    if loss == "kl" and not attack.random_start:
        raise ValueError(
            "`random_start` must be true for the divergence, whose gradient is zero at the clean "
            "image; got False. Switch it on."
        )
    network = _unwrapped(model)
    # A caller that evaluates may be in inference mode, where nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad(), _untouched(network):
        clean = images.detach().float()
        lower, upper = _bounds(clean, attack.epsilon)
        adversarial = clean
        if attack.random_start:
            noise = torch.empty_like(clean).uniform_(
                -attack.epsilon, attack.epsilon, generator=generator
            )
            adversarial = (clean + noise).clamp(lower, upper)
        objective = _objective(network, clean, labels, loss)
        for _ in range(attack.steps):
            leaf = adversarial.detach().requires_grad_()
            logits = network(leaf)
            (gradient,) = torch.autograd.grad(logits, leaf, _slope(objective, logits))
            step = attack.step_size * gradient.sign()  # of what is not a number, 0
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
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the loss of a training step, from one forward pass of the model as it is passed.

    For "pgd" and "fgsm" it is the criterion on adversarial images. For "trades" it is that on the
    clean images plus beta times the batch's mean KL(clean || adversarial) (Zhang et al., ICML
    2019). Clean and adversarial images then pass together, `2 B` in a batch: normalisation takes
    its statistics over both, and DistributedDataParallel sees one forward for one backward.

    Args:
        model: in training mode, wrapped or not.
        images: pixel values 0 to 255 `(B, 3, H, W)`, uint8 or float.
        labels: true classes `(B,)`.
        kind: which loss.
        attack: bounds and steps.
        criterion: maps logits `(B, C)` and labels to a scalar.
        beta: weight of TRADES' divergence.
        generator: of the random start, on the images' device; None takes torch's own.
    """
    loss: Tensor
    if kind != "trades":
        adversarial = pgd(model, images, labels, attack, generator=generator)
        loss = criterion(model(adversarial), labels)
        return loss
    adversarial = pgd(model, images, labels, attack, generator=generator, loss="kl")
    on_clean, on_adversarial = model(torch.cat((images.float(), adversarial))).chunk(2)
    loss = criterion(on_clean, labels)
    return loss + beta * _divergence(_log_softmax(on_clean), on_adversarial) / len(labels)


def robust_accuracy(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    attack: Attack,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Say of each sample whether it is classified correctly under attack.

    Args:
        model: left in evaluation mode.
        loader: yields images `(B, 3, H, W)` and labels `(B,)`, on the model's device; a part of the
            samples, if processes share them.
        attack: bounds and steps.
        generator: of the random start, on the model's device; None takes torch's own.

    Returns:
        Bool `(n,)` on the model's device, in the loader's order; its mean is the accuracy.
    """
    network = _unwrapped(model).eval()  # the processes' shares may differ in their batches
    hits: list[Tensor] = []
    for images, labels in loader:
        adversarial = pgd(network, images, labels, attack, generator=generator)
        with torch.no_grad():
            hits.append(network(adversarial).argmax(1) == labels)
    return torch.cat(hits)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _objective(
    network: nn.Module, clean: Tensor, labels: Tensor, loss: str
) -> Callable[[Tensor], Tensor]:
    """Return what maps logits to the number that an attack raises, summed over the batch."""
    if loss == "cross_entropy":
        return lambda logits: F.cross_entropy(logits, labels, reduction="sum")
    with torch.no_grad():
        reference = _log_softmax(network(clean))
    return lambda logits: _divergence(reference, logits)


def _slope(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Return the objective's gradient by the logits, with largest entry 1 in each sample.

    A step follows the sign of a sample's gradient, whatever its scale; float16, in which that of a
    confident sample would vanish on its way to the image, minds the scale.
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
    """Return the lowest and the highest value that each pixel may take.

    Where image - epsilon or image + epsilon was rounded away from the image, the next number
    towards it is taken.
    """
    lower, upper = clean - epsilon, clean + epsilon
    lower = torch.where(clean - lower > epsilon, lower.nextafter(clean), lower)
    upper = torch.where(upper - clean > epsilon, upper.nextafter(clean), upper)
    return lower.clamp_(0.0, 255.0), upper.clamp_(0.0, 255.0)


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Switch the network to evaluation and its weights to constants; put both back.

    Evaluation keeps the running statistics. Constants spare a compiled network's backward pass,
    which is compiled as a whole, the gradients of the weights, and keep autocast from caching half
    precision weights made where no gradient is recorded.
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
