"""What the engine asks of a backend: rows of tokens decoded in sequences whose state can be cut, copied and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.engine import chain
from edge.engine.adapters import Adapter
from edge.engine.chain import Chain


@dataclass(frozen=True, slots=True)
class Row:
    """A token at its position in one sequence, or in several that share it; `wanted` where its logits are."""

    token: int
    position: int
    sequences: tuple[int, ...]
    wanted: bool


class Vocabulary(chain.Vocabulary, Protocol):
    """Text to tokens and back; `edge.engine.vocab.Vocab` says what each function does."""

    def check_length(self, text: str, context: int) -> None: ...
    def special_text(self, which: str) -> str: ...
    def has(self, text: str) -> bool: ...
    def control_texts(self) -> frozenset[str]: ...


class Backend(Protocol):
    """A loaded model. After it is loaded only the decode thread uses it, but for its vocabulary and `meta`.

    context     tokens that one sequence may take; all sequences together where the KV cache is unified
    rolls_back  whether the end of a sequence can be dropped (a recurrent model's cannot)
    every_row   whether the logits of any row can be wanted, or only of each sequence's last
    window      tokens that a sliding-window layer looks back; 0 where none has a window
    """

    context: int
    rolls_back: bool
    every_row: bool
    window: int

    @property
    def vocab(self) -> Vocabulary:
        """The model's vocabulary."""

    def meta(self, key: str) -> str | None:
        """What the model says under one of GGUF's keys, as text; None where it says nothing."""

    def use(self, adapters: Sequence[Adapter]) -> None:
        """Decode with these LoRA adapters from here on."""

    def decode(self, rows: Sequence[Row]) -> None:
        """At most BATCH rows. Raises EngineError; the sequences of the rows are then in no known state."""

    def draw(self, chain: Chain, row: int) -> int:
        """The token a chain draws from the logits of a row of the last `decode`, which was wanted."""

    def logits(self, row: int) -> NDArray[np.float32]:
        """Logits (vocabulary,) of a row of the last `decode`, which was wanted; valid until the next."""

    def copy(self, source: int, target: int, length: int | None = None) -> None:
        """Make `target` what `source` is, or its beginning."""

    def keep(self, sequence: int, length: int) -> bool:
        """Drop all from position `length` on. False where that cannot be: the sequence is then empty."""

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """The state of a sequence, to be loaded into any, here or in another process of the same settings."""

    def load(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        """Make a sequence what was saved. False where the state does not fit: the sequence is then empty."""

    def abort(self) -> None:
        """From any thread: let the running `decode` end early, with EngineError. Nothing is decoded after."""

    def close(self) -> None:
        """Free the memory; safe to call twice."""
