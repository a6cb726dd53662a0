"""A recurrent model: what cannot be dropped from its state is never reused wrongly, beside others or alone."""

import pytest
from tiny_mamba import tiny_mamba

from edge.engine import Engine, Sampling
from edge.planner import plan

GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_mamba(tmp_path_factory.mktemp("mamba") / "mamba.gguf")


def tokens(chunks):
    return [chunk.token for chunk in chunks]


def cold(model, prompt):
    with Engine(plan(str(model), ctx=256, threads=1)) as engine:
        return tokens(engine.submit(prompt, GREEDY))


PROMPTS = [[70, 71, 72], [80, 81], [70, 71, 90, 91, 92], [70, 71, 72, 73]]


@pytest.mark.parametrize("given", [{}, {"parallel": 3}])
def test_conversations_do_not_cross_and_shared_beginnings_are_read_anew(model, given):
    with Engine(plan(str(model), ctx=256, threads=1, **given)) as engine:
        assert not engine._backend.rolls_back
        streams = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        assert [tokens(stream) for stream in streams] == [cold(model, prompt) for prompt in PROMPTS]


def test_a_next_turn_goes_on_from_the_state(model):
    with Engine(plan(str(model), ctx=256, threads=1)) as engine:
        first = tokens(engine.submit([70, 71, 72], GREEDY))
        longer = [70, 71, 72, *first, 75]
        again = list(engine.submit(longer, GREEDY))
        assert again[0].reused_tokens == 3 + 11
        assert tokens(again) == cold(model, longer)
        other = list(engine.submit(longer[:8], GREEDY))  # shorter than what is there: it cannot be cut
        assert other[0].reused_tokens == 0
        assert tokens(other) == cold(model, longer[:8])


def test_several_answers_fork_the_state(model):
    with Engine(plan(str(model), ctx=256, threads=1, sequences=3)) as engine:
        answers = [[] for _ in range(3)]
        for chunk in engine.submit([70, 71, 72], GREEDY, n=3):
            answers[chunk.index].append(chunk.token)
    assert answers == [cold(model, [70, 71, 72])] * 3


def test_a_text_that_repeats_itself_is_the_same_without_guesses(model):
    repeated = [70, 71, 72, 73] * 12
    with Engine(plan(str(model), ctx=256, threads=1)) as engine:
        chunks = list(engine.submit(repeated, GREEDY))
    assert not any(chunk.guessed for chunk in chunks)
    assert tokens(chunks) == cold(model, repeated)
