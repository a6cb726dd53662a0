"""The prompt that asks a language model for a label, and each label as the model would write it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.chat import template as templates
from edge.chat.loaded import LoadedModel
from edge.chat.template import Message
from edge.errors import RequestError

ANSWER = "0x5EEDC0DE"  # what no template writes itself, as it may a label: "in" is in "<think>"


@dataclass(frozen=True)
class LabelPrompt:
    """tokens(text) is the prompt up to where the label goes, answer(label) the label there with the token that ends the
    answer: of "spam" and "spam and more" the first is else never less likely. `reason` is for people."""

    tokens: Callable[[str], list[int]]
    answer: Callable[[str], list[int]]
    reason: str


def label_prompt(
    model: LoadedModel, labels: Sequence[str], examples: Sequence[tuple[str, str]]
) -> LabelPrompt:
    """By the model's chat template, or in plain text where it has none. Examples are turns before the text's own.

    Raises what a template raises that does not render at all.
    """
    rule = f"Classify each text. Answer with one of these labels: {', '.join(labels)}."
    try:
        form = model.template
    except RequestError:
        if model.form:
            raise
        return plain_prompt(model, rule, examples)
    turns: list[Message] = []
    for text, label in examples:
        turns += [Message("user", text.strip()), Message("assistant", label)]

    def said(text: str, system: bool) -> list[Message]:
        if system:
            return [Message("system", rule), *turns, Message("user", text.strip())]
        opening, *others = [*turns, Message("user", text.strip())]
        return [Message("user", f"{rule}\n\n{opening.content}"), *others]

    try:
        templates.render(form, said("", True))
        system = True
    except RequestError:  # it knows no system turn
        system = False
    header, space, end = answer_header(model, said("", system))
    vocab = model.engine.vocab
    after = vocab.tokens(header, add_special=False, parse_special=True) if header else []
    before = templates.render(form, said("", system)) + header

    def tokens(text: str) -> list[int]:
        return model.tokens(said(text, system)) + after

    where = "the system turn" if system else "the first user turn"
    reason = f"chat template: {form.reason or form.name}, the labels in {where}"
    return LabelPrompt(tokens, lambda label: label_tokens(model, before, space + label, end), reason)


def plain_prompt(model: LoadedModel, rule: str, examples: Sequence[tuple[str, str]]) -> LabelPrompt:
    """For a base model: text and label in lines of plain text, which it may go on with."""
    vocab = model.engine.vocab
    shown = "".join(f"Text: {text.strip()}\nLabel: {label}\n\n" for text, label in examples)
    opening = f"{rule}\n\n{shown}Text: "

    def tokens(text: str) -> list[int]:
        whole = f"{opening}{text.strip()}\nLabel:"
        vocab.check_length(whole, model.engine.context)
        return vocab.tokens(whole)

    return LabelPrompt(
        tokens,
        lambda label: label_tokens(model, f"{opening}\nLabel:", f" {label}", "\n"),
        "plain prompt: the model has no chat template, it may be a base model",
    )


def answer_header(model: LoadedModel, messages: Sequence[Message]) -> tuple[str, str, str]:
    """What the template writes around an answer: text that still belongs to the prompt (the empty thought of a model
    that thinks), the space that belongs to the answer's first word, and what ends the answer."""
    prompt = templates.render(model.template, messages)
    answered = [*messages, Message("assistant", ANSWER)]
    try:
        whole = templates.render(model.template, answered, add_generation_prompt=False)
    except RequestError:
        whole = ""
    at = whole.find(ANSWER, len(prompt)) if whole.startswith(prompt) else -1
    if at < 0:
        space = "" if prompt[-1:].isspace() or prompt.endswith((">", "]")) else " "
        return "", space, model.template.eos_token
    between = whole[len(prompt) : at]
    header = between.rstrip(" ")
    return header, between[len(header) :], whole[at + len(ANSWER) :]


def label_tokens(model: LoadedModel, before: str, answer: str, end: str) -> list[int]:
    """The tokens of an answer where it stands, and the first of `end`; control tokens that the answer spells stay
    text."""
    vocab = model.engine.vocab
    stop = vocab.tokens(end, add_special=False, parse_special=True)[:1]
    alone = vocab.tokens(answer, add_special=False)
    if vocab.tokens(answer, add_special=False, parse_special=True) != alone:
        return alone + stop
    prompt = vocab.tokens(before, add_special=False, parse_special=True)
    whole = vocab.tokens(before + answer, add_special=False, parse_special=True)
    # Where prompt and answer merge, a model that is given the prompt's tokens can only go on with its own.
    return (whole[len(prompt) :] if whole[: len(prompt)] == prompt else alone) + stop
