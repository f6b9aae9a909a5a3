"""Surrogate models: a network with its normalisation, built by name."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ...errors import CheckpointError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# ResNets for images of 32 to 64 pixels and few cores, by the channels of their first stage.
SMALL_RESNETS = {"resnet8_w16": 16, "resnet8_w32": 32}
TIMM = "timm:"
# Of torchvision: with more heads, in training, which would make the output a tuple.
_INCEPTIONS = {"googlenet", "inception_v3"}
_ONE_HEAD = {"aux_logits": False, "init_weights": False}  # the latter's absence raises a warning


class NoHead(nn.Identity):
    """Stands where an encoder's head was, and lets its input, the feature, pass.

    Args:
        in_features: D.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features


class BlurPoolConv(nn.Module):
    """A strided convolution behind a blur (Zhang, ICML 2019), as ffcv-imagenet trains with.

    Args:
        conv: the convolution.
    """

    blur_filter: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.conv = conv
        # One filter a channel, (in_channels, 1, 3, 3): the key and the shape that such files have.
        self.register_buffer(
            "blur_filter", torch.outer(row, row).repeat(conv.in_channels, 1, 1, 1).contiguous()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Blur each channel, then convolve."""
        blurred = F.conv2d(images, self.blur_filter, padding=1, groups=self.conv.in_channels)
        convolved: Tensor = self.conv(blurred)
        return convolved


class Classifier(nn.Module):
    """A network with its normalisation: uint8 images in, logits out.

    Without a head it is an encoder, as self-supervised training gives one: `num_classes` is None,
    `head` a `NoHead`, and its output the feature.

    Args:
        network: maps normalised images `(B, 3, H, W)` to logits `(B, C)`; its last `nn.Linear` is
            the head, whose input is the feature.
        arch: name to build the network again by.
        num_classes: C; None takes the head off `network`.
        mean: per channel, for pixels in [0, 1].
        std: likewise.

    Raises:
        ValueError: the network has no linear layer, or the normalisation is not that of three
            channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        arch: str,
        num_classes: int | None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        _, head = _find_head(network)  # now rather than after a training
        if num_classes is None:
            network = _with_head(network, NoHead(head.in_features))
        self.network = network
        self.arch = arch
        self.num_classes = num_classes
        self.trained_on: str | None = None  # fingerprint of the beton that the weights come from
        self.channels = _three("mean", mean), _three("std", std)
        # Not in the state dict, whose keys stay those of the network.
        for name, values in zip(("mean", "std"), self.channels, strict=True):
            buffer = 255.0 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    @property
    def head(self) -> nn.Linear | NoHead:
        """The last linear layer, or what stands in its place; `head.in_features` is D."""
        return _find_head(self.network)[1]

    @property
    def head_name(self) -> str:
        """The head's name in the network, which its keys in a state dict start with."""
        return _find_head(self.network)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(B, C)` of images `(B, 3, H, W)` with values 0 to 255.

        Of an encoder, the features `(B, D)`.
        """
        outputs: Tensor = self.network((images.float() - self.mean) / self.std)
        return outputs

    def features(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return logits `(B, C)` and pooled features `(B, D)`, the head's input, from one pass.

        The logits are None if and only if `num_classes` is: an encoder says nothing of classes.
        """
        caught: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            logits = self(images)
        finally:
            handle.remove()
        return None if self.num_classes is None else logits, caught[0]


def build_model(arch: str, num_classes: int | None) -> Classifier:
    """Build an untrained classifier, or an encoder.

    Args:
        arch: any classification model of torchvision that ends in a linear layer, which is all but
            SqueezeNet, the Inceptions without their auxiliary heads, `resnet8_w16` or `resnet8_w32`
            for images of 32 to 64 pixels, or, where timm is installed, one of timm: `timm:NAME`, or
            its name alone if torchvision has none of that name.
        num_classes: outputs C; None builds an encoder, without a head.

    Returns:
        The model, which normalises as for ImageNet, or as timm says for its models.

    Raises:
        ValueError: there is no such architecture, or it does not end in a linear layer.
    """
    arch = full_name(arch)
    outputs = 1 if num_classes is None else num_classes
    if arch in SMALL_RESNETS:
        return Classifier(_small_resnet(outputs, SMALL_RESNETS[arch]), arch, num_classes)
    if not arch.startswith(TIMM):
        options = _ONE_HEAD if arch in _INCEPTIONS else {}
        network = torchvision.models.get_model(arch, weights=None, num_classes=outputs, **options)
        return Classifier(network, arch, num_classes)
    network, channels = _timm_model(arch.removeprefix(TIMM), num_classes=outputs)
    return Classifier(network, arch, num_classes, *channels)


def pretrained_model(arch: str) -> Classifier:
    """Load a model with the pretrained weights of torchvision, or of timm for `timm:NAME`.

    The weights come from the cache of torch or of Hugging Face, or are downloaded into it.

    Raises:
        CheckpointError: there are no pretrained weights, or they cannot be downloaded.
    """
    try:
        if arch.startswith(TIMM):
            network, channels = _timm_model(arch.removeprefix(TIMM), pretrained=True)
            num_classes = int(network.num_classes)  # type: ignore[arg-type]
        else:
            weights = torchvision.models.get_model_weights(arch).DEFAULT
            network = torchvision.models.get_model(arch, weights=weights)
            preset = weights.transforms()
            channels = preset.mean, preset.std
            num_classes = len(weights.meta["categories"])
        return Classifier(network, arch, num_classes, *channels)
    except Exception as error:  # torchvision, timm and their downloads raise many kinds
        raise CheckpointError(
            f"no pretrained weights of {arch!r}: {error}. Pass the path of a checkpoint instead."
        ) from error


def is_architecture(name: str) -> bool:
    """Return whether `name` is an architecture of this project, of torchvision or `timm:NAME`."""
    known = {*SMALL_RESNETS, *torchvision.models.list_models(module=torchvision.models)}
    return name in known or name.startswith(TIMM)


def full_name(arch: str) -> str:
    """Return the name by which an architecture is recorded: timm's start with `timm:`."""
    return arch if is_architecture(arch) else TIMM + arch


def replace_head(model: Classifier, num_classes: int | None) -> Classifier:
    """Return a copy of `model` with a new, freshly initialised head of `num_classes` outputs.

    None leaves the head off: the copy is an encoder.
    """
    network = copy.deepcopy(model.network)
    if num_classes is not None:
        network = _with_head(network, nn.Linear(model.head.in_features, num_classes))
    replaced = Classifier(network, model.arch, num_classes, *model.channels)
    replaced.trained_on = model.trained_on
    return replaced


def _timm_model(name: str, **options: Any) -> tuple[nn.Module, tuple[Any, Any]]:
    """Build a model of timm, and return the mean and std that it was made for."""
    try:
        import timm
    except ImportError:
        raise ValueError(
            f"`arch` must be one of {sorted(SMALL_RESNETS)} or a classifier of torchvision where "
            f"timm is not installed; got {name!r}. Install it with `pip install timm`, or see "
            "torchvision.models.list_models()."
        ) from None
    try:
        if not timm.is_model(name):
            raise RuntimeError("unknown")
        network: Any = timm.create_model(name, **options)
    except RuntimeError as error:  # timm's own for an unknown tag, `NAME.TAG`
        raise ValueError(
            f"`arch` must be one of {sorted(SMALL_RESNETS)} or a classifier of torchvision or "
            f"timm; got {name!r}. See torchvision.models.list_models() and timm.list_models()."
        ) from error
    if network.get_classifier() is not _find_head(network)[1]:
        raise ValueError(
            f"`arch` must name a classifier that ends in one nn.Linear; got {TIMM}{name}. "
            "Choose another."
        )
    data: Any = timm.data
    config = data.resolve_model_data_config(network)
    return network, (config["mean"], config["std"])


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


def _find_head(network: nn.Module) -> tuple[str, nn.Linear | NoHead]:
    heads = [
        (name, part)
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear | NoHead)
    ]
    if not heads:
        raise ValueError(
            f"`network` must end in an nn.Linear; got {type(network).__name__} without one. "
            "Choose a classifier with a linear head: SqueezeNet's, for one, is a convolution."
        )
    return heads[-1]


def _with_head(network: nn.Module, head: nn.Module) -> nn.Module:
    """Put another head in the place of the old one; a network that is its head becomes `head`."""
    name, old = _find_head(network)
    if network is old:
        return head
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, head)
    return network


def _three(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    found = tuple(map(float, values))
    if len(found) != 3:
        raise ValueError(
            f"`{name}` must have 3 values, one a channel; got {found}. Give those of the training."
        )
    return found
