"""grain: a shuffled `MapDataset` of the retained files, decoded by OpenCV in its reading thread."""

from typing import Any

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "grain"
REQUIRES = ("grain", "cv2")


def load(job: Job) -> Epochs:
    import grain
    import numpy as np

    from benchmarks.peers.crops import crop_and_resize, read_rgb

    def read(sample: tuple[str, int], rng: np.random.Generator) -> Any:
        return crop_and_resize(job, read_rgb(sample[0]), rng), sample[1]

    samples = list(zip(map(str, job.paths), job.ids, strict=True))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=job.batch_size)

    def epoch(number: int) -> Any:
        dataset = grain.MapDataset.source(samples).seed(job.seed + number).shuffle()
        return dataset.random_map(read).to_iter_dataset(options).batch(job.batch_size)

    return epoch
