"""A process that extracts features. Tests kill it, or start several with torchrun's variables.

    python tests/extraction_process.py BETON DELAY OUT...

Prints, for each OUT, the ids that were loaded, and a digest of the features or the error.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dp4tl_ffcv import Features, build_model, extract_features, extraction
from dp4tl_ffcv.scoring.features import blocks
from dp4tl_ffcv.utils import Classifier, process_group

SAMPLES = 70
CLASSES = 5
IDS = np.random.default_rng(1).permutation(SAMPLES)


def surrogate(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return build_model("resnet8_w16", CLASSES)


def pixels() -> Tensor:
    """Return the image of every sample id."""
    generator = torch.Generator().manual_seed(3)
    shape = (SAMPLES, 3, 8, 8)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def labels() -> Tensor:
    """Return the label of every sample id, 0 to 3."""
    return torch.arange(SAMPLES) * 7 % 4


def fake_loader(
    loaded: list[int], before: Callable[[], Any] = int, numbers: Tensor | None = None
) -> Callable[..., Iterator[tuple[Tensor, Tensor]]]:
    """Return a stand-in for `evaluation_loader` that records the ids it loads.

    It calls `before` before each batch, and reuses its buffers as ffcv does.
    """

    def load(
        _: Any, *, indices: Any, batch_size: int, device: Any, **__: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        images, all_labels = pixels(), labels() if numbers is None else numbers
        image_buffer = torch.empty((batch_size, *images.shape[1:]), dtype=torch.uint8)
        label_buffer = torch.empty((batch_size, 1), dtype=torch.int64)
        for start in range(0, len(indices), batch_size):
            before()
            ids = torch.from_numpy(np.asarray(indices)[start : start + batch_size])
            loaded.extend(ids.tolist())
            image_buffer[: len(ids)] = images[ids]
            label_buffer[: len(ids), 0] = all_labels[ids]
            yield image_buffer[: len(ids)].to(device), label_buffer[: len(ids)].to(device)

    return load


def digest(features: Features) -> str:
    """Return a hash of all arrays."""
    names = "features labels indices logits predictions confidences soft_votes sums counts"
    arrays = [np.asarray(getattr(features, name)).tobytes() for name in names.split()]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def main(beton: str, delay: str, *outs: str) -> None:
    """Extract in blocks of 10 rows, waiting `delay` seconds before each batch."""
    torch.set_num_threads(1)
    extraction.BLOCK_ROWS = blocks.BLOCK_ROWS = 10
    options: dict[str, Any] = {"indices": IDS, "logits": True, "batch_size": 5, "device": "cpu"}
    with process_group():
        for out in outs:
            loaded: list[int] = []
            extraction.evaluation_loader = fake_loader(loaded, lambda: time.sleep(float(delay)))
            try:
                found = {"digest": digest(extract_features(surrogate(), beton, out, **options))}
            except ValueError as error:
                found = {"error": str(error)}
            print(json.dumps({"loaded": loaded, **found}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
