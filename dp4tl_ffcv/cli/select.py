"""The verb select."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Select:
    """Keep the best classes or samples of a beton. Give exactly one of the four --keep budgets."""

    scores: tuple[Path, ...]
    """Scores files. Several files, for example one per target, are combined."""
    beton: Path
    """Source beton to select from."""
    out: Path
    """Selection file (.npz) to write."""
    keep: float | None = None
    """Fraction of classes to keep (of samples, for sample scores): 0.4 keeps 40 %."""
    keep_classes: int | None = None
    """Number of classes to keep."""
    keep_samples: int | None = None
    """Largest number of samples to keep."""
    keep_bytes: str | None = None
    """Largest size of the retained samples, such as 20GiB."""
    combine: Literal["sum", "max", "rank", "round-robin"] = "sum"
    """How to combine several scores: sum or maximum of shares, mean rank, or taking turns."""
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
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Select and save."""
        from .. import BetonIndex, select

        index = BetonIndex.open(self.beton)
        given = {**vars(self), "beton": index}
        del given["output"]
        return select(**given).summary(index)
