"""The figures of the end-to-end benchmark, out of the epochs that its sides trained."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.end_to_end.runs import (
    COMPACTED,
    FULL,
    FULLS,
    METHODS,
    PRUNED,
    RAW,
    STOCK,
    STOCK_COMPACTED,
    STOCK_FULL,
    SYNTHETIC,
    Bench,
    Scale,
)
from benchmarks.end_to_end.sides import Side
from benchmarks.harness.measure import Row, compare, measure_all

BENCH = "end_to_end"
EPOCHS = 16  # of a pretraining run, over which the cost of selection is spread
# Ours -> stock ffcv on the same samples.
COUNTERPARTS = {FULL: STOCK_FULL, PRUNED: STOCK, COMPACTED: STOCK_COMPACTED, RAW: STOCK}


# -- figures ---------------------------------------------------------------------------------------
def speedup_of_ideal(bench: Bench) -> list[Row]:
    """Epochs of what is retained, against the retained share of the full source's."""
    rows = []
    for cache, side in _each(bench):
        if side.how in FULLS:
            continue
        ours, ideal, params = _against_ideal(bench, cache, side)
        rows.append(_row("speedup_of_ideal", "s", ours, ideal, "full x keep", **params))
    return rows


def speedup_with_selection(bench: Bench) -> list[Row]:
    """The same over a pretraining run, with what it takes to select, and to compact."""
    rows = []
    for cache, side in _each(bench):
        if cache == "cold" or side.how not in (PRUNED, COMPACTED, RAW):
            continue
        ours, ideal, params = _against_ideal(bench, cache, side)
        compacting = bench.compacted[side.how, side.keep][1] if side.how != PRUNED else 0.0
        for method in METHODS:
            cost = bench.selection_seconds[method] + compacting
            params |= {
                "method": method,
                "epochs": EPOCHS,
                "selection_seconds": bench.selection_seconds[method],
                "compact_seconds": compacting,
            }
            totals = [EPOCHS * seconds + cost for seconds in ours]
            ideals = [EPOCHS * seconds for seconds in ideal]
            params["speedup"] = median(ideals) / bench.share(side.keep) / median(totals)
            rows.append(
                _row("speedup_with_selection", "s", totals, ideals, "full x keep", **params)
            )
    return rows


def images_per_second(bench: Bench) -> list[Row]:
    """Images trained per second, against stock ffcv on the same samples."""
    return [
        _row("images_per_second", "images/s", bench.rates(cache, side), rates, other, **params)
        for cache, side, other, params in _pairs(bench)
        for rates in [bench.rates(cache, bench.side(other, side.keep))]
    ]


def stall_share(bench: Bench) -> list[Row]:
    """Share of an epoch in which the step waits for the loader, against stock ffcv."""

    def shares(cache: str, side: Side) -> list[float]:
        return [epoch.waited / epoch.seconds for epoch in bench.epochs[cache][side]]

    return [
        _row("stall_share", "share", shares(cache, side), stalled, other, **params)
        for cache, side, other, params in _pairs(bench)
        for stalled in [shares(cache, bench.side(other, side.keep))]
    ]


def bytes_read(bench: Bench) -> list[Row]:
    """Bytes that an epoch reads, against those of the retained samples in the source."""
    extents = bench.index.sample_bytes()
    rows = []
    for cache, side in _each(bench):
        if cache == "warm":  # files mapped into memory are not read
            continue
        retained = float(extents[bench.retained(side.keep)].sum())
        read = [float(epoch.read) for epoch in bench.epochs[cache][side]]
        params = _params(bench, cache, side)
        least = [retained] * len(read)
        rows.append(_row("bytes_read", "bytes", read, least, "bytes retained", **params))
    return rows


def gpu_limit_share(bench: Bench) -> list[Row]:
    """Images trained per second, against the same device fed with pixels that are there already."""
    if not bench.scale.limit:
        return []
    return [
        _row(
            "gpu_limit_share",
            "images/s",
            bench.rates(cache, side),
            limit,
            SYNTHETIC,
            **_params(bench, cache, side),
        )
        for cache, side in _each(bench)
        for limit in [bench.rates(cache, bench.side(SYNTHETIC))]
    ]


FIGURES: dict[Callable[[Bench], list[Row]], tuple[str, ...]] = {
    figure: (figure.__name__,)
    for figure in (
        speedup_of_ideal,
        speedup_with_selection,
        images_per_second,
        stall_share,
        bytes_read,
        gpu_limit_share,
    )
}
NAMES = tuple(name for names in FIGURES.values() for name in names)


def measure(scale: Sequence[Scale], data: Path, names: Collection[str]) -> Iterator[Row]:
    """Measure the figures called `names` on betons in `data`; yield each as soon as it is known."""
    for each in scale:
        yield from measure_all(FIGURES, Bench(each, data), names)


# -- parts -----------------------------------------------------------------------------------------
def _each(bench: Bench) -> Iterator[tuple[str, Side]]:
    """Every page cache and side that loads something."""
    for cache, epochs in bench.epochs.items():
        for side in epochs:
            if side.how != SYNTHETIC:
                yield cache, side


def _pairs(bench: Bench) -> Iterator[tuple[str, Side, str, dict[str, Any]]]:
    """Every side of ours, what stock ffcv's is called, and the parameters."""
    for cache, side in _each(bench):
        if side.how in COUNTERPARTS:
            yield cache, side, COUNTERPARTS[side.how], _params(bench, cache, side)


def _against_ideal(
    bench: Bench, cache: str, side: Side
) -> tuple[list[float], list[float], dict[str, Any]]:
    """Return the seconds of an epoch, the ideal ones, and the parameters."""
    share = bench.share(side.keep)
    full = bench.seconds(cache, bench.side(STOCK_FULL if side.stock else FULL))
    ours = bench.seconds(cache, side)
    params = _params(bench, cache, side, samples_kept=share)
    params["speedup"] = median(whole / mine for whole, mine in zip(full, ours, strict=True))
    return ours, [share * seconds for seconds in full], params


def _params(bench: Bench, cache: str, side: Side, **more: Any) -> dict[str, Any]:
    network = bench.scale.network
    return {
        "how": side.how,
        "keep": side.keep,
        "page_cache": cache,
        "arch": network.arch,
        "resolution": network.resolution,
        "batch_size": network.batch_size,
        "samples": bench.scale.samples,
        "device": bench.scale.device,
        **more,
    }


def _row(
    figure: str,
    unit: str,
    ours: Sequence[float],
    other: Sequence[float],
    other_name: str,
    **params: Any,
) -> Row:
    return compare(BENCH, figure, unit, ours, other, other_name, **params)
