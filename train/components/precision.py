"""Mixed precision on a GPU; a CPU computes in float32."""

from typing import Literal

import torch

Amp = Literal["bf16", "fp16", "off"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}


def autocast(amp: Amp, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass."""
    return torch.autocast(device.type, _TYPES[amp], enabled=device.type == "cuda" and amp != "off")


def loss_scaler(amp: Amp, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of the loss, which only fp16 on a GPU needs."""
    enabled = amp == "fp16" and device.type == "cuda"
    return torch.amp.GradScaler(device.type, enabled=enabled)
