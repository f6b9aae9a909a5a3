"""Small models and images for tests."""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

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


class Blurred(nn.Module):
    """The blurred convolution of ffcv-imagenet, with the names of its weights."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        weights = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.register_buffer("blur_filter", weights.expand(conv.in_channels, 1, 3, 3).clone())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        padded, (rows, columns) = F.pad(values, (1, 1, 1, 1)), values.shape[2:]
        blurred = torch.zeros_like(values)
        for y, x in product(range(3), range(3)):
            weight = (1, 2, 1)[y] * (1, 2, 1)[x] / 16
            blurred += weight * padded[:, :, y : y + rows, x : x + columns]
        result: torch.Tensor = self.conv(blurred)
        return result


def assert_same_state(one: Any, other: Any) -> None:
    """Assert that two state dicts are equal to the bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
