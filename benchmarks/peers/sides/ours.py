"""PrunedLoader: `indices=` selects the subset of the full source's beton.

It is measured after a first epoch, which makes the index of the retained JPEGs.
"""

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "dp4tl_ffcv"
REQUIRES = ("ffcv",)


def prepare(job: Job) -> None:
    """Load an epoch. The first one indexes the JPEGs, for later epochs and processes."""
    for _ in load(job)(0):
        pass


def load(job: Job) -> Epochs:
    from dp4tl_ffcv import PrunedLoader, RandomResizedCropRGBImageDecoder

    # isort: split
    # After ours, because ffcv alone compiles for seconds while it is imported.
    from ffcv.fields.basics import IntDecoder
    from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

    size = (job.side, job.side)
    crop = RandomResizedCropRGBImageDecoder(size, scale=job.scale, ratio=job.ratio, flip=0.5)
    loader = PrunedLoader(
        job.beton,
        batch_size=job.batch_size,
        num_workers=1,
        order="random",
        seed=job.seed,
        drop_last=False,
        indices=job.ids,
        pipelines={
            "image": [crop, ToTensor(), ToTorchImage()],
            "label": None,
            "identifier": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )
    return lambda _: loader
