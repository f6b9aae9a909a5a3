"""The command line of the benchmarks.

`benchmarks/NAME/` holds `bench.py`, which prepares the data that figures share, and `figures/`.
Each module in `figures/` has a function `measure(bench)` that returns rows, so a new module is a
new figure. `bench.py` defines `DETAILS` (parameters shown in the table), `SCALES` and `QUICK` (how
much to measure) and the class `Bench`.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

import tyro

from dp4tl_ffcv.utils import one_line_errors

if TYPE_CHECKING:
    from benchmarks.harness.rows import Row

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True, kw_only=True)
class Config:
    quick: bool = False
    """Measure on less data, in as many rounds. The numbers are rough, and only printed."""
    only: tuple[str, ...] = ()
    """Names of the measurements to make. Default: all."""
    data: Path = Path("runs/bench")
    """Folder that keeps generated data for the next run."""
    out: Path | None = None
    """File for the JSON lines. Default: benchmarks/results/ for a full run, no file otherwise."""


def main(name: str, description: str, arguments: Sequence[str] | None = None) -> None:
    text = f"{description}\n\nMeasurements: {', '.join(_modules(name))}."
    config = tyro.cli(Config, prog=f"python -m benchmarks.{name}", description=text, args=arguments)
    with one_line_errors(config):
        run(name, config)


def run(name: str, config: Config, results: Path = RESULTS) -> None:
    """Measure, print and keep the figures that `config` asks for."""
    from benchmarks.harness.rows import publish

    figures = load_figures(name, config.only)
    module: Any = import_module(f"benchmarks.{name}.bench")
    config.data.mkdir(parents=True, exist_ok=True)
    whole = not config.quick and not config.only
    out = config.out or (results / getattr(module, "RESULTS", f"{name}.jsonl") if whole else None)
    with ExitStack() as stack:
        scales = module.QUICK if config.quick else module.SCALES
        benches = [module.Bench(scale, config.data, stack) for scale in scales]
        publish(measure(figures, benches, config.only), name, module.DETAILS, out)


def load_figures(name: str, only: Collection[str] = ()) -> dict[tuple[str, ...], Any]:
    """Return the functions that measure the figures `only` (all if empty), by the figures' names.

    A module measures the figure that has its name, or the figures in its tuple `FIGURES`.
    """
    found = {}
    for module_name in _modules(name):
        module: Any = import_module(f"benchmarks.{name}.figures.{module_name}")
        found[getattr(module, "FIGURES", (module_name,))] = module.measure
    known = [figure for names in found for figure in names]
    if unknown := set(only).difference(known):
        raise ValueError(
            f"--only: no measurement {', '.join(unknown)}. There are {', '.join(known)}."
        )
    return {names: call for names, call in found.items() if not only or set(names) & set(only)}


def measure(
    figures: Mapping[tuple[str, ...], Any], benches: Sequence[Any], only: Collection[str] = ()
) -> "Iterator[Row]":
    """Yield the rows of `figures` on each bench as soon as they are measured."""
    from benchmarks.harness.rows import progress

    for bench in benches:
        for names, call in figures.items():
            started = time.perf_counter()
            progress(f"{', '.join(names)} ...")
            yield from (row for row in call(bench) if not only or row["figure"] in only)
            progress(f"    {time.perf_counter() - started:.0f} s")


def _modules(name: str) -> list[str]:
    return sorted(each.name for each in iter_modules([str(RESULTS.parent / name / "figures")]))
