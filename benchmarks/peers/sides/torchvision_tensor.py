"""torchvision on tensors: `decode_jpeg` and transforms v2, which its guide calls the fastest."""

from typing import Any

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "torchvision"
REQUIRES = ("torchvision",)


def load(job: Job) -> Epochs:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    from benchmarks.peers.files import augment, load_files

    transform = augment(job)

    def read(path: str) -> Any:
        return transform(decode_jpeg(read_file(path), ImageReadMode.RGB))

    return load_files(job, read)
