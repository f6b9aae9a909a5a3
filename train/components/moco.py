"""What MoCo trains: two networks, one of which follows the other, and a queue of keys.

The modules and the loss are lightly's, which only `train.pretrain_moco` needs.
"""

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp4tl_ffcv import build_model
from dp4tl_ffcv.utils import Classifier

from ..configs.self_supervised import Config


def require_lightly() -> None:
    """Raise a ValueError that says what to install where lightly is missing."""
    if find_spec("lightly") is None:
        raise ValueError(
            "`lightly` must be installed for MoCo; got no module of that name. Install it with "
            "`pip install lightly`."
        )


class MoCo(nn.Module):
    """The network of the queries, its copy that follows slowly for the keys, and their queue.

    Args:
        config: of the run.
        distributed: the queue takes the keys of all processes.
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
        """The encoder of the queries, which the run is for."""
        return cast(Classifier, self.query[0])

    def running_statistics(self) -> list[Tensor]:
        """Return the running means and variances of the encoder."""
        return [values for values in self.encoder.buffers() if values.is_floating_point()]

    def keep_place_on_host(self) -> None:
        """Bring back the queue's place, which lightly reads in each step: no wait for the GPU."""
        bank = self.loss.memory_bank
        bank.bank_ptr = bank.bank_ptr.cpu()

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the queue, which lightly leaves out of its state."""
        bank = self.loss.memory_bank
        return {"queue": bank.bank.clone(), "place": bank.bank_ptr.clone()}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a queue over."""
        bank = self.loss.memory_bank
        bank.bank.copy_(state["queue"])
        bank.bank_ptr.copy_(state["place"])


class GroupedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes its statistics over a part of the batch, as several GPUs do.

    The running statistics are those of the first part, as of the first GPU. The state has the
    names and shapes of `nn.BatchNorm2d`.

    Args:
        norm: what to replace.
        size: images of a part; the batch is cut into as many equal parts as come nearest to it.
    """

    def __init__(self, norm: nn.BatchNorm2d, size: int) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Normalise each part by itself; in evaluation, all by the running statistics."""
        num_parts = max(1, round(len(images) / self.size))
        if not self.training or num_parts == 1:
            return super().forward(images)
        first, *others = images.tensor_split(num_parts)
        affine: dict[str, Any] = {"weight": self.weight, "bias": self.bias, "eps": self.eps}
        parts = [F.batch_norm(part, None, None, training=True, **affine) for part in others]
        return torch.cat([super().forward(first), *parts])


def group_norms(network: nn.Module, size: int) -> None:
    """Put `GroupedBatchNorm` in the place of every `nn.BatchNorm2d`."""
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is nn.BatchNorm2d:
                setattr(parent, name, GroupedBatchNorm(part, size))
