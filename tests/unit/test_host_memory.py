"""streaming.host_memory: what the machine, and the control groups of a process, can still give."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.cgroup import folders
from streaming.errors import DeviceError
from streaming.host_memory import HostMemory, check_host_room, host_memory

GIB = 1 << 30


PHYSICAL_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def machine(root: Path, groups: str, files: dict[str, object], *, available_bytes: int = 64 * GIB) -> str:
    """Another machine's /proc and /sys under `root`."""
    everything = {
        "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {available_bytes >> 10} kB\n",
        "proc/self/cgroup": groups,
        **files,
    }
    for name, text in everything.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return str(root)


def version_2(folder: str, limit: object, usage: int, stat: str = "anon 1\n") -> dict[str, object]:
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": usage, f"{folder}/memory.stat": stat}


def version_1(folder: str, limit: int, usage: int, stat: str = "total_rss 1\n") -> dict[str, object]:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    return {f"{folder}/{name}": value for name, value in zip(names, (limit, usage, stat), strict=True)}


TOP, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
POD = "kubepods/pod7"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, HostMemory(64 * GIB)),
        ("0::/\n", version_2(TOP, "max", GIB), HostMemory(64 * GIB)),
        ("0::/\n", version_2(TOP, 8 * GIB, GIB), HostMemory(7 * GIB, 8 * GIB)),
        ("0::/\n", version_2(TOP, 80 * GIB, GIB), HostMemory(64 * GIB)),
        # Page cache is taken back before anybody is killed; a memfd (shmem) is not.
        (
            "0::/\n",
            version_2(TOP, 8 * GIB, 6 * GIB, f"inactive_file {GIB}\nactive_file {GIB}\nshmem {3 * GIB}\n"),
            HostMemory(4 * GIB, 8 * GIB),
        ),
        ("0::/\n", version_2(TOP, GIB, 2 * GIB), HostMemory(0, GIB)),
        # The pod's limit counts where the container has none, and the least of both where it has one.
        (
            f"0::/{POD}/c\n",
            version_2(f"{TOP}/{POD}/c", "max", GIB) | version_2(f"{TOP}/{POD}", 4 * GIB, GIB),
            HostMemory(3 * GIB, 4 * GIB),
        ),
        (
            f"0::/{POD}/c\n",
            version_2(f"{TOP}/{POD}/c", 3 * GIB, GIB) | version_2(f"{TOP}/{POD}", 16 * GIB, 15 * GIB),
            HostMemory(GIB, 16 * GIB),
        ),
        # It may not raise what a tighter group leaves, nor count for the one and not for the other.
        (
            f"0::/{POD}/c\n",
            version_2(f"{TOP}/{POD}/c", 16 * GIB, GIB)
            | version_2(f"{TOP}/{POD}", 32 * GIB, 24 * GIB, f"inactive_file {22 * GIB}\n"),
            HostMemory(15 * GIB, 16 * GIB),
        ),
        ("4:memory:/\n0::/\n", version_1(V1, 8 * GIB, GIB), HostMemory(7 * GIB, 8 * GIB)),
        # Docker of version 1: the path is the node's, what is mounted is the container's own.
        ("4:cpu,memory:/docker/c\n", version_1("sys/fs/cgroup/cpu,memory", 2 * GIB, 0), HostMemory(2 * GIB, 2 * GIB)),
        (
            "4:memory:/\n",
            version_1(V1, 8 * GIB, 6 * GIB, f"inactive_file 1\ntotal_inactive_file {GIB}\n"),
            HostMemory(3 * GIB, 8 * GIB),
        ),
        ("4:memory:/\n", version_1(V1, (1 << 63) - 4096, GIB), HostMemory(64 * GIB)),
        ("0::/../other\n", version_2(TOP, 8 * GIB, GIB), HostMemory(7 * GIB, 8 * GIB)),
        ("", version_2(TOP, 8 * GIB, GIB), HostMemory(7 * GIB, 8 * GIB)),
    ],
)
def test_the_least_of_machine_and_control_groups_counts(tmp_path, groups, files, expected):
    """Version 1 and 2, nested groups, containers that see their own as the top, page cache, and no limit at all."""
    assert host_memory(machine(tmp_path, groups, files)) == expected


def test_this_machine_has_memory():
    """The real files are read, in bytes: not as little as a page, and no more than the kernel has."""
    assert 1 << 20 < host_memory().available_bytes < PHYSICAL_BYTES


def test_a_groups_own_folder_comes_first(tmp_path):
    """Then those of its parents, up to what is mounted."""
    root = machine(tmp_path, "4:cpu,cpuacct:/a/b\n0::/x\n", {})
    assert list(folders("cpuacct", root)) == [f"{root}/sys/fs/cgroup/cpu,cpuacct{end}" for end in ("/a/b", "/a", "")]
    assert list(folders("memory", root)) == [f"{root}/sys/fs/cgroup{end}" for end in ("/x", "")]


def test_a_groups_page_cache_is_no_more_than_the_machine_has(tmp_path):
    """What a group could take back does not raise what the machine can give: the group does not decide then."""
    files = version_2(TOP, 60 * GIB, 40 * GIB, f"inactive_file {35 * GIB}\n")
    assert host_memory(machine(tmp_path, "0::/\n", files, available_bytes=35 * GIB)) == HostMemory(35 * GIB)


@given(weights=st.integers(0, 1 << 44), reserve=st.integers(0, 1 << 44), free=st.integers(0, 1 << 44))
def test_room_is_refused_exactly_where_it_lacks(weights, reserve, free):
    """Weights and cache together against what is available, and the shortfall is right to the byte."""
    short = weights + reserve - free
    if short <= 0:
        check_host_room(weights, reserve, HostMemory(free))
    else:
        with pytest.raises(DeviceError, match=rf"\({short} short\): use a smaller model or a larger machine$"):
            check_host_room(weights, reserve, HostMemory(free))


def test_a_memory_limit_is_named():
    """Who is under a limit learns that it is the limit, not the machine."""
    with pytest.raises(
        DeviceError, match=r"9 are available under the memory limit of 12 \(2 short\).*limit of the pod"
    ):
        check_host_room(10, 1, HostMemory(9, 12))
