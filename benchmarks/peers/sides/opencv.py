"""OpenCV's decoder and resizing in a dataset of PyTorch: what many recipes do by hand."""

from typing import Any

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "opencv-python"
REQUIRES = ("cv2", "torch")


def load(job: Job) -> Epochs:
    import numpy as np

    from benchmarks.peers.crops import crop_and_resize, read_rgb
    from benchmarks.peers.files import load_files

    rng = np.random.default_rng(job.seed)

    def read(path: str) -> Any:
        return crop_and_resize(job, read_rgb(path), rng)

    return load_files(job, read)
