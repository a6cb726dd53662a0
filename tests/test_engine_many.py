"""Many requests at once: texts that do not depend on what else runs, threads, asyncio, cancellation, faults."""

import asyncio
import gc
import multiprocessing
import random
import sys
import threading
import time
from dataclasses import replace

import pytest
from tiny import tiny_llama

from edge.engine import Engine, Sampling
from edge.errors import EngineError, PromptTooLong, QueueFull, RequestError
from edge.planner import plan

GREEDY = Sampling(temperature=0, max_tokens=24)
TEXT = "the king in the tower said no and went out into the rain of the night"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", ctx=2048)


@pytest.fixture
def engine(model):
    with Engine(plan(str(model), ctx=512, parallel=4, threads=1)) as engine:
        yield engine


def text(chunks):
    return "".join(chunk.text for chunk in chunks)


def tokens(chunks):
    return [chunk.token for chunk in chunks]


def prompts(engine, count, seed=0):
    draw = random.Random(seed)
    return [
        engine.vocab.tokens(" ".join(draw.choices(TEXT.split(), k=draw.randint(1, 40)))) for _ in range(count)
    ]


def settings(seed):
    return Sampling(temperature=1.2, seed=seed, max_tokens=10 + seed % 17)


def test_a_text_is_the_same_alone_and_beside_others(engine):
    asked = prompts(engine, 12)
    together = [engine.submit(ids, settings(seed)) for seed, ids in enumerate(asked)]
    texts = [tokens(stream) for stream in together]
    with Engine(engine.plan) as fresh:
        assert [
            tokens(fresh.submit(ids, settings(seed))) for seed, ids in reversed([*enumerate(asked)])
        ] == texts[::-1]


@pytest.mark.slow
def test_a_text_of_the_real_model_is_the_same_alone_and_beside_others(default_model):
    decided = plan(str(default_model), ctx=1024, parallel=4, threads=1)
    with Engine(decided) as busy, Engine(decided) as quiet:
        long = busy.vocab.tokens("A tale of a king who counted his sheep. " * 40)[
            :300
        ]  # 512 cells, as they come by 256
        asked = [long, *prompts(busy, 3), long[:130]]
        short = [replace(settings(seed), max_tokens=6) for seed in range(len(asked))]
        streams = [busy.submit(ids, each) for ids, each in zip(asked, short, strict=True)]
        assert [tokens(stream) for stream in streams] == [
            tokens(quiet.submit(ids, each)) for ids, each in zip(asked, short, strict=True)
        ]


def test_requests_come_from_many_threads(engine):
    asked = prompts(engine, 16, seed=1)
    expected = [text(engine.submit(ids, GREEDY)) for ids in asked]
    found = [None] * 16

    def ask(at):
        found[at] = text(engine.submit(asked[at], GREEDY))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_loop_awaits_many_and_cancels_some(engine):
    asked = prompts(engine, 8, seed=2)
    expected = [text(engine.submit(ids, GREEDY)) for ids in asked]

    async def one(ids):
        return "".join([chunk.text async for chunk in engine.submit(ids, GREEDY)])

    async def forever():
        async for _ in engine.submit(asked[0], Sampling(temperature=0)):
            pass

    async def all_of_them():
        endless = asyncio.create_task(forever())
        found = await asyncio.gather(*map(one, asked))
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        return found

    assert asyncio.run(all_of_them()) == expected
    deadline = time.monotonic() + 10
    while engine._decoder._scheduler.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine._decoder._scheduler.busy  # the cancelled task's request is gone too


def test_a_long_prompt_holds_the_others_up_for_a_step_at_most(model):
    with Engine(plan(str(model), ctx=2048, parallel=2, threads=1)) as engine:
        order = []
        short = engine.submit(
            [5, 6], Sampling(temperature=0, max_tokens=200), on_chunk=lambda _: order.append("s")
        )
        next(short)
        long = engine.submit(
            [7] * 1500, Sampling(temperature=0, max_tokens=1), on_chunk=lambda _: order.append("l")
        )
        list(long)
        list(short)
    assert order.index("l") >= 1500 // 128  # a token for each piece of the prompt


