"""The networks and the queue of MoCo, made of lightly's modules."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp4tl_ffcv import build_model
from dp4tl_ffcv.utils import Classifier

from ..configs.pretrain_moco import Config


class MoCo(nn.Module):
    """The query network, the key network that follows it slowly, and the queue of keys.

    Args:
        config: settings of the run.
        distributed: put the keys of all processes into the queue.
    """

    def __init__(self, config: Config, *, distributed: bool) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        encoder = build_model(config.arch, None)
        if config.norm_batch is not None:
            group_norms(encoder, config.norm_batch)
        width = encoder.head.in_features
        projection = MoCoProjectionHead(width, width, config.projection_size)
        self.query = nn.Sequential(encoder, projection)
        self.key = copy.deepcopy(self.query)
        deactivate_requires_grad(self.key)
        self.loss = NTXentLoss(
            config.temperature,
            (config.queue, config.projection_size),
            gather_distributed=distributed,
        )

    @property
    def encoder(self) -> Classifier:
        """The encoder in the query network, which the run saves."""
        return cast(Classifier, self.query[0])

    def keep_place_on_host(self) -> None:
        """Move the queue's position to the host, where lightly reads it without waiting."""
        bank = self.loss.memory_bank
        bank.bank_ptr = bank.bank_ptr.cpu()

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the queue, which lightly does not put into the state."""
        bank = self.loss.memory_bank
        return {"queue": bank.bank.clone(), "place": bank.bank_ptr.clone()}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a saved queue."""
        bank = self.loss.memory_bank
        bank.bank.copy_(state["queue"])
        bank.bank_ptr.copy_(state["place"])


class GroupedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over parts of the batch, as on several GPUs.

    The running statistics come from the first part, as they come from the first GPU. The state has
    the names and shapes of `nn.BatchNorm2d`.

    Args:
        norm: the layer to replace.
        size: images per part. The batch is divided into equal parts of about this size.
    """

    def __init__(self, norm: nn.BatchNorm2d, size: int) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Normalise each part by its own statistics; in evaluation, by the running statistics."""
        num_parts = max(1, round(len(images) / self.size))
        if not self.training or num_parts == 1:
            return super().forward(images)
        first, *others = images.tensor_split(num_parts)
        affine: dict[str, Any] = {"weight": self.weight, "bias": self.bias, "eps": self.eps}
        parts = [F.batch_norm(part, None, None, training=True, **affine) for part in others]
        return torch.cat([super().forward(first), *parts])


def group_norms(network: nn.Module, size: int) -> None:
    """Replace every `nn.BatchNorm2d` by `GroupedBatchNorm`."""
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is nn.BatchNorm2d:
                setattr(parent, name, GroupedBatchNorm(part, size))
