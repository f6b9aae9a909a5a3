"""Read a configuration file: a mapping of fields to values, in YAML or JSON.

A file can be foreign. Deep nesting is an error, as are keys that are given twice and what
`parse_yaml` rejects.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from dp4tl_ffcv.utils import check_entries, parse_yaml, read_text

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 20
_MOST_SHOWN = 80  # characters of a wrong value


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file of at most 1 MiB.

    YAML scalars stay text, which flags are too: YAML 1.1 would read `off` as false, and `5e-5` as
    text.

    Raises:
        OSError: the file cannot be opened, or is a folder, device, FIFO or socket.
        ValueError: the file is too large, malformed, nested more than 20 deep, or has aliases, tags
            or a key twice. The message names the file and the line.
    """
    kind, parse = ("JSON", _parse_json) if path.suffix == ".json" else ("YAML", parse_yaml)
    try:
        values = parse(read_text(path, _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"cannot read the configuration {str(path)!r} as {kind}: {error}"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} must map fields to values, as in `lr: 0.5`.")
    return values


def check_forms(
    entry: str,
    values: Mapping[str, Any],
    forms: Mapping[str, tuple[Any, str]],
    *,
    optional: Collection[str],
) -> None:
    """Check the types of the values of an entry.

    Args:
        entry: name of the entry, for errors. Empty for the file itself.
        values: values by name.
        forms: the type of each value as for `check_entries`, and an example that errors show.
        optional: names of values that may be missing.

    Raises:
        ValueError: a value is missing or has another type.
    """
    where = f"`{entry}`: " if entry else ""
    for name, (kind, example) in forms.items():
        if name not in values:
            if name not in optional:
                raise ValueError(f"{where}there is no `{name}`. Add it as in `{example}`.")
            continue
        try:
            check_entries({name: values[name]}, {name: kind})
        except ValueError as error:
            given = shorten(json.dumps(values[name]), _MOST_SHOWN)
            raise ValueError(
                f"{where}`{name}` cannot be {given}. Write it as in `{example}`."
            ) from error


def _parse_json(text: str) -> Any:
    values = json.loads(text, object_pairs_hook=_without_repeats)
    level = [values] if isinstance(values, dict | list) else []
    for _ in range(_MAX_DEPTH):
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [value for part in parts for value in part if isinstance(value, dict | list)]
        if not level:
            return values
    raise ValueError(f"nested more than {_MAX_DEPTH} deep")


def _without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is given twice")
        values[key] = value
    return values
