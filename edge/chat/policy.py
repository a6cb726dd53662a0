"""What the model sees of a conversation that no longer fits its context, by name. Whatever is left out is said.

    error      nothing is left out: the prompt is refused (PromptTooLong)
    shift      the oldest turns are left out
    summarise  the model's own summary stands for the oldest turns

A turn is a user's message with all that answers it. The system prompt and the newest turn always stay; where these
two alone are too long, every policy raises PromptTooLong.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Literal, get_args

from edge.chat.template import Message
from edge.errors import PromptTooLong, RequestError

if TYPE_CHECKING:
    from edge.chat.loaded import LoadedModel
    from edge.engine import Sampling

Policy = Literal["error", "shift", "summarise"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
LEAST_ROOM = 64  # tokens of an answer that nobody limited: a short paragraph

REQUEST = (
    "Summarise our conversation so far in a few sentences, in the language we speak: names, numbers, decisions, "
    "open questions."
)

Turn = Sequence[Message]


@dataclass(frozen=True)
class Summary:
    """What stands for the first `messages` messages after the system prompt; without text they are just gone."""

    text: str
    messages: int

    def turn(self) -> list[Message]:
        """The summary as the model's own answer: templates that want user and assistant by turns take it."""
        return [Message("user", REQUEST), Message("assistant", self.text)] if self.text else []


@dataclass(frozen=True)
class Fitted:
    """What the model sees.

    messages        the system prompt, the summary where there is one, and the turns that are left
    dropped_turns   how many of the oldest turns are not among them as they were said
    dropped_tokens  tokens of what was said in those, without what the template writes around it
    summary         what stands for them under `summarise`; give it to the next `fit`, that none is made anew
    note            a sentence for people that says what was left out; empty where nothing was
    """

    messages: tuple[Message, ...]
    dropped_turns: int = 0
    dropped_tokens: int = 0
    summary: Summary | None = None
    note: str = ""


def fit(
    model: LoadedModel,
    messages: Sequence[Message],
    policy: str = "error",
    sampling: Sampling | None = None,
    *,
    summary: Summary | None = None,
    tell: Callable[[str], object] = lambda note: None,
) -> Fitted:
    """What of `messages` the model is to see, so that room for an answer (`room`) is left.

    The same messages give the same cut, whatever was fitted before: a conversation that another process goes on
    with meets its kept prefix. Only `summarise` lets the model decode, one short answer each time that more has to
    go; `tell` then hears of it beforehand. Raises RequestError for a policy of no such name, PromptTooLong where
    the system prompt and the newest turn alone are too long, and what `LoadedModel.tokens` raises.
    """
    policy = named(policy)
    opening, turns = split(messages)
    if model.system and all(message.role != "system" for message in messages):
        opening = [
            Message("system", model.system)
        ]  # `LoadedModel.chat` would put it there, and it takes room
    context = model.engine.context
    limit = context - room(context, (sampling or model.sampling).max_tokens)
    whole = [*opening, *flat(turns)]
    if policy == "error" or len(turns) < 2 or fits(model, whole, limit):
        return Fitted(tuple(whole), summary=summary if policy == "summarise" else None)
    least = len(model.tokens([*opening, *turns[-1]]))
    if least >= context:
        raise PromptTooLong(least, context)
    if policy == "summarise":
        return with_summary(model, opening, turns, limit, summary, tell)

    start = cut(model, turns, lambda kept: fits(model, [*opening, *flat(kept)], limit))
    tokens = said(model, turns[:start])
    note = f"the context of {context} tokens is full: the model no longer sees {oldest(start, tokens)}"
    return Fitted((*opening, *flat(turns[start:])), start, tokens, note=note)


def known(name: object) -> Policy | None:
    """The policy of that name, or None."""
    return next((policy for policy in POLICIES if policy == name), None)


def named(name: str) -> Policy:
    """The policy of that name; raises RequestError where there is none."""
    if policy := known(name):
        return policy
    raise RequestError(f"there is no context policy {name[:40]!r}", hint=f"choose {', '.join(POLICIES)}")


