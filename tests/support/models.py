"""Small models and images for tests."""

from typing import Any

import torch

from dp4tl_ffcv import build_model
from dp4tl_ffcv.utils import Classifier


def make(arch: str = "resnet8_w16", num_classes: int | None = 5) -> Classifier:
    """Build a model whose weights are the same in every call."""
    torch.manual_seed(0)
    return build_model(arch, num_classes)


def images(count: int = 3, side: int = 32) -> torch.Tensor:
    """Return random images, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def outputs(model: Classifier) -> torch.Tensor:
    """Return the outputs for three images, in evaluation mode."""
    return model.eval()(images())


def assert_same_state(one: Any, other: Any) -> None:
    """Assert that two state dicts are equal to the bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
