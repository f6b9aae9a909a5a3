"""Settings from the command line: a named configuration, a file, and a flag for each field."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from . import dp4tl
from .config_file import read_config_file

Config = TypeVar("Config")

_SOURCES = """\
--config NAME takes the values of a named configuration: {names}.

--config-file FILE takes the values of a YAML or JSON file with the fields below as keys, or of a \
configuration file of DP4TL.

The file overrides the named configuration, and the flags below override both."""


def parse(
    config_type: type[Config],
    configs: Mapping[str, Mapping[str, Any]],
    *,
    description: str | None,
    args: Sequence[str] | None = None,
) -> Config:
    """Return the settings that a command line gives.

    Args:
        config_type: a dataclass.
        configs: values of fields, by the name of the configuration.
        description: text for `--help`.
        args: arguments of the command line. None reads the arguments of the program.

    Raises:
        ValueError: `--config-file` cannot be read, or sets a field that `config_type` lacks.
        SystemExit: the arguments are invalid, or ask for help.
    """
    sources = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    sources.add_argument("--config", choices=sorted(configs))
    sources.add_argument("--config-file", type=Path)
    chosen, rest = sources.parse_known_args(args)
    words: list[str] = []
    if chosen.config_file is not None:
        hints = get_type_hints(config_type)
        for name, value in _file_values(chosen.config_file, config_type).items():
            words += _flag(name, value, hints[name])
    named = configs[chosen.config] if chosen.config else {}
    return tyro.cli(
        config_type,
        default=_defaults(config_type, named),
        args=[*words, *rest],  # tyro takes the last value of a flag
        description=f"{description or ''}\n\n{_SOURCES.format(names=', '.join(configs))}",
    )


def _defaults(config_type: type[Config], values: Mapping[str, Any]) -> Config:
    """Return an instance with `values` and defaults, without checks, since paths are missing."""
    instance = object.__new__(config_type)
    for field in fields(config_type):  # type: ignore[arg-type]
        default = tyro.MISSING if field.default is MISSING else field.default
        object.__setattr__(instance, field.name, values.get(field.name, default))
    return instance


def _flag(name: str, value: Any, hint: Any) -> list[str]:
    flag = name.replace("_", "-")
    if hint is bool:
        known = {"true": f"--{flag}", "false": f"--no-{flag}"}
        if str(value).lower() not in known:
            raise ValueError(f"`{name}` must be true or false; got {value!r}.")
        return [known[str(value).lower()]]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{flag}", *("None" if v in (None, "null", "~", "") else str(v) for v in values)]


def _file_values(path: Path, config_type: type[Any]) -> dict[str, Any]:
    """Return the fields of `config_type` that a file sets."""
    values = read_config_file(path)
    known = {field.name for field in fields(config_type)}
    if any(isinstance(value, Mapping) for value in values.values()):
        values = dp4tl.fields_of(values)
        # Ignore options that the file turns off and this recipe lacks.
        values = {name: value for name, value in values.items() if value or name in known}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(
            f"{str(path)!r} sets {', '.join(unknown)}, which this recipe does not have. "
            "--help lists the fields."
        )
    return values
