"""The first batch of a run, which compiles and sets up what training needs."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def try_batch(
    model: nn.Module, loader: Iterable[tuple[Tensor, ...]], loss_of: Callable[..., Tensor]
) -> None:
    """Take the first batch forward and backward, and leave the model as it was."""
    batch = next(iter(loader))
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    changing = [(tensor, tensor.clone()) for tensor in (*model.buffers(), *frozen)]
    model.train()
    loss_of(*batch).backward()
    for weight in model.parameters():
        weight.grad = None
    with torch.no_grad():
        for tensor, before in changing:
            tensor.copy_(before)
