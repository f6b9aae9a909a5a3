"""Bare lists of sample ids, for other people's loaders, and back."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import BetonIndex, Selection, export_indices, import_indices

SUFFIXES = [".npy", ".indices", ".txt"]


@pytest.fixture
def selection(uneven: BetonIndex) -> Selection:
    return Selection.of_classes(uneven, [3, 0])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ids_come_back(
    suffix: str, selection: Selection, uneven: BetonIndex, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / f"ids{suffix}"
    export_indices(selection, path)
    imported = import_indices(str(path), uneven)
    assert imported.digest() == selection.digest()
    assert imported.provenance == {"imported": f"ids{suffix}"}


def test_an_npy_file_is_an_array_of_ascending_ids(selection: Selection, tmp_path: Path) -> None:
    export_indices(selection, tmp_path / "ids.npy")
    ids = np.load(tmp_path / "ids.npy", allow_pickle=False)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, selection.indices)


def test_an_indices_file_is_a_torch_tensor_as_dp4tl_loads_it(
    selection: Selection, tmp_path: Path
) -> None:
    export_indices(selection, tmp_path / "ids.indices")
    ids = torch.load(tmp_path / "ids.indices", weights_only=True)
    assert isinstance(ids, torch.Tensor)
    assert (ids.dtype, ids.ndim) == (torch.int64, 1)
    np.testing.assert_array_equal(ids.numpy(), selection.indices)


def test_a_text_file_has_an_id_a_line(selection: Selection, tmp_path: Path) -> None:
    export_indices(selection, tmp_path / "ids.txt")
    lines = (tmp_path / "ids.txt").read_text().splitlines()
    assert lines == [str(index) for index in selection.indices]


def test_ids_are_read_in_any_order_and_repeats_count_once(
    uneven: BetonIndex, tmp_path: Path
) -> None:
    (tmp_path / "ids.txt").write_text("7\n3 9\n\n3\n")
    np.save(tmp_path / "ids.npy", np.array([9, 7, 3, 3], dtype=np.uint16))
    torch.save(torch.tensor([7, 9, 3], dtype=torch.int32), tmp_path / "ids.indices")
    torch.save([3, 7, 9], tmp_path / "list.indices")
    for name in ("ids.txt", "ids.npy", "ids.indices", "list.indices"):
        assert import_indices(tmp_path / name, uneven).indices.tolist() == [3, 7, 9]


@pytest.mark.parametrize("name", ["ids", "ids.pt", "ids.npz", "ids.TXT"])
def test_another_suffix_is_refused(
    name: str, selection: Selection, uneven: BetonIndex, tmp_path: Path
) -> None:
    message = r"must end in one of \.npy, \.indices, \.txt; the suffix chooses"
    with pytest.raises(ValueError, match=message):
        export_indices(selection, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        import_indices(tmp_path / name, uneven)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ids_out_of_range_are_refused(
    suffix: str, photos: Any, uneven: BetonIndex, tmp_path: Path
) -> None:
    path = tmp_path / f"ids{suffix}"
    export_indices(Selection.of_indices(photos.index, [2, 100]), path)
    with pytest.raises(ValueError, match=r"^`indices` must lie in \[0, 34\); .*from 2 to 100"):
        import_indices(path, uneven)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"not ids", b"\xff\xfe\x00", b"1.5\n"])
def test_damaged_files_are_refused(
    suffix: str, content: bytes, uneven: BetonIndex, tmp_path: Path
) -> None:
    path = tmp_path / f"ids{suffix}"
    path.write_bytes(content)
    message = rf"holds no sample ids that can be read as \{suffix}"
    with pytest.raises(ValueError, match=message):
        import_indices(path, uneven)


@pytest.mark.parametrize("suffix", [".npy", ".indices"])
def test_truncated_files_are_refused(
    suffix: str, selection: Selection, uneven: BetonIndex, tmp_path: Path
) -> None:
    path = tmp_path / f"ids{suffix}"
    export_indices(selection, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="holds no sample ids"):
            import_indices(path, uneven)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_refused(suffix: str, uneven: BetonIndex, tmp_path: Path) -> None:
    path = tmp_path / f"ids{suffix}"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no sample ids|retains no sample"):
        import_indices(path, uneven)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_not_found(suffix: str, uneven: BetonIndex, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ids"):
        import_indices(tmp_path / f"ids{suffix}", uneven)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".npy", ".indices"])
def test_code_in_a_file_is_not_run(suffix: str, uneven: BetonIndex, tmp_path: Path) -> None:
    path, sprung = tmp_path / f"ids{suffix}", tmp_path / "sprung"
    if suffix == ".npy":
        np.save(path, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    else:
        torch.save(Trap(sprung), path)
    with pytest.raises(ValueError, match="holds no sample ids"):
        import_indices(path, uneven)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_numbers_that_are_no_ids_are_refused(
    dtype: Any, uneven: BetonIndex, tmp_path: Path
) -> None:
    torch.save(torch.ones(3, dtype=dtype), tmp_path / "ids.indices")
    with pytest.raises(TypeError, match=r"^`indices` must be integers"):
        import_indices(tmp_path / "ids.indices", uneven)
