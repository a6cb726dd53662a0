"""What goes wrong beside a request, and must end it alone: callbacks, closing, calls from everywhere, a full cache."""

import gc
import multiprocessing
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import gguf
import numpy as np
import pytest
from test_engine_many import warnings_of_forks_ignored
from tiny import tiny_llama

from edge.engine import Engine, Sampling
from edge.engine.adapters import adapter_of
from edge.engine.disk import CacheWarning, DiskCache
from edge.engine.request import Request
from edge.engine.state_key import state_key
from edge.errors import EngineError, RequestError
from edge.planner import plan

GREEDY = Sampling(temperature=0, max_tokens=24)
ENDLESS = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", ctx=2048)


@pytest.fixture
def engine(model):
    with Engine(plan(str(model), ctx=512, parallel=3, threads=1)) as engine:
        yield engine


def until(true):
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


def idle(engine):
    decoder = engine._decoder
    until(lambda: not (decoder._scheduler.busy or any(slot.busy for slot in decoder._slots.all)))


def raising(error):
    def callback(chunk):
        raise error

    return callback


def test_an_error_in_the_callback_of_the_best_answers_reaches_their_reader(engine):
    whole = engine.submit([5, 7], GREEDY)
    broken = engine.submit([5, 6], GREEDY, best_of=2, on_chunk=raising(ZeroDivisionError("mine")))
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(broken)
    assert len(list(whole)) == 24
    idle(engine)


def test_a_callback_that_raises_stop_iteration_does_not_pass_for_an_answers_end(engine):
    first_two = iter(range(2))
    stream = engine.submit([5, 6], GREEDY, on_chunk=lambda _: next(first_two))
    assert [next(stream).completion_tokens for _ in range(2)] == [1, 2]
    with pytest.raises(RuntimeError, match="the callback raised StopIteration"):
        next(stream)


def test_a_stream_of_the_parent_says_so_in_a_forked_child(engine):
    stream = engine.submit([5, 6], ENDLESS)
    next(stream)

    def child(pipe):
        stream.cancel()  # waits for no lock
        try:
            list(stream)
        except EngineError as error:
            pipe.send(str(error))

    here, there = multiprocessing.Pipe()
    with stream._request.changed, warnings_of_forks_ignored():
        process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
        process.start()
    assert here.poll(20)
    assert "before this process was forked" in here.recv()
    process.join(20)
    stream.cancel()
    assert process.exitcode == 0


def test_of_best_answers_that_are_cancelled_nothing_comes(engine):
    seen = []
    stream = engine.submit([5, 6], ENDLESS, best_of=2, on_chunk=seen.append)
    until(lambda: engine._decoder._scheduler.busy)
    stream.cancel()
    idle(engine)
    assert seen == list(stream) == []


def test_a_callback_that_exits_ends_its_own_request_only(engine):
    whole = engine.submit([5, 7], GREEDY)
    with pytest.raises(SystemExit):
        list(engine.submit([5, 6], GREEDY, on_chunk=raising(SystemExit(3))))
    assert len(list(whole)) == 24


def test_a_callback_that_cancels_among_guesses_is_not_called_again(model):
    seen = []

    def callback(chunk):
        seen.append(chunk)
        if chunk.guessed:
            stream.cancel()

    with Engine(plan(str(model), ctx=512, threads=1), lookup=True) as engine:
        with engine._decoder._changed:  # so that `stream` is there before the first chunk
            stream = engine.submit([5, 6] * 40, ENDLESS, on_chunk=callback)
        until(lambda: stream.done)
        idle(engine)
    assert [chunk.guessed for chunk in seen].count(True) == 1


@pytest.mark.parametrize("use", [lambda e: e.score([5], [[5, 6]], [[7]]), lambda e: e.embed([5])])
def test_a_callback_that_would_wait_for_itself_says_so(engine, use):
    with pytest.raises(RequestError, match="a callback cannot wait"):
        list(engine.submit([5, 6], GREEDY, on_chunk=lambda _: use(engine)))
    assert engine.embed([5]).shape == (64,)


