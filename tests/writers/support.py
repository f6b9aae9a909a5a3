"""Helpers for tests of writers: running a writer, content of a beton, pickles."""

from pathlib import Path
from struct import pack
from typing import Any

import pytest

from dp4tl_ffcv import BetonIndex
from writers.components.common import CountedOptions


def stored(index: BetonIndex) -> dict[int, tuple[int, bytes]]:
    """Return label and stored image bytes by identifier."""
    data = index.path.read_bytes()
    found = {}
    for sample_id, identifier in enumerate(index.column("identifier").tolist()):
        (extent,) = index.extents([sample_id])
        content = data[extent["ptr"] : extent["ptr"] + extent["size"]]
        found[identifier] = (int(index.labels()[sample_id]), content)
    return found


def names_of(index: BetonIndex) -> tuple[str, ...]:
    assert index.manifest is not None
    return index.manifest.class_names


def write(writer: Any, out: Path, **options: Any) -> dict[str, BetonIndex]:
    """Run a writer in this process, by default without its check of counts."""
    unchecked = {"check_counts": False} if issubclass(writer.Config, CountedOptions) else {}
    given = {"num_workers": 0, **unchecked, **options}
    written: dict[str, BetonIndex] = writer.write(writer.Config(out=out, **given))
    return written


def check_refused(writer: Any, out: Path, why: str, **options: Any) -> None:
    """Check that a writer raises an error that matches `why` before it writes anything."""
    with pytest.raises(ValueError, match=why):
        write(writer, out, **options)
    assert not out.exists()


def python2(value: Any) -> bytes:
    """Pickle as Python 2 does with protocol 2, whose strings have their own opcode."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        items = (_python2(key) + _python2(item) for key, item in value.items())
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, bytes):
        return b"T" + pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + pack("<i", value)
    kind = b"cnumpy\ndtype\n(T\x02\0\0\0u1K\0K\x01tR(K\x03T\x01\0\0\0|NNNJ\xff\xff\xff\xff"
    kind += b"J\xff\xff\xff\xffK\0tb"
    rows, width = value.shape
    by_columns = not value.flags.c_contiguous
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tT\x01\0\0\0btR(K\x01("
        + _python2(rows)
        + _python2(width)
        + b"t"
        + kind
        + (b"\x88" if by_columns else b"\x89")
        + _python2(value.tobytes(order="F" if by_columns else "C"))
        + b"tb"
    )
