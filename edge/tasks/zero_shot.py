"""Labels from a chat model that was never trained on them: how likely each is as the answer.

Nothing is generated and nothing parsed: every label, and the end of the answer after it, is scored after the same
prompt (edge.engine.scorer). A label's score is its mean log-likelihood a token, less the same after prompts without
content: the contextual calibration of Zhao et al. 2021 (arXiv:2102.09690). Their softmax is the probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.chat.loaded import LoadedModel
from edge.engine.scorer import common, grow
from edge.errors import PromptTooLong, RequestError
from edge.memory import state_elements, vocabulary
from edge.planner import plan
from edge.tasks.encoder import About, Array, Tokens
from edge.tasks.prompt import LabelPrompt, label_prompt

CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021, section 5
MOST_SEQUENCES = 256  # llama.cpp's own limit
LOGITS_BYTES = 64 << 20  # of logits that llama.cpp keeps: a row a sequence
TOGETHER = 8  # texts in one batch


class ZeroShot:
    """A chat model as a classifier of texts, an `Encoder`; `run` gives log-probabilities. Close it when done.

    `reason` says for people how it comes to them.
    """

    def __init__(
        self, model: LoadedModel, labels: Sequence[str], examples: Sequence[tuple[str, str]]
    ) -> None:
        self._model = model
        self._prompt: LabelPrompt = label_prompt(model, labels, examples)
        self._answers = [self._prompt.answer(label) for label in labels]
        self._trees = grow([tuple(answer) for answer in self._answers], MOST_SEQUENCES)
        empty = [self._checked(text) for text in CONTENT_FREE]
        self._prefix = empty[0]
        for ids in empty[1:]:
            self._prefix = self._prefix[: common(self._prefix, ids)]
        self.prior = self._scores(empty).mean(axis=0)
        planned = model.plan
        self.about = About(
            name=planned.artifact,
            path=planned.path,
            backend=planned.backend,
            level=planned.level,
            task="classification",
            labels=tuple(labels),
            problem="single_label_classification",
            max_tokens=model.engine.context - max(len(tree.nodes) for tree in self._trees),
            width=len(labels),
            window=32,
            labels_given=True,
        )
        given = f"{len(examples)} examples" if examples else "no examples"
        self.reason = (
            f"{self._prompt.reason}; {given}; mean log-likelihood of each label's tokens, less the same for "
            f"{', '.join(repr(text) for text in CONTENT_FREE)}"
        )

    def __enter__(self) -> ZeroShot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self._model.close()

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, spans: bool = False
    ) -> list[Tokens]:
        """The whole prompt of each text, without spans; raises PromptTooLong, as nothing is ever cut.

        Raises RequestError for pairs of texts.
        """
        if pairs is not None:
            raise RequestError("a chat model labels one text at a time", hint="write both into one text")
        ids = [np.array(self._checked(text), dtype=np.int64) for text in texts]
        return [Tokens(each, np.zeros_like(each)) for each in ids]

    def run(self, batch: Sequence[Tokens]) -> list[Array]:
        """log p(label | text), float32 (labels,) for each text; their exponentials sum to 1."""
        scores = self._scores([tokens.ids.tolist() for tokens in batch]) - self.prior
        return list(log_softmax(scores).astype(np.float32))

    def _checked(self, text: str) -> list[int]:
        ids = self._prompt.tokens(text)
        needed = len(ids) + max(len(tree.nodes) for tree in self._trees)
        if needed > self._model.engine.context:
            raise PromptTooLong(needed, self._model.engine.context)
        return ids

    def _scores(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        sums = self._model.engine.score(self._prefix, prompts, self._answers)
        return sums / [len(answer) for answer in self._answers]


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """log of the softmax along the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    total: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return total


def check_labels(labels: Sequence[str], examples: Sequence[tuple[str, str]]) -> list[str]:
    """The labels without the white space around them.

    Raises RequestError for an empty or repeated one, for fewer than two, for an example of another label.
    """
    plain = [label.strip() for label in labels]
    if not all(plain):
        raise RequestError("a label is empty", hint="write them with commas between: --labels yes,no")
    twice = next((label for label in plain if plain.count(label) > 1), None)
    if twice is not None:
        raise RequestError(f"the label {twice!r} is given twice", hint="name each once")
    if len(plain) < 2:
        raise RequestError("there is only one label to choose from", hint="give two or more")
    for _, label in examples:
        if label.strip() not in plain:
            raise RequestError(
                f"an example has the label {label!r}, which --labels does not name",
                hint="add it, or leave it out",
            )
    return plain


def open_zero_shot(
    ref: str,
    labels: Sequence[str],
    *,
    examples: Sequence[tuple[str, str]] = (),
    ctx: int | str | None = None,
    threads: int | None = None,
    template: str | None = None,
) -> ZeroShot:
    """Load a GGUF language model to choose among `labels`; `examples` are (text, label) pairs it is shown.

    ctx, threads and template as in `edge.load`. Raises what that raises, what `check_labels` raises, and
    PromptTooLong where the examples alone are too much.
    """
    plain = check_labels(labels, examples)
    first = plan(ref, ctx=ctx, threads=threads)
    header = gguf_header.read(first.path)
    most = min(MOST_SEQUENCES, max(2, LOGITS_BYTES // (4 * max(1, vocabulary(header)))))
    # What a recurrent layer remembers of a sequence is kept for every one there may be, and is not forked.
    sequences = 1 if state_elements(header) else min(most, 1 + TOGETHER * len(plain))
    planned = plan(ref, ctx=ctx, threads=threads, sequences=sequences, scoring=True)
    model = LoadedModel(planned, template=template)
    try:
        return ZeroShot(model, plain, [(text, label.strip()) for text, label in examples])
    except BaseException:
        model.close()
        raise