def test_calls_without_a_pause_let_requests_in_between(engine):
    rounds = []
    stop = threading.Event()

    def embed():
        while not stop.is_set():
            engine.embed([5, 6, 7])
            rounds.append(1)

    threads = [threading.Thread(target=embed) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(rounds) > 9)
    before = len(rounds)
    assert len(list(engine.submit([5, 6], GREEDY))) == 24
    assert len(rounds) - before < 20
    stop.set()
    for thread in threads:
        thread.join()


def test_an_engine_collected_by_a_reader_of_its_own_ends_the_stream(model, monkeypatch):
    engine = Engine(plan(str(model), ctx=512, threads=1))
    stream = engine.submit([5, 6], ENDLESS)
    next(stream)
    ring = [engine]
    ring.append(ring)
    del engine, ring
    take = Request.take
    monkeypatch.setattr(Request, "take", lambda request: (gc.collect(), take(request))[1])
    found = []

    def read():
        try:
            list(stream)
        except EngineError as error:
            found.append(str(error))

    reader = threading.Thread(target=read, daemon=True)  # in a deadlock it stays
    reader.start()
    reader.join(10)
    assert found == ["the model is closed"]


@pytest.mark.parametrize("error", [RequestError("llama.cpp refuses it"), MemoryError()])
def test_answers_that_cannot_begin_give_their_slots_back(engine, monkeypatch, error):
    with monkeypatch.context() as patched:
        patched.setattr("edge.engine.scheduler.Chain", raising_always(error))
        with pytest.raises(type(error)):
            list(engine.submit([5, 6], GREEDY, n=3))
    assert len(list(engine.submit([5, 6], GREEDY, n=3))) == 72
    idle(engine)


def raising_always(error):
    def fail(*_):
        raise error

    return fail


def test_cancelled_requests_make_room_in_the_queue(model):
    with Engine(plan(str(model), ctx=2048, threads=1), queue=2) as engine:
        first = engine.submit([5], ENDLESS)
        next(first)
        waiting = [engine.submit([5], GREEDY) for _ in range(2)]
        waiting[1].cancel()
        until(lambda: len(engine._decoder._scheduler.waiting) == 1)
        engine.submit([5], GREEDY)
        first.cancel()
        assert len(list(waiting[0])) == 24


def test_an_embedding_has_the_room_that_answers_have_left(model):
    with Engine(plan(str(model), ctx=256, sequences=3, threads=1)) as engine:
        list(engine.submit([5, 6], ENDLESS, n=3))
        assert engine.embed([7] * 200).shape == (64,)


