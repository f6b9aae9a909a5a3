"""`dp4tl prune`, which trains a surrogate if none is given."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .programs import run_program
from .verbs import Verb

_COST = (
    "source", "target", "surrogate", "method", "arch", "mean", "std", "resolution", "crop_ratio",
    "num_workers", "timeout",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prune(Verb):
    """Select the part of a source that its targets map to: features, scores and selection.

    To continue a killed run, repeat the command. Several GPUs share the work
    under `torchrun --nproc-per-node N --no-python -- dp4tl prune ...`. Each step can also be taken
    alone: features, cluster, score, select, compact.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Beton of the source, or a folder with train.beton."""
    target: tuple[Path, ...]
    """Beton of a target's training split, or a folder with train.beton; or several."""
    out: Path
    """Folder to write."""
    surrogate: str | None = None
    """Checkpoint, or run folder of `dp4tl pretrain`; or a pretrained model: an architecture of
    torchvision, timm:NAME, or efficientnet-lite0. A file of this name comes first. Default: a small
    classifier of the source, which is trained first, in the folder `surrogate` of --out."""
    method: str = "label_mapping"
    """Scoring method, see `dp4tl score --help`."""
    clusters: int | None = None
    """Score this many k-means clusters of the source instead of its classes."""
    keep: float | Literal["auto"] | None = None
    """Fraction of classes to keep (of samples, for sample scores): 0.4 keeps 40 %; or `auto`, see
    `dp4tl select --help`."""
    keep_classes: int | None = None
    """Number of classes to keep."""
    keep_samples: int | None = None
    """Keep at most this many samples."""
    keep_bytes: str | None = None
    """Keep at most this many bytes of samples, such as 20GiB."""
    min_score: float | None = None
    """Keep all classes or samples with at least this score."""
    combine: Literal["sum", "max", "rank", "round-robin"] | None = None
    """How to combine the scores for several targets. Default: the sum of votes, or the mean rank
    of other scores."""
    weights: tuple[float, ...] | None = None
    """Weight of each target. Default: all equal."""
    compact: bool = False
    """Also write the retained samples to a beton."""
    arch: str | None = None
    """Architecture (torchvision's name, or timm:NAME). Needed for other programs' checkpoints."""
    mean: tuple[float, float, float] | None = None
    """Mean per channel that another program's model was trained with, for pixels in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """Standard deviation per channel, as for --mean."""
    resolution: int | None = None
    """Side of the centre crop in pixels, after resizing. Default: that of the surrogate which is
    trained first, or 224."""
    crop_ratio: float = 224 / 256
    """Side of the centre crop / shorter side of the image."""
    stretch_contrast: bool = False
    """Scale the pixels of each image to 0 to 255, for a target with less contrast than the
    source."""
    batch_size: int = 256
    """Images per forward pass, rounded down to a power of two (300 runs as 256) of at most 4096."""
    num_workers: int | None = None
    """Loading threads per process, and threads that copy. Default: all cores."""
    timeout: float | None = 10.0
    """Seconds without a read that ends, before an error. None waits for ever."""
    overwrite: bool = False
    """Replace the files of a run with other options. Its features are kept if they would be the
    same."""
    dry_run: bool = False
    """Print the expected time and size of the features, and stop."""

    def run(self) -> Any:
        """Prune, or measure the cost."""
        from .. import prune, pruning_cost

        arguments = {n: value for n, value in self.arguments().items() if n != "dry_run"}
        if self.dry_run:
            return pruning_cost(**{n: arguments[n] for n in _COST})
        if self.surrogate is None:
            for name in ("arch", "mean", "std"):
                if arguments[name] is not None:
                    raise ValueError(f"`{name}` describes the checkpoint of `surrogate`. Name one.")
            settings = self._surrogate_settings()
            arguments["resolution"] = settings["resolution"]
            arguments["surrogate"] = lambda: self._train(settings)
        return prune(**arguments)

    def _surrogate_settings(self) -> dict[str, Any]:
        """Return the settings of the surrogate that is trained if none is given."""
        from ..pipeline.inputs import betons_of
        from ..pipeline.surrogate import surrogate_settings

        settings = surrogate_settings(betons_of(self.source, self.target)[0])
        if self.resolution is not None:
            settings["resolution"] = self.resolution
        return settings

    def _train(self, settings: dict[str, Any]) -> Path:
        """Train a surrogate, unless it is trained, and return its run folder."""
        run = self.out / "surrogate"
        data = ["--data" if self.source.is_dir() else "--train", str(self.source)]
        flags = [f"--{n.replace('_', '-')}={value}" for n, value in settings.items() if n != "flip"]
        if self.num_workers is not None:
            flags.append(f"--num-workers={self.num_workers}")
        if self.overwrite:
            flags.append("--overwrite")
        with redirect_stdout(sys.stderr):  # stdout has the result of `prune`
            run_program(["pretrain", *data, "--run", str(run), "--no-flip", *flags])
        return run
