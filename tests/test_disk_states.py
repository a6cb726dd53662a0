"""States of real contexts through the disk: another process computes on, bit for bit as if it had never stopped."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from tiny import tiny_llama

from edge.engine import Engine, Sampling
from edge.engine.backend import Row
from edge.engine.disk import CacheWarning, DiskCache, listing
from edge.engine.llama import LlamaBackend
from edge.engine.state_key import state_key
from edge.planner import plan

GREEDY = Sampling(temperature=0, max_tokens=4)
pytestmark = pytest.mark.usefixtures("one_core")


def planned(path, kv="f16", parallel=1):
    found = plan(str(path), ctx=256, threads=1, parallel=parallel)
    return dataclasses.replace(found, kv=kv, flash=True)


def go_on(backend, sequence, start, tokens):
    """The logits after each of `tokens`, decoded one at a time from position `start` on."""
    rows = []
    for at, token in enumerate(tokens, start):
        backend.decode([Row(token, at, (sequence,), True)])
        rows.append(np.array(backend.logits(0)))
    return np.array(rows)


def prompt_of(length):
    return [3 + 7 * at % 250 for at in range(length)]


# In a process of its own: loads the kept state into the last sequence and computes on from it.
RELOAD = """
import json, sys, numpy as np
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_disk_states import DiskCache, LlamaBackend, go_on, planned, prompt_of, state_key
folder, model, kv, parallel, length = json.loads(sys.argv[2])
found = planned(model, kv, parallel)
backend = LlamaBackend(found)
cache = DiskCache(Path(folder), state_key(found), budget=10**9)
tokens, state = cache.read(cache.longest(prompt_of(length)))
assert tokens == prompt_of(length), tokens
assert backend.load(parallel - 1, state)
np.save(sys.argv[3], go_on(backend, parallel - 1, length, [5, 6, 7]))
"""


def round_trip(model, tmp_path, kv, parallel, length):
    """Logits before, and those of a process that took the state from the disk."""
    found = planned(model, kv, parallel)
    backend = LlamaBackend(found)
    try:
        prompt = prompt_of(length)
        rows = [Row(token, at, (0,), at == length - 1) for at, token in enumerate(prompt)]
        backend.decode(rows)
        cache = DiskCache(tmp_path / "states", state_key(found), budget=10**9)
        cache.write(prompt, backend.save(0))
        before = go_on(backend, 0, length, [5, 6, 7])
    finally:
        backend.close()
    what = json.dumps([str(cache.folder), str(model), kv, parallel, length])
    command = [sys.executable, "-c", RELOAD, __file__.rpartition("/")[0], what, str(tmp_path / "after.npy")]
    subprocess.run(command, check=True)
    return before, np.load(tmp_path / "after.npy")


@pytest.mark.parametrize(("kv", "parallel"), [("f16", 1), ("q8_0", 1), ("f16", 3)])
def test_another_process_computes_on_bit_for_bit(tmp_path, kv, parallel):
    model = tiny_llama(tmp_path / "tiny.gguf", embd=128)  # heads of 32, as q8_0 needs
    before, after = round_trip(model, tmp_path, kv, parallel, 50)
    assert before.any()
    assert np.array_equal(before.view(np.uint32), after.view(np.uint32))


@pytest.mark.model
@pytest.mark.slow
def test_of_the_real_model_too(tmp_path, default_model):
    before, after = round_trip(default_model, tmp_path, "f16", 1, 200)
    assert before.any()
    assert np.array_equal(before.view(np.uint32), after.view(np.uint32))


def answer(model, folder, prompt, parallel=1):
    """The tokens of an answer and how much of the prompt was not computed for it."""
    found = planned(model, parallel=parallel)
    disk = DiskCache(folder, state_key(found), budget=10**8)
    with Engine(found, disk=disk) as engine:
        chunks = [*engine.submit(prompt, GREEDY)]
    return [chunk.token for chunk in chunks], chunks[0].reused_tokens


@pytest.fixture
def model(tmp_path):
    return tiny_llama(tmp_path / "tiny.gguf")


def test_an_engine_goes_on_from_what_another_kept(model, tmp_path):
    cold, nothing = answer(model, tmp_path / "a", prompt_of(100))
    warm, reused = answer(model, tmp_path / "a", prompt_of(100))
    assert (nothing, warm) == (0, cold)
    assert reused == 99  # the last token is computed for its logits
    whole = prompt_of(100) + cold[:-1] + [9, 10]
    assert answer(model, tmp_path / "b", whole)[0] == answer(model, tmp_path / "a", whole)[0]
    assert answer(model, tmp_path / "a", [*whole, 11, 12])[1] >= len(whole)
    assert answer(model, tmp_path / "a", [9, 8, 7])[1] == 0


def test_engines_of_other_slots_do_not_share(model, tmp_path):
    answer(model, tmp_path / "a", prompt_of(100))
    assert answer(model, tmp_path / "a", prompt_of(100), parallel=2)[1] == 0
    assert answer(model, tmp_path / "a", prompt_of(100), parallel=2)[1] > 0


def test_a_damaged_state_costs_a_warning_and_no_more(model, tmp_path):
    cold, _ = answer(model, tmp_path / "a", prompt_of(100))
    (kept,), _ = listing(tmp_path / "a")
    data = bytearray(kept.path.read_bytes())
    data[-100] ^= 4
    kept.path.write_bytes(data)
    with pytest.warns(CacheWarning, match="its state has changed"):
        assert answer(model, tmp_path / "a", prompt_of(100)) == (cold, 0)
    assert answer(model, tmp_path / "a", prompt_of(100)) == (cold, 99)


def test_a_state_that_llama_cpp_refuses_is_computed_again(model, tmp_path):
    """As another build of the same version may: the file is whole, and what is in it makes no sense to it."""
    cold, _ = answer(model, tmp_path / "a", prompt_of(100))
    found = planned(model)
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    DiskCache(tmp_path / "a", state_key(found), budget=10**8).write(prompt_of(100), np.ones(5000, np.uint8))
    assert answer(model, tmp_path / "a", prompt_of(100)) == (cold, 0)
