"""Checks that several scores share: of numbers, and of the beton that things were made for."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import StaleArtifactError


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return `value`, or raise TypeError or ValueError unless it is an int of that range."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be whole; got {value!r}. Pass an int.")
    if value < least or (most is not None and value > most):
        span = f"be at least {least}" if most is None else f"lie in [{least}, {most}]"
        hint = "Pass another number." if most is None else "There are not more samples."
        raise ValueError(f"`{name}` must {span}; got {value}. {hint}")
    return int(value)


def one_source(name: str, provenances: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the fingerprint of the source that all were made for, as a part of a provenance.

    What was made from bare arrays has none and fits every source.

    Raises:
        StaleArtifactError: two were made for different sources.
    """
    stated = (provenance.get("source_fingerprint") for provenance in provenances)
    found = list(dict.fromkeys(fingerprint for fingerprint in stated if fingerprint is not None))
    if len(found) > 1:
        raise StaleArtifactError(
            f"`{name}` must be made for one source; got some made for fingerprint {found[0][:16]} "
            f"and some for {found[1][:16]}. Make them again from one beton."
        )
    return {"source_fingerprint": found[0]} if found else {}
