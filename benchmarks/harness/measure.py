"""What benchmarks share: processes of their own, alternation, statistics, JSON lines, tables."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from dp4tl_ffcv.artifacts import atomic_open
from dp4tl_ffcv.utils import environment

PATIENCE = 600.0  # seconds
# Waiting OpenMP threads must not take the cores from the other side for long.
SPIN_COUNT = "10000"

_Result = TypeVar("_Result")
_Bench = TypeVar("_Bench")


# -- results ---------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: what both sides measured. `ratio` above 1 is better for ours."""

    bench: str
    figure: str
    unit: str
    """A rate, where more is better, if it is per second (`.../s`); else less is better."""
    ours: float | None
    other: float | None
    other_name: str
    ratio: float | None
    spread: tuple[float, float] | None = None
    """Lower and upper quartile of the ratios of the pairs."""
    params: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the row as a JSON line."""
        return json.dumps(_rounded(asdict(self)), allow_nan=False)


def compare(
    bench: str,
    figure: str,
    unit: str,
    ours: Sequence[float],
    other: Sequence[float],
    other_name: str,
    **params: Any,
) -> Row:
    """Sum up paired measurements: medians of the sides, median and quartiles of the pairs' ratios.

    A side without measurements, or with a median of 0, leaves no ratio.
    """
    pairs = list(zip(ours, other, strict=False))
    usable = bool(pairs) and min(map(min, pairs)) > 0
    ratios = [mine / its if unit.endswith("/s") else its / mine for mine, its in pairs if usable]
    spread = None
    if len(ratios) > 1:
        lower, _, upper = quantiles(ratios, n=4, method="inclusive")
        spread = (lower, upper)
    return Row(
        bench=bench,
        figure=figure,
        unit=unit,
        ours=median(ours) if ours else None,
        other=median(other) if other else None,
        other_name=other_name,
        ratio=median(ratios) if ratios else None,
        spread=spread,
        params={**params, "rounds": len(pairs)} if pairs else params,
    )


def alternate(*sides: Callable[[], _Result], rounds: int) -> tuple[list[_Result], ...]:
    """Call the sides in turn; every round starts with the side after the one that began before."""
    results: tuple[list[_Result], ...] = tuple([] for _ in sides)
    for number in range(rounds):
        for turn in range(len(sides)):
            at = (number + turn) % len(sides)
            results[at].append(sides[at]())
    return results


def measure_all(
    figures: Mapping[Callable[[_Bench], list[Row]], tuple[str, ...]],
    bench: _Bench,
    names: Collection[str],
) -> Iterator[Row]:
    """Take the measurements that `names` asks for; yield each row as soon as it is known.

    Args:
        figures: measurement -> the figures that come out of it.
        bench: what measurements are called with.
        names: figures to measure.
    """
    for measurement, made in figures.items():
        if not set(made).isdisjoint(names):
            started = time.perf_counter()
            progress(f"{', '.join(made)} ...")
            yield from (row for row in measurement(bench) if row.figure in names)
            progress(f"    {time.perf_counter() - started:.0f} s")


def publish(rows: Iterable[Row], bench: str, details: Sequence[str], out: Path | None) -> None:
    """Print JSON lines on stdout and a table on stderr, and keep the lines in `out` if given."""
    kept = []
    for row in rows:
        print(row.line(), flush=True)
        kept.append(row)
    progress("\n" + table(kept, details))
    if out:
        write_rows(out, bench, kept)
        progress(f"written to {out}")


def write_rows(path: Path, bench: str, rows: Iterable[Row]) -> None:
    """Write the rows as JSON lines, headed by the environment."""
    head = json.dumps({"bench": bench, "environment": environment()})
    with atomic_open(path) as stream:
        stream.write("".join(f"{line}\n" for line in (head, *(r.line() for r in rows))).encode())


def table(rows: Sequence[Row], details: Sequence[str]) -> str:
    """Return the rows as aligned text; `details` names the parameters that tell rows apart."""
    cells = [("figure", "what", "ours", "other", "unit", "ratio", "quartiles")]
    for row in rows:
        what = ", ".join(f"{key} {row.params[key]}" for key in details if key in row.params)
        spread = "" if row.spread is None else "{:.2f} to {:.2f}".format(*row.spread)
        values = (_shown(row.ours), _shown(row.other), row.unit, _shown(row.ratio))
        cells.append((row.figure, what, *values, spread))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def progress(text: str) -> None:
    """Say on stderr what goes on."""
    print(text, file=sys.stderr, flush=True)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _rounded(value: Any) -> Any:
    """Keep six digits: more say nothing."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


# -- processes -------------------------------------------------------------------------------------
class Worker:
    """A process of its own that makes an object and calls its methods when told.

    What it prints is shown only if it fails. It leads a session, so that the processes that it
    starts in turn can be found, and ended with it.

    Args:
        make: a function or class of an importable module.
        *args: its arguments.
        patience: seconds until an answer is given up.
    """

    def __init__(self, make: Callable[..., Any], *args: Any, patience: float = PATIENCE) -> None:
        self.patience = patience
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115  # closed by `close`
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._log.name, make, args)
        # Not a daemon, which may not start processes; it ends when the connection does.
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()
        self._ready = False

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def session(self) -> int:
        """Number of the session that it and the processes it starts are in."""
        return self._process.pid or 0

    def wait(self) -> "Worker":
        """Wait until the object is made."""
        if not self._ready:
            self._answer("start")
            self._ready = True
        return self

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the object and return its result.

        Raises:
            RuntimeError: the process failed; what it printed last is on stderr then.
        """
        self.wait()
        self._connection.send((method, args, kwargs))
        return self._answer(method)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(1)
        if self._process.is_alive():
            with suppress(ProcessLookupError):  # as long as it has not made its session
                os.killpg(self.session, signal.SIGKILL)
            self._process.kill()
            self._process.join()
        self._log.close()

    def _answer(self, method: str) -> Any:
        try:
            if not self._connection.poll(self.patience):
                raise RuntimeError(f"a worker gave no answer to {method!r} in {self.patience:g} s")
            failed, result = self._connection.recv()
        except (EOFError, ConnectionResetError):
            failed, result = True, "the process ended"
        if failed:
            progress(Path(self._log.name).read_text(errors="replace")[-4000:])
            raise RuntimeError(f"a worker failed in {method!r}: {result}; see what it printed")
        return result


def _serve(connection: Connection, log: str, make: Callable[..., Any], args: Any) -> None:
    os.setsid()
    # What it starts in turn starts as in a program of its own, and is not spawned because it was.
    multiprocessing.set_start_method(None, force=True)
    with open(log, "ab", buffering=0) as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    served = None
    try:
        served = make(*args)
        connection.send((False, None))
        while True:
            method, arguments, keywords = connection.recv()
            connection.send((False, getattr(served, method)(*arguments, **keywords)))
    except EOFError:
        pass
    except Exception as error:
        traceback.print_exc()
        connection.send((True, f"{type(error).__name__}: {error}"))
    os._exit(0)  # threads that were left behind must not keep the process


# -- the process's own books -----------------------------------------------------------------------
def read_so_far() -> int:
    """Return the bytes that this process has asked the kernel for, with all its threads."""
    return _proc_number("/proc/self/io", "rchar")


def peak_growth(call: Callable[[], _Result]) -> tuple[_Result, int]:
    """Return the result of a call, and by how many bytes resident memory grew at most in it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    before = _proc_number("/proc/self/status", "VmRSS")
    result = call()
    return result, 1024 * max(0, _proc_number("/proc/self/status", "VmHWM") - before)


def _proc_number(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{path} does not say {name}: Linux is needed")
