"""SPDL: a pipeline that decodes, crops and resizes in FFmpeg filters, as its image example does."""

from collections.abc import Iterator
from typing import Any

from benchmarks.peers.job import Batch, Epochs, Job

DISTRIBUTION = "spdl"
REQUIRES = ("spdl.io", "spdl.pipeline")
LIBRARIES = ("avutil", "avdevice")  # FFmpeg 4 to 9, which the package does not contain


def load(job: Job) -> Epochs:
    import numpy as np
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    from benchmarks.peers.crops import draw_crop

    rng = np.random.default_rng(job.seed)
    samples = list(zip(map(str, job.paths), job.ids, strict=True))

    def decode(sample: tuple[str, int]) -> tuple[Any, int]:
        packets = spdl.io.demux_image(sample[0])
        top, left, tall, wide = draw_crop(job, packets.height, packets.width, rng)
        crop = f"crop={wide}:{tall}:{left}:{top}:exact=1"
        scale = f"scale={job.side}:{job.side}:flags=bilinear"
        flip = ",hflip" if rng.random() < 0.5 else ""
        filters = f"{crop},{scale}{flip},format=pix_fmts=rgb24"
        return spdl.io.decode_packets(packets, filter_desc=filters), sample[1]

    def batch(decoded: list[tuple[Any, int]]) -> Batch:
        frames, ids = zip(*decoded, strict=True)
        return spdl.io.to_torch(spdl.io.convert_frames(list(frames))), ids

    def epoch(_: int) -> Iterator[Batch]:
        shuffled = [samples[at] for at in rng.permutation(len(samples))]
        builder = PipelineBuilder().add_source(shuffled).pipe(decode, concurrency=1)
        builder = builder.aggregate(job.batch_size).pipe(batch).add_sink(2)
        pipeline = builder.build(num_threads=1)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch
