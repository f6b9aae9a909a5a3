"""Models: a network with its normalisation, built by the name of its architecture."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# ResNets for images of 32 to 64 pixels and few cores: channels of the first stage.
SMALL_RESNETS = {"resnet8_w16": 16, "resnet8_w32": 32}
TIMM, TORCHVISION = "timm:", "torchvision:"
# With auxiliary heads, the output in training would be a tuple. init_weights avoids a warning.
_INCEPTIONS = {"googlenet", "inception_v3"}
_ONE_HEAD = {"aux_logits": False, "init_weights": False}


class NoHead(nn.Identity):
    """Replacement for the head in an encoder: returns its input, the feature."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features


class BlurPoolConv(nn.Module):
    """A strided convolution after a blur (Zhang, ICML 2019), as in ffcv-imagenet."""

    blur_filter: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.conv = conv
        # One filter per channel, (in_channels, 1, 3, 3): key and shape of ffcv-imagenet's files.
        self.register_buffer(
            "blur_filter", torch.outer(row, row).repeat(conv.in_channels, 1, 1, 1).contiguous()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Blur each channel, then convolve."""
        blurred = F.conv2d(images, self.blur_filter, padding=1, groups=self.conv.in_channels)
        convolved: Tensor = self.conv(blurred)
        return convolved


class Classifier(nn.Module):
    """A network that normalises its images: maps uint8 images to logits.

    An encoder is a classifier without a head: `num_classes` is None, and it returns features.

    Args:
        network: maps normalised images `(B, 3, H, W)` to logits `(B, C)`. Its last `nn.Linear` is
            the head; the input of the head is the feature.
        arch: name of the architecture, recorded in checkpoints.
        num_classes: C; None removes the head from `network`.
        mean: mean per channel, for pixels in [0, 1].
        std: standard deviation per channel.

    Raises:
        ValueError: the network has no linear layer, or `mean` or `std` does not have three values.
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
        _, head = _find_head(network)
        if num_classes is None:
            network = _with_head(network, NoHead(head.in_features))
        self.network = network
        self.arch = arch
        self.num_classes = num_classes
        self.trained_on: str | None = None  # fingerprint of the training beton
        self._class_names: tuple[str, ...] = ()
        self.channels = tuple(map(float, mean)), tuple(map(float, std))
        for name, values in zip(("mean", "std"), self.channels, strict=True):
            if len(values) != 3:
                raise ValueError(f"`{name}` must have three values, one per channel; got {values}.")
            buffer = 255.0 * torch.tensor(values).view(1, 3, 1, 1)
            # Not part of the state dict, which has exactly the keys of the network.
            self.register_buffer(name, buffer, persistent=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order `(C,)`; empty if they are unknown."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str]) -> None:
        if names and len(names) != self.num_classes:
            raise ValueError(
                f"`class_names` must name each of the {self.num_classes or 0} outputs; got "
                f"{len(names)} names."
            )
        self._class_names = tuple(names)

    @property
    def head(self) -> nn.Linear | NoHead:
        """The last linear layer, or an encoder's `NoHead`. `head.in_features` is D."""
        return _find_head(self.network)[1]

    @property
    def head_name(self) -> str:
        """Name of the head in the network: the prefix of its keys in the state dict."""
        return _find_head(self.network)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, C)`, or an encoder's features `(B, D)`.

        Args:
            images: `(B, 3, H, W)` with values 0 to 255.
        """
        outputs: Tensor = self.network((images.float() - self.mean) / self.std)
        return outputs

    def features(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return logits `(B, C)`, None for an encoder, and features `(B, D)`."""
        caught: list[Tensor] = []
        with self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])):
            logits = self(images)
        return None if self.num_classes is None else logits, caught[0]


def build_model(arch: str, num_classes: int | None) -> Classifier:
    """Build an untrained classifier or encoder.

    Images are normalised as for ImageNet; for timm's models, as timm prescribes.

    Args:
        arch: a classification model of torchvision (any but SqueezeNet, which has no linear head;
            the Inceptions have no auxiliary heads); `resnet8_w16` or `resnet8_w32` for images of 32
            to 64 pixels; or, if timm is installed, `timm:NAME`. The prefix can be left out if
            torchvision has no model of that name; `torchvision:NAME` is understood too.
        num_classes: number of outputs C; None builds an encoder.

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
    network, channels = timm_model(arch.removeprefix(TIMM), num_classes=outputs)
    return Classifier(network, arch, num_classes, *channels)


def is_architecture(name: str) -> bool:
    """Return whether `name` is an architecture of this project, of torchvision or `timm:NAME`."""
    of_torchvision = torchvision.models.list_models(module=torchvision.models)
    known = {*SMALL_RESNETS, *of_torchvision, *(TORCHVISION + each for each in of_torchvision)}
    return name in known or name.startswith(TIMM)


def full_name(arch: str) -> str:
    """Return the name of an architecture with the prefix `timm:` for timm's, and no other."""
    return arch.removeprefix(TORCHVISION) if is_architecture(arch) else TIMM + arch


def replace_head(model: Classifier, num_classes: int | None) -> Classifier:
    """Return a copy of `model` with a newly initialised head of `num_classes` outputs.

    None makes the copy an encoder, without a head. The copy has no class names.
    """
    network = copy.deepcopy(model.network)
    if num_classes is not None:
        network = _with_head(network, nn.Linear(model.head.in_features, num_classes))
    replaced = Classifier(network, model.arch, num_classes, *model.channels)
    replaced.trained_on = model.trained_on
    return replaced


def timm_model(name: str, **options: Any) -> tuple[Any, tuple[Any, Any]]:
    """Return a network of timm that ends in a linear layer, and its mean and std per channel.

    A network that timm has without a classifier gets a `NoHead`.

    Args:
        name: name of the model.
        options: arguments of `timm.create_model`.

    Raises:
        ValueError: timm is not installed, has no such model, or the model ends in something else.
    """
    choices = f"Choose one of {', '.join(SMALL_RESNETS)}, torchvision.models.list_models()"
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"there is no architecture {name!r} without timm, which is not installed. {choices}, "
            "or run `pip install timm`."
        ) from error
    unknown = f"there is no architecture {name!r}. {choices} or timm.list_models()."
    if not timm.is_model(name):  # create_model would look up names such as hf_hub:NAME
        raise ValueError(unknown)
    try:
        network: Any = timm.create_model(name, **options)
    except RuntimeError as error:
        if "tag" not in str(error):  # of NAME.TAG
            raise
        raise ValueError(unknown) from error
    if network.num_classes == 0:
        setattr(network, network.default_cfg["classifier"], NoHead(network.num_features))
    if network.get_classifier() is not _find_head(network)[1]:
        raise ValueError(
            f"{TIMM}{name} does not end in one nn.Linear. Choose another architecture."
        )
    data: Any = timm.data
    config = data.resolve_model_data_config(network)
    return network, (config["mean"], config["std"])


def _small_resnet(num_classes: int, width: int) -> nn.Module:
    """Build three basic blocks of `width`, 2 and 4 times `width` channels after a stem."""
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
            f"{type(network).__name__} does not end in an nn.Linear. Choose another architecture."
        )
    return heads[-1]


def _with_head(network: nn.Module, head: nn.Module) -> nn.Module:
    """Replace the head of a network, or the whole network if it is only a head."""
    name, old = _find_head(network)
    if network is old:
        return head
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, head)
    return network
