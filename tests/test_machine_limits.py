"""Real limits on real processes: a memory group, a CPU quota, an affinity mask, resource limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.machine import host

MIB = 1 << 20
EDGE_HOST = [sys.executable, "-m", "edge", "host", "--json"]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="control groups and affinity masks are Linux'"
)


def seen(*command: str) -> dict[str, dict[str, int]]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, dict[str, int]] = json.loads(done.stdout)
    return answer


def inside(group: Path, *command: str) -> list[str]:
    """The command, run by a shell that first moves itself into the group."""
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]


def new_group(controller: str) -> Iterator[Path]:
    group = Path("/sys/fs/cgroup", controller, f"edge-test-{uuid.uuid4().hex[:8]}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no writable version 1 {controller} controller here: {error.strerror}")
    yield group
    group.rmdir()


@pytest.fixture
def memory_group() -> Iterator[Path]:
    yield from new_group("memory")


@pytest.fixture
def cpu_group() -> Iterator[Path]:
    yield from new_group("cpu")


def test_a_box_of_512_mb(memory_group):
    (memory_group / "memory.limit_in_bytes").write_text(str(512 * MIB))
    found = seen(*inside(memory_group, *EDGE_HOST))["memory"]
    assert found["limit_bytes"] == 512 * MIB
    assert 450 * MIB < found["available_bytes"] < 512 * MIB
    assert found["total_bytes"] == host().memory.total_bytes


def test_the_limit_of_a_parent_box(memory_group):
    (memory_group / "memory.limit_in_bytes").write_text(str(512 * MIB))
    child = memory_group / "child"
    child.mkdir()
    try:
        assert seen(*inside(child, *EDGE_HOST))["memory"]["limit_bytes"] == 512 * MIB
    finally:
        child.rmdir()


TAKE = """
import os, sys
from edge.machine import host
with open(sys.argv[2], "wb") as file:  # its pages are charged to the group, and may be dropped once on disk
    file.write(bytes(100 << 20))
    os.fsync(file.fileno())
wanted = int(host().memory.available_bytes * float(sys.argv[1]))
block = bytearray(wanted)
block[::4096] = b"x" * len(range(0, wanted, 4096))
print(wanted)
"""


@pytest.mark.parametrize(("share", "code"), [(0.93, 0), (1.1, -9)])
def test_available_is_what_can_be_taken(share, code, memory_group, tmp_path):
    """Most of `available` can be filled and more is killed, with 100 MiB of the group in file cache."""
    if Path("/proc/swaps").read_text().count("\n") > 1:
        pytest.skip("with swap a group may grow past its limit")
    (memory_group / "memory.limit_in_bytes").write_text(str(256 * MIB))
    command = inside(memory_group, sys.executable, "-c", TAKE, str(share), str(tmp_path / "cached"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    if code == 0:
        assert int(done.stdout) > 190 * MIB


def test_a_cpu_quota(cpu_group):
    quota = cpu_group / "cpu.cfs_quota_us"
    if not quota.exists():
        pytest.skip("this kernel has no CPU bandwidth control")
    (cpu_group / "cpu.cfs_period_us").write_text("100000")
    for microseconds, cores in ((30000, 1), (130000, 2)):
        quota.write_text(str(microseconds))
        expected = min(cores, len(os.sched_getaffinity(0)))
        assert seen(*inside(cpu_group, *EDGE_HOST))["cpu"]["cores"] == expected


def test_one_core():
    found = seen("taskset", "-c", str(min(os.sched_getaffinity(0))), *EDGE_HOST)["cpu"]
    assert (found["cores"], found["physical"], found["performance_cores"]) == (1, 1, 1)


def test_an_address_space_limit():
    found = seen("sh", "-c", 'ulimit -v 1048576 && exec "$@"', "sh", *EDGE_HOST)["memory"]
    assert found["limit_bytes"] == 1 << 30
    assert found["available_bytes"] < (1 << 30) - 10 * MIB
