"""Every error that edge raises on purpose.

    EdgeError                 exit 1   something failed
    ├── RequestError          exit 2   an argument that cannot be used
    │   ├── BadData           exit 2   a row of the input that makes no sense, its line named
    │   └── PromptTooLong     exit 2   prompt and context, both numbers named
    ├── ModelNotFound         exit 1   no such model here (or anywhere)
    ├── Offline               exit 1   the network is needed and was ruled out
    ├── DownloadError         exit 1   a source dropped, stalled, refused or lied about a length
    ├── StoreError            exit 1   the disk: full, read-only, locked
    ├── SessionError          exit 1   a saved conversation: unknown, damaged, or the file is not ours
    ├── EngineError           exit 1   llama.cpp refused to load or to decode
    ├── BadToolCall           exit 1   an answer whose tool call is cut, broken, unknown or does not fit
    ├── QueueFull             exit 1   more requests wait than may
    ├── ConversionError       exit 1   a checkpoint that cannot be converted, or does not prove equal
    ├── UnsafeFile            exit 3   a file that is damaged, hostile or not what its name says
    │   ├── BadGGUF           exit 3   its header does not hold together
    │   ├── BadONNX           exit 3   an ONNX model that is damaged, or reaches for what it must not
    │   ├── HashMismatch      exit 3   its bytes are not the ones that were promised
    │   └── UnsafeTemplate    exit 3   its chat template broke out of its bounds
    └── DoesNotFit            exit 4   it needs more memory than there is

A message is one line: what is wrong, then what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeError(Exception):
    """Base of every error that edge raises on purpose.

    `str(error)` is what is wrong; `error.hint` is what to do about it (may be empty).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def line(self) -> str:
        """Message and hint on one line, as the command prints it."""
        text = f"{self}; {self.hint}" if self.hint else str(self)
        return " ".join(text.split())


class RequestError(EdgeError):
    """An argument that cannot be used: out of range, not text, or contradictory."""

    exit_code = 2


class PromptTooLong(RequestError):
    """The prompt does not fit the context. Nothing is ever cut silently.

    A text far too long is not counted to its end: `prompt_tokens` is then the least it can be (not `exact`).
    """

    def __init__(self, prompt_tokens: int, context: int, *, exact: bool = True) -> None:
        super().__init__(
            f"the prompt is {'' if exact else 'at least '}{prompt_tokens} tokens and the context holds {context}",
            hint="shorten it or raise --ctx",
        )
        self.prompt_tokens = prompt_tokens
        self.context = context


class BadData(RequestError):
    """Input that cannot be read as what it should be: its encoding, a row, a field; the line is named."""


class ModelNotFound(EdgeError):
    """No model by that reference is in the store, the catalogue or at the source."""


class Offline(EdgeError):
    """The network is needed, and HF_HUB_OFFLINE or EDGE_OFFLINE rules it out."""


class DownloadError(EdgeError):
    """A source dropped the connection, stalled, refused, or sent the wrong length."""


class StoreError(EdgeError):
    """The store's disk is full, read-only or otherwise not usable."""


class SessionError(EdgeError):
    """A saved conversation is unknown or its file is damaged."""


class EngineError(EdgeError):
    """llama.cpp refused to load the model or to decode a batch."""


class QueueFull(EdgeError):
    """As many requests wait for an answer as may; this one was not taken."""


class BadToolCall(EdgeError):
    """A tool call in a model's answer that is cut, broken, of an unknown tool, or does not fit its parameters.

    `answer` is the text as the model wrote it; `cut` says that max_tokens or the context ended it.
    """

    def __init__(self, message: str, answer: str, *, cut: bool = False) -> None:
        super().__init__(message, hint="raise --max-tokens" if cut else "ask again, or a larger model")
        self.answer = answer
        self.cut = cut


class ConversionError(EdgeError):
    """A checkpoint that cannot be converted, or an artifact that does not compute what its source does."""


class UnsafeFile(EdgeError):
    """A file that is damaged, hostile or not what its name says."""

    exit_code = 3


class BadGGUF(UnsafeFile):
    """A GGUF header that does not hold together."""


class BadONNX(UnsafeFile):
    """An ONNX model that is damaged, has operators that are not known, or data that lies elsewhere."""


class HashMismatch(UnsafeFile):
    """Bytes other than the promised ones."""


class UnsafeTemplate(UnsafeFile):
    """A chat template that reached for what it must not, or outgrew its caps."""


class DoesNotFit(EdgeError):
    """The plan needs more memory than is available."""

    exit_code = 4
