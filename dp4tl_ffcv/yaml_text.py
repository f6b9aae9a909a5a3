"""YAML from foreign files, read in time and memory that are in line with the text."""

from typing import Any

_DEEPEST = 20  # levels of YAML
_MOST_NODES = 100_000  # of a YAML text; each takes about 50 us and 1 kB


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text. Numbers, dates and words such as `off` stay text.

    A few lines with anchors can ask for any amount of memory, and tags can name Python's objects.

    Raises:
        ValueError: the text is malformed, nested more than 20 deep, has more than 100,000 keys and
            values, or has anchors, tags or a key twice.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_yaml_loader())
    except (yaml.YAMLError, OverflowError) as error:  # OverflowError: an escaped character
        raise ValueError(str(error)) from error


def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.BaseLoader):  # type: ignore[misc]  # pyyaml is untyped
        depth = nodes = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if (fault := _yaml_fault(event, self.depth, self.nodes)) is not None:
                raise ValueError(f"line {event.start_mark.line + 1}: {fault}")
            self.depth, self.nodes = self.depth + 1, self.nodes + 1
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

    return Loader


def _yaml_fault(event: Any, depth: int, nodes: int) -> str | None:
    if getattr(event, "anchor", None) is not None:  # of an anchor or an alias
        return "anchors and aliases are not supported. Repeat the value"
    if getattr(event, "tag", None) is not None:
        return f"the tag {event.tag!r} is not supported. Remove it"
    if depth == _DEEPEST:
        return f"nested more than {_DEEPEST} deep"
    return f"more than {_MOST_NODES} keys and values" if nodes == _MOST_NODES else None
