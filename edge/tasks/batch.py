"""Offline generation: rows of prompts in, their answers out in the same order, with every slot of the engine at work.

A row has `prompt` (a text to continue) or `messages` (a conversation to answer), and any sampling field by its
chat-completions name. Its `id` or `custom_id`, a text, goes to its result. What is wrong with a row becomes its
result, too: it never costs another one its answer.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.chat.messages import messages_of, text_of
from edge.engine.fields import sampling_from
from edge.engine.sampling import Sampling
from edge.engine.tally import Usage
from edge.errors import BadData, EdgeError, EngineError, RequestError, UnsafeFile
from edge.planner import plan
from edge.sizes import mib
from edge.tasks.prompts import Row

if TYPE_CHECKING:
    from edge.chat.loaded import LoadedModel
    from edge.engine import Chunk
    from edge.engine.request import Stream

PARALLEL = (8, 4, 2, 1)  # tried in this order; `python -m edge.bench.batch` compares them
AHEAD = 2  # rows submitted a slot: those that decode, and as many that wait for a slot to fall free
HELD = 32  # rows held a slot: finished ones wait for a longer one before them, to be in order
IDS = ("id", "custom_id")  # a row's own name, by which the input can be matched whatever the index
OF_THE_ROW = (RequestError, UnsafeFile)  # errors that the next row need not have
NONE = Usage(0, 0)
# what JSON leaves as it is: ends of lines to some readers, and halves of surrogate pairs, which cannot be written
ESCAPED = {c: f"\\u{c:04x}" for c in (*range(0x7F, 0xA0), 0x2028, 0x2029, *range(0xD800, 0xE000))}


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to row `index` (from 0 on), or in one line why there is none; `ids` as the row has them."""

    index: int
    text: str = ""
    finish_reason: str | None = None
    usage: Usage = NONE
    error: str = ""
    ids: tuple[tuple[str, str], ...] = ()

    def line(self) -> str:
        """As a line of JSON, without its end."""
        fields: dict[str, Any] = {"index": self.index, **dict(self.ids)}
        if self.error:
            fields["error"] = self.error
        else:
            # not what was reused, which depends on what ran beside it
            usage = {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
            }
            fields |= {"text": self.text, "finish_reason": self.finish_reason, "usage": usage}
        return json.dumps(fields, ensure_ascii=False).translate(ESCAPED)


def run(
    model: LoadedModel, rows: Iterable[Row | None], *, base: Sampling | None = None, first: int = 0
) -> Generator[Result, None, None]:
    """The result of each row in order, the first of which has the index `first`.

    `base` has what rows leave out; without it, what the model's authors advise. An error among the rows is the result
    of that row. None among them stands for a pause of a slow input: what runs then is not held back for the next row.
    However many rows there are, a bounded number is held. Ending the iteration, by whatever means, cancels what runs.

    Raises EngineError where the engine fails, and what reading `rows` raises.
    """
    slots, base = model.plan.parallel, base or model.sampling
    incoming, index = iter(rows), first
    window, running = deque[Job](), list[Job]()
    more, paused = True, False
    try:
        while more or window:
            while more and not paused and len(running) < AHEAD * slots and len(window) < HELD * slots:
                try:
                    row = next(incoming)
                except StopIteration:
                    more = False
                    break
                if row is None:
                    paused = bool(window)
                    continue
                job = Job(model, index, row, base)
                index += 1
                window.append(job)
                running.append(job)
            if window and not window[0].read():
                yield window.popleft().result()
            paused = paused and bool(window)
            for job in running:
                if job.ended:  # out of the engine, and its tokens become text
                    while job.read():
                        pass
            running = [job for job in running if not job.ended]
    finally:
        for job in window:
            job.close()


class Job:
    """A row on its way: its stream while there is something to read, what was read, or its error."""

    def __init__(self, model: LoadedModel, index: int, row: Row, base: Sampling) -> None:
        self.index = index
        self.stream: Stream | None = None
        self.parts: list[str] = []
        self.last: Chunk | None = None
        self.error = ""
        self.ids: tuple[tuple[str, str], ...] = ()
        if not isinstance(row, EdgeError):
            self.ids = tuple((name, row[name]) for name in IDS if isinstance(row.get(name), str))
        try:
            self.stream = submitted(model, row, base)
        except OF_THE_ROW as error:
            self.error = error.line

    @property
    def ended(self) -> bool:
        """Whether the engine is through with it."""
        return self.stream is None or self.stream.done

    def read(self) -> bool:
        """Wait for the next chunk and keep it; False where none follows."""
        if self.stream is None:
            return False
        try:
            chunk = next(self.stream, None)
        except OF_THE_ROW as error:
            self.error, chunk = error.line, None
        if chunk is None:
            self.stream = None
            return False
        self.parts.append(chunk.text)
        self.last = chunk
        return True

    def result(self) -> Result:
        """Raises EngineError where the engine left it unfinished."""
        if self.error:
            return Result(self.index, error=self.error, ids=self.ids)
        last = self.last
        if last is None or last.finish_reason is None:
            raise EngineError(f"the answer to row {self.index} has no end", hint="run the same again")
        usage = Usage(last.prompt_tokens, last.completion_tokens)
        return Result(self.index, "".join(self.parts), last.finish_reason, usage, ids=self.ids)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def submitted(model: LoadedModel, row: Row, base: Sampling) -> Stream:
    """The stream of a row's answer. Raises RequestError or UnsafeFile for what is wrong with the row."""
    if isinstance(row, EdgeError):
        raise row
    fields = dict(row)
    for name in IDS:
        if not isinstance(fields.pop(name, None), str | None):
            raise BadData(f"the {name} is no text", hint="write it in double quotes")
    prompt, messages = fields.pop("prompt", None), fields.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise BadData(
            f"a row has a prompt or messages, and this one has {'neither' if prompt is None else 'both'}",
            hint='such as {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}',
        )
    if fields.pop("n", None) not in (None, 1):
        raise BadData(
            "n is not 1, and a row has one answer", hint="write the row as often as it is to be answered"
        )
    sampling = sampling_from(fields, base)
    if sampling.logprobs is not None:
        raise BadData("logprobs are asked for, and an output row has none", hint="leave them out")
    if messages is not None:
        return model.chat(messages_of(messages), sampling)
    return model.generate(text_of(prompt, "the prompt"), sampling)


def choose_parallel(ref: str, *, ctx: int | str | None, threads: int | None) -> tuple[int, str]:
    """How many conversations at a time, and why: the most of 8, 4, 2 and 1 whose contexts fit in memory.

    Raises what `edge.plan` raises, and DoesNotFit where not even one does.
    """
    for parallel in PARALLEL:
        found = plan(ref, ctx=ctx, threads=threads, parallel=parallel)
        if found.fits:
            break
    need, there = mib(found.require_fit().memory.total_bytes), mib(found.memory.available_bytes)
    return parallel, f"parallel {parallel}: with {found.context:,} tokens each it takes {need} of {there}"
