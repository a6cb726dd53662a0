"""The tokens of a conversation: what a template writes counts as control tokens, nobody's words do."""

from __future__ import annotations

from collections.abc import Sequence

from edge.chat import template as templates
from edge.chat.template import Message, Segment, Template
from edge.chat.tools import Tool
from edge.chat.tools.forms import ToolForm
from edge.engine.backend import Vocabulary


def prompt_tokens(
    vocab: Vocabulary,
    context: int,
    template: Template,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    form: ToolForm | None = None,
) -> list[int]:
    """The prompt of a conversation, in token ids.

    Raises what `template.render` raises, and PromptTooLong where that is plain before counting.
    """
    text = templates.render(template, messages, tools=tools, form=form)
    vocab.check_length(text, context)
    spells = form.spells if form else ()
    spelled = any(
        any(sign in words for sign in spells)
        or vocab.tokens(words, parse_special=True) != vocab.tokens(words)
        for words in templates.spoken(messages, tools)
        if words
    )
    segments: tuple[Segment, ...] = (Segment(text, trusted=True),)
    if spelled:
        controls = vocab.control_texts()
        segments = templates.render_segments(template, messages, controls, tools=tools, form=form)
    add_bos = not templates.opens_with_bos(template, text)
    ids: list[int] = []
    for segment in segments:
        # llama.cpp reads tags such as <tool_call>, which are no control tokens, in any text; but not half of one
        parts = [segment.text]
        if not segment.trusted and segment.text in spells:
            parts = [segment.text[:1], segment.text[1:]]
        for part in parts:
            ids += vocab.tokens(part, add_special=add_bos and not ids, parse_special=segment.trusted)
    return ids
