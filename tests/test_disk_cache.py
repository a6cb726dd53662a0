"""Prefixes on the disk: what is kept comes back, what is damaged, foreign or hostile does not."""

import dataclasses
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_llama

from edge import gguf_header
from edge.engine import disk, state_file
from edge.engine.adapters import Adapter
from edge.engine.disk import CacheWarning, DiskCache
from edge.engine.state_key import StateKey, model_digest, state_key
from edge.errors import RequestError
from edge.planner import plan
from edge.store.made import keep_made

KEY = StateKey("tiny", "ab" * 32, "llama.cpp-cpu", "f16", True, 1, library="one")
SIZE = 1000


def state(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "states"


@pytest.fixture
def cache(folder):
    return DiskCache(folder, KEY, budget=10**6)


@contextmanager
def warned(text):
    """Exactly one warning of the cache, of one line with `text` in it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    assert [one.category for one in said] == [CacheWarning], [str(one.message) for one in said]
    (line,) = str(said[0].message).splitlines()
    assert text in line


def only(folder):
    (path,) = folder.iterdir()
    return path


def test_what_was_written_is_read_by_another(cache, folder):
    assert cache.longest([1, 2, 3]) is None
    cache.write([1, 2, 3], state(0))
    other = DiskCache(folder, KEY, budget=10**6)
    for reader in (cache, other):
        entry = reader.longest([1, 2, 9, 9])
        assert (entry.length, entry.shared) == (3, 2)
        tokens, found = reader.read(entry)
        assert tokens == [1, 2, 3]
        assert found.dtype == np.uint8
        assert np.array_equal(found, state(0))
    assert cache.longest([2]) is None


def test_one_sees_what_the_other_writes_and_removes(cache, folder):
    other = DiskCache(folder, KEY, budget=10**6)
    assert other.longest([1, 2]) is None
    for count in range(1, 20):  # however fast after one another
        cache.write(list(range(count)), state(count))
        assert other.longest(range(30)).length == count
    entry = other.longest(range(30))
    disk.clear(folder)
    assert other.read(entry) is None
    assert other.longest(range(30)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "cd" * 32},
        {"backend": "llama.cpp-cuda"},
        {"kv": "q8_0"},
        {"flash": False},
        {"streams": 4},
        {"adapters": (("ef" * 32, 1.0),)},
        {"adapters": (("ef" * 32, 0.5),)},
        {"context": 4096},
        {"library": "two"},
    ],
    ids=str,
)
def test_another_key_sees_nothing_of_it(cache, folder, change):
    cache.write([1, 2], state(0))
    assert DiskCache(folder, dataclasses.replace(KEY, **change), budget=10**6).longest([1, 2]) is None


def test_the_models_name_is_no_part_of_the_key(cache, folder):
    cache.write([1, 2], state(0))
    assert DiskCache(folder, dataclasses.replace(KEY, name="x"), budget=10**6).longest([1, 2]).length == 2


def test_nobody_else_may_look(cache, folder):
    folder.mkdir(mode=0o755, parents=True)
    cache.write([1, 2], state(0))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(only(folder).stat().st_mode) == 0o600


def test_the_least_recently_used_of_all_models_makes_room(folder):
    size = 3 * SIZE + 3 * 500  # three of them fit, heads and all
    mine = DiskCache(folder, KEY, budget=size)
    other = DiskCache(folder, dataclasses.replace(KEY, model="cd" * 32), budget=size)
    other.write([7], state(7))
    mine.write([1], state(1))
    mine.write([2], state(2))
    for age, (cache, token) in enumerate([(mine, 2), (other, 7), (mine, 1)]):
        os.utime(cache.longest([token]).path, (age, age))
    assert mine.read(mine.longest([2]))  # the oldest file is the last used now
    mine.write([3], state(3))
    assert other.longest([7]) is None
    mine.write([4], state(4))
    assert mine.longest([1]) is None
    assert [bool(mine.longest([token])) for token in (2, 3, 4)] == [True, True, True]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= size


def test_the_same_tokens_are_not_written_again_but_used(cache, folder):
    cache.write([1], state(1))
    path = only(folder)
    os.utime(path, (1, 1))
    cache.write([1], state(2))
    assert only(folder) == path
    assert path.stat().st_mtime > 1
    assert np.array_equal(cache.read(cache.longest([1]))[1], state(1))


def test_a_longer_state_replaces_what_it_goes_on_from(cache, folder):
    cache.write([1, 2], state(1))
    cache.write([1, 9], state(2))
    cache.write([1, 2, 3], state(3))
    assert len([*folder.iterdir()]) == 3
    cache.write([1, 2, 3, 4], state(4), replaces=True)
    assert [cache.longest(tokens).length for tokens in ([1, 2], [1, 9])] == [4, 2]
    assert len([*folder.iterdir()]) == 2


def test_more_than_the_budget_is_said_once(folder):
    cache = DiskCache(folder, KEY, budget=SIZE)
    with warned("more than the 1,000 it may take"):
        cache.write([1], state(1))
        cache.write([2], state(1))
    assert cache.longest([1]) is None


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "empty":
        data.clear()
    elif how == "cut":
        del data[-1:]
    elif how == "longer":
        data += b"\0"
    elif how == "head":
        data[20] ^= 1
    elif how == "tokens":
        data[-SIZE - 1] ^= 1
    elif how == "state":
        data[-1] ^= 1
    elif how == "magic":
        data[:4] = b"GGUF"
    elif how in ("many tokens", "long state", "both"):
        fixed = [*state_file.FIXED.unpack(data[: state_file.FIXED.size])]
        fixed[3] = fixed[3] if how == "long state" else 2**32 - 1
        fixed[4] = fixed[4] if how == "many tokens" else 2**64 - 1
        data[: state_file.FIXED.size] = state_file.FIXED.pack(*fixed)
    path.write_bytes(data)


WAYS = ["empty", "cut", "longer", "head", "tokens", "state", "magic", "many tokens", "long state", "both"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("known", [True, False], ids=["seen before", "new"])
def test_damaged_files_are_removed_with_one_warning(cache, folder, how, known):
    cache.write([1, 2, 3], state(0))
    cache.write([1, 2], state(1))
    entry = cache.longest([1, 2, 3])
    damage(entry.path, how)
    if not known:
        cache = DiskCache(folder, KEY, budget=10**6)
    with warned("is damaged and was removed"):
        if known or how == "state":  # a state is only read where it is wanted
            assert cache.read(cache.longest([1, 2, 3]) if not known else entry) is None
        assert cache.longest([1, 2, 3]).length == 2
        assert cache.longest([1, 2, 3]).length == 2
    assert not entry.path.exists()
    cache.write([1, 2, 3], state(0))
    assert np.array_equal(cache.read(cache.longest([1, 2, 3]))[1], state(0))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, SIZE + 200), bit=st.integers(0, 7))
def test_no_flipped_bit_gets_through(tmp_path, at, bit):
    cache = DiskCache(tmp_path / "states", KEY, budget=10**6)
    cache.write([1, 2, 3], state(0))
    path = cache.longest([1]).path
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        assert cache.read(cache.longest([1])) is None
        disk.clear(tmp_path / "states")


def forged(head_of, size, **changes):
    """The bytes of a head that says what it likes and has the right checksum, and the length it speaks of."""
    fields = dict(
        zip(("magic", "key", "model", "tokens", "bytes", "name", "sum", "own"), head_of, strict=True)
    )
    fields |= changes
    packed = state_file.FIXED.pack(*fields.values())[:-4]
    return packed + struct.pack("<I", zlib.crc32(packed)), size


@pytest.mark.parametrize(("tokens", "length"), [(0, 1 << 40), ((1 << 24) + 1, 5)])
def test_a_forged_head_makes_nobody_ask_for_memory(cache, folder, tokens, length):
    """A file with holes may be as long as it says without taking any room."""
    cache.write([1], state(0))
    path = only(folder)
    fixed = state_file.FIXED.unpack(path.read_bytes()[: state_file.FIXED.size])
    total = state_file.FIXED.size + 4 * tokens + length
    head, total = forged(fixed, total, tokens=tokens, bytes=length, name=0)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(total)
    with warned("larger than anything kept here"):
        assert DiskCache(folder, KEY, budget=10**6).longest([1]) is None


def test_a_file_by_anothers_name_is_ignored_and_stays(cache, folder):
    cache.write([1, 2], state(0))
    other = dataclasses.replace(KEY, library="two")
    path = only(folder)
    moved = path.with_name(other.digest.hex()[:32] + path.name[32:])
    path.rename(moved)
    with warned("of another model or other settings"):
        cache = DiskCache(folder, other, budget=10**6)
        assert cache.longest([1, 2]) is None
        assert cache.longest([1, 2]) is None
    assert moved.exists()


def odd(kind, path, real, monkeypatch):
    if kind == "link":
        path.symlink_to(real)
    elif kind == "dangling link":
        path.symlink_to(real.with_name("nothing"))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        monkeypatch.chdir(path.parent)  # the whole path may be too long for one
        server.bind(path.name)
        server.close()


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "socket"])
def test_what_is_no_plain_file_is_ignored_and_stays(cache, folder, kind, monkeypatch):
    cache.write([1, 2], state(0))
    path = only(folder)
    real = path.rename(folder.parent / "real.state")
    odd(kind, path, real, monkeypatch)
    with warned("is ignored: it is not a plain file"):
        cache = DiskCache(folder, KEY, budget=10**6)
        assert cache.longest([1, 2]) is None
        assert cache.longest([1, 2]) is None
    assert os.path.lexists(path)
    assert disk.clear(folder) == (0, 0)
    assert real.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_ignored_and_stays(cache, folder):
    cache.write([1, 2], state(0))
    os.chown(only(folder), 12345, 12345)
    with warned("not a plain file of yours"):
        assert DiskCache(folder, KEY, budget=10**6).longest([1, 2]) is None
    assert only(folder).exists()


def test_other_files_in_the_folder_are_nothing_to_us(cache, folder):
    cache.write([1], state(0))
    (folder / "notes.txt").write_text("mine")
    assert cache.longest([1]).length == 1
    assert disk.clear(folder)[0] == 1
    assert only(folder).name == "notes.txt"


def test_an_abandoned_draft_is_cleared_and_a_new_one_is_not(cache, folder):
    folder.mkdir()
    old, new = folder / ".a.state.0.partial", folder / ".b.state.1.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.write([1], state(0))
    assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_cannot_be_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "states", KEY, budget=10**6)
    with warned("prefixes are not kept in"):
        cache.write([1], state(0))
        cache.write([2], state(0))
    assert cache.longest([1]) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_still_serves(cache, folder):
    cache.write([1], state(0))
    folder.chmod(0o500)
    try:
        assert cache.read(cache.longest([1])) is not None
        with warned("not kept"):
            cache.write([2], state(0))
    finally:
        folder.chmod(0o700)


CHILD = """
import sys, warnings, numpy as np
from pathlib import Path
from edge.engine.disk import DiskCache
from edge.engine.state_key import StateKey

def state(seed, size=1000):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)

