"""Which ways to read a target help a surrogate that does not know the target's look?

    python -m benchmarks.looks

Surrogates of the planted digits predict the classes of three targets, each read in four ways: as
the source; with stretched contrast; with the mean of the logits over three resolutions; and with
the target's statistics in batch normalisation (AdaBN, Li et al. 2018). Rows have the share of the
votes for relevant classes, and the share of the relevant classes among the best fifth of the
ranking, for each seed.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.harness.rows import Row, markdown, publish
from dp4tl_ffcv import evaluation_loader, extract_features, label_mapping, load_checkpoint
from dp4tl_ffcv.utils import Classifier, one_line_errors
from train.configs.pretrain import Config as PretrainConfig
from train.pretrain import pretrain
from writers import digits

TARGETS = ("target", "target_rotated", "target_few")
RESOLUTION = 24
SCALES = (20, 24, 28)
RESULT = Path(__file__).parent / "results" / "looks.jsonl"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    seeds: int = 8
    out: Path | None = None
    """File for the rows (.jsonl)."""


def rows_of(seeds: int, folder: Path) -> Iterator[Row]:
    """Yield a row per target and way of reading, with a number per seed."""
    betons = folder / "betons"
    digits.write(digits.Config(out=betons, targets=TARGETS))
    models = [_surrogate(betons, folder / str(seed), seed) for seed in range(seeds)]
    for target in TARGETS:
        relevant = digits.relevant_classes(target)
        found: dict[str, list[tuple[float, float]]] = {}
        for model in models:
            for way, logits in _read(model, betons / f"{target}_train.beton", folder / "features"):
                scores = label_mapping(logits)
                best = scores.ranking()[: len(relevant) // 5]
                votes = float(scores.scores[relevant].sum() / scores.scores.sum())
                kept = float(relevant[best].sum() / relevant.sum())
                found.setdefault(way, []).append((votes, kept))
        for way, numbers in found.items():
            columns = dict(zip(("votes", "kept"), zip(*numbers, strict=True), strict=True))
            yield {"figure": "looks", "target": target, "way": way, **columns}


def _surrogate(betons: Path, run: Path, seed: int) -> Path:
    pretrain(
        PretrainConfig(
            train=betons / "source_train.beton", val=betons / "source_val.beton", run=run,
            arch="resnet8_w16", resolution=RESOLUTION, crop_ratio=1.0, min_scale=0.5, flip=False,
            epochs=8, batch_size=32, lr=0.1, seed=seed,
        )
    )  # fmt: skip
    return run / "checkpoints" / "last.pt"


def _read(model: Path, beton: Path, out: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield logits `(N, C)` of a target for each way of reading."""

    def logits(given: Path | Classifier = model, **options: Any) -> NDArray[np.float32]:
        made = {"resolution": RESOLUTION, "crop_ratio": 1.0, "logits": True, **options}
        return np.array(extract_features(given, beton, out, restart=True, **made).logits)

    yield "as the source", logits()
    yield "with stretched contrast", logits(stretch_contrast=True)
    yield (
        "at 20, 24 and 28 px, mean of logits",
        np.mean([logits(resolution=side) for side in SCALES], axis=0),
    )
    yield "with the target's batch statistics", logits(_adapted(model, beton))


@torch.no_grad()
def _adapted(model: Path, beton: Path) -> Classifier:
    """Return the surrogate with the target's means and variances in batch normalisation."""
    classifier = load_checkpoint(model)
    classifier.eval()
    for module in classifier.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches
            module.train()
    for images, _ in evaluation_loader(
        beton, batch_size=256, resolution=RESOLUTION, crop_ratio=1.0
    ):
        classifier(images)
    return classifier


def table(lines: Sequence[Row]) -> str:
    """Return a table with a row per way of reading, and columns per target.

    Args:
        lines: a head with the `environment`, and rows of `rows_of`.
    """
    _, *rows = lines
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(row["way"], []).extend(
            _with_range(row[name]) for name in ("votes", "kept")
        )
    targets = dict.fromkeys(row["target"] for row in rows)
    columns = [f"{target}: {what}" for target in targets for what in ("votes", "kept")]
    shown = markdown(["read", *columns], ([way, *found] for way, found in cells.items()))
    return (
        f"{shown}\n\nBy `python -m benchmarks.looks`, with {len(rows[0]['votes'])} seeds: means, "
        "and ranges over the seeds. *Votes*: share of label mapping's votes that are for relevant "
        "classes. *Kept*: share of the relevant classes that are among the best fifth. Batch "
        "statistics are those of adaptive batch normalisation."
    )


def _with_range(shares: Sequence[float]) -> str:
    return f"{np.mean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"


def main(config: Config) -> None:
    """Measure and publish."""
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(config.seeds, Path(folder))
        publish(rows, "looks", (), config.out, params={"seeds": config.seeds})


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    with one_line_errors(config):
        main(config)
