"""Samples from files and tar archives: bytes, order and memory; corrupt archives."""

import io
import os
import pickle
import shutil
import subprocess
import tarfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dp4tl_ffcv.writing.sources import ImageFiles, TarImages, TarMembers, list_tar
from tests.support.files import put, tar_of

FILES = {"a.jpg": b"one", "deep/er/b.jpg": b"", "c.jpg": bytes(range(256)) * 5}


def content(members: TarMembers) -> dict[str, bytes]:
    return {members.names[i]: members.read(i) for i in range(len(members))}


# Files.


def test_files_are_samples_of_path_label_and_identifier(tmp_path: Path) -> None:
    samples = ImageFiles([tmp_path / "a b.jpg", "é/ü.png"], [3, 1], identifiers=[70, 80])
    assert list(samples) == [(tmp_path / "a b.jpg", 3, 70), (Path("é/ü.png"), 1, 80)]
    assert samples[-1] == samples[1]
    assert list(pickle.loads(pickle.dumps(samples))) == list(samples)
    assert [samples.name(i) for i in range(2)] == [str(tmp_path / "a b.jpg"), "é/ü.png"]
    assert samples.labels.tolist() == [3, 1]
    assert ImageFiles(["a", "b"], [0, 0]).identifiers.tolist() == [0, 1]
    assert len(ImageFiles([], [])) == 0
    for position in (2, -3):
        with pytest.raises(IndexError, match="out of range"):
            samples[position]


@example([b"\xff\xfe.jpg".decode(errors="surrogateescape")])
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_every_path_comes_back_as_it_was(names: list[str]) -> None:
    samples = ImageFiles(names, np.zeros(len(names), dtype=int))
    assert [samples.name(i) for i in range(len(names))] == names


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [0.5, 1.0], [[0, 1]]])
def test_wrong_labels_are_rejected(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="`labels` must hold one integer per image, 2 in all"):
        ImageFiles(["a", "b"], labels)
    with pytest.raises(ValueError, match="`identifiers` must"):
        ImageFiles(["a", "b"], [0, 1], identifiers=labels)


def test_a_listing_has_less_than_100_bytes_per_image_in_addition_to_names(tmp_path: Path) -> None:
    count, name = 4_000, "train/n01440764/n01440764_{:05}.JPEG".format
    labels = np.zeros(count, dtype=np.int64)
    limit = count * (100 + len(name(0)))
    archive = put(tmp_path / "many.tar", tar_of({name(i): b"" for i in range(count)}))
    for make in (
        lambda: ImageFiles(map(name, range(count)), labels),
        lambda: TarImages(list_tar(archive), labels),
    ):
        tracemalloc.start()
        try:
            images = make()
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(images) == count
        assert kept < limit
        assert peak < 1.5 * limit


# Archives.


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["us", "gnu", "pax"]
)
def test_the_files_of_an_archive_are_read_without_unpacking(form: int, tmp_path: Path) -> None:
    files = {**FILES, "Straße/日本.jpg": b"other alphabets"}
    if form != tarfile.USTAR_FORMAT:
        files["x" * 90 + "/" + "y" * 200 + ".jpg"] = b"a long name"
    archive = put(tmp_path / "a.tar", tar_of(files, format=form))
    members = list_tar(archive)
    assert content(members) == files
    samples = TarImages(members.chosen([2, 1, 0]), [2, 0, 1])
    assert list(samples) == [(FILES["c.jpg"], 2, 0), (b"", 0, 1), (b"one", 1, 2)]
    assert samples.name(1) == f"{archive}:deep/er/b.jpg"


