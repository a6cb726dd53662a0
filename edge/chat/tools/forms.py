"""How each family lists tools and writes calls and results: the forms, and our own words for templates without one.

    hermes      <tool_call> around {"name", "arguments"}: NousResearch/Hermes-Function-Calling, Qwen 2.5 and 3
    qwen-coder  <tool_call> around <function=…><parameter=…>: Qwen3-Coder
    llama-3     {"name", "parameters"}, or after <|python_tag|>: Meta's prompt formats of Llama 3.1 to 3.3
    mistral     [TOOL_CALLS] before a list of {"name", "arguments"}, or before NAME[ARGS]{…}: Mistral's
                tokenizers V3 to V11
    gemma       {"name", "parameters"}, in a code fence or not, or Python calls in a ```tool_code fence:
                ai.google.dev/gemma/docs/capabilities/function-calling

How an answer is read in each stands in `stream`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.errors import RequestError

THINK = ("<think>", "</think>")


@dataclass(frozen=True)
class ToolForm:
    """One form, and how a template has it.

    name     hermes, qwen-coder, llama-3, mistral, gemma
    markers  what begins a call anywhere in an answer
    close    what ends one; empty where the JSON does
    bare     whether an answer that begins with the JSON of a call is one, too
    key      what the arguments are called
    spells   all that the form writes around calls and results: nobody's words count as these
    native   whether the template writes tools, calls and results by itself
    single   where it does: one call a turn and no more
    system   where it does not: whether it writes a system message
    results  and the role that results are written in
    reason   why it was taken, a sentence for people
    """

    name: str
    markers: tuple[str, ...]
    close: str
    bare: bool
    key: str
    spells: tuple[str, ...]
    native: bool = False
    single: bool = False
    system: bool = True
    results: str = "user"
    reason: str = ""


TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
BRACKETS = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[TOOL_RESULTS]", "[TOOL_CONTENT]", "[/TOOL_RESULTS]")
FORMS = {
    form.name: form
    for form in (
        ToolForm("hermes", ("<tool_call>",), "</tool_call>", False, "arguments", TAGS),
        ToolForm("qwen-coder", ("<tool_call>",), "</tool_call>", False, "arguments", TAGS),
        ToolForm("llama-3", ("<|python_tag|>",), "", True, "parameters", ("<|python_tag|>",)),
        ToolForm(
            "mistral",
            ("[TOOL_CALLS]",),
            "",
            False,
            "arguments",
            BRACKETS,
        ),
        ToolForm("gemma", ("```tool_code", "```tool_call"), "```", True, "parameters", ("```tool_output",)),
    )
}


def by_name(name: str) -> ToolForm:
    """A form; raises RequestError with the names there are."""
    if name not in FORMS:
        raise RequestError(f"there is no tool form named {name!r}", hint=f"one of {', '.join(FORMS)}")
    return FORMS[name]


# For templates without tools: a form by what the template writes around turns, the first that is there.
TURNS = (
    ("<|im_start|>", "hermes"),
    ("<|start_header_id|>", "llama-3"),
    ("<start_of_turn>", "gemma"),
)


def by_turns(source: str) -> ToolForm:
    """The form to explain to a model whose template has none; hermes is the one most were taught."""
    found = [(sign, name) for sign, name in TURNS if sign in source]
    name = found[0][1] if found else "hermes"
    why = f" because it writes {found[0][0]}" if found else ""
    reason = f"the template does not write tools and calls; explaining them in the {name} form{why}"
    return replace(FORMS[name], reason=reason)


def explain(form: ToolForm, tools: Sequence[dict[str, Any]]) -> str:
    """The system text that lists tools (chat completions' dicts) and says how to call them, in published words.

    Raises RequestError for a form that lives by control tokens, which only a template may write.
    """
    if form.name == "hermes":
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
            + "\n".join(map(written, tools))
            + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
            '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
            '"arguments": <args-json-object>}\n</tool_call>'
        )
    if form.name == "llama-3":
        return (
            "You have access to the following functions. To call a function, please respond with JSON for a "
            'function call. Respond in the format {"name": function name, "parameters": dictionary of argument '
            "name and its value}. Do not use variables.\n\n"
            + "\n\n".join(json.dumps(each, ensure_ascii=False, indent=4) for each in tools)
        )
    if form.name == "gemma":
        return (
            "You have access to functions. If you decide to invoke any of the function(s), you MUST put it in "
            'the format of\n{"name": function name, "parameters": dictionary of argument name and its value}\n\n'
            "You SHOULD NOT include any other text in the response if you call a function\n"
            + json.dumps([each["function"] for each in tools], ensure_ascii=False, indent=2)
        )
    raise RequestError(
        f"the model's template does not write {form.name} tools",
        hint="leave the form to edge, or name hermes, llama-3 or gemma",
    )


def write_calls(form: ToolForm, calls: Sequence[dict[str, Any]]) -> str:
    """Calls (chat completions' dicts) as an answer of the model spells them."""
    functions = [call["function"] for call in calls]
    texts = [written({"name": each["name"], form.key: each["arguments"]}) for each in functions]
    if form.name == "hermes":
        return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)
    return "; ".join(texts) if form.name == "llama-3" else "\n".join(texts)


def write_result(form: ToolForm, content: str) -> str:
    """What a tool gave, as a turn of the conversation spells it."""
    if form.name == "hermes":
        return f"<tool_response>\n{content}\n</tool_response>"
    return f"```tool_output\n{content}\n```" if form.name == "gemma" else content


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
