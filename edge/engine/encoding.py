"""What every backend of an encoder gives: ids in, one array out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class About:
    """What a loaded encoder is.

    task        embedding, classification (of texts) or tokens (a label for each)
    labels      a classifier's by their number; empty for embeddings
    labels_given  whether the caller named them, so that their order means nothing
    problem     its problem_type: regression, single_label_classification, multi_label_classification; None: not said
    backend     onnxruntime-cpu or llama.cpp-cpu
    level       the quantization level; empty where the file does not say
    max_tokens  how many tokens of a text it reads, special ones included
    width       elements of an embedding or a hidden state
    workers     how many threads `run` is best called from at once
    window      how many texts are worth gathering to sort them by length: few where each takes long
    """

    name: str
    path: Path
    backend: str
    level: str
    task: str
    labels: tuple[str, ...]
    problem: str | None
    max_tokens: int
    width: int
    workers: int = 1
    window: int = 2048
    labels_given: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model reads it: ids, token types and, for each token, its span of characters and its word.

    `spans` are (start, end) in characters of the text, (0, 0) for special tokens; `words` the number of the
    pre-tokenizer's word, -1 for special tokens. `left_out` counts the tokens beyond `max_tokens`, which are not here.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    spans: Sequence[tuple[int, int]] = ()
    words: Sequence[int] = ()
    left_out: int = 0


class Encoder(Protocol):
    """A model that reads whole texts. `run` may be called from several threads at once."""

    about: About

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, spans: bool = False
    ) -> list[Tokens]:
        """Texts, or pairs of texts, in tokens, each cut at `about.max_tokens`; spans and words only where asked for."""
        ...

    def run(self, batch: Sequence[Tokens]) -> list[Array]:
        """float32 for each text: logits (labels,), for tokens (its tokens, labels), or the embedding (width,)."""
        ...

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        ...
