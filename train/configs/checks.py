"""What the configurations of all recipes refuse."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(config: Any) -> None:
    """Refuse a word that is none of its field's.

    Raises:
        ValueError: it is not.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        choices = get_args(hints[field.name])
        value = getattr(config, field.name)
        if get_origin(hints[field.name]) is Literal and value not in choices:
            raise ValueError(
                f"`{field.name}` must be one of {', '.join(choices)}; got {value!r}. Choose one."
            )


def check_at_least(config: Any, least: float, names: Iterable[str]) -> None:
    """Refuse smaller values of these fields than `least`, and NaN; None passes.

    Raises:
        ValueError: one is smaller.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}. Raise it.")


def check_pixel_values(config: Any, names: Iterable[str]) -> None:
    """Refuse changes of a pixel value, of 255, that are none or larger than any; None passes.

    Raises:
        ValueError: one is.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= 255:
            raise ValueError(
                f"`{name}` must be above 0 and at most 255; got {value}. Give pixel values."
            )


def check_shares(config: Any, names: Iterable[str]) -> None:
    """Refuse values of these fields that are no shares, in 0 to 1.

    Raises:
        ValueError: one is outside.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in 0 to 1; got {value}. Give it as a share.")