cache = DiskCache(Path({folder!r}), {key!r}, budget=10**8)
"""


def child(folder, code, **options):
    """Run code beside the cache in a process of its own; returns what it printed."""
    code = CHILD.format(folder=str(folder), key=KEY) + code
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def test_a_full_disk_is_said_once_and_nothing_half_written_stays(cache, folder):
    """A file-size limit stands in for it: the system refuses the write in the same way, midway."""
    cache.write([1], state(0))
    code = """
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    cache.write([5], state(0, 200_000))
    cache.write([6], state(0, 10))
print(len(said), said[0].category.__name__, cache.read(cache.longest([1])) is not None, cache.longest([5]))
"""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    assert child(folder, code, preexec_fn=limit).split() == ["1", "CacheWarning", "True", "None"]
    assert only(folder) == cache.longest([1]).path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_really_full_disk(folder):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this sandbox lets nobody mount")
    try:
        cache = DiskCache(folder, KEY, budget=10**6)
        cache.write([1], state(0))
        with warned("No space left"):
            cache.write([2], state(0, 200_000))
            cache.write([3], state(0))
        assert only(folder) == cache.longest([1]).path
        assert cache.read(cache.longest([1])) is not None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_many_at_once(folder):
    """Processes that write, read and make room in one folder: none fails, and whoever reads reads what was written."""
    code = """
