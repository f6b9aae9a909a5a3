"""The surroundings of the chaos campaign: a work folder, small file systems, preloaded faults.

The campaign starts itself again under the fault library. As root it takes a mount namespace, in
which it has a /dev/shm of its own, can fill a disk and can make a folder read-only. Without root,
these checks are skipped with a word.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import faults

_WORK = "CHAOS_WORK"
_CLONE_NEWNS = 0x20000
SHARED = Path("/dev/shm")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def enter() -> Path:
    """Return the work folder of this process, after it has started again in its surroundings.

    The parent stays to remove the folder.
    """
    if _WORK in os.environ:
        _take_mounts()
        return Path(os.environ[_WORK])
    work = Path(tempfile.mkdtemp(prefix="dp4tl-chaos-"))
    try:
        for name in ("tmp", "cache", "home"):
            (work / name).mkdir()
        surroundings = {
            _WORK: str(work),
            "LD_PRELOAD": str(faults.build(work)),
            "CHAOS_CONTROL": str(work / "plan"),
            "TMPDIR": str(work / "tmp"),
            "XDG_CACHE_HOME": str(work / "cache"),
            "HOME": str(work / "home"),
            # Processes are forked from one that has imported everything: it must have no threads.
            **dict.fromkeys(_THREADS, "1"),
        }
        command = [sys.executable, "-m", _module(), *sys.argv[1:]]
        done = subprocess.run(command, env={**os.environ, **surroundings}, check=False)
        sys.exit(done.returncode if done.returncode >= 0 else 1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else "tests.campaigns.chaos"


def _take_mounts() -> None:
    if os.geteuid() == 0 and ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0:
        with suppress(subprocess.CalledProcessError):  # a container without the right to mount
            mount("--make-rprivate", "/")
            mount("-t", "tmpfs", "-o", "size=1g", "chaos", SHARED)
            os.environ["CHAOS_MOUNTS"] = "1"


def can_mount() -> bool:
    """Return whether this process may mount file systems that no other process sees."""
    return "CHAOS_MOUNTS" in os.environ


def mount(*arguments: str | Path) -> None:
    """Run `mount`."""
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes on a new folder, in the block."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "chaos", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write to a folder in the block, root included."""
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)
