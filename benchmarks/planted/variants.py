"""The scoring methods that the planted benchmark runs, with their options."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dp4tl_ffcv.scoring import methods

COMBINED = "combined"  # all targets at once
# Inputs that the benchmark can provide. Methods that require others are left out.
OF_TARGET = {"target", "outcomes", "included"}
GIVEN = {*OF_TARGET, "source", "clusters", "beton", "seed", "models", "difficulty", "dynamics"}


@dataclass(frozen=True)
class Variant:
    """A scoring method with fixed options."""

    method: methods.Method
    options: Mapping[str, Any]
    encoder: str = "surrogate"
    """Network of the features: `surrogate`, or `encoder`, which is trained without labels."""
    clusters: bool = False
    """Score pseudo-classes."""

    @property
    def inputs(self) -> set[str]:
        return set(self.method.flags)

    @property
    def sees_target(self) -> bool:
        """Whether the scores depend on the target."""
        return bool(self.inputs & OF_TARGET)


def variants() -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for method in map(methods.get, methods.names()):
        if not set(method.required) <= GIVEN:
            continue
        for unit in method.units:
            several = len(method.units) > 1
            name = f"{method.name}_{unit}" if several else method.name
            found[name] = variant = Variant(method, {"unit": unit} if several else {})
            if "clusters" in variant.inputs - set(method.required):
                found[f"{name}_clusters"] = replace(variant, clusters=True)
                found[f"{name}_label_free"] = replace(variant, clusters=True, encoder="encoder")
    return found
