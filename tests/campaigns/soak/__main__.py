"""Load for many epochs, and measure what grows: `python -m tests.campaigns.soak [--quick]`.

Each epoch is loaded whole or left early, with a new selection, a new loader, or a state that
another loader continues. Memory, threads, descriptors, maps and entries of /dev/shm must stay as
they are after the first epochs. Exits with status 1 if one grows, or if a sample has other
pixels or another label, is missing, or comes out of order.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .. import results
from ..chaos.loads import Setup, digests, make_loader
from ..chaos.tally import Tally
from .measure import Sample, growth_problems, measure, show

_SIDE = 224  # pixels: a batch takes 600 kB, so that a leaked one shows
SETUPS = {
    "cache extents": Setup("extents", side=_SIDE),
    "cache extents, without JPEG index": Setup("extents", side=_SIDE, jpeg_index=False),
    "cache ram": Setup("ram", side=_SIDE),
    "cache ram, shared": Setup("ram", side=_SIDE),
}
EPOCHS, QUICK_EPOCHS = 200, 20
# Freed blocks go back to the system at once. By default the allocator keeps more and more of them
# for the first hundred epochs, which would hide a leak or look like one.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}
_IMAGES = 120


def make_beton(folder: Path) -> Path:
    """Write a beton of photographs whose pixels all differ."""
    import io

    from PIL import Image

    from dp4tl_ffcv import image_fields, write_beton

    rng, samples = np.random.default_rng(0), []
    for number in range(_IMAGES):
        noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).resize((160, 120)).save(stream, "JPEG", quality=90)
        samples.append((stream.getvalue(), number % 8, number))
    return write_beton(folder / "soak.beton", samples, image_fields(), num_workers=0).path


class Soak:
    """Loads epochs in all ways, and checks every image."""

    def __init__(self, path: Path, setup: Setup, options: dict[str, Any], seed: int) -> None:
        self.path, self.setup, self.options = path, setup, options
        self.rng = np.random.default_rng(seed)
        # In the order of the file: the sample with id i is the i-th.
        self.intact = [sample for batch in self._loader() for sample in digests(batch)]
        self.loader = self._loader()
        self.ways: Counter[str] = Counter()
        self.wrong: list[str] = []

    def epoch(self) -> None:
        """Load an epoch in a random way."""
        way = str(self.rng.choice(["whole", "left", "selected", "rebuilt", "continued"]))
        self.ways[way] += 1
        begun: list[Any] = []
        if way == "selected":
            chosen = self.rng.choice(_IMAGES, int(self.rng.integers(20, _IMAGES)), replace=False)
            self.loader.set_selection(np.sort(chosen))
        elif way == "rebuilt":
            self.loader = self._loader()
        elif way == "continued":
            begun = self._load(int(self.rng.integers(1, 4)))
            state = self.loader.state_dict()
            indices = self.loader.indices
            self.loader = self._loader(indices=indices)
            self.loader.load_state_dict(state)
        batches = int(self.rng.integers(1, 6)) if way == "left" else None
        loaded = begun + self._load(batches)
        expected = [self.intact[sample] for sample in self.loader.indices]
        if loaded != expected[: len(loaded)] or (batches is None and len(loaded) < len(expected)):
            self.wrong.append(f"wrong samples: {len(loaded)} of {len(expected)}, epoch {way}")

    def _load(self, batches: int | None) -> list[Any]:
        loaded = []
        for number, batch in enumerate(self.loader, start=1):
            loaded += digests(batch)
            if number == batches:
                break
        return loaded

    def _loader(self, **more: Any) -> Any:
        return make_loader(self.path, self.setup, seed=1, **self.options, **more)


def soak(name: str, path: Path, epochs: int, seed: int) -> results.Line:
    """Load epochs with one cache; return the result line with the figures."""
    tally = Tally("soak", name, seed)
    options = {"distributed": True} if "shared" in name else {}
    runner = Soak(path, SETUPS[name], options, seed)
    samples: list[Sample] = []
    for _ in range(epochs):
        runner.epoch()
        gc.collect()
        samples.append(measure())
    tally.add("all epochs", "flat", growth_problems(samples) + runner.wrong[:3])
    tally.figures.update(show(samples))
    tally.figures["epochs"] = epochs
    return tally.line()


def main() -> int:
    """Load with every cache; return the exit status."""
    import torch.distributed

    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 seconds instead of minutes")
    parser.add_argument("--only", default="", metavar="NAME", help="caches whose name has NAME")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not _MALLOC.items() <= os.environ.items():
        os.execve(
            sys.executable,
            [sys.executable, "-m", __spec__.parent, *sys.argv[1:]],
            {**os.environ, **_MALLOC},
        )
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    lines, started = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dp4tl-soak-") as folder:
        path = make_beton(Path(folder))
        for name in SETUPS:
            if arguments.only in name:
                epochs = QUICK_EPOCHS if arguments.quick else EPOCHS
                lines.append(soak(name, path, epochs, arguments.seed))
                print("   ", lines[-1]["figures"], flush=True)
                if not arguments.quick:
                    results.keep(lines[-1])
    print(f"{time.monotonic() - started:.0f} s")
    return results.exit_status(lines)


if __name__ == "__main__":
    sys.exit(main())
