"""An answer into the text to show and the calls: chunk by chunk, or whole.

A call parses or is an error. What might still become the beginning of a call is held back, so nothing of a call
is ever shown; and an answer gives the same in any chunks, since a whole one is read as one chunk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge.chat.tools import Reply, Tool, ToolCall
from edge.chat.tools.forms import THINK, ToolForm
from edge.chat.tools.read import SPACE, Reader, Reading, Source
from edge.engine.text import overlap

# An answer that begins with JSON of such a first key may be a call; fences are gemma's.
BARE_KEYS = ("name", "type", "function", "parameters", "arguments")
FENCES = ("```json", "```tool_code", "```tool_call", "```")
TELLING = 6  # characters of a marker that nothing else begins with
BETWEEN = re.compile(r"[\s;,]*")
FIRST_KEY = re.compile(r'\{\s*"(\w*)("?)')


def parse(text: str, form: ToolForm, tools: Sequence[Tool], *, finish_reason: str | None = None) -> Reply:
    """A whole answer; raises BadToolCall where a call in it is cut, broken, unknown or does not fit."""
    stream = ToolStream(form, tools)
    stream.feed(text)
    stream.finish(finish_reason)
    return stream.reply


class ToolStream:
    """Takes an answer's text and gives back what may be shown of it; `reply` is what has come so far.

    White space beside a call is not shown, and text before and after it stands on lines of its own. Where
    nothing says that a call ends, text after it is an error, as it may belong to it.
    """

    def __init__(self, form: ToolForm, tools: Sequence[Tool]) -> None:
        self._form = form
        self._source = Source()
        self._reader = Reader(self._source, {tool.name: tool for tool in tools})
        self._shown: list[str] = []
        self._calls: list[ToolCall] = []
        self._beside = False  # a call was the last thing
        self._closed = True  # and it said where it ends
        self._reading = self._read()
        next(self._reading)

    @property
    def reply(self) -> Reply:
        """The text shown and the calls read so far."""
        return Reply("".join(self._shown), tuple(self._calls))

    def feed(self, text: str) -> str:
        """The text that may now be shown. Raises BadToolCall as soon as a call cannot become one any more."""
        return self._go_on(text)

    def finish(self, reason: str | None = None) -> str:
        """What was held back to the end. Raises BadToolCall for a call that is not whole.

        `reason` is the answer's finish_reason: after "length" the error says what to raise.
        """
        self._source.final, self._source.reason = True, reason
        return self._go_on("")

    def _go_on(self, text: str) -> str:
        self._source.text += text
        count = len(self._shown)
        next(self._reading, None)
        return "".join(self._shown[count:])

    def _read(self) -> Reading[None]:
        source = self._source
        yield
        while True:
            begin = source.at
            if self._form.bare:
                calls = yield from self._bare()
                if calls is None:  # text, perhaps JSON that is looked over for markers no more
                    begin, source.at = source.at, begin
                    sign = yield from self._prose(begin)
                else:
                    self._take(calls)
                    continue
            else:
                sign = yield from self._prose(begin)
            if not sign:
                return
            calls = yield from self._marked(sign)
            self._take(calls)

    def _take(self, calls: list[ToolCall]) -> None:
        self._calls += calls
        self._beside = True

    def _marked(self, sign: str) -> Reading[list[ToolCall]]:
        """The calls that follow a marker."""
        reader, name = self._reader, self._form.name
        self._closed = bool(self._form.close)
        if name == "llama-3":
            return (yield from reader.piped())
        if name == "mistral":
            return (yield from reader.listed())
        if name == "gemma":
            return (yield from reader.fenced())
        return (yield from (reader.elements() if name == "qwen-coder" else reader.tagged()))

    def _bare(self) -> Reading[list[ToolCall] | None]:
        """The call that an answer begins or goes on with and nothing marks; None for text.

        Then `at` is past JSON that looked like a call and is none, or where it was.
        """
        source, begin = self._source, self._source.at
        yield from source.skip(BETWEEN if self._calls else SPACE)
        fence = yield from self._fence()
        start = source.at
        listed = (yield from source.skip()) == "["
        if listed:
            source.at += 1
        if not (yield from self._first_key()):
            source.at = begin
            return None
        if listed:
            source.at = start
            yield from source.skip()
        value = yield from source.json()
        if not self._reader.may_be_call(value):
            return None
        self._closed = fence
        if fence:
            yield from source.expect("```")
        return self._reader.of_objects(value)

    def _fence(self) -> Reading[bool]:
        """Go past a fence's first line, where the form has fences and one begins here."""
        source = self._source
        if not self._form.close.startswith("`"):
            return False
        while "\n" not in (here := source.text[source.at :]):
            near = any(fence.startswith(here) or here.rstrip() == fence for fence in FENCES)
            if not near or not (yield from source.more()):
                return False
        line, _, _ = here.partition("\n")
        if line.rstrip() not in FENCES:
            return False
        source.at += len(line) + 1
        return True

    def _first_key(self) -> Reading[bool]:
        """Whether an object begins here whose first key may be a call's; waits while that is open."""
        source = self._source
        yield from source.skip()
        while True:
            here = source.text[source.at :]
            if here[:1] not in ("", "{"):
                return False
            found = FIRST_KEY.match(here)
            if found and found[2]:
                return found[1] in BARE_KEYS
            if found and not (
                found.end() == len(here) and any(key.startswith(found[1]) for key in BARE_KEYS)
            ):
                return False
            if not found and here[1:].strip():
                return False
            if not (yield from source.more()):
                # `{` and no more of the key: nothing of a call
                return bool(found and found[1])

    def _prose(self, looked: int) -> Reading[str]:
        """Show text up to the next marker, which is gone past and returned, or to the end (then "").

        No marker is looked for before `looked`.
        """
        source, close = self._source, self._form.close
        stray = close if close.startswith("<") else ""
        thinking = False
        while True:
            signs = [THINK[1]] if thinking else [*self._form.markers, THINK[0], *filter(None, [stray])]
            found = [(at, sign) for sign in signs if (at := source.text.find(sign, looked)) >= 0]
            if not found:
                rest = source.text[looked:]
                looked = len(source.text) - max(overlap(rest, sign) for sign in signs)
                self._show(looked, beside=True)
                if not (yield from source.more()):
                    if source.reason == "length" and len(source.text) - looked >= TELLING and not thinking:
                        yield from source.must()  # raises: the answer was cut in the mark of a call
                    self._show(len(source.text), beside=bool(self._calls))
                    return ""
                continue
            at, sign = min(found)
            looked = at + len(sign)
            if sign in THINK:
                thinking = not thinking
                continue
            if sign == stray:
                raise source.error(f"{sign} ends a tool call that never began")
            self._show(at, beside=True)
            source.at = looked
            return sign

    def _show(self, end: int, *, beside: bool) -> None:
        """Show the text up to `end`; without the white space at its end where a call may follow (`beside`)."""
        source = self._source
        text = source.text[source.at : end]
        text = text.rstrip() if beside else text
        if not text.strip() and self._beside:
            return
        source.at += len(text)
        if self._beside:
            if not self._closed:
                raise source.error("text follows a tool call")
            text = ("\n" if self._shown else "") + text.lstrip()
            self._beside = False
        if text:
            self._shown.append(text)
