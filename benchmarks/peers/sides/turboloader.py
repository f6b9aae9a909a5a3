"""turboloader's fast path with `train_aug=True`, over a tar of the retained files.

It reads tar files and has no selection, so the subset is written to a tar of its own. Ids come from
`meta["indices"]`, as its README says for labels.
"""

import tarfile
from collections.abc import Iterator

from benchmarks.peers.job import Batch, Epochs, Job

DISTRIBUTION = "turboloader"
REQUIRES = ("turboloader",)


def prepare(job: Job) -> None:
    with tarfile.open(job.own / "retained.tar", "w") as tar:
        for path in job.paths:
            tar.add(path, path.name)


def load(job: Job) -> Epochs:
    import numpy as np
    import turboloader

    ids = np.array(job.ids)
    loader = turboloader.DataLoader(
        str(job.own / "retained.tar"),
        batch_size=job.batch_size,
        image_size=job.side,
        output_format="pytorch",
        shuffle=True,
        seed=job.seed,
        train_aug=True,
    )

    def epoch(number: int) -> Iterator[Batch]:
        loader.set_epoch(number)
        for images, meta in loader:
            yield images, ids[np.asarray(meta["indices"])]

    return epoch
