"""litdata: `optimize` writes the retained JPEGs to chunks, and transforms decode in `__getitem__`.

Its random `subsample` cannot take a list of ids, so the subset is written on its own.
"""

from typing import Any

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "litdata"
REQUIRES = ("litdata", "torchvision")


def encoded(sample: tuple[str, int]) -> dict[str, Any]:
    """Return a sample for `optimize`, which imports this function in its workers."""
    from litdata import Jpeg

    path, number = sample
    return {"image": Jpeg(path=path), "id": number}


def prepare(job: Job) -> None:
    from litdata import optimize

    samples = list(zip(map(str, job.paths), job.ids, strict=True))
    optimize(encoded, samples, str(job.own / "chunks"), chunk_bytes="64MB", num_workers=1)


def load(job: Job) -> Epochs:
    from litdata import StreamingDataLoader, StreamingDataset

    from benchmarks.peers.files import augment

    transform = augment(job)

    class Crops(StreamingDataset):  # type: ignore[misc]  # litdata is untyped here
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return transform(sample["image"]), sample["id"]

    dataset = Crops(str(job.own / "chunks"), shuffle=True, seed=job.seed, drop_last=False)
    loader = StreamingDataLoader(dataset, batch_size=job.batch_size, drop_last=False)
    return lambda _: loader
