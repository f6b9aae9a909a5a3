"""simplejpeg in a dataset of PyTorch: fast DCT, and decoding to half the size for large crops.

`min_height`, `min_width` and `fastdct` are what its documentation advises for speed.
"""

from pathlib import Path
from typing import Any

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "simplejpeg"
REQUIRES = ("simplejpeg", "cv2", "torch")


def load(job: Job) -> Epochs:
    import cv2
    import numpy as np
    from simplejpeg import decode_jpeg, decode_jpeg_header

    from benchmarks.peers.crops import draw_crop
    from benchmarks.peers.files import load_files

    rng = np.random.default_rng(job.seed)

    def read(path: str) -> Any:
        data = Path(path).read_bytes()
        height, width, *_ = decode_jpeg_header(data)
        top, left, tall, wide = draw_crop(job, height, width, rng)
        # The smallest size at which the crop still has the pixels of the result.
        factor = min(1.0, max(job.side / tall, job.side / wide))
        least = {"min_height": factor * height, "min_width": factor * width, "min_factor": 1}
        image = decode_jpeg(data, "RGB", fastdct=True, fastupsample=True, **least)
        by, across = image.shape[0] / height, image.shape[1] / width
        rows = slice(round(top * by), round((top + tall) * by))
        crop = image[rows, round(left * across) : round((left + wide) * across)]
        resized = cv2.resize(crop, (job.side, job.side), interpolation=cv2.INTER_LINEAR)
        return cv2.flip(resized, 1) if rng.random() < 0.5 else resized

    return load_files(job, read)
