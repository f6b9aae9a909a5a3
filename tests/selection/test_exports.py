"""Lists of sample ids for other loaders: export and import."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import BetonIndex, Selection, export_indices, import_indices
from tests.support.traps import Trap

SAMPLES = 34
SUFFIXES = [".npy", ".indices", ".txt"]


@pytest.fixture
def selection(uneven: BetonIndex) -> Selection:
    return Selection.of_classes(uneven, [3, 0])


def test_files_hold_ascending_ids_in_the_format_of_their_suffix(
    selection: Selection, uneven: BetonIndex, tmp_path: Path
) -> None:
    folder = tmp_path / "deep"
    for suffix in SUFFIXES:
        export_indices(selection, folder / f"ids{suffix}")
        imported = import_indices(str(folder / f"ids{suffix}"), uneven)
        assert imported.digest() == selection.digest()
        assert imported.provenance == {"imported": f"ids{suffix}"}
    array = np.load(folder / "ids.npy", allow_pickle=False)
    tensor = torch.load(folder / "ids.indices", weights_only=True)  # as DP4TL's scripts do
    assert isinstance(tensor, torch.Tensor)
    assert (array.dtype, tensor.dtype) == (np.int64, torch.int64)
    assert array.tolist() == tensor.tolist() == selection.indices.tolist()
    lines = (folder / "ids.txt").read_text().splitlines()
    assert lines == [str(index) for index in selection.indices]


def test_numbers_that_do_not_select_whole_classes_are_warned_of(
    selection: Selection, uneven: BetonIndex, tmp_path: Path
) -> None:
    export_indices(selection, tmp_path / "ids.npy")
    import_indices(tmp_path / "ids.npy", uneven)  # warnings are errors
    np.save(tmp_path / "other.npy", SAMPLES - 1 - selection.indices)
    message = r"other\.npy' covers \d+ of its \d+ classes only partly.* not positions\. Pass"
    with pytest.warns(UserWarning, match=message):
        import_indices(tmp_path / "other.npy", uneven)
    np.save(tmp_path / "large.npy", np.array([1, SAMPLES]))
    with pytest.raises(ValueError, match=r"must lie in \[0, 34\).*Pass positions in this beton"):
        import_indices(tmp_path / "large.npy", uneven)


@pytest.mark.filterwarnings("ignore:the samples in")
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
def test_another_suffix_is_rejected(
    name: str, selection: Selection, uneven: BetonIndex, tmp_path: Path
) -> None:
    message = r"must end in \.npy, \.indices or \.txt, which names the format"
    with pytest.raises(ValueError, match=message):
        export_indices(selection, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        import_indices(tmp_path / name, uneven)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([2, 100]), ValueError, r"^`indices` must lie in \[0, 34\); .*from 2 to 100"),
        (torch.ones(3), TypeError, "^`indices` must be integers"),
        (torch.ones(3, dtype=torch.bool), TypeError, "^`indices` must be integers"),
    ],
    ids=["out of range", "float", "bool"],
)
def test_numbers_that_are_no_ids_are_rejected(
    ids: Any, error: type[Exception], message: str, uneven: BetonIndex, tmp_path: Path
) -> None:
    torch.save(ids, tmp_path / "ids.indices")
    with pytest.raises(error, match=message):
        import_indices(tmp_path / "ids.indices", uneven)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_and_damaged_files_are_rejected(
    suffix: str, selection: Selection, uneven: BetonIndex, tmp_path: Path
) -> None:
    path = tmp_path / f"ids{suffix}"
    with pytest.raises(FileNotFoundError, match="ids"):
        import_indices(path, uneven)
    export_indices(selection, path)
    whole = path.read_bytes()
    truncated = [] if suffix == ".txt" else [whole[:size] for size in range(0, len(whole), 13)]
    for content in (
        b"not ids",
        b"\xff\xfe\x00",
        b"1.5\n",
        b"9" * 30,
        b"9" * 5000,
        b"1 " * (1 << 20),
        *truncated,
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"holds no sample ids in the format \{suffix}"):
            import_indices(path, uneven)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no sample ids|retains no sample"):
        import_indices(path, uneven)


def test_a_tensor_that_repeats_its_elements_is_rejected(uneven: BetonIndex, tmp_path: Path) -> None:
    """Its file takes 1 kB, its array 8 TB."""
    torch.save(torch.zeros(1, dtype=torch.int64).expand(1 << 40), tmp_path / "ids.indices")
    with pytest.raises(ValueError, match="holds no sample ids"):
        import_indices(tmp_path / "ids.indices", uneven)


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
