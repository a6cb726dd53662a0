"""Chat templates: pick one, render a conversation with it, and keep users from writing control tokens.

A file's own template is untrusted code; it runs in `edge.chat.sandbox`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from edge.chat import named
from edge.chat.tools import Tool, ToolCall
from edge.chat.tools.forms import ToolForm
from edge.chat.tools.turns import mapped, prepare
from edge.errors import EdgeError, RequestError, UnsafeFile, UnsafeTemplate

Role = Literal["system", "user", "assistant", "tool"]
OWN = "the model's own"

WHOLE = re.compile(r"\S(?:.*\S)?", re.DOTALL)  # a content without the white space that templates trim
NEVER = r"(?!)"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    An assistant's may hold `tool_calls`; a tool's says by `tool_call_id` which of them it answers, and `name` may
    say what the tool is called.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As templates expect it: without what it does not have, since they ask what is defined."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            turn["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.tool_call_id:
            turn["tool_call_id"] = self.tool_call_id
        return turn | ({"name": self.name} if self.name else {})


@dataclass(frozen=True)
class Template:
    """A Jinja text, where it comes from and why it was taken.

    `name` is `OWN` or a known form's; `reason` is a sentence for people, empty when nothing had to be chosen.
    """

    source: str
    name: str
    bos_token: str = ""
    eos_token: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered prompt; control tokens are parsed only in a trusted one."""

    text: str
    trusted: bool


def choose(
    header_template: str | None,
    architecture: str,
    model_name: str,
    *,
    bos_token: str,
    eos_token: str,
    has_token: Callable[[str], bool] = lambda token: False,
) -> Template:
    """The file's own template, or the form its vocabulary or its name tells.

    `has_token` says whether the vocabulary holds a text as one token. Raises RequestError when nothing tells.
    """
    if header_template:
        return Template(header_template, OWN, bos_token, eos_token)
    name, why = named.recognise(architecture, model_name, has_token)
    reason = f"the file has no chat template; using {name} because {why}"
    return Template(named.form(name), name, bos_token, eos_token, reason)


def by_name(name: str, *, bos_token: str, eos_token: str) -> Template:
    """A known form (`--template NAME`); raises RequestError with the names there are."""
    return Template(named.form(name), name.lower(), bos_token, eos_token, f"{name.lower()} was asked for")


