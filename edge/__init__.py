"""The on-device runtime that proves its choices.

    edge.host()                 what this machine is and which backend it gets
    edge.pull(ref)              fetch a model, check it, keep it
    edge.plan(ref, ctx=2048)    what fits and how it would run, before loading
    edge.load(ref)              a model in memory, with .generate() and .chat()
    edge.classify(ref, texts)   labels with probabilities, or entities
    edge.embed(ref, texts)      embeddings, a row a text

Everything loads on first use: `import edge` alone imports none of llama_cpp, numpy, jinja2, huggingface_hub.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.chat.loaded import LoadedModel, load
    from edge.chat.template import Message
    from edge.chat.tools import Tool
    from edge.engine import Chunk, Engine, Sampling, Stream
    from edge.errors import EdgeError
    from edge.machine import Host, host
    from edge.planner import Plan, plan
    from edge.store import Model, pull
    from edge.tasks.api import classify, embed

__all__ = [
    "Chunk",
    "EdgeError",
    "Engine",
    "Host",
    "LoadedModel",
    "Message",
    "Model",
    "Plan",
    "Sampling",
    "Stream",
    "Tool",
    "classify",
    "embed",
    "host",
    "load",
    "plan",
    "pull",
]

_HOME = {
    "Chunk": "engine",
    "EdgeError": "errors",
    "Engine": "engine",
    "Host": "machine",
    "LoadedModel": "chat.loaded",
    "Message": "chat.template",
    "Model": "store",
    "Plan": "planner",
    "Sampling": "engine",
    "Stream": "engine",
    "Tool": "chat.tools",
    "classify": "tasks.api",
    "embed": "tasks.api",
    "host": "machine",
    "load": "chat.loaded",
    "plan": "planner",
    "pull": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edge' has no attribute {name!r}")
    value = getattr(import_module(f"edge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