def room(context: int, max_tokens: int | None) -> int:
    """Tokens to keep free for an answer: max_tokens, else a quarter of the context and no less than 64.

    Never more than half of it: max_tokens is a limit that most answers stay far below, and what a conversation
    has said is worth more than a place that stays empty.
    """
    return min(max_tokens or max(LEAST_ROOM, context // 4), context // 2)


def split(messages: Sequence[Message]) -> tuple[list[Message], list[Turn]]:
    """The system messages at the beginning, and the turns; each begins with a message of the user but the first."""
    begin = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    rest = messages[begin:]
    starts = [at for at, message in enumerate(rest) if message.role == "user" or not at]
    turns = [rest[at:end] for at, end in zip(starts, [*starts[1:], len(rest)], strict=False)]
    return list(messages[:begin]), turns


def flat(turns: Sequence[Turn]) -> list[Message]:
    return list(chain.from_iterable(turns))


def fits(model: LoadedModel, messages: Sequence[Message], limit: int) -> bool:
    """Whether the prompt of these messages is at most `limit` tokens."""
    try:
        return len(model.tokens(messages)) <= limit
    except PromptTooLong:  # too long to be counted
        return False


def said(model: LoadedModel, turns: Sequence[Turn]) -> int:
    """The tokens of what these turns say."""
    return sum(spoken(model, message.content) for message in flat(turns))


def spoken(model: LoadedModel, text: str) -> int:
    return len(model.engine.vocab.tokens(text, add_special=False))


def cut(model: LoadedModel, turns: Sequence[Turn], enough: Callable[[Sequence[Turn]], bool]) -> int:
    """How many of the oldest turns have to go; the newest always stays, `enough` or not.

    What is left is prefilled anew after every cut. So one does not fall at every turn but where a quarter of a
    context, counted from the first turn on, is full: with turns of 50 to 300 tokens in 4096, that leaves 0.62 of
    the context in use instead of 0.73 and prefills 400 tokens a turn instead of 2,360 (steps of a half: 0.51 and
    145). Places counted from the beginning stay where they are as the conversation grows. Finer cuts come only
    where these are too coarse.
    """
    step = max(1, model.engine.context // 4)
    before = [0, *accumulate(said(model, [turn]) for turn in turns[:-1])]
    cuts = [at for at in range(1, len(turns)) if before[at] // step > before[at - 1] // step]
    cuts += range(cuts[-1] + 1 if cuts else 1, len(turns))
    first = bisect_left(cuts, True, key=lambda at: enough(turns[at:]))
    return cuts[min(first, len(cuts) - 1)]


def with_summary(
    model: LoadedModel,
    opening: list[Message],
    turns: Sequence[Turn],
    limit: int,
    summary: Summary | None,
    tell: Callable[[str], object],
) -> Fitted:
    """The conversation with a summary of its oldest turns: the earlier one while that is enough, else a new one."""
    ends = [0, *accumulate(len(turn) for turn in turns[:-1])]
    words = longest_summary(model.engine.context)
    if summary is None or summary.messages not in ends or spoken(model, summary.text) > 2 * words:
        summary = Summary("", 0)  # none, one of another conversation, or one made for a larger context
    start = ends.index(summary.messages)
    lost = 0
    if not start or not fits(model, [*opening, *summary.turn(), *flat(turns[start:])], limit):
        blank = Summary(" ", 0).turn()
        more = cut(
            model, turns[start:], lambda kept: fits(model, [*opening, *blank, *flat(kept)], limit - words)
        )
        tell(f"the context is full: summarising {oldest(start + more)}")
        text, lost = condense(model, opening, summary, turns[start : start + more])
        start += more
        summary = Summary(text, ends[start])

    tokens = said(model, turns[:start])
    note = f"a summary stands for {oldest(start, tokens)}"
    shown = summary.turn()
    if not summary.text:
        note = f"the model no longer sees {oldest(start, tokens)}, and no summary came about"
    elif not fits(model, [*opening, *shown, *flat(turns[start:])], limit):
        shown = []  # kept for shorter messages
        note = (
            f"the model does not see {oldest(start, tokens)}: beside this message their summary has no room"
        )
    elif lost:
        note += f", but for {lost} that went into none"
    return Fitted((*opening, *shown, *flat(turns[start:])), start, tokens, summary, note)


def condense(
    model: LoadedModel, opening: list[Message], summary: Summary, turns: Sequence[Turn]
) -> tuple[str, int]:
    """A summary of an earlier summary and these turns, and how many turns went into none.

    The turns stand as in the conversation, so their prefix is still kept. As many at a time as the context holds;
    a turn too long for that, or a summary that comes out empty, leaves the earlier summary as it was.
    """
    words = longest_summary(model.engine.context)
    sampling = replace(model.sampling, temperature=0.0, max_tokens=words)
    text, lost = summary.text, 0

    def prompt(count: int) -> list[Message]:
        return [*opening, *Summary(text, 0).turn(), *flat(turns[:count]), Message("user", REQUEST)]

    while turns:
        counts = range(1, len(turns) + 1)
        limit = model.engine.context - words
        count = bisect_left(counts, True, key=lambda count: not fits(model, prompt(count), limit))
        answer = ""
        if count:
            with closing(model.chat(prompt(count), sampling)) as chunks:
                answer = "".join(chunk.text for chunk in chunks).strip()
        count = max(1, count)
        lost += 0 if answer else count
        text, turns = answer or text, turns[count:]
    return text, lost


def longest_summary(context: int) -> int:
    """An eighth of the context: half the room of an answer."""
    return max(LEAST_ROOM // 2, context // 8)


def oldest(turns: int, tokens: int | None = None) -> str:
    """`the oldest turn`, `the 3 oldest turns (120 tokens)`."""
    text = f"the {turns} oldest turns" if turns > 1 else "the oldest turn"
    return text if tokens is None else f"{text} ({tokens} tokens)"
