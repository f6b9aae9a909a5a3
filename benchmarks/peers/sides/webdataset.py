"""webdataset: shards of the full source, and `.select` before decoding, as its maintainer advises.

Shards can only be read whole, so pruned samples are read and dropped.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import Any

from benchmarks.peers.job import Batch, Epochs, Job

DISTRIBUTION = "webdataset"
REQUIRES = ("webdataset", "torchvision")
PER_SHARD = 1000


def prepare(job: Job) -> None:
    paths = sorted(job.files.iterdir())
    for start in range(0, len(paths), PER_SHARD):
        with tarfile.open(job.own / f"{start:06}.tar", "w") as tar:
            for path in paths[start : start + PER_SHARD]:
                tar.add(path, path.name)


def load(job: Job) -> Epochs:
    import webdataset
    from PIL import Image
    from torchvision.transforms import v2

    from benchmarks.peers.files import augment

    transform = v2.Compose([augment(job), v2.PILToTensor()])
    retained = {f"{number:06}" for number in job.ids}

    def decode(sample: dict[str, Any]) -> tuple[Any, int]:
        picture = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        return transform(picture), int(sample["__key__"])

    shards = sorted(map(str, job.own.glob("*.tar")))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=job.seed, empty_check=False)
        .select(lambda sample: sample["__key__"] in retained)
        .shuffle(1000)
        .map(decode)
        .batched(job.batch_size, partial=True)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=0)

    def epoch(_: int) -> Iterator[Batch]:
        yield from loader

    return epoch
