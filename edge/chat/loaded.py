"""A model in memory, ready to continue a text or to hold a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from edge.chat import template as templates
from edge.chat.messages import messages_of
from edge.chat.prompt import prompt_tokens
from edge.chat.template import Message, Template
from edge.chat.tools import Tool, expect_choice, tools_of
from edge.chat.tools.answer import ToolAnswer, marks
from edge.chat.tools.forms import ToolForm
from edge.engine import Engine, Sampling, Stream
from edge.engine.adapters import Adapter, adapter_of
from edge.engine.disk import open_cache
from edge.engine.state_key import state_key
from edge.errors import RequestError
from edge.planner import Plan, plan


class LoadedModel:
    """What `edge.load` returns: answers requests from any thread. Close it, or use it as a context manager."""

    def __init__(
        self,
        plan: Plan,
        *,
        template: str | None = None,
        adapters: Sequence[Adapter] = (),
        cache: bool = False,
        draft: Plan | None = None,
        lookup: bool | None = None,
    ) -> None:
        self.plan = plan.require_fit()
        # What the model does best with, for calls that do not say.
        settings = dict(plan.advice)
        self.system: str = settings.pop("system", "")
        self.sampling = Sampling(**settings)
        self.adapters = tuple(adapters)
        # Last: what fails before it leaves no model in memory
        disk = open_cache(state_key(plan, adapters)) if cache else None
        self.engine = Engine(plan, adapters, disk=disk, draft=draft, lookup=lookup)
        self.form = template
        self._template: Template | None = None

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self.engine.close()

    @property
    def template(self) -> Template:
        """The chat template in use: the file's own, or a known form chosen by name (`template.reason` says why).

        Raises the error of `edge.chat.template.choose` where there is neither.
        """
        if self._template is None:
            self._template = self._choose_template()
        return self._template

    def _choose_template(self) -> Template:
        vocab, meta = self.engine.vocab, self.engine.meta
        bos, eos = vocab.special_text("bos"), vocab.special_text("eos")
        if self.form:
            return templates.by_name(self.form, bos_token=bos, eos_token=eos)
        return templates.choose(
            meta("tokenizer.chat_template"),
            meta("general.architecture") or "",
            meta("general.name") or self.plan.artifact,
            bos_token=bos,
            eos_token=eos,
            has_token=vocab.has,
        )

    def generate(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        *,
        n: int = 1,
        best_of: int | None = None,
        lora: Sequence[Adapter] | None = None,
    ) -> Stream:
        """Continue `prompt` n times from one prefill; chunks stream as they are decoded.

        Without `sampling` the settings are those the model's authors advise, or llama.cpp's. The rest is what
        `Engine.submit` takes and raises.
        """
        self.engine.vocab.check_length(prompt, self.engine.context)
        tokens = self.engine.vocab.tokens(prompt)
        return self.engine.submit(tokens, sampling or self.sampling, n=n, best_of=best_of, lora=lora)

    @overload
    def chat(
        self,
        messages: str | Sequence[Message | Mapping[str, Any]],
        sampling: Sampling | None = None,
        *,
        lora: Sequence[Adapter] | None = None,
    ) -> Stream: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Message | Mapping[str, Any]],
        sampling: Sampling | None = None,
        *,
        lora: Sequence[Adapter] | None = None,
        tools: Sequence[Tool | Mapping[str, Any]],
        tool_choice: str = "auto",
        tool_form: str | None = None,
    ) -> ToolAnswer: ...

    def chat(
        self,
        messages: str | Sequence[Message | Mapping[str, Any]],
        sampling: Sampling | None = None,
        *,
        lora: Sequence[Adapter] | None = None,
        tools: Sequence[Tool | Mapping[str, Any]] | None = None,
        tool_choice: str = "auto",
        tool_form: str | None = None,
    ) -> Stream | ToolAnswer:
        """Answer a conversation, of Messages or chat completions' dicts; a plain text is one user message.

        Without a system message, the one the model is known to do best with goes first, if there is one. What a
        conversation shares with the one before it is not computed again.

        tools        what the model may call, as Tool or chat completions' dicts; `.reply` of what is returned has
                     the calls, read and checked, and iterating it shows nothing of them
        tool_choice  auto, none, required, or the name of the tool to call
        tool_form    how calls are written (hermes, llama-3, mistral, gemma, …); found out where not said

        Raises UnsafeTemplate or RequestError where the template refuses, and what `generate` raises.
        """
        turns = messages_of([Message("user", messages)] if isinstance(messages, str) else messages)
        if self.system and not any(turn.role == "system" for turn in turns):
            turns = [Message("system", self.system), *turns]
        sampling = sampling or self.sampling
        listed = tools_of(tools or ())
        expect_choice(tool_choice, listed)
        offered = () if tool_choice == "none" else listed
        form = self.tool_form(tool_form) if tools is not None else None
        tokens = self.tokens(turns, tools=offered, form=form)
        if form is None:
            return self.engine.submit(tokens, sampling, lora=lora)
        required = tool_choice not in ("auto", "none")
        if required:
            from edge.chat.tools.force import tool_grammar

            if sampling.grammar:
                raise RequestError("a grammar and a required tool call", hint="ask for one of the two")
            sampling = replace(sampling, grammar=tool_grammar(offered, form, tool_choice))
        stream = self.engine.submit(tokens, sampling, lora=lora)
        return ToolAnswer(stream, form, offered, marks(form, self.engine.vocab), required=required)

    def tool_form(self, name: str | None = None) -> ToolForm:
        """How this model writes tool calls (`reason` says why); raises what `edge.chat.tools.detect.choose` does."""
        from edge.chat.tools.detect import choose

        return choose(self.template, name)

    def tokens(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), form: ToolForm | None = None
    ) -> list[int]:
        """The prompt of a conversation, in token ids.

        Control tokens that the template writes count as such; the same characters inside a message stay text,
        so nobody's words can end their own turn. Raises PromptTooLong where that is plain before counting.
        """
        if form is None and any(message.tool_calls for message in messages):
            form = self.tool_form()
        vocab, context = self.engine.vocab, self.engine.context
        return prompt_tokens(vocab, context, self.template, messages, tools=tools, form=form)


def load(
    ref: str,
    *,
    ctx: int | str | None = None,
    threads: int | None = None,
    sequences: int = 1,
    parallel: int = 1,
    template: str | None = None,
    lora: Sequence[str] = (),
    cache: bool = False,
    draft: str | None = None,
    lookup: bool | None = None,
) -> LoadedModel:
    """Plan `ref` for this machine, refuse it if it does not fit, else load it.

    ctx, threads, sequences and parallel are those of `edge.plan`; template names a known chat form (chatml, llama-3, …)
    to use instead of the file's own; lora names adapters to add, each a GGUF file, or FILE:SCALE; cache keeps
    prefixes on the disk, for the next process to go on from; draft names a small model of the same vocabulary that
    guesses ahead, and lookup is `Engine`'s. Raises what `plan` raises, what `edge.engine.adapters.adapter_of` raises,
    DoesNotFit, EngineError, RequestError for a draft that cannot guess for this model.
    """
    adapters = [adapter_of(text) for text in lora]
    beside = sum(adapter.bytes for adapter in adapters)

    def planned(beside: int) -> Plan:
        guesses = bool(lookup) or draft is not None
        return plan(
            ref,
            ctx=ctx,
            threads=threads,
            sequences=sequences,
            parallel=parallel,
            beside=beside,
            guesses=guesses,
        )

    found, drafted = planned(beside), None
    if draft is not None:
        from edge.engine.draft import draft_plan

        drafted = draft_plan(draft, found, threads=threads)
        found = planned(beside + drafted.memory.total_bytes)
    return LoadedModel(found, template=template, adapters=adapters, cache=cache, draft=drafted, lookup=lookup)