def render(
    template: Template,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    form: ToolForm | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as one prompt, as transformers' `apply_chat_template(tokenize=False)` writes it.

    Tools and calls are written by the template or in words of our own, as `form` says.

    Raises RequestError when the template itself refuses the messages, UnsafeTemplate when it reaches beyond
    the sandbox or outgrows its caps, UnsafeFile when it is broken.
    """
    turns, listed = [message.as_dict() for message in messages], [tool.as_dict() for tool in tools]
    return write(template, turns, listed, form, add_generation_prompt)


def write(
    template: Template,
    turns: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    form: ToolForm | None,
    add_generation_prompt: bool,
) -> str:
    """`render` for messages and tools as dicts."""
    if not turns:
        raise RequestError("the conversation is empty", hint="it needs at least one message")
    from jinja2.exceptions import SecurityError, TemplateSyntaxError

    from edge.chat import sandbox
    from edge.chat.filters import Refused

    given: list[dict[str, Any]] | None = None
    if form is not None:
        turns, given = prepare(turns, tools, form)
    # A turn's frame (role, control tokens) is below 64 characters; templates write a content once or twice.
    characters = sum(len(turn["content"]) + 64 for turn in turns)
    calls = [turn.get("tool_calls") for turn in turns]
    characters += sum(len(text) + 16 for text in texts([given, calls]))
    variables = {
        "messages": turns,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": template.bos_token,
        "eos_token": template.eos_token,
        "tools": given,
        "documents": None,
    }
    try:
        return sandbox.render(
            template.source,
            variables,
            characters=characters,
            output_characters=64 * 1024 + 8 * (characters + len(template.source)),
        )
    except Refused as error:
        raise RequestError(
            f"the model's template refuses these messages: {one_line(error)}",
            hint="change the messages or choose another form with --template NAME",
        ) from None
    except SecurityError as error:
        raise unsafe(error.message or "it breaks out of the sandbox") from None
    except (RecursionError, MemoryError, OverflowError):
        raise unsafe("it nests too deep or grows too large") from None
    except TemplateSyntaxError as error:
        raise broken(f"line {error.lineno}: {one_line(error)}") from None
    except EdgeError:
        raise
    except Exception as error:  # a template is a program: it can raise anything a program can
        raise broken(f"{type(error).__name__}: {one_line(error)}") from None


def render_segments(
    template: Template,
    messages: Sequence[Message],
    control_tokens: Collection[str] | None = None,
    *,
    tools: Sequence[Tool] = (),
    form: ToolForm | None = None,
    add_generation_prompt: bool = True,
) -> tuple[Segment, ...]:
    """`render`, cut where a message's content, a call or a tool spells one of the model's control tokens.

    Tokenise trusted segments with special-token parsing and the others without: `<|im_end|>` typed by a user
    is then ten characters and not the end of the turn. A conversation that spells none is one trusted segment
    and tokenises exactly as elsewhere. Without `control_tokens` each content as a whole, but for the white
    space around it, is untrusted. The texts joined are what `render` returns.

    What the tools' form writes around calls and results counts as control tokens, too.

    A template that takes a marked content apart, so that its output is no longer the plain one, gives one
    trusted segment: what the usual tools do for every prompt. With `control_tokens` that takes a template
    which looks at these tokens inside contents.
    """
    turns, listed = [message.as_dict() for message in messages], [tool.as_dict() for tool in tools]
    plain = write(template, turns, listed, form, add_generation_prompt)
    pattern = WHOLE
    if control_tokens is not None:
        pattern = any_of(frozenset([*control_tokens, *(form.spells if form else ())]))
    words = list(spoken(messages, tools if control_tokens is not None else ()))
    if not any(map(pattern.search, words)):
        return (Segment(plain, trusted=True),)
    # Two private-use characters that occur nowhere else mark where each spelled token begins and ends.
    begin, end = unused_characters(plain + template.source + "".join(words))

    def mark(text: str) -> str:
        return pattern.sub(lambda found: begin + found[0] + end, text)

    marked = [marked_turn(turn, mark) for turn in turns]
    # A schema marked as a whole would be none
    listed = listed if control_tokens is None else mapped(listed, mark)
    text = write(template, marked, listed, form, add_generation_prompt)
    # re.split with one group: trusted, untrusted, trusted, …
    pieces = [
        piece.replace(begin, "").replace(end, "")
        for piece in re.split(f"{begin}([^{begin}{end}]*){end}", text)
    ]
    if "".join(pieces) != plain:
        return (Segment(plain, trusted=True),)
    return tuple(Segment(piece, trusted=index % 2 == 0) for index, piece in enumerate(pieces) if piece)


def marked_turn(turn: dict[str, Any], mark: Callable[[str], str]) -> dict[str, Any]:
    """A message with `mark` done to whatever is somebody's words."""
    words = {key: mark(turn[key]) for key in ("content", "name") if key in turn}
    calls = [
        call
        | {
            "function": {
                "name": mark(call["function"]["name"]),
                "arguments": mapped(call["function"]["arguments"], mark),
            }
        }
        for call in turn.get("tool_calls", [])
    ]
    return turn | words | ({"tool_calls": calls} if calls else {})


def spoken(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Iterator[str]:
    """All texts of a conversation that are somebody's words and not the template's."""
    for message in messages:
        yield message.content
        yield message.name
        for call in message.tool_calls:
            yield call.name
            yield from texts(call.arguments)
    for tool in tools:
        yield from texts(tool.as_dict()["function"])


def texts(value: Any) -> Iterator[str]:
    """The texts of a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts(each)


def opens_with_bos(template: Template, text: str) -> bool:
    """Whether a rendered prompt already begins with BOS, so that the tokenizer must not add another."""
    return bool(template.bos_token) and text.startswith(template.bos_token)


@lru_cache(maxsize=4)
def any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """A pattern for any of these texts, the longest first."""
    texts = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or NEVER)


def unused_characters(text: str) -> tuple[str, str]:
    used = set(text)
    free = (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in used)
    return next(free), next(free)


def unsafe(why: str) -> UnsafeTemplate:
    return UnsafeTemplate(
        f"the model's chat template is refused: {why}", hint="choose a known form with --template NAME"
    )


def broken(why: str) -> UnsafeFile:
    return UnsafeFile(
        f"the model's chat template does not work: {why}",
        hint="choose a known form with --template NAME",
    )


def one_line(error: Exception) -> str:
    """What a template or Jinja says, which may be long: the template's author wrote it."""
    return " ".join(str(error).split())[:200]
