"""Guessing ahead inside the engine: the same tokens with and without, by lookup and by a draft model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import tiny_llama
from tiny_mamba import tiny_mamba

from edge.engine import Engine, Sampling
from edge.engine.alike import alike_to
from edge.engine.draft import common, draft_plan
from edge.errors import EngineError, RequestError
from edge.planner import Threads, plan

# Repetitive, so that there is something to look up, and shorter than what llama.cpp adds in another order
PROMPT = "the king in the hall; the king in the hall; the king in the"
GREEDY = Sampling(temperature=0, max_tokens=60)
SETTINGS = {
    "greedy": GREEDY,
    "warm": Sampling(temperature=0.8, seed=3, max_tokens=60),
    "hot": Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=4, max_tokens=60),
    "penalties": Sampling(temperature=0.8, seed=5, max_tokens=60, repeat_penalty=1.2, presence_penalty=0.5),
    "mirostat": Sampling(temperature=0.8, seed=6, max_tokens=60, mirostat=2),
    "grammar": Sampling(temperature=0, max_tokens=60, grammar='root ::= "the " ("king " | "hall ")+ "."'),
    "biased to the end": Sampling(temperature=1.0, seed=7, max_tokens=60, logit_bias={2: 8.0}),
    "one token": Sampling(temperature=0, max_tokens=1),
    "two tokens": Sampling(temperature=0, max_tokens=2),
    "to the end of the context": Sampling(temperature=0),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def engine(model):
    with Engine(plan(str(model), ctx=256, threads=1), lookup=True) as engine:
        yield engine


@pytest.fixture
def always(monkeypatch):
    """Offer all there is, whether or not it pays."""
    monkeypatch.setattr("edge.engine.speculate.best", lambda chances, share: len(list(chances)))
    monkeypatch.setattr("edge.engine.draft.best", lambda chances, share: len(list(chances)))


@pytest.fixture
def plainly(monkeypatch):
    """A function that answers without guesses."""

    def run(engine, ids, sampling):
        with monkeypatch.context() as patch:
            patch.setattr(engine._decoder._scheduler, "_propose", lambda request: None)
            return list(engine.submit(ids, sampling))

    return run


def told(chunks):
    """What must not change: all but the times and who guessed."""
    return [(chunk.token, chunk.text, chunk.finish_reason, chunk.completion_tokens) for chunk in chunks]


def repeated(engine):
    """A prompt that the model itself goes on with by repeating: its own greedy text, twice."""
    ids = engine.vocab.tokens(PROMPT)
    said = [chunk.token for chunk in engine.submit(ids, Sampling(temperature=0, max_tokens=40))]
    return [*ids, *said, *ids]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_text_is_the_same_with_and_without(setting, engine, plainly, always):
    ids, sampling = repeated(engine), SETTINGS[setting]
    plain = plainly(engine, ids, sampling)
    guessed = list(engine.submit(ids, sampling))
    assert told(guessed) == told(plain)
    assert not any(chunk.guessed for chunk in plain)


def test_guesses_are_kept_and_said_to_be_guessed(engine, plainly, always):
    ids = repeated(engine)
    bias = Sampling(temperature=0, max_tokens=40, logit_bias={70: 50.0})  # always the same token
    chunks = list(engine.submit(ids, bias))
    assert sum(chunk.guessed for chunk in chunks) > 25
    assert told(chunks) == told(plainly(engine, ids, bias))


def test_a_stop_text_inside_the_guesses_ends_the_answer(engine, plainly, always):
    ids = engine.vocab.tokens(PROMPT)
    letter = engine.vocab.piece(70).decode()
    sampling = Sampling(temperature=0, max_tokens=40, logit_bias={70: 50.0}, stop=(letter * 7,))
    chunks = list(engine.submit(ids, sampling))
    assert any(chunk.guessed for chunk in chunks)
    assert told(chunks) == told(plainly(engine, ids, sampling))
    assert chunks[-1].finish_reason == "stop"
    assert len(chunks) == 7


def test_log_probabilities_are_those_of_plain_steps(engine, plainly, always):
    ids = repeated(engine)
    sampling = Sampling(temperature=0, max_tokens=30, logprobs=3, logit_bias={70: 50.0})
    list(engine.submit(ids, sampling))  # from here on both find the prompt computed
    guessed, plain = list(engine.submit(ids, sampling)), plainly(engine, ids, sampling)
    assert any(chunk.guessed for chunk in guessed)
    for one, other in zip(guessed, plain, strict=True):
        assert [found.token for found in one.logprobs] == [found.token for found in other.logprobs]
        # llama.cpp sums F32 weights in another order for several rows; keys and values are then rounded to f16
        values = [found.logprob for found in other.logprobs]
        assert [found.logprob for found in one.logprobs] == pytest.approx(values, abs=2e-3)


def test_what_was_guessed_wrongly_is_not_in_the_next_turns_prefix(engine, plainly, always):
    ids = repeated(engine)
    said = [chunk.token for chunk in engine.submit(ids, SETTINGS["hot"])]
    turn = [*ids, *said, *engine.vocab.tokens(" on the")]
    assert told(engine.submit(turn, GREEDY)) == told(plainly(engine, turn, GREEDY))


def test_a_request_cancelled_among_its_guesses_leaves_the_engine_as_it_was(engine, plainly, always):
    ids = repeated(engine)
    bias = Sampling(temperature=0, max_tokens=40, logit_bias={70: 50.0})
    for until in (2, 5, 9):
        stream = engine.submit(ids, bias)
        for _ in range(until):
            next(stream)
        stream.cancel()
    assert told(engine.submit(ids, GREEDY)) == told(plainly(engine, ids, GREEDY))


@pytest.mark.parametrize("ended", [False, True])
def test_a_model_that_cannot_take_guesses_back_ends_the_request_alone(
    ended, engine, plainly, always, monkeypatch
):
    ids = repeated(engine)
    expected = told(plainly(engine, ids, GREEDY))

    def fail(chunk):
        if ended and chunk.guessed:
            raise ValueError("enough")

    bias = Sampling(temperature=0, max_tokens=40, logit_bias={70: 50.0})
    with monkeypatch.context() as patch:
        keep = engine._backend.keep
        patch.setattr(engine._backend, "keep", lambda sequence, length: keep(sequence, 0) and not length)
        settings, error = (bias, ValueError) if ended else (SETTINGS["hot"], EngineError)
        stream = engine.submit(ids, settings, on_chunk=fail)
        waiting = engine.submit([70] * 8, bias)  # guessed rightly to its end
        with pytest.raises(error, match="enough" if ended else "forgot"):
            list(stream)
        assert len(list(waiting)) == 40
    assert told(engine.submit(ids, GREEDY)) == expected


def test_a_callback_that_raises_among_guesses_ends_its_request_alone(engine, plainly, always):
    ids = repeated(engine)
    bias = Sampling(temperature=0, max_tokens=40, logit_bias={70: 50.0})

    def fail(chunk):
        if chunk.guessed:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        list(engine.submit(ids, bias, on_chunk=fail))
    assert told(engine.submit(ids, GREEDY)) == told(plainly(engine, ids, GREEDY))


def test_several_answers_are_not_guessed(model, always):
    with Engine(plan(str(model), ctx=256, threads=1, sequences=2), lookup=True) as engine:
        bias = Sampling(temperature=0, max_tokens=20, logit_bias={70: 50.0})
        ids = engine.vocab.tokens(PROMPT)
        assert not any(chunk.guessed for chunk in engine.submit(ids, bias, n=2))


def test_slots_of_their_own_give_the_same_text_guessed_or_not(model, plainly, always):
    with Engine(plan(str(model), ctx=256, threads=1, parallel=2)) as engine:
        ids = repeated(engine)
        for sampling in (GREEDY, SETTINGS["hot"]):
            assert told(engine.submit(ids, sampling)) == told(plainly(engine, ids, sampling))


def test_a_recurrent_model_is_not_guessed_for(tmp_path, always):
    with Engine(plan(str(tiny_mamba(tmp_path / "mamba.gguf")), ctx=256, threads=1)) as engine:
        bias = Sampling(temperature=0, max_tokens=20, logit_bias={70: 50.0})
        chunks = list(engine.submit(engine.vocab.tokens(PROMPT), bias))
        assert len(chunks) == 20
        assert not any(chunk.guessed for chunk in chunks)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model of the same vocabulary that thinks otherwise."""
    return tiny_llama(tmp_path_factory.mktemp("other") / "other.gguf", seed=9, layers=1)


