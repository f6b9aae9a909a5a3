"""A configuration from the command line: by name, from a file, and by a flag for each field."""

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from . import dp4tl

Config = TypeVar("Config")


def parse(
    config_type: type[Config],
    configs: Mapping[str, Callable[..., Config]],
    *,
    description: str | None,
    args: Sequence[str] | None = None,
) -> Config:
    """Return the configuration that a command line asks for.

    `--config NAME` takes the values of a named configuration, `--config-file FILE` those of a file,
    and a flag for each field overrides both. A file is YAML or JSON with the names of the fields,
    or one of DP4TL's, which has sections.

    Args:
        config_type: a dataclass.
        configs: functions that return a configuration from the paths alone, by name.
        description: printed by `--help`.
        args: words of the command line; None takes the program's.

    Raises:
        ValueError: the file is no mapping or sets what `config_type` has not.
        SystemExit: the words are no configuration, as the printed message says, or ask for help.
    """
    sources = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    sources.add_argument("--config", choices=sorted(configs))
    sources.add_argument("--config-file", type=Path)
    chosen, rest = sources.parse_known_args(args)
    words = [] if chosen.config_file is None else _words(config_type, chosen.config_file)
    default: Any = None if chosen.config is None else _with_missing(configs[chosen.config])
    config: Config = tyro.cli(
        config_type,
        default=default,
        args=[*words, *rest],  # of a flag that is given twice, the later holds
        description=f"{description or ''}\n\n{_SOURCES.format(names=', '.join(configs))}",
    )
    return config


_SOURCES = """\
--config NAME takes the values of a named configuration: {names}.

--config-file FILE takes those of a YAML or JSON file of the fields below, or of one of DP4TL's.

The flags below override both."""


def _with_missing(named: Callable[..., Config]) -> Config:
    """Call a named configuration before its paths are known."""
    parameters = inspect.signature(named).parameters.values()
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    return named(**dict.fromkeys(required, tyro.MISSING))


def _words(config_type: type[Any], path: Path) -> list[str]:
    """Return the flags that say what a file says."""
    values = _read(path)
    if any(isinstance(value, Mapping) for value in values.values()):
        values = dp4tl.fields_of(values)
        known = {field.name for field in fields(config_type)}
        # What a recipe lacks may be said to be off.
        values = {name: value for name, value in values.items() if value or name in known}
    hints = get_type_hints(config_type)
    unknown = [name for name in values if name not in hints]
    if unknown:
        raise ValueError(
            f"`config_file` must set fields of this recipe; got {', '.join(unknown)} in "
            f"{str(path)!r}. Take them out; --help lists the fields."
        )
    return [word for name, value in values.items() for word in _flag(name, value, hints[name])]


def _flag(name: str, value: Any, hint: Any) -> list[str]:
    flag = name.replace("_", "-")
    if hint is bool:
        known = {"true": f"--{flag}", "false": f"--no-{flag}"}
        if str(value).lower() not in known:
            raise ValueError(f"`{name}` must be true or false; got {value!r}. Choose one.")
        return [known[str(value).lower()]]
    values = value if isinstance(value, list) else [value]
    return [f"--{flag}", *("None" if v in (None, "null", "~", "") else str(v) for v in values)]


def _read(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file; YAML's scalars stay text, which flags are too.

    YAML 1.1 would make `off` false and `5e-5` text.
    """
    text = path.read_text()
    try:
        values = json.loads(text) if path.suffix == ".json" else _read_yaml(text)
    except ImportError:
        raise ValueError(
            f"`config_file` must be a .json file where pyyaml is not installed; got "
            f"{str(path)!r}. Install it with `pip install 'dp4tl_ffcv[recipes]'`."
        ) from None
    except Exception as error:  # each parser has its own
        raise ValueError(
            f"`config_file` must be YAML, or JSON if its name ends in .json; got {str(path)!r}: "
            f"{error}. Correct it."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"`config_file` must hold a mapping of fields to values; got {type(values).__name__} "
            f"in {str(path)!r}. Write one field a line, as in `lr: 0.5`."
        )
    return values


def _read_yaml(text: str) -> Any:
    import yaml

    return yaml.load(text, yaml.BaseLoader)