def test_folders_and_links_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    put(tmp_path / "tree" / "a.jpg", b"here")
    (tmp_path / "tree" / "link.jpg").symlink_to("a.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "tree", "tree")
    assert content(list_tar(tmp_path / "a.tar")) == {"tree/a.jpg": b"here"}


def test_an_archive_of_archives_is_read_in_place(tmp_path: Path) -> None:
    inner = {
        "n01.tar": tar_of(FILES),
        "n02.tar": tar_of({"c.jpg": b"other"}),
        "empty.tar": tar_of({}),
    }
    archive = put(tmp_path / "train.tar", tar_of({**inner, "z.txt": b"last"}))
    members = list_tar(archive, nested=True)
    assert content(members) == {
        **{f"n01.tar/{name}": data for name, data in FILES.items()},
        "n02.tar/c.jpg": b"other",
        "z.txt": b"last",
    }
    assert TarImages(members, np.zeros(5, dtype=int)).name(3) == f"{archive}:n02.tar/c.jpg"
    assert content(list_tar(archive)) == {**inner, "z.txt": b"last"}
    assert len(list_tar(put(tmp_path / "a.tar", tar_of({})))) == 0


# Corrupt archives.


@pytest.mark.parametrize(("kind", "name"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
def test_a_compressed_archive_is_rejected(kind: str, name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", f"w:{kind}") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ValueError, match=rf"a\.tar.* is compressed by {name}"):
        list_tar(tmp_path / "a.tar")
    outer = put(tmp_path / "b.tar", tar_of({"n01.tar": (tmp_path / "a.tar").read_bytes()}))
    with pytest.raises(ValueError, match=rf"b\.tar:n01\.tar.*{name}"):
        list_tar(outer, nested=True)


def test_an_archive_truncated_anywhere_is_rejected(tmp_path: Path) -> None:
    whole = tar_of(FILES)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # where the end mark starts
    for length in (0, *range(1, end, 256), end - 1, end, end + 511):
        with pytest.raises(ValueError, match=r"cut\.tar.*is truncated"):
            list_tar(put(tmp_path / "cut.tar", whole[:length]))
    assert content(list_tar(put(tmp_path / "cut.tar", whole[: end + 512]))) == FILES


def test_a_truncated_inner_archive_is_rejected(tmp_path: Path) -> None:
    """tarfile would continue in the next archive."""
    inner = tar_of(FILES)
    end = len(inner.rstrip(b"\0")) // 512 * 512 + 512
    for length in (512, 1536, end - 512, end):
        archive = put(tmp_path / "a.tar", tar_of({"n01.tar": inner[:length], "n02.tar": inner}))
        with pytest.raises(ValueError, match=r"a\.tar:n01\.tar.* is truncated"):
            list_tar(archive, nested=True)


def test_a_corrupt_header_is_not_the_end_of_the_archive(tmp_path: Path) -> None:
    damaged = bytearray(tar_of(FILES))
    damaged[1024 + 150] ^= 0xFF  # in the checksum of the second header
    with pytest.raises(ValueError, match=r"a\.tar.*corrupt header at byte 1024"):
        list_tar(put(tmp_path / "a.tar", bytes(damaged)))


def with_size(header: bytes, size: int) -> bytes:
    """Return a tar header with a size in base 256, which can be negative."""
    changed = bytearray(header)
    changed[124:136] = (size & (1 << 96) - 1 | 1 << 95).to_bytes(12, "big")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


@pytest.mark.parametrize("size", [-1, -511, -512, -513, -1024, -(1 << 40), 1 << 40, 1 << 80])
@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g", b"S"])
def test_a_member_of_impossible_size_ends_the_listing(
    kind: bytes, size: int, tmp_path: Path
) -> None:
    whole = tar_of(FILES)
    header = with_size(whole[1024:1180][:156] + kind + whole[1181:1536], size)
    for blob in (header + bytes(1024), whole[:1024] + header + whole[1536:]):
        archive = put(tmp_path / "a.tar", blob)
        with suppress(ValueError):  # or the member is left out
            assert len(list_tar(archive)) <= len(FILES)
        if kind == b"0":
            with pytest.raises(ValueError, match=r"Cannot read the tar archive .*a\.tar"):
                list_tar(archive)


def test_a_name_for_all_members_takes_no_more_memory_than_the_archive(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "a" * 100_000}
    ) as tar:
        for number in range(1000):
            tar.addfile(tarfile.TarInfo(f"{number}.jpg"))
    with pytest.raises(ValueError, match="a name of 100000 characters"):
        list_tar(put(tmp_path / "a.tar", stream.getvalue()))


def test_headers_before_headers_end_in_an_error(tmp_path: Path) -> None:
    long_name = with_size(tar_of({"a": b""})[:156] + b"L" + bytes(355), 1) + b"b".ljust(512, b"\0")
    with pytest.raises(ValueError, match=r"Cannot read the tar archive .*a\.tar"):
        list_tar(put(tmp_path / "a.tar", long_name * 5000))


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(OSError, match=r"FIFO or socket, not a file: .*a\.tar"):
        list_tar(tmp_path / "a.tar")


@pytest.mark.skipif(shutil.which("tar") is None, reason="only GNU tar makes sparse members")
def test_a_sparse_member_is_rejected(tmp_path: Path) -> None:
    with open(tmp_path / "holes.jpg", "wb") as stream:
        stream.truncate(1 << 20)
        stream.seek(1 << 19)
        stream.write(b"data")
    subprocess.run(["tar", "-cSf", "a.tar", "holes.jpg"], cwd=tmp_path, check=True)
    with pytest.raises(ValueError, match=r"sparse file 'holes\.jpg'"):
        list_tar(tmp_path / "a.tar")


def test_another_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.tar"):
        list_tar(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"a\.tar.* is truncated, corrupt or not a tar archive"):
        list_tar(put(tmp_path / "a.tar", b"x" * 5000))


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = put(tmp_path / "a.tar", tar_of({"n01.tar": tar_of(FILES)}))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 100), at))
    assert content(list_tar(archive, nested=True)) == {f"n01.tar/{n}": d for n, d in FILES.items()}


def test_an_archive_that_has_become_shorter_is_an_error(tmp_path: Path) -> None:
    archive = put(tmp_path / "a.tar", tar_of(FILES))
    samples = TarImages(list_tar(archive), [0, 0, 0])
    archive.write_bytes(archive.read_bytes()[:2100])
    with pytest.raises(ValueError, match=r"holds \d+ of 1280 bytes of 'c\.jpg'"):
        samples[2]