import random
cache.budget = 12_000
draw = random.Random()
hits = 0
for _ in range(150):
    token = draw.randrange(20)
    if entry := cache.longest([token]):
        if read := cache.read(entry):
            assert np.array_equal(read[1], state(token)), token
            hits += 1
    else:
        cache.write([token, 1], state(token))
print(hits)
"""
    found = []
    threads = [threading.Thread(target=lambda: found.append(int(child(folder, code)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(found)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_an_interrupted_write_leaves_nothing(cache, folder, monkeypatch):
    monkeypatch.setattr(os, "fdopen", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.write([1], state(0))
    assert [*folder.iterdir()] == []


def test_the_budget(tmp_path, monkeypatch):
    free = disk.shutil.disk_usage(tmp_path).free
    assert disk.default_budget(tmp_path / "none" / "yet") <= min(2 << 30, free // 10 + 10**8)
    monkeypatch.setenv("EDGE_CACHE_BYTES", "1.5 GB")
    assert disk.default_budget(tmp_path) == 1_500_000_000
    monkeypatch.setenv("EDGE_CACHE_BYTES", "0")
    assert disk.open_cache(KEY) is None
    monkeypatch.setenv("EDGE_CACHE_BYTES", "much")
    with pytest.raises(RequestError, match="'much' is not a size"):
        disk.open_cache(KEY)


def test_a_files_hash_is_remembered_until_it_changes(tmp_path, home):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    first = model_digest(path)
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    memory = home / "cache" / "digests.json"
    memory.write_text(memory.read_text().replace(first, "0" * 64))
    assert model_digest(path) == "0" * 64  # it was not read again
    path.write_bytes(b"two!")
    assert model_digest(path) not in (first, "0" * 64)
    for broken in ("[" * 100_000, "[]", '{"a": 1}', "\0"):
        memory.write_text(broken)
        path.write_bytes(b"one")
        assert model_digest(path) == first


def test_every_part_of_a_split_file_counts(tmp_path):
    parts = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for part in parts:
        part.write_bytes(part.name.encode())
    first = model_digest(parts[0])
    parts[1].write_bytes(b"another second part")
    assert model_digest(parts[0]) != first


def test_the_stores_own_hash_is_taken_while_the_file_is_as_it_was(tmp_path, home):
    """Nothing is read of a file that the store has hashed, unless it is younger than the store's record of it."""
    path = keep_made("pet", "made", "", made).files[0]
    right = model_digest(path)
    record = path.parent / "model.json"
    record.write_text(record.read_text().replace(right, "0" * 64))
    assert model_digest(path) == "0" * 64
    assert not (home / "cache").exists()
    later = record.stat().st_mtime + 10
    os.utime(path, (later, later))
    assert model_digest(path) == right


