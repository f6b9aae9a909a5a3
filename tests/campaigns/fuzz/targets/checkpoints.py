"""Checkpoints of this project and of others, and the state of a stopped run."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from dp4tl_ffcv import build_model, load_checkpoint, save_checkpoint
from tests.campaigns.fuzz.mutate import mutated, mutated_text
from tests.campaigns.fuzz.target import FaultError, Sample, Target
from train.components.counters import Counters
from train.components.processes import Processes
from train.components.saved_state import SavedState

_TRAP = b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."
ARCH, CLASSES = "resnet8_w16", 3
_PICKLES = (
    # Opcodes that make much of little, call, or refer to what is not there.
    b"\x80\x02]q\x002(", b"Vx\n", b"I1\n", b"K\x01", b"(", b"t", b"}", b"]", b"2", b"\x85", b"\x86",
    b"R", b"b", b"u", b"s", b"a", b"e", b"0", b"1", b"h\x00", b"j\xff\xff\xff\xff", b"q\x00",
    b"r\xff\xff\xff\x7f", b"cos\nsystem\n", b"cbuiltins\nbytearray\n", b"cbuiltins\nset\n",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"J\xff\xff\xff\x7f",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\xff" + b"\x01" * 255, b"Q", b"\x94", b".",
    b"c_codecs\nencode\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"cnumpy\ndtype\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ccollections\nCounter\n",
    b"X\xff\xff\xff\xff", b"B\xff\xff\xff\x7f", b"G\x7f\xf8\0\0\0\0\0\0", b"\x93", b"\x81", b"N",
)  # fmt: skip


def mutated_pickle(rng: np.random.Generator, data: bytes) -> bytes:
    """Return a pickle with opcodes inserted, replaced or repeated, or other bytes."""
    changed = bytearray(data)
    for _ in range(1 + int(rng.integers(3))):
        if rng.random() < 0.3:
            return mutated(rng, bytes(changed))
        at = int(rng.integers(len(changed) + 1))
        opcode = _PICKLES[int(rng.integers(len(_PICKLES)))] * int(rng.choice([1, 1, 1, 20, 3000]))
        removed = int(rng.integers(3)) if rng.random() < 0.5 else 0
        changed[at : at + removed] = opcode
    return bytes(changed)


def mutated_archive(rng: np.random.Generator, data: bytes) -> bytes:
    """Return a file of `torch.save` of which the pickle, another member or the zip is mutated."""
    if rng.random() < 0.25 or not zipfile.is_zipfile(io.BytesIO(data)):
        directory = data.rfind(b"PK\x01\x02", 0, data.rfind(b"PK\x05\x06"))
        spans = [(directory + at, size) for at, size in ((10, 2), (16, 4), (20, 4), (24, 4))]
        return mutated(rng, data, spans)
    members = dict(_members(data))
    pickles = [name for name in members if name.endswith("data.pkl")]
    names = sorted(members)
    name = pickles[0] if rng.random() < 0.7 else names[int(rng.integers(len(names)))]
    how = rng.random()
    if name in pickles:
        is_trap = how < 0.02
        members[name] = _TRAP if is_trap else mutated_pickle(rng, members[name])
    elif how < 0.3:
        del members[name]
    else:
        members[name] = mutated(rng, members[name])
    return _zipped(members, rng.random() < 0.1)


@lru_cache(32)
def _members(data: bytes) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple((name, archive.read(name)) for name in archive.namelist())


def _zipped(members: dict[str, bytes], is_compressed: bool) -> bytes:
    stream = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if is_compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _weights(model: Any) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.network.state_dict().values())


def plain_entries(data: bytes) -> Any:
    """Return what torch or safetensors read in a checkpoint."""
    if data[8:].lstrip()[:1] == b"{":  # after the length of the header
        return load_safetensors(data)
    numbers = [np._core.multiarray.scalar, np.dtype, type(np.dtype(np.int64))]
    with torch.serialization.safe_globals(numbers):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the values of nested mappings and sequences by their dotted names."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {name: value}
    parts = [flat(each, f"{name}.{key}") for key, each in items]
    return {key: each for part in parts for key, each in part.items()}


def is_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two results of `flat` have equal names, types and values."""
    return first.keys() == second.keys() and all(
        type(first[key]) is type(second[key]) and _is_value(first[key], second[key])
        for key in first
    )


def _is_value(found: Any, plain: Any) -> bool:
    if _is_dense(found) and _is_dense(plain):
        plain = plain.to(found.dtype)
        return found.shape == plain.shape and torch.allclose(found, plain, 0, 0, equal_nan=True)
    return bool(repr(found) == repr(plain))


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not (value.is_sparse or value.is_meta)


def _ends_with(key: str, name: str) -> bool:
    return f".{key}".endswith(f".{name}")