@pytest.mark.parametrize("which", ["itself", "other"])
@pytest.mark.parametrize("setting", ["greedy", "hot", "to the end of the context"])
def test_a_draft_changes_no_token(which, setting, model, other, engine, plainly, always):
    ids, sampling = repeated(engine), SETTINGS[setting]
    planned = plan(str(model), ctx=256, threads=1)
    with Engine(planned, draft=draft_plan(str(model if which == "itself" else other), planned)) as drafted:
        for _ in range(2):  # the draft's own state from the request before, too
            assert told(drafted.submit(ids, sampling)) == told(plainly(engine, ids, sampling))


def test_a_draft_of_the_model_itself_is_right(model, monkeypatch, always):
    # Nothing to look up: all that is accepted, the draft has said
    monkeypatch.setattr("edge.engine.speculate.PromptLookup.guess", lambda *_: [])
    monkeypatch.setattr("edge.engine.draft.DraftModel._worth", lambda *_: True)
    planned = plan(str(model), ctx=256, threads=1)
    with Engine(planned, draft=draft_plan(str(model), planned)) as engine:
        learned = []
        learn = engine._decoder._draft.learn
        monkeypatch.setattr(engine._decoder._draft, "learn", lambda *of: (learned.append(of), learn(*of)))
        chunks = list(engine.submit(engine.vocab.tokens(PROMPT), GREEDY))
    assert all(offered == accepted for offered, accepted, _ in learned)
    assert sum(chunk.guessed for chunk in chunks) > 20


