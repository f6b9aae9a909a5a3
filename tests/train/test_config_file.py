"""Configuration files that are malformed, or that ask for more than their size."""

import os
from pathlib import Path

import pytest

from train.configs.config_file import read_config_file

MULTIPLIED = "lr: 1\na0: &a0 [x, x]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 12)
)
FAULTS = {
    "anchors": ("a.yaml", MULTIPLIED, "line 2: anchors and aliases are not supported"),
    "merge key": ("a.yaml", "lr: 1\n<<: *x", "line 2: anchors and aliases are not supported"),
    "tag": ("a.yaml", "a: !!python/name:os.system x", "line 1: the tag 'tag:yaml.org,2002:python"),
    "key twice in YAML": ("a.yaml", "lr: 1\n\nlr: 2", "line 3: the key 'lr' is given twice"),
    "key of a list": ("a.yaml", "? [lr]\n: 2", "line 1: a key must be text"),
    "nested YAML": ("a.yaml", "lr:\n  " + "[" * 10**5, "line 2: nested more than 20 deep"),
    "two documents": ("a.yaml", "lr: 1\n---\nlr: 2", "line 2, column 1"),
    "control character": ("a.yaml", "lr: \x00", "unacceptable character"),
    "escaped character": ("a.yaml", r'lr: "\UFFFFFFFF"', "too large|greater than maximum"),
    "key twice in JSON": ("a.json", '{"lr": 1, "lr": 2}', "the key 'lr' is given twice"),
    "nested JSON": ("a.json", '{"lr": ' + "[" * 30 + "]" * 30 + "}", "nested more than 20 deep"),
    "deep JSON": ("a.json", '{"lr": ' + "[" * 10**5, "maximum recursion depth"),
    "syntax of JSON": ("a.json", '{"lr": 1,\n2}', "line 2 column 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_with_the_file_and_the_line(fault: str, tmp_path: Path) -> None:
    name, text, message = FAULTS[fault]
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    kind = name[2:].upper()
    with pytest.raises(
        ValueError, match=rf"cannot read the configuration .*{name}' as {kind}: (?s:.*){message}"
    ):
        read_config_file(tmp_path / name)


def test_text_of_another_encoding_is_reported_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"run": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.json' as JSON: 'utf-8' codec can't decode"):
        read_config_file(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_only_small_regular_files_are_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        read_config_file(tmp_path / name)
    (tmp_path / name).write_text("{}" + " " * (1 << 20))
    with pytest.raises(ValueError, match=rf"{name}' as .*: it has more than 1 MiB"):
        read_config_file(tmp_path / name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match=rf"FIFO.*{name}"):
        read_config_file(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        read_config_file(tmp_path / name)
