"""Kept and pruned classes of a study: rank, score, and a picture of each class."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..beton import BetonIndex, read_image
from ..errors import BetonError
from ..scoring import Scores
from ..selection import Selection
from .findings import Row, grouped
from .results import Results

TILE, COLUMNS = 48, 25  # side of a picture in pixels, pictures in a row of the sheet
_MOST_PICTURES = 500
_MOST_TILES, _MOST_NAMES = 120, 400  # of a ranking: more would bury the page


@dataclass(frozen=True)
class RankedClass:
    """A class in a ranking."""

    rank: int
    class_id: int
    name: str
    score: float
    seeds: int
    """Seeds that keep the class at the smallest fraction."""
    kept_at: tuple[str, ...]
    """Fractions at which the shown seed keeps the class."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The source's classes in the order of a method for a target, with one seed."""

    scored_on: str
    method: str
    seed: int
    num_seeds: int
    unit: str
    """Heading of the scores: "score", or "share of the retained samples"."""
    keeps: tuple[str, ...]
    """Fractions kept, the smallest first."""
    counts: tuple[int, ...]
    """Classes kept at each of `keeps`."""
    classes: tuple[RankedClass, ...]

    @property
    def pictured(self) -> tuple[RankedClass, ...]:
        """The first classes."""
        return self.classes[:_MOST_TILES]

    @property
    def named(self) -> tuple[RankedClass, ...]:
        """The classes after them, as far as they are listed."""
        return self.classes[_MOST_TILES:_MOST_NAMES]


class Source:
    """Pictures of the source's classes.

    Args:
        results: of the study, which may have written the beton.
        beton: the beton. None: that of the study's folder, if it is still there.
    """

    def __init__(self, results: Results, beton: Path | None) -> None:
        self.index: BetonIndex | None = None
        if beton is not None:
            self.index = BetonIndex.open(beton)
            return
        path = results.folder / str(results.summary["source"])
        # A file of results cannot choose what is read elsewhere.
        if path.resolve().is_relative_to(results.folder.resolve()):
            with suppress(OSError):
                self.index = BetonIndex.open(path)

    @cached_property
    def samples(self) -> dict[int, int]:
        """The first sample of each class that has one."""
        if self.index is None:
            return {}
        labels, firsts = np.unique(self.index.labels(), return_index=True)
        return dict(zip(labels.tolist(), firsts.tolist(), strict=True))

    def sheet(self, classes: Sequence[int]) -> tuple[str, dict[int, tuple[int, int]]]:
        """Return a JPEG of one picture per class as a data URI, and the pixels where each starts.

        Without pictures, the URI is empty.
        """
        shown = [each for each in classes if each in self.samples][:_MOST_PICTURES]
        rows = -(-len(shown) // COLUMNS)
        sheet = Image.new("RGB", (TILE * COLUMNS, TILE * rows), "white")
        places = {}
        for number, class_id in enumerate(shown):
            place = TILE * (number % COLUMNS), TILE * (number // COLUMNS)
            try:
                pixels = read_image(self.index, self.samples[class_id])  # type: ignore[arg-type]
            except (BetonError, OSError):  # no images, or a damaged one: the page has the names
                continue
            sheet.paste(_fitted(pixels), place)
            places[class_id] = place
        if not places:
            return "", {}
        jpeg = io.BytesIO()
        sheet.save(jpeg, format="JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}", places


def _fitted(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return the middle square of an image, scaled to a tile."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    way = Image.Resampling.NEAREST if side < TILE else Image.Resampling.BOX
    return image.resize((TILE, TILE), way, box=(left, top, left + side, top + side))


def rankings(results: Results, source: Source) -> list[Ranking]:
    """Return the ranking of each method for each target whose files are still there.

    Raises:
        ValueError: a selection or scores are damaged, or do not belong together.
    """
    selected = (row for row in results.findings.rows if row["selection"] is not None)
    found = []
    for rows in grouped(selected, "scored_on", "method"):
        try:
            found.append(_ranking(results, source, rows))
        except FileNotFoundError:
            continue
    return found


def _ranking(results: Results, source: Source, rows: Sequence[Row]) -> Ranking:
    seed, method = rows[0]["seed"], rows[0]["method"]
    by_keep = {row["keep"]: row for row in rows if row["seed"] == seed}
    keeps = sorted(by_keep, key=lambda keep: by_keep[keep]["kept"])
    chosen = [_selection(results.folder, by_keep[keep]) for keep in keeps]
    others = {row["seed"]: row for row in rows if row["keep"] == keeps[0]}
    smallest = [_selection(results.folder, row) for row in others.values()]
    num_classes = len(chosen[0].label_map)
    if any(len(each.label_map) != num_classes for each in (*chosen, *smallest)):
        raise ValueError(f"the selections of {method} are not of the same source.")
    unit, values, order = _scores(results.folder, rows[0], chosen, source)
    names = chosen[0].class_names or [f"class {number}" for number in range(num_classes)]
    kept_by = sum((each.label_map >= 0).astype(int) for each in smallest)
    labels = [f"{keep:g}" if isinstance(keep, float | int) else str(keep) for keep in keeps]
    classes = tuple(
        RankedClass(
            rank=rank,
            class_id=number,
            name=names[number],
            score=float(values[number]),
            seeds=int(kept_by[number]),  # type: ignore[index]
            kept_at=tuple(
                label
                for label, each in zip(labels, chosen, strict=True)
                if each.label_map[number] >= 0
            ),
        )
        for rank, number in enumerate(order.tolist(), start=1)
    )
    return Ranking(
        scored_on=rows[0]["scored_on"],
        method=method,
        seed=seed,
        num_seeds=len(smallest),
        unit=unit,
        keeps=tuple(labels),
        counts=tuple(len(each.classes) for each in chosen),
        classes=classes,
    )


def _selection(folder: Path, row: Row) -> Selection:
    return Selection.load(folder / row["selection"] / "selection.npz")


def _scores(
    folder: Path, row: Row, chosen: Sequence[Selection], source: Source
) -> tuple[str, NDArray[np.float64], NDArray[np.int64]]:
    """Return the scores of the classes `(C,)`, what they are, and the order of the classes `(C,)`.

    Scores of samples and of pseudo-classes do not rank classes, nor do combined scores; then
    classes are ranked by the share of the smallest selection's samples that they have.
    """
    smallest = chosen[0]
    if row["scores"] is not None:  # scores for several datasets are combined in the selection
        scores = Scores.load(folder / row["scores"] / "scores.npz")
        of_classes = scores.unit == "class" and scores.provenance.get("clusters_sha256") is None
        if of_classes and len(scores) == len(smallest.label_map):
            return "score", scores.scores, scores.ranking()
    shares = np.zeros(len(smallest.label_map))
    if source.index is not None and smallest.fingerprint == source.index.fingerprint:
        labels = source.index.labels()[smallest.indices]
        shares = np.bincount(labels, minlength=len(shares)) / len(labels)
    else:
        shares[smallest.classes] = 1 / len(smallest.classes)
    return "share of the retained samples", shares, np.argsort(-shares, kind="stable")
