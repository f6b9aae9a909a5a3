"""Read the files of `torch.save` and `.safetensors` without running code from them; write files.

Everything that decides about memory and time is checked first: the file's own lists and sizes, and
the pickle. Reading then takes memory in proportion to the file.
"""

import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ...atomic import atomic_open
from ...errors import CheckpointError, requires
from ...pickles import scan_pickle

_ZIP = b"PK\x03\x04"
_IS_FOLDER = 0x10  # attribute of a member
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number of torch before 1.6
_LEGACY_PICKLES = 5  # this number, the version, the machine, the objects, the names of the storages
# The objects of checkpoints. torch allows a few more, such as nested tensors and those of devices.
_CONTAINERS = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__")
      for name in ("bytearray", "complex", "set")),
    "_codecs.encode", "collections.Counter", "collections.OrderedDict",
    "numpy.dtype", "numpy.ndarray",
}  # fmt: skip
_TENSORS = re.compile(
    r"torch\._utils\._rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?)"
    r"|torch\._utils\._rebuild_(sparse_tensor|qtensor|meta_tensor_no_storage)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout|torch\.(storage\.)?\w*Storage|torch\.(Size|Tensor|device)"
    r"|torch\.(b?float|u?int|complex|bool|half|double|long|short|q|per_tensor_|per_channel_)\w*"
    r"|numpy\.(core|_core)\.multiarray\.(_reconstruct|scalar)|numpy\.dtypes\.\w+"
)
_NUMPY_CODES = {
    np.dtype(code).str[1:]  # such as f8
    for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
}
# The functions that take the parts of a sparse or quantized tensor.
_COMPOSING = {
    torch.sparse_coo_tensor,
    torch.sparse_compressed_tensor,
    torch._empty_per_channel_affine_quantized,
}


def read_entries(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Return the dictionary in a file of `torch.save`, or the tensors of a `.safetensors` file.

    The file may hold tensors of any kind, plain containers, and numpy's numbers and arrays. Peak
    memory is the size of the file, once.

    Raises:
        OSError: the file cannot be opened; `filename` is its path.
        CheckpointError: the file is damaged, holds something else, or is no regular file.
        ValueError: the file is `.safetensors`, and safetensors is not installed.
    """
    path = Path(path)
    is_safetensors = path.suffix == ".safetensors"
    if is_safetensors:
        with requires("safetensors", f"reading {str(path)!r}"):
            from safetensors.torch import load_file
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CheckpointError("it is not a regular file. Pass the path of a checkpoint.")
    if is_safetensors:
        with _only_checkpoint_errors():
            return dict(load_file(path))
    with _only_checkpoint_errors():
        entries = read_saved(path)
        if not isinstance(entries, Mapping):
            raise ValueError(f"it holds a value of type {type(entries).__name__}")
        return dict(entries)


def read_saved(path: Path) -> Any:
    """Return what `torch.save` wrote to a file: tensors, plain containers, numpy's numbers."""
    with path.open("rb") as stream, _only_checkpoint_errors():
        _check(stream)
        size = os.fstat(stream.fileno()).st_size
        with torch.serialization.safe_globals(_numpy_globals()), _Bounded(size):
            entries = torch.load(stream, map_location="cpu", weights_only=True)
        # A file from before torch 1.6 can name storages that it does not hold.
        if _storage_bytes(entries) > size:
            raise ValueError("its tensors are larger than the file")
        return entries


def write_entries(path: str | os.PathLike[str], entries: Mapping[str, Any]) -> None:
    """Write a dictionary with `torch.save`, atomically.

    Raises:
        OSError: the file cannot be written; see `atomic_open`.
    """
    with atomic_open(path) as stream:
        recorder = _Recorder(stream)
        try:
            torch.save(entries, recorder)  # type: ignore[arg-type]  # torch calls `write` only
        except RuntimeError:
            if recorder.error is not None:
                raise recorder.error from None
            raise


class _Recorder(io.RawIOBase):
    """Passes data on, and keeps the error of the stream, which torch replaces by its own."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise


class _Bounded(TorchFunctionMode):
    """Limits the tensors that sparse and quantized ones are made of to a number of bytes.

    torch checks or copies all their elements. A view can have any number from little memory.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _COMPOSING:
            parts = (*args, *(kwargs or {}).values())
            self._left -= sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
            if self._left < 0:
                raise ValueError("its sparse or quantized tensors are larger than the file")
        return func(*args, **(kwargs or {}))


@contextmanager
def _only_checkpoint_errors() -> Iterator[None]:
    try:
        yield
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # torch raises several kinds for damaged and foreign files
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened
        # torch's own texts advise to run the code of the file.
        is_short = isinstance(error, ValueError | zipfile.BadZipFile)
        why = f" ({str(error).removesuffix('.')})" if is_short else ""
        raise CheckpointError(
            "it is damaged, not a checkpoint, or holds objects other than tensors and numbers"
            f"{why}. Save the state dict alone."
        ) from error


def _check(stream: IO[bytes]) -> None:
    """Raise ValueError unless reading a file takes memory and time in proportion to its size."""
    start = stream.read(len(_LEGACY))
    if start.startswith(_ZIP):
        with zipfile.ZipFile(stream) as archive:
            _check_archive(archive, os.fstat(stream.fileno()).st_size)
    elif start == _LEGACY:
        with mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
            position = 0
            for _ in range(_LEGACY_PICKLES):
                position = scan_pickle(data, position, accepts=_is_harmless)
    else:
        raise ValueError("it is neither a zip archive nor a pickle of torch")
    stream.seek(0)


def _check_archive(archive: zipfile.ZipFile, file_size: int) -> None:
    members = archive.infolist()
    if sum(member.file_size for member in members) > file_size:
        raise ValueError("its members are larger than the file")
    if any(member.external_attr & _IS_FOLDER for member in members):
        raise ValueError("a member is marked as a folder")  # of which torch reads nothing
    # torch ignores case when it looks a member up.
    if len({member.filename.casefold() for member in members}) < len(members):
        raise ValueError("two members have the same name")
    if any(member.CRC for member in members):
        if archive.testzip():  # torch does not verify checksums
            raise ValueError("a member has another checksum")
    else:  # written without checksums, see `torch.serialization.set_crc32_options`
        for member in members:
            del member.CRC  # zipfile verifies no checksum then
    for member in members:
        if member.filename.casefold().endswith(".pkl"):
            scan_pickle(archive.read(member), accepts=_is_harmless)


def _is_harmless(name: str) -> bool:
    return name in _CONTAINERS or _TENSORS.fullmatch(name) is not None


def _storage_bytes(entries: Any) -> int:
    """Return the memory of all tensors in nested containers."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    waiting = [entries]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, torch.Tensor) and _has_storage(value):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _has_storage(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided


def _numpy_globals() -> list[Any]:
    """List the globals that pickles of numpy numbers and arrays use. None runs code of the file.

    numpy 2 moved the functions to another module.
    """
    makers: list[Any] = [np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]]
    names = [
        (maker, f"numpy.{core}.multiarray.{maker.__name__}")
        for maker in makers
        for core in ("core", "_core")
    ]
    types = {type(np.dtype(code)) for code in _NUMPY_CODES}
    return [(_number_type, "numpy.dtype"), np.ndarray, *names, *types]


def _number_type(code: Any, *options: Any) -> Any:
    """Return numpy's type of a number. A number of another type may take any memory."""
    if code not in _NUMPY_CODES:
        raise ValueError(f"it holds numpy's type {code!s:.20}")
    return np.dtype(code, *options)
