"""Stock ffcv: `indices=` and `os_cache=True`, as ffcv-imagenet for files that fit into memory."""

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "ffcv"
REQUIRES = ("ffcv",)


def load(job: Job) -> Epochs:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    crop = RandomResizedCropRGBImageDecoder((job.side, job.side), job.scale, job.ratio)
    loader = Loader(
        str(job.beton),
        batch_size=job.batch_size,
        num_workers=1,
        order=OrderOption.RANDOM,
        os_cache=True,
        seed=job.seed,
        drop_last=False,
        indices=job.ids,
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": None,
            "identifier": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )
    return lambda _: loader
