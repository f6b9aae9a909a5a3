"""The verbs of `dp4tl`. The options of a verb are the arguments of one public function."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from ..scoring import methods
from .output import Output


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb."""

    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Call the function, and return its result."""
        raise NotImplementedError

    def finish(self, result: Any) -> None:
        """Do what remains after the result is printed."""

    def arguments(self) -> dict[str, Any]:
        """Return the options by name."""
        return {name: value for name, value in vars(self).items() if name != "output"}


@dataclass(frozen=True, kw_only=True)
class Inspect(Verb):
    """Show what a beton contains, without decoding any image."""

    beton: Annotated[Path, tyro.conf.Positional]
    """Beton to read."""
    label_field: str = "label"
    """Integer field with the class ids."""

    def run(self) -> Any:
        """Read the tables."""
        from .. import BetonIndex

        return BetonIndex.open(self.beton).summary(self.label_field)


@dataclass(frozen=True, kw_only=True)
class Verify(Verb):
    """Check a beton for damage: header, tables and manifest, and with --decode every image."""

    beton: Annotated[Path, tyro.conf.Positional]
    """Beton to check."""
    decode: bool = False
    """Read and decode every image."""
    num_workers: int | None = None
    """Threads that decode. Default: all cores."""

    def run(self) -> Any:
        """Check the file."""
        from .. import verify

        return verify(**self.arguments())

    def finish(self, result: Any) -> None:
        """Set exit status 1 if there are problems."""
        result.raise_for_problems()


@dataclass(frozen=True, kw_only=True)
class Index(Verb):
    """Index the JPEGs of a beton, so that loaders decode only the data of each crop.

    Loaders do so in their first epoch, which takes longer then. The indexes are kept in a file
    NAME.beton.jpegs next to the beton. To continue a killed run, repeat the command.
    """

    beton: Annotated[Path, tyro.conf.Positional]
    """Beton to index."""
    num_workers: int | None = None
    """Threads. Default: all cores."""

    def run(self) -> Any:
        """Index the JPEGs."""
        from .. import index_jpegs

        return index_jpegs(**self.arguments())


@dataclass(frozen=True, kw_only=True)
class Features(Verb):
    """Save a model's features and predictions for every image of a beton.

    To continue a killed run, repeat the command. Several GPUs share the work
    under `torchrun --nproc-per-node N --no-python -- dp4tl features ...`.
    """

    beton: Annotated[Path, tyro.conf.Positional]
    """Source or target, with fields image and label."""
    model: str
    """Checkpoint, or run folder of `dp4tl pretrain`; or a pretrained model: an architecture of
    torchvision, timm:NAME, or efficientnet-lite0. A file of this name comes first."""
    out: Path
    """Folder to write."""
    arch: str | None = None
    """Architecture (torchvision's name, or timm:NAME). Needed for other programs' checkpoints."""
    num_classes: int | None = None
    """Fail unless the checkpoint has this number of classes."""
    mean: tuple[float, float, float] | None = None
    """Mean per channel that another program's model was trained with, for pixels in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """Standard deviation per channel, as for --mean."""
    headless: bool = False
    """Save only features: no predictions, soft votes or logits."""
    resolution: int = 224
    """Side of the centre crop in pixels, after resizing."""
    crop_ratio: float = 224 / 256
    """Side of the centre crop / shorter side of the image."""
    stretch_contrast: bool = False
    """Scale the pixels of each image to 0 to 255, for a target with less contrast than the
    source."""
    logits: bool = False
    """Save the logits too, which EL2N needs."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the features on disk."""
    amp: bool = True
    """On a GPU, compute in mixed precision."""
    restart: bool = False
    """Start over if the folder contains features made with other settings."""
    batch_size: int = 256
    """Images per forward pass, rounded down to a power of two (300 runs as 256) of at most 4096."""
    num_workers: int | None = None
    """Loading threads per process. Default: all cores, shared by the processes."""
    timeout: float | None = 10.0
    """Seconds without a read that ends, before an error. None waits for ever."""

    def run(self) -> Any:
        """Extract the features."""
        from .. import extract_features

        return extract_features(**self.arguments())


@dataclass(frozen=True, kw_only=True)
class Cluster(Verb):
    """Cluster a source's features by k-means: pseudo-classes for a source without labels."""

    features: Annotated[Path, tyro.conf.Positional]
    """Features of the whole source (`dp4tl features`), from any encoder."""
    num_clusters: tuple[int, ...]
    """Number of clusters. Give several to use the one with the largest silhouette."""
    out: Path
    """Clusters file (.npz) to write."""
    levels: tuple[int, ...] = ()
    """For hierarchical k-means: cluster into these numbers first, largest first, then cluster the
    centroids into --num-clusters."""
    seed: int = 0
    """Seed of the initial centroids and of --sample."""
    iterations: int = 25
    """Iterations of k-means on each level."""
    sample: int = 256
    """Number of random samples per cluster to fit the centroids to."""

    def run(self) -> Any:
        """Cluster and save."""
        from .. import cluster

        return cluster(**self.arguments())


if TYPE_CHECKING:
    Flags = Any
else:
    Flags = Union[  # noqa: UP007  # the tuple is only known at run time
        tuple(
            Annotated[methods.get(name).flags_class(), tyro.conf.subcommand(name.replace("_", "-"))]
            for name in methods.names()
        )
    ]


@dataclass(frozen=True, kw_only=True)
class Score(Verb):
    """Score the classes or the samples of a source. Each method has its own --help."""

    method: Flags
    out: Path
    """Scores file (.npz) to write."""

    def run(self) -> Any:
        """Score and save."""
        from ..scoring import score

        return score(type(self.method).__name__, out=self.out, **vars(self.method))


@dataclass(frozen=True, kw_only=True)
class Select(Verb):
    """Keep the best classes or samples of a beton.

    Give exactly one of the four --keep budgets or --min-score.
    """

    scores: tuple[Path, ...]
    """Scores files. Several files, for example one per target, are combined."""
    beton: Path
    """Source beton to select from."""
    out: Path
    """Selection file (.npz) to write."""
    keep: float | Literal["auto"] | None = None
    """Fraction of classes to keep (of samples, for sample scores): 0.4 keeps 40 %. `auto`: the
    smallest fraction that covers the target, by the votes of label or feature mapping. It assumes
    that the surrogate knows classes like the target's, and keeps everything if the labels of the
    target show that it does not."""
    keep_classes: int | None = None
    """Number of classes to keep."""
    keep_samples: int | None = None
    """Keep at most this many samples."""
    keep_bytes: str | None = None
    """Keep at most this many bytes of samples, such as 20GiB."""
    min_score: float | None = None
    """Keep all classes or samples with at least this score."""
    combine: Literal["sum", "max", "rank", "round-robin"] = "sum"
    """Combine scores by sum or maximum of normalised scores, by mean rank, or by turns."""
    weights: tuple[float, ...] | None = None
    """Weight of each scores file. Default: all equal."""
    within: Path | None = None
    """Sample scores that choose samples within each retained class."""
    keep_within: float | None = None
    """Fraction of the samples of each retained class to keep, by the scores of --within."""
    balanced: bool = False
    """With sample scores: keep the fraction --keep of every class."""
    clusters: Path | None = None
    """Pseudo-classes (`dp4tl cluster`) that the scores refer to, or that --balanced uses."""
    label_field: str = "label"
    """Integer field with the class ids."""

    def run(self) -> Any:
        """Select and save."""
        from .. import BetonIndex, select

        index = BetonIndex.open(self.beton)
        return select(**{**self.arguments(), "beton": index}).summary(index)


@dataclass(frozen=True, kw_only=True)
class Compact(Verb):
    """Copy the retained samples into a new beton, which any FFCV recipe can read."""

    beton: Annotated[Path, tyro.conf.Positional]
    """Beton to copy from."""
    out: Path
    """Beton to write. Its manifest is written next to it."""
    selection: Path | None = None
    """Selection file. Default: copy all samples."""
    layout: Literal["shuffled", "class"] = "shuffled"
    """Order of the samples in the new file: random, or by class."""
    seed: int = 0
    """Seed of the shuffled order."""
    relabel: bool = False
    """Number the retained classes 0 to K - 1."""
    max_resolution: int | None = None
    """Shrink images whose longer side exceeds this many pixels."""
    images: Literal["keep", "jpeg", "raw"] = "keep"
    """How to store images: unchanged, as JPEG, or as raw pixels."""
    raw_budget: str | None = None
    """Largest size of the new file, such as 64GiB. Store as raw pixels as many images as fit."""
    baseline: bool = False
    """Store progressive JPEGs as baseline JPEGs with the same pixels, which decode faster."""
    fields: tuple[str, ...] | None = None
    """Fields to copy, such as `image label`. Default: all."""
    num_workers: int | None = None
    """Threads that copy, or processes that encode. Default: all cores."""
    jpeg_index: bool = True
    """Index the JPEGs too (see `dp4tl index`), so that the first epoch is as fast as later ones."""

    def run(self) -> Any:
        """Copy the samples."""
        from .. import compact

        return compact(**self.arguments())


@dataclass(frozen=True, kw_only=True)
class Export(Verb):
    """Write the retained sample ids for other loaders."""

    selection: Annotated[Path, tyro.conf.Positional]
    """Selection file."""
    out: Path
    """File to write: .npy (numpy), .indices (torch, as DP4TL reads) or .txt (one id per line)."""

    def run(self) -> Any:
        """Export the ids."""
        from .. import export_indices

        return export_indices(self.selection, self.out)


@dataclass(frozen=True, kw_only=True)
class Report(Verb):
    """Rebuild the HTML report of a study from the files in its folder."""

    study_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of `dp4tl study` or `dp4tl demo`, such as runs/demo."""
    source: Path | None = None
    """Beton of the source, for pictures of the classes. None: the one that the study wrote."""

    def run(self) -> Any:
        """Write the page."""
        from .. import write_report

        return {"report": str(write_report(self.study_folder, source=self.source))}
