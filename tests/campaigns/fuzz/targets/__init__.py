"""The targets: each subclass of `Target` in a module of this folder, by its name."""

import inspect
from importlib import import_module
from pkgutil import iter_modules

from tests.campaigns.fuzz.target import Target


def _targets() -> dict[str, Target]:
    found = {}
    for module in sorted(iter_modules(__path__), key=lambda each: each.name):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if inspect.isclass(value) and issubclass(value, Target) and hasattr(value, "name"):
                found[value.name] = value()
    return found


TARGETS = _targets()
