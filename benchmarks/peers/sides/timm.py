"""timm's own transforms and collation, as `timm.data.create_loader` sets them up with a prefetcher.

The prefetcher itself, which normalizes on the GPU, is left out: batches stay uint8.
"""

from typing import Any

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "timm"
REQUIRES = ("timm",)


def load(job: Job) -> Epochs:
    from timm.data import create_transform
    from timm.data.loader import fast_collate
    from torchvision.datasets.folder import pil_loader

    from benchmarks.peers.files import load_files

    transform = create_transform(
        job.side,
        is_training=True,
        scale=job.scale,
        ratio=job.ratio,
        hflip=0.5,
        color_jitter=0.0,
        use_prefetcher=True,
    )

    def read(path: str) -> Any:
        return transform(pil_loader(path))

    return load_files(job, read, collate_fn=fast_collate)
