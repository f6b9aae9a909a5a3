"""mosaicml-streaming: the retained JPEGs in MDS shards of their own, because it has no filter."""

from typing import Any

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "mosaicml-streaming"
REQUIRES = ("streaming", "torchvision")


def prepare(job: Job) -> None:
    from streaming import MDSWriter

    columns = {"image": "bytes", "id": "int"}
    with MDSWriter(out=str(job.own / "mds"), columns=columns) as writer:
        for path, number in zip(job.paths, job.ids, strict=True):
            writer.write({"image": path.read_bytes(), "id": number})


def load(job: Job) -> Epochs:
    import torch
    from streaming import StreamingDataLoader, StreamingDataset
    from torchvision.io import ImageReadMode, decode_jpeg

    from benchmarks.peers.files import augment

    transform = augment(job)

    class Crops(StreamingDataset):  # type: ignore[misc]  # streaming is untyped here
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            data = torch.frombuffer(bytearray(sample["image"]), dtype=torch.uint8)
            return transform(decode_jpeg(data, ImageReadMode.RGB)), sample["id"]

    dataset = Crops(
        local=str(job.own / "mds"),
        shuffle=True,
        shuffle_seed=job.seed,
        batch_size=job.batch_size,
        num_canonical_nodes=1,
    )
    loader = StreamingDataLoader(dataset, batch_size=job.batch_size)
    return lambda _: loader
