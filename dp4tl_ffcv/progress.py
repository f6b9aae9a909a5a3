"""Progress of long work: a bar with rate and ETA on a terminal, occasional lines in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from .text import printable

_Item = TypeVar("_Item")
_SECONDS_BETWEEN_LINES = 10.0


def track(
    items: Iterable[_Item],
    *,
    total: int,
    description: str,
    unit: str = "it",
    scale: int | Callable[[_Item], int] = 1,
    note: Callable[[], str] | None = None,
) -> Iterator[_Item]:
    """Yield `items` and report progress on stderr.

    Args:
        items: items to iterate over.
        total: number of units in all items.
        description: what the work is, in a few words.
        unit: name of a unit.
        scale: units per item, such as images per batch, or a function that counts them.
        note: returns a short text to append to each report.
    """
    description = printable(description)
    if sys.stderr.isatty():
        with tqdm(total=total, desc=description, unit=unit, leave=False) as bar:
            for item in items:
                yield item
                if note:
                    bar.set_postfix_str(note(), refresh=False)
                bar.update(min(_units(scale, item), total - bar.n))
        return
    started = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done = min(done + _units(scale, item), total)
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and done < total:
            last = now
            rate = done / (now - started)
            left = (total - done) / rate
            line = f"{description}: {done}/{total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left"
            sys.stderr.write(f"{line}, {note()}\n" if note else f"{line}\n")
            sys.stderr.flush()


def _units(scale: int | Callable[[_Item], int], item: _Item) -> int:
    return scale if isinstance(scale, int) else scale(item)
