"""Fuzz the parser of a beton's tables guided by coverage, with atheris (`pip install atheris`).

libFuzzer keeps the inputs that reach new branches of the parser and mutates them further. It ends
the process, so that `run` starts one.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.campaigns.fuzz.supervise import PATIENCE, Tally
from tests.campaigns.results import ROOT

NAME = "table parser, guided by coverage"
_MEMORY = 2048  # MiB of the whole process


def is_installed() -> bool:
    """Return whether atheris is installed, which has wheels for some versions of Python only."""
    return importlib.util.find_spec("atheris") is not None


def run(seconds: int, seed: int, folder: Path) -> Tally:
    """Fuzz for some time in another process and return what the inputs came to."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    options = {
        "max_total_time": seconds, "seed": seed + 1, "timeout": int(PATIENCE), "max_len": 16384,
        "rss_limit_mb": _MEMORY, "artifact_prefix": f"{folder}/",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.campaigns.fuzz.coverage", str(corpus)]
    command += [f"-{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False,
        timeout=seconds + 300,
    )  # fmt: skip
    tally = Tally()
    runs = re.findall(r"(?:Done |^#)(\d+)", done.stderr, re.MULTILINE)
    tally.outcomes["refused or opened"] = int(runs[-1]) if runs else 0
    if done.returncode or not runs:
        kind = "hang" if "timeout" in done.stderr else "crash or undocumented exception"
        tally.add_fault(0, kind, done.stderr[-600:])  # the reason comes last
    return tally


def _write_corpus(folder: Path) -> None:
    from tests.campaigns.fuzz import betons

    for number, names in enumerate((("label",), ("jpg", "blob"), ("vector", "info", "raw"))):
        path = betons.write(folder / f"{number}.beton", names, number)
        path.rename(folder / str(number))


def _fuzz(arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["dp4tl_ffcv.beton"]):
        from dp4tl_ffcv import BetonError, BetonIndex, verify
        from dp4tl_ffcv.beton.descriptors import CustomFieldError
    corpus = Path(arguments[1])
    _write_corpus(corpus)
    path = corpus.parent / "case.beton"

    def one_input(data: bytes) -> Any:
        path.write_bytes(data)
        try:
            BetonIndex.open(path)
        except CustomFieldError:
            pass  # `verify` needs the class of the field too
        except BetonError:
            verify(path, num_workers=0)

    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz(sys.argv)
