"""The contract of a target: valid inputs, how to mutate them, what a user does with them.

Each module of `targets` holds one or more subclasses of `Target` and nothing else knows their
names.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tests.campaigns.fuzz.mutate import Span, mutated


class FaultError(Exception):
    """The promise does not hold. `kind` is the class of the fault, for the counts."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Sample:
    """A valid input: files by their name in the folder of a case, one of which is attacked."""

    files: Mapping[str, bytes]
    attacked: str
    spans: Sequence[Span] = ()
    """Numbers in the attacked file that its readers rely on."""
    truth: Any = field(default=None, compare=False)
    """The content of the intact file, for `Target.use`."""
    links: Mapping[str, Path] = field(default_factory=dict)
    """The symbolic links in the folder of a case: their targets, by name."""

    @property
    def data(self) -> bytes:
        """The intact bytes of the attacked file."""
        return self.files[self.attacked]


class Target(ABC):
    """One kind of input."""

    name: ClassVar[str]
    cases: ClassVar[int] = 20_000
    """Cases of the full form. The short form has one in 200, at least 30."""
    allowed: ClassVar[tuple[type[BaseException], ...]] = ()
    """Exceptions that are documented for this input, besides ValueError and OSError."""
    raised: ClassVar[tuple[type[Exception], ...]] = (ValueError,)
    """Exceptions that count as documented if a `raise` of this project raised them."""
    free_bytes: ClassVar[int] = 64 << 20
    """Memory that a case may take in addition to twice its files."""

    secret: Path
    """An image outside of the case's folder that must not be read. Set before `prepare`."""
    case_folder: Path
    """The folder of the cases. Set before `prepare`."""

    @abstractmethod
    def prepare(self, folder: Path) -> list[Sample]:
        """Return valid inputs, written by this project. `folder` is empty and can be used."""

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Return the mutated bytes of the attacked file."""
        return mutated(rng, sample.data, sample.spans, donor.data)

    def links_outside(self, base: str) -> dict[str, Path]:
        """Return links in the folder `base` of a case that lead to the secret image."""
        return {f"{base}/link.jpg": self.secret, f"{base}/up": self.secret.parent}

    def name_outside(self, rng: np.random.Generator, base: str) -> str:
        """Return a name of the secret image for data that name files relative to `base`."""
        relative, absolute = self.paths_outside(base)
        names = (relative, absolute, f"./{relative}", f"up/../{relative}", "link.jpg",
                 f"up/{self.secret.name}", f"file://{absolute}", f"{base}/../{relative}",
                 f"//{absolute}")  # fmt: skip
        return names[int(rng.integers(len(names)))]

    def paths_outside(self, base: str = ".") -> tuple[str, str]:
        """Return the path of the secret image, relative to `base` in a case's folder and absolute.

        Text that names them must not make anyone open the image.
        """
        return os.path.relpath(self.secret, self.case_folder / base), str(self.secret)

    @abstractmethod
    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Do what a user would do with the files in `folder`, and return the outcome.

        Raise `FaultError` where the result contradicts `data`, the mutated bytes. Every other
        exception is judged by its type and by where it was raised.
        """
