"""Foreign YAML. More cases are in train/test_config_file.py and writers/test_huggingface.py."""

import pytest

from dp4tl_ffcv import yaml_text
from dp4tl_ffcv.yaml_text import parse_yaml


def test_a_text_of_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml")
    monkeypatch.setattr(yaml_text, "_MOST_NODES", 20)
    assert parse_yaml("a:\n  b: [1, off]") == {"a": {"b": ["1", "off"]}}
    with pytest.raises(ValueError, match="line 3: more than 20 keys and values"):
        parse_yaml("a: 1\nb: [\n" + "x, " * 20 + "]")
