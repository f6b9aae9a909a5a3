"""Seconds of a pretraining run with the cost of selecting and compacting, against the ideal."""

from statistics import median

from benchmarks.end_to_end.bench import COMPACTED, METHODS, PRUNED, RAW, Bench
from benchmarks.harness.rows import Row

EPOCHS = 16  # of a pretraining run, over which the cost of selection is spread


def measure(bench: Bench) -> list[Row]:
    rows = []
    for cache, side in bench.each_side():
        if not bench.scale.full or cache == "cold" or side.how not in (PRUNED, COMPACTED, RAW):
            continue
        ours, ideal, more = bench.against_ideal(cache, side)
        compacting = bench.compacted[side.how, side.keep][1] if side.how != PRUNED else 0.0
        for method in METHODS:
            cost = bench.selection_seconds[method] + compacting
            totals = [EPOCHS * seconds + cost for seconds in ours]
            ideals = [EPOCHS * seconds for seconds in ideal]
            more |= {
                "method": method,
                "epochs": EPOCHS,
                "selection_seconds": bench.selection_seconds[method],
                "compact_seconds": compacting,
                "speedup": median(ideals) / bench.share(side.keep) / median(totals),
            }
            about = ("speedup_with_selection", "s", cache, side)
            rows.append(bench.row(*about, ideals, "full x keep", totals, **more))
    return rows
