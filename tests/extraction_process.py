"""One process of an extraction, for tests that kill it or start several; a module of samples, too.

    python tests/extraction_process.py OUT DELAY    # with torchrun's variables, or without

Prints the ids that were loaded and a digest of what came back.
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

from dp4tl_ffcv import Features, build_model, extract_features
from dp4tl_ffcv.scoring.features import blocks
from dp4tl_ffcv.utils import Classifier

SAMPLES = 70
CLASSES = 5
IDS = np.random.default_rng(1).permutation(SAMPLES)
Load = Callable[[Any], Iterator[tuple[Tensor, Tensor]]]


def surrogate(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return build_model("resnet8_w16", CLASSES)


def pixels() -> Tensor:
    """The image of every sample id."""
    generator = torch.Generator().manual_seed(3)
    shape = (SAMPLES, 3, 8, 8)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def labels() -> Tensor:
    """The label of every sample id: 0 to 3."""
    return torch.arange(SAMPLES) * 7 % 4


def loads(loaded: list[int], batch_size: int = 4, before: Callable[[], Any] = int) -> Load:
    """Return a `load` that notes the ids, and calls `before` ahead of each batch."""

    def load(indices: Any) -> Iterator[tuple[Tensor, Tensor]]:
        images, numbers = pixels(), labels()
        # Buffers that are used again, as ffcv's.
        image_buffer = torch.empty((batch_size, *images.shape[1:]), dtype=torch.uint8)
        label_buffer = torch.empty(batch_size, dtype=torch.int64)
        for start in range(0, len(indices), batch_size):
            before()
            ids = torch.from_numpy(np.asarray(indices)[start : start + batch_size])
            loaded.extend(ids.tolist())
            image_buffer[: len(ids)] = images[ids]
            label_buffer[: len(ids)] = numbers[ids]
            yield image_buffer[: len(ids)], label_buffer[: len(ids)]

    return load


def digest(features: Features) -> str:
    """Return a hash of all arrays."""
    names = ("features", "labels", "indices", "logits", "predictions", "mass", "sums", "counts")
    arrays = [np.asarray(getattr(features, name)).tobytes() for name in names]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def main(out: str, delay: str) -> None:
    """Extract with blocks of 10 rows."""
    torch.set_num_threads(1)
    from dp4tl_ffcv.distributed import process_group

    loaded: list[int] = []
    blocks.BLOCK_ROWS = 10
    load = loads(loaded, before=lambda: time.sleep(float(delay)))
    with process_group():
        try:
            features = extract_features(surrogate(), load, IDS, out, logits=True)
        except ValueError as error:
            print(json.dumps({"loaded": loaded, "error": str(error)}))
        else:
            print(json.dumps({"loaded": loaded, "digest": digest(features)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
