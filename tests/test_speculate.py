"""Prompt lookup: what it offers, what it learns from, and when it keeps still."""

from __future__ import annotations

import random

import pytest

from edge.engine.speculate import CANDIDATES, MOST, Pace, PromptLookup, best

QUOTE = list(range(100, 160))


def play(proposer: PromptLookup, prompt: list[int], answer: list[int]) -> tuple[int, int, int]:
    """Steps, guesses offered and guesses kept when `answer` is what the model draws."""
    steps = offered = kept = 0
    done = 1
    while done < len(answer):
        guesses = proposer.guess(prompt + answer[:done], len(answer) - done)
        right = 0
        while right < len(guesses) and guesses[right] == answer[done + right]:
            right += 1
        proposer.learn(len(guesses), right, 0.04 * (1 + len(guesses) / 4))
        done = min(len(answer), done + right + 1)
        steps, offered, kept = steps + 1, offered + len(guesses), kept + right
    return steps, offered, kept


def test_quoting_takes_far_fewer_steps() -> None:
    prompt = [1, *QUOTE, 2]
    steps, offered, kept = play(PromptLookup(Pace()), prompt, [3, *QUOTE, 4])
    assert steps < 25
    assert kept == 61 - steps
    assert kept > 0.8 * offered


def test_text_without_repetition_is_never_guessed() -> None:
    prompt = list(range(500))
    assert play(PromptLookup(Pace()), prompt, list(range(1000, 1200)))[1] == 0


def test_false_matches_are_soon_not_guessed() -> None:
    rng = random.Random(1)
    prompt = [
        rng.randrange(6) for _ in range(2000)
    ]  # every pair has been seen, and says nothing of what follows
    answer = [rng.randrange(6) for _ in range(1000)]
    steps, offered, _ = play(PromptLookup(Pace()), prompt, answer)
    assert offered < 0.03 * steps


def test_quoting_is_found_again_after_a_long_free_text() -> None:
    rng = random.Random(2)
    noise = [rng.randrange(6) for _ in range(1000)]
    prompt = [*noise, *QUOTE]
    proposer = PromptLookup(Pace())
    free = [rng.randrange(6) for _ in range(500)]
    play(proposer, prompt, free)
    steps, _, kept = play(proposer, prompt + free, [QUOTE[0], *QUOTE[1:]])
    assert steps < 30
    assert kept > 25


def test_the_longest_match_is_followed_and_of_equals_the_latest() -> None:
    proposer = PromptLookup(Pace(share=0.0))
    assert proposer.guess([7, 8, 9, 50, 1, 8, 9, 60, 2, 8, 9, 70, 7, 8, 9], 1) == [50]
    proposer = PromptLookup(Pace(share=0.0))
    assert proposer.guess([1, 8, 9, 60, 2, 8, 9, 70, 3, 8, 9], 1) == [70]


def test_a_guess_beyond_what_is_known_repeats_it() -> None:
    tokens = [5, 6, 7, 5, 6]
    assert PromptLookup(Pace(share=0.0)).guess(tokens, 7) == [7, 5, 6, 7, 5, 6, 7]
    assert PromptLookup(Pace(share=0.0)).guess(tokens, 0) == []
    assert len(PromptLookup(Pace(share=0.0)).guess([4] * 100)) <= MOST


@pytest.mark.parametrize("prompt", [[], [5], [5, 5]])
def test_prompts_too_short_for_a_match(prompt: list[int]) -> None:
    assert PromptLookup(Pace()).guess(prompt) == []


def test_a_step_looks_at_a_bounded_number_of_places() -> None:
    prompt = [token for i in range(20_000) for token in (1, 2, 10 + i)]
    proposer = PromptLookup(Pace())
    proposer.guess(prompt)
    before = proposer._before
    touched: list[int] = []

    class Watched:
        def __getitem__(self, place: int) -> int:
            touched.append(place)
            return before[place]

        def append(self, value: int) -> None:
            before.append(value)

    proposer._before = Watched()  # type: ignore[assignment]
    proposer.guess([*prompt, 1, 2])
    assert 0 < len(touched) <= CANDIDATES


def test_calls_may_be_left_out() -> None:
    prompt, answer = [1, *QUOTE, 2], [3, *QUOTE[:30]]
    often, once = PromptLookup(Pace()), PromptLookup(Pace())
    for i in range(1, len(answer)):
        often.guess(prompt + answer[:i])
    guesses = often.guess(prompt + answer)
    assert guesses == QUOTE[30 : 30 + len(guesses)]
    assert guesses
    late = once.guess(prompt + answer)
    assert late == QUOTE[30 : 30 + len(late)]
    assert late


def test_best_maximises_tokens_in_a_time() -> None:
    assert best([0.2] * 8, 1 / 3) == 0  # a wrong guess costs more than a right one brings
    assert best([0.36], 1 / 3) == 0  # right, but for too little
    assert best([0.9] * 8, 0.0) == 8  # guesses that cost nothing
    assert best([1.0] * 8, 0.9) == 8
    assert best([1.0] * 8, 1.0) == 0
    assert best([], 0.1) == 0
    share, chances = 0.25, [0.6, 0.8, 0.9, 0.95, 0.95]
    expected = [1.0]
    right = 1.0
    for chance in chances:
        right *= chance
        expected.append(expected[-1] + right)
    paces = [tokens / (1 + k * share) for k, tokens in enumerate(expected)]
    assert best(chances, share) == max(range(6), key=lambda k: paces[k])


def test_pace_learns_what_a_guess_costs() -> None:
    pace = Pace()
    for _ in range(200):
        pace.learn(0, 0.040)
        pace.learn(4, 0.040 * (1 + 4 * 0.05))
    assert pace.one == pytest.approx(0.040)
    assert pace.share == pytest.approx(0.05, abs=0.01)
    for _ in range(200):
        pace.learn(0, 0.020)
        pace.learn(2, 0.020 * (1 + 2 * 0.9))
    assert pace.one == pytest.approx(0.020, rel=0.02)
    assert pace.share == pytest.approx(0.9, abs=0.03)


def test_a_stall_does_not_end_guessing_for_good() -> None:
    pace = Pace()
    for _ in range(50):
        pace.learn(0, 0.04)
    for _ in range(20):
        pace.learn(1, 5.0)  # the machine was busy with something else
    assert pace.share > 0.6
    for _ in range(2000):
        pace.learn(0, 0.04)
    assert pace.share < 0.4
    assert best([0.9] * 4, pace.share)
