"""The engine on a tiny model: streaming, prefix reuse, samples from one prefill, limits, faults."""

import ctypes
import signal
import subprocess
import sys

import pytest
from tiny import tiny_llama

from edge.engine import Engine, Sampling, Tally
from edge.errors import EngineError, PromptTooLong, RequestError
from edge.planner import plan

GREEDY = Sampling(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def engine(model):
    with Engine(plan(str(model), ctx=256, sequences=4)) as engine:
        yield engine


def text(chunks):
    return "".join(chunk.text for chunk in chunks)


def reference(model, ids, count):
    """Greedy continuation through llama-cpp-python's own high-level class."""
    from llama_cpp import Llama

    llama = Llama(str(model), n_ctx=256, n_threads=1, flash_attn=True, verbose=False)
    stream = llama.generate(ids, temp=0.0)
    tokens = [next(stream) for _ in range(count)]
    llama.close()
    return tokens


def test_greedy_tokens_equal_llama_cpp_pythons(engine, model):
    ids = engine.vocab.tokens("the king in")
    ours = [chunk.token for chunk in engine.submit(ids, GREEDY)]
    assert ours == reference(model, ids, 24)


def test_chunks_count_and_the_last_one_says_why(engine):
    ids = engine.vocab.tokens("on the")
    chunks = list(engine.submit(ids, GREEDY))
    assert [chunk.completion_tokens for chunk in chunks] == list(range(1, 25))
    assert {chunk.prompt_tokens for chunk in chunks} == {len(ids)}
    assert [chunk.finish_reason for chunk in chunks] == [None] * 23 + ["length"]
    times = [chunk.elapsed_s for chunk in chunks]
    assert times == sorted(times)
    assert times[0] >= chunks[0].prefill_s > 0


def test_a_longer_prompt_reuses_what_it_shares_and_says_the_same(engine, model):
    first = engine.vocab.tokens("the king in the tower")
    answer = [chunk.token for chunk in engine.submit(first, GREEDY)]
    longer = [*first, *answer, *engine.vocab.tokens(" and on")]
    again = list(engine.submit(longer, GREEDY))
    # the last sampled token was never fed back, so its state is not there
    assert again[0].reused_tokens == len(first) + len(answer) - 1
    with Engine(plan(str(model), ctx=256)) as fresh:
        cold = list(fresh.submit(longer, GREEDY))
    assert cold[0].reused_tokens == 0
    assert [chunk.token for chunk in again] == [chunk.token for chunk in cold]


def test_a_different_prompt_reuses_nothing(engine):
    list(engine.submit(engine.vocab.tokens("alpha"), GREEDY))
    chunks = list(engine.submit(engine.vocab.tokens("zulu"), GREEDY))
    assert chunks[0].reused_tokens == 0


def test_a_prompt_of_several_batches_equals_one_fed_token_by_token(tmp_path):
    path = tiny_llama(tmp_path / "long.gguf", ctx=2048)
    with Engine(plan(str(path), ctx=2048)) as engine:
        ids = (engine.vocab.tokens("the tower in the rain ") * 200)[:1300]
        whole = [chunk.token for chunk in engine.submit(ids, GREEDY)]
        list(engine.submit(ids[:700], Sampling(temperature=0, max_tokens=1)))
        resumed = list(engine.submit(ids, GREEDY))
    assert resumed[0].reused_tokens == 700
    assert [chunk.token for chunk in resumed] == whole


def test_equal_seeds_give_equal_texts_and_other_seeds_others(engine):
    ids = engine.vocab.tokens("one")

    def sample(seed):
        return text(engine.submit(ids, Sampling(temperature=1.5, seed=seed, max_tokens=20)))

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(5)}) == 5


def test_the_repeat_penalty_sees_the_prompt(engine):
    once = [chunk.token for chunk in engine.submit(engine.vocab.tokens("the king"), GREEDY)]
    settings = Sampling(temperature=0, repeat_penalty=50.0, max_tokens=1)
    (chunk,) = engine.submit([*engine.vocab.tokens("the king"), *once[:-1]], settings)
    assert once[-1] in once[:-1]  # greedily it would be repeated
    assert chunk.token != once[-1]


def test_n_samples_come_from_one_prefill(engine):
    ids = engine.vocab.tokens("in the ")
    tally = Tally(4)
    chunks = list(engine.submit(ids, Sampling(temperature=1.5, seed=3, max_tokens=16), n=4))
    for chunk in chunks:
        tally.add(chunk)
    assert len({chunk.prefill_s for chunk in chunks}) == 1
    assert tally.usage.prompt_tokens == len(ids)
    assert tally.usage.completion_tokens == 64
    assert len(set(tally.texts)) == 4
    assert tally.finish_reasons == ["length"] * 4