def test_cancelled_twice_or_dropped_a_request_frees_its_slot(engine):
    streams = [engine.submit([5], Sampling(temperature=0)) for _ in range(6)]
    next(streams[0])
    for stream in streams[:5]:
        stream.cancel()
        stream.cancel()
        list(stream)  # what came before is there, then it ends
        assert stream.done
    del stream, streams
    gc.collect()
    assert len(tokens(engine.submit([5], GREEDY))) == 24


def test_a_full_queue_refuses_at_once(model):
    with Engine(plan(str(model), ctx=512, threads=1), queue=2) as engine:
        first = engine.submit([5], Sampling(temperature=0))
        next(first)
        waiting = [engine.submit([5, 6], GREEDY) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests wait already"):
            engine.submit([5], GREEDY)
        first.cancel()
        assert all(len(tokens(stream)) == 24 for stream in waiting)


def test_an_error_in_the_callback_ends_its_own_request_only(engine):
    expected = tokens(engine.submit([5, 6], GREEDY))

    def fail(chunk):
        if chunk.completion_tokens == 3:
            raise ZeroDivisionError("mine")

    broken, whole = engine.submit([5, 6], GREEDY, on_chunk=fail), engine.submit([5, 6], GREEDY)
    assert [next(broken).token for _ in range(2)] == expected[:2]
    with pytest.raises(ZeroDivisionError, match="mine"):
        next(broken)
    assert tokens(whole) == expected


@pytest.mark.parametrize("step", [1, 3])
def test_an_error_in_the_callback_ends_all_answers_of_its_request(engine, step):
    def fail(chunk):
        if chunk.index == 0 and chunk.completion_tokens == step:
            raise ZeroDivisionError("mine")

    stream = engine.submit([5, 6], GREEDY, n=3, on_chunk=fail)
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(stream)
    assert len(tokens(engine.submit([5, 6], GREEDY))) == GREEDY.max_tokens


def test_a_callback_may_close_the_engine(model):
    engine = Engine(plan(str(model), ctx=512))
    stream = engine.submit([5], GREEDY, on_chunk=lambda _: engine.close())
    with pytest.raises(EngineError, match="closed"):
        list(stream)
    engine.close()


def test_what_cannot_be_answered_is_refused_at_once(engine):
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.submit([])
    with pytest.raises(RequestError, match="outside the vocabulary"):
        engine.submit([engine.vocab.size])
    with pytest.raises(PromptTooLong, match="512 tokens and the context holds 512"):
        engine.submit([5] * 512)
    with pytest.raises(RequestError, match="5 answers asked for and the plan has room for 4"):
        engine.submit([5], n=5)
    with pytest.raises(RequestError, match="best_of 2 is less than the 3"):
        engine.submit([5], n=3, best_of=2)


def test_best_of_gives_the_likeliest(engine):
    drawn = Sampling(temperature=1.5, seed=4, max_tokens=8, logprobs=0)
    answers = [[] for _ in range(4)]
    for chunk in engine.submit([5, 6], drawn, n=4):
        answers[chunk.index].append(chunk)
    means = [sum(chunk.logprobs[0].logprob for chunk in answer) / len(answer) for answer in answers]
    ranked = sorted(range(4), key=lambda index: -means[index])
    best = list(engine.submit([5, 6], replace(drawn, logprobs=None), n=2, best_of=4))
    found = [tokens(chunk for chunk in best if chunk.index == index) for index in range(2)]
    assert found == [tokens(answers[index]) for index in ranked[:2]]
    assert best[0].logprobs is None


def test_logprobs_are_the_models_own(engine):
    (chunk,) = engine.submit([5, 6], Sampling(temperature=0, max_tokens=1, logprobs=3, repeat_penalty=1.0))
    chosen, *likeliest = chunk.logprobs
    assert chosen == likeliest[0]
    assert chosen.token == chunk.token
    assert len(likeliest) == 3
    assert 0 > likeliest[0].logprob >= likeliest[1].logprob >= likeliest[2].logprob


@pytest.mark.parametrize("code", [1, 2, -1, -2, -3])
def test_a_failed_batch_ends_its_requests_and_no_others(engine, monkeypatch, code):
    class Failing:
        left = 3

        def __getattr__(self, name):
            return self.decode if name == "llama_decode" else getattr(real, name)

        def decode(self, *given):
            self.left -= 1
            return code if self.left < 0 else real.llama_decode(*given)

    expected = tokens(engine.submit([5, 6], GREEDY))
    real = engine._backend._lib
    monkeypatch.setattr(engine._backend, "_lib", Failing())
    with pytest.raises(EngineError):
        list(engine.submit([5, 6, 7], GREEDY))
    monkeypatch.undo()
    assert tokens(engine.submit([5, 6], GREEDY)) == expected


def test_a_prefix_of_another_conversation_is_copied(engine):
    ids = prompts(engine, 1, seed=3)[0]
    beginning = (ids * 40)[:200]
    first, second = [*beginning, *ids], [*beginning, 5, 6, 7]
    list(engine.submit(first, GREEDY))
    again = list(engine.submit(second, GREEDY))
    assert again[0].reused_tokens == 192  # whole tiles of 64
    with Engine(engine.plan) as fresh:
        cold = list(fresh.submit(second, GREEDY))
    assert cold[0].reused_tokens == 0
    assert tokens(cold) == tokens(again)


def test_a_conversation_goes_on_where_it_ended(engine):
    first = list(engine.submit([5, 6, 7], GREEDY))
    longer = [5, 6, 7, *tokens(first), 8, 9]
    others = [engine.submit([9, 9, at], GREEDY) for at in range(3)]
    again = list(engine.submit(longer, GREEDY))
    assert again[0].reused_tokens == 3 + 23  # the last token was never decoded
    assert all(len(tokens(stream)) == 24 for stream in others)


def test_an_engine_of_the_parent_says_so_in_a_forked_child(engine):
    list(engine.submit([5], GREEDY))

    def child(pipe):
        try:
            engine.submit([5], GREEDY)
        except EngineError as error:
            pipe.send(str(error))
        engine.close()  # frees nothing of the parent's

    here, there = multiprocessing.Pipe()
    with warnings_of_forks_ignored():
        process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
        process.start()
    assert here.poll(20)
    assert "before this process was forked" in here.recv()
    process.join(20)
    assert process.exitcode == 0
    assert len(tokens(engine.submit([5], GREEDY))) == 24


def warnings_of_forks_ignored():
    """From Python 3.12 on, forking beside threads warns; this is what is being tried."""
    import warnings

    caught = warnings.catch_warnings()
    if sys.version_info >= (3, 12):
        warnings.simplefilter("ignore", DeprecationWarning)
    return caught


def test_a_short_storm_of_requests_loses_and_crosses_nothing(engine):
    """Random lengths, cancellations and errors; bench/stress.py is the long one."""
    draw = random.Random(5)
    asked = prompts(engine, 20, seed=6)
    expected = [tokens(engine.submit(ids, settings(seed))) for seed, ids in enumerate(asked)]
    running = []
    for _ in range(150):
        which = draw.randrange(20)
        kind = draw.choice(["whole", "whole", "cancel", "drop", "fail"])

        def fail(chunk):
            raise KeyError(chunk.index)

        stream = engine.submit(asked[which], settings(which), on_chunk=fail if kind == "fail" else None)
        if kind == "cancel":
            threading.Timer(draw.random() / 20, stream.cancel).start()
        if kind != "drop":
            running.append((kind, which, stream))
    for kind, which, stream in running:
        if kind == "fail":
            with pytest.raises(KeyError):
                list(stream)
        elif kind == "whole":
            assert tokens(stream) == expected[which]
        else:
            found = tokens(stream)
            assert found == expected[which][: len(found)]


def test_embeddings_come_from_the_model_that_also_answers(engine):
    before = tokens(engine.submit([5, 6, 7], GREEDY))
    one, other = engine.embed([5, 6, 7]), engine.embed([5, 6, 8])
    assert one.shape == other.shape
    assert one == pytest.approx(embedded_elsewhere(engine.plan.path, [5, 6, 7]), abs=1e-3)
    assert abs(one - other).max() > 1e-2
    assert tokens(engine.submit([5, 6, 7], GREEDY)) == before
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.embed([])


def embedded_elsewhere(path, ids):
    """The same by llama-cpp-python's own class, which gives a row a token."""
    from llama_cpp import LLAMA_POOLING_TYPE_LAST, Llama

    llama = Llama(
        str(path),
        n_ctx=64,
        embedding=True,
        pooling_type=LLAMA_POOLING_TYPE_LAST,
        flash_attn=True,
        n_threads=1,
        verbose=False,
    )
    llama.tokenize = lambda *given: ids
    found = llama.embed("any")
    llama.close()
    return found