class CheckpointTarget(Target):
    """A checkpoint that is loaded, with the architecture where the file does not record it."""

    options: dict[str, Any] = {}  # noqa: RUF012  # set once for each class

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the pickle, a tensor or the container."""
        return mutated_archive(rng, sample.data)

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load the model and compare its weights."""
        model = load_checkpoint(folder / sample.attacked, **self.options)
        for value in model.network.state_dict().values():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise FaultError("accepted weights that are no numbers", sample.attacked)
        entries = plain_entries(data)
        plain = flat(entries)
        for name, value in model.network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue  # old files lack it, so that a missing one is no error
            if not any(_is_value(value, plain[key]) for key in plain if _ends_with(key, name)):
                raise FaultError("differs from a plain reading", name)
        # Other programs' checkpoints have no class names.
        if list(model.class_names) != entries.get("class_names", []):
            raise FaultError("differs from a plain reading", f"{model.class_names}")
        is_equal = _weights(model) == sample.truth and is_same(
            plain, flat(plain_entries(sample.data))
        )
        return "equal" if is_equal else "read as the bytes say"


class OurCheckpoints(CheckpointTarget):
    name = "checkpoint of this project"

    def prepare(self, folder: Path) -> list[Sample]:
        torch.manual_seed(0)
        model = build_model(ARCH, CLASSES)
        model.class_names = ("cat", "dog", "owl")
        save_checkpoint(folder / "a.pt", model)
        return [Sample({"a.pt": (folder / "a.pt").read_bytes()}, "a.pt", truth=_weights(model))]


class ForeignCheckpoints(CheckpointTarget):
    name = "checkpoint of another program"
    options = {"arch": ARCH}  # noqa: RUF012

    def prepare(self, folder: Path) -> list[Sample]:
        torch.manual_seed(0)
        model = build_model(ARCH, CLASSES)
        state = dict(model.network.state_dict())
        samples = []
        for number, content in enumerate(
            (
                state,
                {"state_dict": {f"module.{name}": value for name, value in state.items()}},
                {"model": {f"_orig_mod.{n}": v for n, v in state.items()}, "epoch": np.int64(3)},
                {
                    "model": state,
                    "extra": {("a", 1): bytearray(b"abc"), (0.5, 2): {1, 2}},
                    "sparse": torch.eye(3).to_sparse(),
                    "meta": torch.empty(3, device="meta"),
                },
            )
        ):
            for is_zip in (True, False):
                stream = io.BytesIO()
                torch.save(content, stream, _use_new_zipfile_serialization=is_zip)
                name = f"{number}.pth"
                samples.append(Sample({name: stream.getvalue()}, name, truth=_weights(model)))
        return samples


class Safetensors(CheckpointTarget):
    name = "checkpoint as safetensors"
    options = {"arch": ARCH}  # noqa: RUF012

    def prepare(self, folder: Path) -> list[Sample]:
        torch.manual_seed(0)
        model = build_model(ARCH, CLASSES)
        data = save_safetensors(dict(model.network.state_dict()))
        return [Sample({"a.safetensors": data}, "a.safetensors", truth=_weights(model))]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the JSON header, with and without a matching length, or bytes."""
        size = int.from_bytes(sample.data[:8], "little")
        if rng.random() < 0.4:
            return mutated(rng, sample.data, [(0, 8)])
        words = ("F32", "F64", "I64", "BOOL", "dtype", "shape", "data_offsets", "__metadata__")
        head = mutated_text(rng, sample.data[8 : 8 + size].decode(), words)
        count = len(head) if rng.random() < 0.9 else size
        return count.to_bytes(8, "little") + head + sample.data[8 + size :]


class Position:
    """The position of a loader, as far as a saved state needs it."""

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": 1, "segments": [(0, 4)], "seed": 0}


class RecipeStates(Target):
    name = "state of a stopped run"

    def prepare(self, folder: Path) -> list[Sample]:
        torch.manual_seed(0)
        self._stateful = self._objects()
        model = self._stateful["model"]
        model(torch.ones(2, 4)).sum().backward()
        self._stateful["optimizer"].step()
        state = SavedState(folder / "state.pt", Processes(torch.device("cpu")))
        state.save(Counters(epoch=1, step=2, images=8), Position(), self._stateful)
        data = (folder / "state.pt").read_bytes()
        return [Sample({"state.pt": data}, "state.pt")]

    @staticmethod
    def _objects() -> dict[str, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return {"model": model, "optimizer": optimizer}

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the pickle, a tensor or the container."""
        return mutated_archive(rng, sample.data)

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load the state into new objects."""
        objects = self._objects()
        state = SavedState(folder / "state.pt", Processes(torch.device("cpu")))
        counters, position = state.load(objects)
        states = {name: part.state_dict() for name, part in objects.items()}
        found = flat({"counters": asdict(counters), "loader": position, "states": states})
        plain = flat(plain_entries(data))
        for name in found.keys() & plain.keys():
            # In mid-epoch, running statistics come from another entry. torch renumbers `params`.
            is_own = ".running_" in name or ".params." in name
            if not is_own and not _is_value(found[name], plain[name]):
                message = f"{name}: {found[name]!r} instead of {plain[name]!r}"
                raise FaultError("differs from a plain reading", message)
        same = is_same(plain, flat(plain_entries(sample.data)))
        return "equal" if same else "read as the bytes say"