def test_n_greedy_samples_are_all_the_single_answer(engine):
    ids = engine.vocab.tokens("the")
    single = text(engine.submit(ids, GREEDY))
    tally = Tally(3)
    for chunk in engine.submit(ids, GREEDY, n=3):
        tally.add(chunk)
    assert tally.texts == [single] * 3


def test_after_n_samples_the_engine_still_answers_alone(engine):
    ids = engine.vocab.tokens("the")
    single = text(engine.submit(ids, GREEDY))
    list(engine.submit(ids, Sampling(temperature=1.5, seed=1, max_tokens=10), n=4))
    assert text(engine.submit(ids, GREEDY)) == single


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(engine):
    ids = engine.vocab.tokens("the king")
    whole = text(engine.submit(ids, GREEDY))
    stop = whole[8:11]  # lies across token borders
    chunks = list(engine.submit(ids, Sampling(temperature=0, max_tokens=24, stop=(stop,))))
    assert text(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_an_abandoned_stream_leaves_the_engine_usable(engine):
    ids = engine.vocab.tokens("the king")
    whole = text(engine.submit(ids, GREEDY))
    stream = engine.submit(ids, GREEDY)
    next(stream)
    next(stream)
    stream.close()
    assert text(engine.submit(ids, GREEDY)) == whole


def test_requests_wait_for_a_slot_and_texts_do_not_cross(engine):
    ids, other = engine.vocab.tokens("the king"), engine.vocab.tokens("rain")
    alone = [text(engine.submit(each, GREEDY)) for each in (ids, other)]
    streams = [engine.submit(each, GREEDY) for each in (ids, other)]
    assert [text(stream) for stream in reversed(streams)] == alone[::-1]


def test_the_context_ends_an_answer_and_both_numbers_refuse_a_long_prompt(model):
    with Engine(plan(str(model), ctx=64)) as engine:
        ids = engine.vocab.tokens("x" * 60)
        chunks = list(engine.submit(ids, Sampling(temperature=0)))
        assert len(chunks) == 64 - len(ids)
        assert chunks[-1].finish_reason == "length"
        with pytest.raises(PromptTooLong, match=r"70 tokens and the context holds 64"):
            next(engine.submit(engine.vocab.tokens("x" * 70), GREEDY))


def test_n_answers_share_the_room_the_prompt_leaves(model):
    with Engine(plan(str(model), ctx=256, sequences=4)) as engine:
        ids = engine.vocab.tokens("x" * 200)
        tally = Tally(4)
        for chunk in engine.submit(ids, Sampling(temperature=1.0, seed=1), n=4):
            tally.add(chunk)
    assert tally.usage.completion_tokens <= 256 - len(ids)
    assert tally.finish_reasons == ["length"] * 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": float("nan")}, "temperature is not a number"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 2.0}, "top-p is 2"),
        ({"min_p": -0.1}, "min-p is -0.1"),
        ({"top_k": -1}, "top-k is -1"),
        ({"repeat_penalty": 0.0}, "repeat-penalty is 0"),
        ({"max_tokens": -5}, "max-tokens is -5"),
        ({"max_tokens": 0}, "max-tokens is 0"),
        ({"seed": 2**32 - 1}, "seed is"),
        ({"stop": ("",)}, "empty stop text"),
        ({"stop": "END"}, "stop is one text"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(RequestError, match=words) as caught:
        Sampling(**settings)
    assert caught.value.exit_code == 2


def test_what_is_not_text_is_refused(engine):
    with pytest.raises(RequestError, match="surrogate pair at character 2"):
        engine.vocab.tokens("ab\ud800")
    with pytest.raises(RequestError, match="NUL at character 1"):
        engine.vocab.tokens("a\0b")
    with pytest.raises(RequestError, match="prompt is empty"):
        next(engine.submit([], GREEDY))
    with pytest.raises(RequestError, match="5 answers asked for and the plan has room for 4"):
        next(engine.submit([5], GREEDY, n=5))


def test_control_tokens_are_parsed_only_when_asked(engine):
    assert engine.vocab.tokens("<|im_end|>", parse_special=True) == [2]
    assert len(engine.vocab.tokens("<|im_end|>")) > 2
    assert engine.vocab.has("<|im_start|>")
    assert not engine.vocab.has("<|nothing|>")
    assert not engine.vocab.has("a")
    assert engine.vocab.special_text("eos") == "<|im_end|>"


def test_tokens_and_pieces_are_each_others_inverse(engine):
    words = "Grüße, 世界! \U0001f600\r\n\t the end"
    assert b"".join(map(engine.vocab.piece, engine.vocab.tokens(words))).decode() == words


def test_a_closed_engine_says_so_and_closes_twice(model):
    engine = Engine(plan(str(model), ctx=64))
    stream = engine.submit(engine.vocab.tokens("a"), GREEDY)
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):  # what came is not the whole answer
        list(stream)
    with pytest.raises(EngineError, match="closed"):
        next(engine.submit([5], GREEDY))


@pytest.mark.parametrize("use", ["chat('a')", "generate('a')", "template", "engine.meta('general.name')"])
def test_a_closed_model_says_so_instead_of_reading_freed_memory(model, use):
    code = f"import edge, sys; model = edge.load({str(model)!r}); model.close(); model.{use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.returncode
    assert done.stderr.strip().endswith("EngineError: the model is closed")


def test_a_stream_begun_after_its_model_was_closed_says_so(model):
    engine = Engine(plan(str(model), ctx=64))
    stream = engine.submit([5], GREEDY)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(stream)


def test_a_request_after_n_cancelled_answers_finds_none_of_their_tokens(engine):
    ids, other = engine.vocab.tokens("the"), engine.vocab.tokens("rain in the")
    single = text(engine.submit(ids, GREEDY))
    left = engine.submit(other, Sampling(temperature=1.5, seed=1), n=4)
    for _ in range(230):  # nearly all the cells there are
        next(left)
    left.cancel()
    tally = Tally(3)
    for chunk in engine.submit(ids, GREEDY, n=3):
        tally.add(chunk)
    assert tally.texts == [single] * 3


def test_the_largest_seed_is_a_seed(engine):
    last = Sampling(temperature=1.5, seed=2**32 - 2, max_tokens=20)
    answers = []
    for _ in range(2):
        tally = Tally(3)
        for chunk in engine.submit([5], last, n=3):
            tally.add(chunk)
        answers.append(tally.texts)
    assert answers[0] == answers[1]


def test_an_interrupt_while_the_model_is_loaded_is_not_lost(model, monkeypatch, capfd):
    from edge.engine import binding

    decided, asked = plan(str(model), ctx=64), []

    def keep(level, words, _):  # the log speaks all through the load
        if not asked:
            asked.append(True)
            signal.raise_signal(signal.SIGINT)

    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(keep)
    monkeypatch.setattr(binding, "_keep_log", log)
    with pytest.raises(KeyboardInterrupt):
        Engine(decided)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr().err == ""
    with Engine(decided) as engine:
        assert list(engine.submit([5], GREEDY))


def test_a_file_llama_cpp_refuses_is_one_line_with_its_reason(tmp_path):
    path = tiny_llama(tmp_path / "other.gguf", pre="no-such-pretokenizer")
    with pytest.raises(EngineError, match=r"cannot load other.gguf: .*no-such-pretokenizer") as caught:
        Engine(plan(str(path), ctx=64))
    assert "\n" not in caught.value.line


@pytest.mark.parametrize(("code", "words"), [(1, "no room"), (2, "closed"), (-1, "code -1"), (-3, "code -3")])
def test_each_error_code_of_the_native_decode_is_an_engine_error(engine, monkeypatch, code, words):
    class Failing:
        def __getattr__(self, name):
            return (lambda *_: code) if name == "llama_decode" else getattr(real, name)

    real = engine._backend._lib
    monkeypatch.setattr(engine._backend, "_lib", Failing())
    with pytest.raises(EngineError, match=words):
        next(engine.submit([5, 6], GREEDY))
    monkeypatch.setattr(engine._backend, "_lib", real)
    assert list(engine.submit([5, 6], GREEDY))


def test_the_binding_leaves_a_working_llama_cpp_package_behind():
    code = (
        "from edge.engine.binding import llama; import sys; low = llama();"
        "assert 'numpy' not in sys.modules and 'jinja2' not in sys.modules;"
        "import llama_cpp; assert llama_cpp.llama_cpp is low and llama_cpp.Llama"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_pointer_types_have_the_size_llama_cpp_uses(engine):
    # the structs come from llama-cpp-python; a mismatch with the library would show in the defaults
    params = engine._backend._lib.llama_context_default_params()
    assert params.n_batch == 2048
    assert ctypes.sizeof(params) % 8 == 0