def made(folder):
    path = folder / "pet.gguf"
    path.write_bytes(b"GGUF and so on")
    return [path]


def test_the_key_of_a_plan(tmp_path):
    found = plan(str(tiny_llama(tmp_path / "tiny.gguf")), ctx=128, threads=1)
    key = state_key(found)
    assert (key.name, key.model) == ("tiny", model_digest(found.path))
    adapter = tmp_path / "a.gguf"
    adapter.write_bytes(b"adapter")
    changes = {
        "kv": "q8_0",
        "flash": not found.flash,
        "gpu_layers": 3,
        "backend": "llama.cpp-cuda",
        "sequences": 4,
    }
    others = [state_key(dataclasses.replace(found, **{name: value})) for name, value in changes.items()]
    others += [state_key(found, [Adapter(adapter, scale, 7)]) for scale in (0.5, 1.0)]
    assert len({key.digest, *(other.digest for other in others)}) == 8
    # neither changes what a token's keys and values are
    assert state_key(dataclasses.replace(found, context=64, threads=None)).digest == key.digest


def test_a_context_counts_where_rotations_depend_on_it(tmp_path, monkeypatch):
    found = plan(str(tiny_llama(tmp_path / "tiny.gguf")), ctx=128, threads=1)
    header = gguf_header.read(found.path)
    long = {**header.metadata, "llama.rope.scaling.original_context_length": 64}
    monkeypatch.setattr(gguf_header, "read", lambda _: dataclasses.replace(header, metadata=long))
    assert state_key(found).digest != state_key(dataclasses.replace(found, context=64)).digest
