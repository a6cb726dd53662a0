"""Decoders with a classifier's head: the pass of their language model, and one layer without a bias on the last token.

A classifier of tokens has the layer, with a bias, on every token. Source: transformers' classes of these names.
ONNX only: llama.cpp has no such head.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .encoder_config import labels, problem, task_of
from .weight import Weight

__all__ = ["forward", "notes", "read_config", "weights"]

ENDS = ("ForSequenceClassification", "ForTokenClassification")
# The beginning of the class's name → the language model's class and its module
MODELS = {
    "Llama": ("LlamaForCausalLM", "llama"),
    "Mistral": ("MistralForCausalLM", "llama"),
    "Qwen2": ("Qwen2ForCausalLM", "qwen"),
    "Qwen3": ("Qwen3ForCausalLM", "qwen"),
    "Gemma2": ("Gemma2ForCausalLM", "gemma"),
    "Gemma3Text": ("Gemma3ForCausalLM", "gemma"),
}


@dataclass(frozen=True)
class Config:
    """`model` is the language model's configuration, `module` its family's module.

    `padding` is the id of the padding token, which is never the last one of a text. The rest is an encoder's.
    """

    architecture: str
    module: str
    model: Any
    task: str
    labels: tuple[str, ...]
    problem: str | None
    padding: int | None
    normalize: bool = False
    reads: int = 0

    @property
    def pooling(self) -> str:
        return "last" if self.task == "classification" else "none"

    @property
    def layers(self) -> int:
        return int(self.model.layers)

    @property
    def width(self) -> int:
        return int(self.model.width)

    @property
    def vocabulary(self) -> int:
        return int(self.model.vocabulary)

    @property
    def context(self) -> int:
        """Tokens up to which the pass is the model's: Qwen's longest ones attend in chunks beyond."""
        return int(min(self.model.context, getattr(self.model, "chunk", None) or self.model.context))


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    architecture, task = raw["architectures"][0], task_of(raw)
    start = next(architecture.removesuffix(end) for end in ENDS if architecture.endswith(end))
    causal, module = MODELS[start]
    model = family(module).read_config({**raw, "architectures": [causal]})
    padding = raw.get("pad_token_id")
    return Config(
        architecture=architecture,
        module=module,
        model=replace(model, tied=True),  # there is no output over the vocabulary
        task=task,
        labels=labels(raw),
        problem=problem(raw),
        padding=padding if isinstance(padding, int) and padding >= 0 else None,
    )


def family(module: str) -> Any:
    return importlib.import_module(f".{module}", __package__)


def notes(config: Config) -> tuple[str, ...]:
    """What a user should know of the file."""
    return ()


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor of the file."""
    count = len(config.labels)
    head = [Weight("score.weight", "", (count, config.width))]
    if config.task == "tokens":
        head.append(Weight("score.bias", "", (count,)))
    return (*family(config.module).weights(config.model), *head)


def forward(
    ops: Any, weight: Callable[[str], Any], config: Config, ids: Any, token_types: Any | None = None
) -> tuple[Any, Any]:
    """(hidden states after the last norm, logits), from ids (tokens,); there are no token types.

    Logits are (1, labels) of the last token that is not padding, or (tokens, labels).
    """
    hidden = family(config.module).states(ops, weight, config.model, ids)
    if config.task == "tokens":
        return hidden, ops.linear(hidden, weight("score.weight"), weight("score.bias"))
    return hidden, ops.linear(ops.last(hidden, ids, config.padding), weight("score.weight"))
