"""Artifacts: read only as the requested kind, never unpickled."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv.artifacts import load_artifact, save_artifact
from tests.support.traps import Trap

NAMES = ("values", "ids")
NOT_ONE = r"a\.npz' is damaged or not a scores file of dp4tl"


def arrays() -> dict[str, Any]:
    return {"values": np.array([0.5, np.nan, -np.inf]), "ids": np.arange(6).reshape(2, 3)}


def save(path: Path, **header: Any) -> Path:
    save_artifact(path, "scores", arrays(), header)
    return path


def save_by_hand(path: Path, header: Any, **values: Any) -> Path:
    """Write the file as another program, or another version, might."""
    text = header if isinstance(header, np.ndarray) else np.array(json.dumps(header))
    np.savez(path, header=text, **{**arrays(), **values})
    return path


@pytest.mark.parametrize("name", ["a", "a.npz.old", ".npz"])
def test_an_artifact_must_be_called_npz(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`path` must end in \.npz; got"):
        save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# Reading.


def test_arrays_and_header_come_back(tmp_path: Path) -> None:
    given = {"method": "lm", "nested": {"keep": [0.4, None]}, "text": "ä\n'\""}
    path = save(tmp_path / "a.npz", **given, kind="x", format=9)
    for names in (NAMES, ("ids",)):
        found, header = load_artifact(path, "scores", names)
        assert list(found) == list(names)
        for name in names:
            assert found[name].dtype == arrays()[name].dtype
            np.testing.assert_array_equal(found[name], arrays()[name])
    assert header.pop("tool").startswith("dp4tl_ffcv ")
    assert header == {**given, "kind": "scores", "format": 1}


def test_a_missing_file_and_a_folder_have_their_own_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.npz"):
        load_artifact(tmp_path / "a.npz", "scores", NAMES)
    with pytest.raises(IsADirectoryError):
        load_artifact(tmp_path, "scores", NAMES)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"kind": "selection", "format": 1}, r"is a selection file; a scores file is needed"),
        ({"kind": "scores", "format": 2}, r"newer dp4tl_ffcv \(format 2\)\. Update yours"),
    ],
    ids=["kind", "format"],
)
def test_another_kind_and_a_newer_format_are_rejected(
    header: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"a\.npz' .*{match}"):
        load_artifact(save_by_hand(tmp_path / "a.npz", header), "scores", NAMES)


@pytest.mark.parametrize(
    "header",
    [
        {"format": 1},
        {"kind": "scores"},
        {"kind": "scores", "format": "new"},
        ["kind", "format"],
        None,
        np.array("{not json"),
        np.arange(3),
        np.array(b"\xff\xfe"),
    ],
    ids=str,
)
def test_a_header_of_another_form_is_rejected(header: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(save_by_hand(tmp_path / "a.npz", header), "scores", NAMES)


def test_an_artifact_without_an_array_or_a_header_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(save(tmp_path / "a.npz"), "scores", (*NAMES, "tie"))
    np.savez(tmp_path / "a.npz", **arrays())
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(tmp_path / "a.npz", "scores", NAMES)


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(4))
    return stream.getvalue()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", bytes(500), b"\x93NUMPY", npy()])
def test_a_file_of_another_format_is_rejected(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(path, "scores", NAMES)


@pytest.mark.parametrize("place", ["values", "header", "file"])
def test_nothing_is_ever_unpickled(place: str, tmp_path: Path) -> None:
    path, sprung = tmp_path / "a.npz", tmp_path / "sprung"
    trap = np.array([Trap(sprung)], dtype=object)
    if place == "values":
        save_by_hand(path, {"kind": "scores", "format": 1}, values=trap)
    elif place == "header":
        save_by_hand(path, trap)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(path, "scores", NAMES)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


def test_a_damaged_artifact_is_rejected_or_read_correctly(tmp_path: Path) -> None:
    path, rejected = save(tmp_path / "a.npz"), 0
    whole, expected = path.read_bytes(), load_artifact(path, "scores", NAMES)
    for position in range(len(whole)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            try:
                found, header = load_artifact(path, "scores", NAMES)
            except ValueError as error:
                rejected += "not a scores file" in str(error)
                continue
            for name, array in arrays().items():
                assert found[name].tobytes() == array.tobytes()
            assert header == expected[1]
    assert rejected > len(whole)


def test_an_artifact_truncated_anywhere_is_rejected(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.npz").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "a.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=NOT_ONE):
            load_artifact(tmp_path / "a.npz", "scores", NAMES)