def test_a_draft_that_never_pays_is_hardly_asked(model, other, monkeypatch):
    monkeypatch.setattr("edge.engine.speculate.PromptLookup.guess", lambda *_: [])
    planned = plan(str(model), ctx=256, threads=1)
    with Engine(planned, draft=draft_plan(str(other), planned)) as engine:
        draft = engine._decoder._draft
        for seed in range(6):
            list(
                engine.submit(
                    engine.vocab.tokens(PROMPT), Sampling(temperature=1.5, seed=seed, max_tokens=150)
                )
            )
        assert draft._steps > 800
        assert draft._drafted < 0.15 * draft._steps


def test_a_draft_model_reads_a_long_prompt_in_pieces(tmp_path, always):
    model = tiny_llama(tmp_path / "long.gguf", ctx=2048)
    planned = plan(str(model), ctx=2048, threads=1)
    with Engine(planned, draft=draft_plan(str(model), planned)) as engine:
        draft = engine._decoder._draft
        ids = [3 + i % 200 for i in range(1300)]
        list(engine.submit(ids, Sampling(temperature=0, max_tokens=2)))
        assert len(draft._tokens) <= 512
        list(engine.submit(ids, Sampling(temperature=0, max_tokens=8)))
        assert len(draft._tokens) > 1300


@pytest.mark.parametrize(
    ("size", "said"),
    [(600, "a vocabulary of 600 tokens and the model one of 320"), (400, None)],
)
def test_a_draft_of_another_vocabulary_is_refused_where_more_than_padding_differs(
    size, said, model, tmp_path
):
    planned = plan(str(model), ctx=256, threads=1)
    draft = draft_plan(str(tiny_llama(tmp_path / "draft.gguf", vocab=size)), planned)
    if said is None:
        with Engine(planned, draft=draft) as engine:
            assert list(engine.submit(engine.vocab.tokens(PROMPT), GREEDY))
        return
    with pytest.raises(RequestError, match=said):
        Engine(planned, draft=draft)


def test_a_draft_with_one_other_token_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tiny.MERGES", ("Ġ t", "h e", "i n", "Ġ a", "Ġt he", "e r", "l l", "o n", "Ġ w", "r o")
    )
    draft = tiny_llama(tmp_path / "draft.gguf")
    planned = plan(str(model), ctx=256, threads=1)
    with pytest.raises(RequestError, match="another vocabulary: its token 268 is 'ro', the model's 're'"):
        Engine(planned, draft=draft_plan(str(draft), planned))


def test_a_recurrent_draft_is_refused(model, tmp_path):
    planned = plan(str(model), ctx=256, threads=1)
    draft = draft_plan(str(tiny_mamba(tmp_path / "mamba.gguf")), planned)
    with pytest.raises(RequestError, match="mamba cannot take tokens back"):
        Engine(planned, draft=draft)


def test_a_shorter_draft_says_nothing_beyond_its_context(model, tmp_path, engine, plainly, always):
    short = tiny_llama(tmp_path / "short.gguf", ctx=96)
    planned = plan(str(model), ctx=256, threads=1)
    draft = draft_plan(str(short), planned)
    assert draft.context == 96
    ids = engine.vocab.tokens(PROMPT)
    sampling = Sampling(temperature=0, max_tokens=120)
    with Engine(planned, draft=draft) as drafted:
        assert told(drafted.submit(ids, sampling)) == told(plainly(engine, ids, sampling))


def test_a_draft_that_fails_ends_one_request(model, monkeypatch, always):
    planned = plan(str(model), ctx=256, threads=1)
    with Engine(planned, draft=draft_plan(str(model), planned)) as engine:
        backend = engine._decoder._draft._backend
        ids = engine.vocab.tokens("on a hill")
        with monkeypatch.context() as patch:

            def fail(rows):
                raise EngineError("no room")

            patch.setattr(backend, "decode", fail)
            with pytest.raises(EngineError, match="no room"):
                list(engine.submit(ids, GREEDY))
        assert len(list(engine.submit(ids, GREEDY))) == 60


def test_common_beginnings():
    assert common([], [1]) == 0
    assert common([1, 2], [1, 2, 3]) == 2
    assert common([1, 2, 4, 5], [1, 2, 3, 5]) == 2
    assert common([9, 2], [1, 2]) == 0


def test_by_default_guesses_are_made_only_where_a_text_cannot_change(model):
    decided = plan(str(model), ctx=256, threads=1)
    assert decided.row_multiple == 2  # F32: a row alone is summed in another order than two
    assert alike_to(decided) == 0
    assert alike_to(replace(decided, row_multiple=1)) == 256
    assert alike_to(replace(decided, row_multiple=1, threads=Threads(2, 2), context=4096)) == 256
    repeated = [70, 71, 72, 73] * 20
    with Engine(decided) as engine:
        assert not any(chunk.guessed for chunk in engine.submit(repeated, GREEDY))
    with Engine(decided, lookup=False) as engine:
        assert not any(chunk.guessed for chunk in engine.submit(repeated, GREEDY))
