"""The memory that is left, of the machine and of control groups."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv.loading.reading import available_memory as module
from dp4tl_ffcv.loading.reading.available_memory import available_memory

GIB = 1 << 30
FREE = 40 * GIB


class Machine:
    """Files of the kernel, with 40 GiB available."""

    def __init__(self, folder: Path) -> None:
        self.groups, self.proc = folder / "groups", folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        available = f"MemTotal: {FREE >> 9} kB\nMemAvailable: {FREE >> 10} kB\n"
        (self.proc / "meminfo").write_text(available)

    def lists(self, *lines: str) -> None:
        (self.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def group(self, name: str, limit: Any, used: int = 0, cached: int = 0) -> None:
        """Add a group of version 2, or of version 1 if its name begins with `memory`."""
        folder, old = self.groups / name, name.startswith("memory")
        folder.mkdir(parents=True, exist_ok=True)
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else (
            "memory.max", "memory.current"
        )  # fmt: skip
        for file, value in zip(files, (limit, used), strict=True):
            (folder / file).write_text(f"{value}\n")
        first = "total_" if old else ""
        counts = {"anon": used - cached, f"{first}active_file": cached // 4}
        counts[f"{first}inactive_file"] = cached - cached // 4
        lines = (f"{key} {value}\n" for key, value in counts.items())
        (folder / "memory.stat").write_text("".join(lines))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path)
    monkeypatch.setattr(module, "_PROC", found.proc)
    monkeypatch.setattr(module, "_GROUPS", found.groups)
    return found


def test_this_machine_has_memory() -> None:
    assert 1 << 20 < available_memory() < 1 << 50


def test_without_groups_it_is_that_of_the_machine(machine: Machine) -> None:
    machine.lists("0::/a/b")
    assert available_memory() == FREE
    machine.lists("4:cpu,cpuacct:/", "2:memory:/")
    assert available_memory() == FREE


@pytest.mark.parametrize(
    ("limit", "used", "cached", "left"),
    [
        ("max", 0, 0, FREE),
        (60 * GIB, GIB, 0, FREE),
        (8 * GIB, 0, 0, 8 * GIB),
        (8 * GIB, 3 * GIB, GIB, 6 * GIB),
        (8 * GIB, 9 * GIB, 0, 0),
        (1 << 63, GIB, 0, FREE),
        ("", 0, 0, FREE),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_group_takes_its_limit_less_what_it_uses(
    version: int, limit: Any, used: int, cached: int, left: int, machine: Machine
) -> None:
    machine.lists("3:cpu:/other", "2:memory:/a/b" if version == 1 else "0::/a/b")
    machine.group("memory/a/b" if version == 1 else "a/b", limit, used, cached)
    assert available_memory() == left


def test_the_groups_around_it_count_too(machine: Machine) -> None:
    machine.lists("0::/a/b/c")
    machine.group("a/b/c", "max", 2 * GIB)
    machine.group("a", 20 * GIB, 5 * GIB)
    assert available_memory() == 15 * GIB
    machine.group("a/b", 9 * GIB)
    assert available_memory() == 9 * GIB
    machine.group(".", GIB)
    assert available_memory() == GIB
    machine.lists("0::/of the host")  # which a container does not see
    assert available_memory() == GIB
    machine.lists("0::/../../outside")
    assert available_memory() == GIB


# What a sandbox hides.


@pytest.mark.parametrize("missing", ["meminfo", "cgroup", "stat", "active_file", "garbage"])
def test_files_that_a_sandbox_hides_are_not_counted(missing: str, machine: Machine) -> None:
    machine.lists("0::/a")
    machine.group("a", 8 * GIB, 3 * GIB, GIB)
    expected = 6 * GIB
    if missing == "meminfo":
        (machine.proc / "meminfo").unlink()
        expected = min(expected, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    elif missing == "cgroup":
        (machine.proc / "self" / "cgroup").unlink()
        expected = FREE
    elif missing == "stat":
        (machine.groups / "a" / "memory.stat").unlink()
        expected = 5 * GIB
    elif missing == "active_file":
        (machine.groups / "a" / "memory.stat").write_text(f"inactive_file {GIB // 2}\n")
        expected = 5 * GIB + GIB // 2
    else:
        (machine.proc / "meminfo").write_text(f"MemAvailable: {FREE >> 10} kB\nMemAvailable:\n")
        machine.lists("no colons", "0::/a")
    assert available_memory() <= expected
    if missing != "meminfo":  # of which the machine's may change
        assert available_memory() == expected


def test_a_machine_without_these_files_has_memory(machine: Machine) -> None:
    shutil.rmtree(machine.proc)
    assert 1 << 20 < available_memory() < 1 << 50
