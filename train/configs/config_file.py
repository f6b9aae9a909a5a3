"""Read a configuration file: a mapping of fields to values, in YAML or JSON.

A file can be foreign. Aliases, tags and deep nesting, by which a few lines of YAML can ask for any
amount of memory or name Python's objects, are errors, as are keys that are given twice.
"""

import json
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dp4tl_ffcv.utils import requires

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 20


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file of at most 1 MiB.

    YAML scalars stay text, which flags are too: YAML 1.1 would read `off` as false, and `5e-5` as
    text.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is no regular file, too large, malformed, nested more than 20 deep, or
            has aliases, tags or a key twice. The message names the file and the line.
    """
    parse: Callable[[str], Any] = _parse_json
    if path.suffix != ".json":
        with requires("pyyaml", f"reading {str(path)!r}"):
            parse = _yaml_parser()
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{str(path)!r} is a folder. Add a file name.")
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise ValueError(
            f"`config_file` must be a regular file of at most 1 MiB; {str(path)!r} is not."
        )
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each parser has its own type of error
        raise ValueError(
            f"`config_file` must be YAML, or JSON if its name ends in .json; {str(path)!r} is not: "
            f"{error}"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} must map fields to values, as in `lr: 0.5`.")
    return values


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


def _yaml_parser() -> Callable[[str], Any]:
    import yaml

    class Loader(yaml.BaseLoader):  # type: ignore[misc]  # pyyaml is untyped
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            line = f"line {event.start_mark.line + 1}: "
            if getattr(event, "anchor", None) is not None:  # of an anchor or an alias
                raise ValueError(f"{line}anchors and aliases are not supported. Repeat the value")
            if getattr(event, "tag", None) is not None:
                raise ValueError(f"{line}the tag {event.tag!r} is not supported. Remove it")
            if self.depth == _MAX_DEPTH:
                raise ValueError(f"{line}nested more than {_MAX_DEPTH} deep")
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise ValueError(f"line {line}: a key must be text")
                if key.value in seen:
                    raise ValueError(f"line {line}: the key {key.value!r} is given twice")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return lambda text: yaml.load(text, Loader=Loader)
