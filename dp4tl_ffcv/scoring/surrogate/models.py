"""Surrogate models: a classifier with its normalisation, built by name."""

import copy

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

__all__ = ["Classifier", "best_device", "build_model", "replace_head"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# ResNets for images of 32 to 64 pixels and few cores, by the channels of their first stage.
SMALL_RESNETS = {"resnet8_w16": 16, "resnet8_w32": 32}


class Classifier(nn.Module):
    """A network with its normalisation: uint8 images in, logits out.

    Args:
        network: maps normalised images `(B, 3, H, W)` to logits `(B, C)`; its last `nn.Linear` is
            the head, whose input is the feature.
        arch: name to build the network again by.
        num_classes: C.
        mean: per channel, for pixels in [0, 1].
        std: likewise.

    Raises:
        ValueError: the network has no linear layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        arch: str,
        num_classes: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        _find_head(network)  # now rather than after a training
        self.network = network
        self.arch = arch
        self.num_classes = num_classes
        self.trained_on: str | None = None  # fingerprint of the beton that the weights come from
        self.channels = tuple(map(float, mean)), tuple(map(float, std))
        # Not in the state dict, whose keys stay those of the network.
        for name, values in zip(("mean", "std"), self.channels, strict=True):
            buffer = 255.0 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        return _find_head(self.network)[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(B, C)` of images `(B, 3, H, W)` with values 0 to 255."""
        logits: Tensor = self.network((images.float() - self.mean) / self.std)
        return logits

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(B, C)` and the head's input `(B, D)` from one pass."""
        caught: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            logits = self(images)
        finally:
            handle.remove()
        return logits, caught[0]


def best_device() -> torch.device:
    """Return the GPU if torch can use one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_model(arch: str, num_classes: int) -> Classifier:
    """Build an untrained classifier.

    Args:
        arch: any classification model of torchvision, or `resnet8_w16` or `resnet8_w32` for images
            of 32 to 64 pixels.
        num_classes: outputs C.

    Raises:
        ValueError: there is no such architecture, or it does not end in a linear layer.
    """
    if arch in SMALL_RESNETS:
        return Classifier(_small_resnet(num_classes, SMALL_RESNETS[arch]), arch, num_classes)
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        raise ValueError(
            f"`arch` must be one of {sorted(SMALL_RESNETS)} or a classifier of torchvision; got "
            f"{arch!r}. "
            "See torchvision.models.list_models()."
        )
    network = torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
    return Classifier(network, arch, num_classes)


def replace_head(model: Classifier, num_classes: int) -> Classifier:
    """Return a copy of `model` with a new, freshly initialised head of `num_classes` outputs."""
    network = copy.deepcopy(model.network)
    name, head = _find_head(network)
    new_head = nn.Linear(head.in_features, num_classes)
    if network is head:
        network = new_head
    else:
        parent = network.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], new_head)
    replaced = Classifier(network, model.arch, num_classes, *model.channels)
    replaced.trained_on = model.trained_on
    return replaced


def _small_resnet(num_classes: int, width: int) -> nn.Module:
    """Three basic blocks behind a stem of stride 2, at `width`, 2 and 4 times `width` channels."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    channels = width
    for stage in range(3):
        planes, stride = width << stage, 1 if stage == 0 else 2
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(
                nn.Conv2d(channels, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )
        layers.append(BasicBlock(channels, planes, stride, shortcut))
        channels = planes
    head = nn.Linear(channels, num_classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _find_head(network: nn.Module) -> tuple[str, nn.Linear]:
    linear = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(
            f"`network` must end in an nn.Linear; got {type(network).__name__} without one. "
            "Choose a classifier with a linear head."
        )
    return linear[-1]