def test_rows_beside_a_batch_that_fails_are_dropped(engine, monkeypatch):
    backend = engine._backend
    decode = backend.decode

    def fail_beside(rows):
        decode(rows)
        if short.done and any(row.sequences == (1,) for row in rows):
            raise EngineError("half of it was computed")

    with monkeypatch.context() as patched:
        patched.setattr(backend, "decode", fail_beside)
        with engine._decoder._changed:  # one slot is idle between two that are not
            first, short, third = (
                engine.submit([5, at], replace(GREEDY, max_tokens=count))
                for at, count in enumerate((24, 3, 24))
            )
        for stream in (first, third):
            with pytest.raises(EngineError, match="half"):
                list(stream)
    memory, last = backend._memory, backend._lib.llama_memory_seq_pos_max
    slots = engine._decoder._slots.all
    assert [last(memory, slot.index) for slot in slots] == [len(slot.tokens) - 1 for slot in slots]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "lora.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    draw = np.random.default_rng(0)
    for side, shape in (("a", (4, 64)), ("b", (128, 4))):
        values = draw.standard_normal(shape).astype(np.float32)
        writer.add_tensor(f"blk.0.ffn_up.weight.lora_{side}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return adapter_of(str(path))


def adapted(model, adapter):
    return Engine(plan(str(model), ctx=512, parallel=3, threads=1), [adapter])


def scores(engine):
    return engine.score([5, 6, 7], [[5, 6, 7, 8]], [[9], [10, 11]]).tolist()


def test_scores_and_embeddings_are_of_the_adapters_the_model_was_loaded_with(model, adapter):
    with adapted(model, adapter) as engine:
        list(engine.submit([5], GREEDY))  # decodes with them
        expected, vector = scores(engine), engine.embed([5, 6]).tolist()
    with adapted(model, adapter) as engine:
        assert scores(engine) == expected  # before any request
    with adapted(model, adapter) as engine:
        list(engine.submit([5, 6, 7, 8], replace(GREEDY, max_tokens=1), lora=[]))
        assert engine.embed([5, 6]).tolist() == vector
    with adapted(model, adapter) as engine:
        list(engine.submit([5, 6, 7, 8], replace(GREEDY, max_tokens=1), lora=[]))
        assert scores(engine) == expected


def test_what_a_score_keeps_is_not_taken_for_the_bare_models(model, adapter):
    prompt = [5 + at % 7 for at in range(130)]
    with adapted(model, adapter) as engine:
        expected = [chunk.token for chunk in engine.submit(prompt, GREEDY, lora=[])]
    with adapted(model, adapter) as engine:
        engine.score(prompt[:128], [prompt], [[9]])
        assert [chunk.token for chunk in engine.submit(prompt, GREEDY, lora=[])] == expected


def test_scores_leave_no_more_in_the_slots_than_they_say(engine):
    engine.score([5] * 300, [[6] * 300], [[9]])  # not both in a context of 512
    last = engine._backend._lib.llama_memory_seq_pos_max(engine._backend._memory, 0)
    assert last == len(engine._decoder._slots.all[0].tokens) - 1


def test_answers_that_share_their_cells_are_kept_on_the_disk(model, tmp_path):
    decided = plan(str(model), ctx=512, sequences=2, threads=1)
    with Engine(decided, disk=DiskCache(tmp_path / "kept", state_key(decided), budget=1 << 30)) as engine:
        list(engine.submit([5] * 100, GREEDY))
        list(engine.submit([6] * 100, GREEDY))
        assert next(engine.submit([5] * 101, GREEDY)).reused_tokens == 100


def test_a_warning_that_is_to_be_an_error_reaches_the_reader(model, tmp_path):
    decided = plan(str(model), ctx=512, threads=1)
    key = state_key(decided)
    (tmp_path / f"{key.digest.hex()[:32]}-{'0' * 32}.state").write_bytes(b"junk" * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Engine(decided, disk=DiskCache(tmp_path, key, budget=1 << 30)) as engine:
            with pytest.raises(CacheWarning, match="damaged"):
                list(engine.submit([5, 6], GREEDY))
            assert len(list(engine.submit([5, 6], GREEDY))) == 24


def test_a_model_closed_while_a_thread_reads_its_vocabulary_is_freed_after(model):
    script = f"""
import threading, time
from edge.engine import Engine, Sampling
from edge.planner import plan
engine = Engine(plan({str(model)!r}, ctx=512, threads=1))
vocab, text = engine.vocab, "the king in the tower " * 20_000
reader = threading.Thread(target=lambda: print(len(vocab.tokens(text)) > 200_000))
reader.start()
time.sleep(0.03)
engine.close()
print("closed")
reader.join()
try:
    vocab.tokens(text)
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\nTrue\nthe model is closed\n", "")


def test_threads_that_read_tokens_at_once_read_their_own(engine):
    vocab = engine.vocab
    right = [vocab.piece(token) for token in range(vocab.size)]
    found = []

    def read(order):
        for _ in range(40):
            found.append([vocab._read_piece(token) for token in order][:: 1 if order[0] == 0 else -1])

    orders = [range(vocab.size), range(vocab.size)[::-1]]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read, args=(order,)) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert all(pieces == right for pieces in found)


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "del engine", "1 / 0", "engine.close(); engine.close()"])
def test_a_script_that_ends_while_a_model_answers_ends(model, end):
    script = f"""
import sys
from edge.engine import Engine, Sampling
from edge.planner import plan
engine = Engine(plan({str(model)!r}, ctx=2048, threads=1))
stream = engine.submit([5, 6], Sampling(temperature=0, ignore_eos=True))
next(stream)
print("begun")
{end}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (int(end == "1 / 0"), "begun\n")
    assert done.stderr.count("Error") == int(end == "1 / 0")
