"""How likely each of a few continuations is after each of many prompts that begin alike."""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.adapters import Adapter
from edge.engine.binding import listen
from edge.engine.engine import Engine
from edge.errors import PromptTooLong, RequestError
from edge.memory import BATCH
from edge.planner import Plan

Path = tuple[int, ...]  # the first tokens of a continuation


@dataclass(frozen=True)
class Tree:
    """Continuations laid over one another, so that a beginning they share is decoded once.

    nodes  the beginnings whose last token is decoded, parents first, each with its branches; a continuation's
           last token is only looked up, never decoded
    ends   beginning → (continuation, token) pairs that the logits after it score; () is the prompt's own end
    width  branches, each a sequence of its own; at least 1
    """

    nodes: dict[Path, tuple[int, ...]]
    ends: dict[Path, tuple[tuple[int, int], ...]]
    width: int


@dataclass(frozen=True, slots=True)
class Row:
    """A token to decode in some sequences; its logits score the continuations of `prompt` that go on from `path`."""

    token: int
    position: int
    sequences: Sequence[int]
    prompt: int
    path: Path | None  # None: no logits are needed


class Scorer(Engine):
    """An engine that scores given continuations and writes none.

    The prefix is decoded once into sequence 0 and copied from there; what is a prompt's own is decoded once for all
    continuations, and several prompts make one batch. A model that cannot fork what it remembers (recurrent layers)
    decodes each prompt anew for each continuation. The plan's `sequences`, at least 2 for a model that forks, bound
    the branches and the rows of logits of one decode. Raises what `Engine` raises.
    """

    def __init__(self, plan: Plan, adapters: Sequence[Adapter] = ()) -> None:
        super().__init__(plan, adapters)
        lib = self._lib
        self._lib.llama_batch_free(self._batch)
        self._batch = lib.llama_batch_init(BATCH, 0, plan.sequences)
        remembers = lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        self._forks = plan.sequences > 1 and not remembers

    def _context_params(self, plan: Plan) -> Any:
        params = super()._context_params(plan)
        # In f16, what stood beside a text in the batch moved its scores: a tiny f32 model's by 0.03 nats, so by 1e-5.
        params.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = self._lib.GGML_TYPE_F32
        return params

    def __enter__(self) -> Scorer:
        return self

    def score(
        self, prefix: Sequence[int], prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        """log p(continuation | prompt) in nats, summed over its tokens: an array (prompts, continuations).

        `prefix` is what most prompts begin with, and shorter than each; a prompt that begins otherwise is scored
        rightly all the same. Raises RequestError for an empty prompt or continuation, PromptTooLong before
        anything is decoded, EngineError where decoding fails.
        """
        self._check_open()
        if not all(map(len, prompts)) or not all(map(len, continuations)):
            raise RequestError("a prompt or a continuation is empty", hint="give at least one token")
        found = np.zeros((len(prompts), len(continuations)))
        trees = grow([tuple(continuation) for continuation in continuations], self._branches())
        for prompt in prompts:
            self._check_room(len(prompt), trees)
        listen()
        self._request += 1  # whoever streams from this engine has lost its context
        for tree in trees:
            done = 0
            while done < len(prompts):
                done += self._score_some(prefix, prompts, done, tree, found)
        return found

    def _branches(self) -> int:
        return self.plan.sequences - 1 if self._forks else 1

    def _check_room(self, tokens: int, trees: Sequence[Tree]) -> None:
        """Raise PromptTooLong where a prompt of so many tokens leaves no room for the continuations."""
        needed = tokens + max((len(tree.nodes) for tree in trees), default=0)
        if needed > self.context:
            raise PromptTooLong(needed, self.context)

    def _score_some(
        self,
        prefix: Sequence[int],
        prompts: Sequence[Sequence[int]],
        first: int,
        tree: Tree,
        found: NDArray[np.float64],
    ) -> int:
        """Score as many prompts from `first` on as make one batch; returns how many."""
        group: list[int] = []  # for each prompt, how much of it the prefix is
        rows, cells = 0, len(prefix)
        for prompt in prompts[first : first + max(1, (self.plan.sequences - 1) // tree.width)]:
            shared = common(prefix, prompt)
            more = len(prompt) - shared + len(tree.nodes)
            whole = shared == len(prefix) or not self._window  # a window has forgotten what lies further back
            if not (self._forks and whole and cells + more <= self.context) or (
                group and rows + more > BATCH
            ):
                break
            group.append(shared)
            rows, cells = rows + more, cells + more
        if not group:
            self._kept = []
            self._lib.llama_memory_clear(self._memory, False)
            self._decode_rows(self._rows(prompts[first], first, 0, range(tree.width), tree), tree, found)
            return 1
        self._keep(prefix)
        table: list[Row] = []
        for index, shared in enumerate(group):
            branches = range(1 + index * tree.width, 1 + (index + 1) * tree.width)
            for branch in branches:
                self._lib.llama_memory_seq_cp(self._memory, 0, branch, 0, shared)
            table += self._rows(prompts[first + index], first + index, shared, branches, tree)
        self._decode_rows(table, tree, found)
        return len(group)

    def _keep(self, prefix: Sequence[int]) -> None:
        """Have the prefix, and nothing else, in sequence 0, and the others empty."""
        if self._kept == list(prefix):
            for sequence in range(1, self.plan.sequences):
                self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        else:
            self._prefill(prefix, self._rewind(prefix))

    def _rows(
        self, prompt: Sequence[int], index: int, start: int, branches: Sequence[int], tree: Tree
    ) -> Iterator[Row]:
        last = len(prompt) - 1
        for position in range(start, len(prompt)):
            yield Row(prompt[position], position, branches, index, () if position == last else None)
        for path, below in tree.nodes.items():
            yield Row(path[-1], last + len(path), [branches[branch] for branch in below], index, path)

    def _decode_rows(self, rows: Iterator[Row] | list[Row], tree: Tree, found: NDArray[np.float64]) -> None:
        """Decode in batches of at most BATCH tokens and `sequences` rows of logits, and add up what they score."""
        count, scored = 0, list[Row]()
        for row in rows:
            if count == BATCH or (row.path is not None and len(scored) == self.plan.sequences):
                self._read_scores(count, scored, tree, found)
                count, scored = 0, []
            self._put(count, row.token, row.position, row.sequences[0], row.path is not None)
            self._batch.n_seq_id[count] = len(row.sequences)
            for at, sequence in enumerate(row.sequences):
                self._batch.seq_id[count][at] = sequence
            count += 1
            if row.path is not None:
                scored.append(row)
        self._read_scores(count, scored, tree, found)

    def _read_scores(self, count: int, scored: list[Row], tree: Tree, found: NDArray[np.float64]) -> None:
        self._decode(count)
        if not scored:
            return
        data = ctypes.cast(self._lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        logits = np.ctypeslib.as_array(data, shape=(len(scored), self.vocab.size))
        for row, values in zip(scored, logits, strict=True):
            top = values.max()
            total = float(top) + np.log(np.exp(values - top).sum(dtype=np.float64))
            assert row.path is not None
            for continuation, token in tree.ends[row.path]:
                found[row.prompt, continuation] += values[token] - total


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with, the last of `other` never counted: its logits are wanted."""
    for index, (a, b) in enumerate(zip(one, other[:-1], strict=False)):
        if a != b:
            return index
    return min(len(one), len(other) - 1)


def grow(continuations: Sequence[Path], width: int) -> list[Tree]:
    """All continuations in trees of at most `width` branches."""
    inner = sorted({path[:-1] for path in continuations})
    # In sorted order a beginning of another stands right before the first that goes on from it.
    leaves = [path for path, after in zip(inner, [*inner[1:], ()], strict=True) if after[: len(path)] != path]
    leaves = leaves or [()]
    home = [bisect_left(leaves, path[:-1]) for path in continuations]
    trees = []
    for start in range(0, len(leaves), width):
        part = leaves[start : start + width]
        nodes: dict[Path, list[int]] = {}
        for branch, leaf in enumerate(part):
            for length in range(1, len(leaf) + 1):
                nodes.setdefault(leaf[:length], []).append(branch)
        ends: dict[Path, list[tuple[int, int]]] = {}
        for index, path in enumerate(continuations):
            if start <= home[index] < start + width:
                for at, token in enumerate(path):
                    ends.setdefault(path[:at], []).append((index, token))
        trees.append(
            Tree(
                {path: tuple(branches) for path, branches in nodes.items()},
                {path: tuple(pairs) for path, pairs in ends.items()},
                len(part),
            )
        )
    return trees
