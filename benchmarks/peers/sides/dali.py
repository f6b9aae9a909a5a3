"""DALI on the CPU: its fused decoder of random crops over a list of files.

The pipeline is that of its ImageNet example, up to normalization.
"""

from collections.abc import Iterator

from benchmarks.peers.job import Batch, Epochs, Job

DISTRIBUTION = "nvidia-dali-cuda120"
REQUIRES = ("nvidia.dali",)


def load(job: Job) -> Epochs:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(batch_size=job.batch_size, num_threads=1, device_id=None, seed=job.seed)
    def crops():  # type: ignore[no-untyped-def]  # DALI's nodes are untyped
        encoded, labels = fn.readers.file(
            files=[str(path) for path in job.paths],
            labels=list(job.ids),
            shuffle_after_epoch=True,  # all files; `random_shuffle` mixes two epochs
            pad_last_batch=True,  # else it is filled from the next epoch
            name="Reader",
        )
        images = fn.decoders.image_random_crop(
            encoded,
            device="cpu",
            output_type=types.RGB,
            random_area=job.scale,
            random_aspect_ratio=job.ratio,
            num_attempts=10,
        )
        images = fn.resize(
            images,
            resize_x=job.side,
            resize_y=job.side,
            interp_type=types.INTERP_TRIANGULAR,
        )
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    loader = DALIGenericIterator(
        [crops()],
        ["images", "ids"],
        reader_name="Reader",
        last_batch_policy=LastBatchPolicy.PARTIAL,
        auto_reset=True,
    )

    def epoch(_: int) -> Iterator[Batch]:
        for (batch,) in loader:
            yield batch["images"], batch["ids"][:, 0]

    return epoch
