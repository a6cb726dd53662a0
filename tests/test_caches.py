"""The size of the last-level caches, of recorded machines."""

import pytest
from recorded_hosts import Recorded

from edge.machine.caches import CPUS, last_level_bytes


def cache(cpu, index, level, size, shared):
    folder = f"{CPUS}/cpu{cpu}/cache/index{index}"
    return {
        f"{folder}/level": f"{level}\n",
        f"{folder}/size": f"{size}\n",
        f"{folder}/shared_cpu_list": f"{shared}\n",
    }


def bytes_of(tmp_path, *files):
    every = {path: text for one in files for path, text in one.items()}
    return last_level_bytes(Recorded(files=every, cpus=2).system(tmp_path))


def test_a_cache_that_cpus_share_counts_once_and_smaller_levels_not(tmp_path):
    files = [cache(cpu, at, level, size, shared) for cpu in (0, 1) for at, level, size, shared in (
        (0, 1, "32K", cpu), (2, 2, "1024K", cpu), (3, 3, "33792K", "0-1"))]  # fmt: skip
    assert bytes_of(tmp_path, *files) == 33 << 20


def test_the_caches_of_two_dies_are_added_and_of_other_cpus_not(tmp_path):
    files = [cache(cpu, 3, 3, "32M", shared) for cpu, shared in ((0, "0"), (1, "1"), (2, "2"))]
    assert bytes_of(tmp_path, *files) == 64 << 20


@pytest.mark.parametrize("size", ["", "garbage", "-1K", "9" * 30 + "K"])
def test_what_is_not_told_is_none(tmp_path, size):
    assert bytes_of(tmp_path, cache(0, 3, 3, size, "0-1")) == 0
