"""How likely each of a few continuations is after each of many prompts that begin alike."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.engine.backend import Backend, Row
from edge.engine.request import shared
from edge.engine.slots import Slot, Slots
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
class Wanted:
    """A row whose logits score the continuations of `prompt` that go on from `path`; none where that is None."""

    row: Row
    prompt: int
    path: Path | None


class Scorer:
    """Scores given continuations in a backend whose sequences nothing else uses meanwhile.

    The prefix is decoded once into sequence 0 and copied from there; what is a prompt's own is decoded once for all
    continuations, and several prompts make one batch. A model that cannot drop the end of what it remembers (recurrent
    layers) decodes each prompt anew for each continuation. The plan's `sequences`, at least 2 for a model that forks,
    bound the branches and the rows of logits of one decode. Raises what the backend's `decode` raises.
    """

    def __init__(self, backend: Backend, slots: Slots, plan: Plan) -> None:
        self._backend, self._slots, self._sequences = backend, slots, plan.sequences
        self._forks = plan.sequences > 1 and backend.rolls_back

    def score(
        self, prefix: Sequence[int], prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        """What `Engine.score` gives and raises."""
        if not all(map(len, prompts)) or not all(map(len, continuations)):
            raise RequestError("a prompt or a continuation is empty", hint="give at least one token")
        found = np.zeros((len(prompts), len(continuations)))
        trees = grow([tuple(continuation) for continuation in continuations], self._branches())
        for prompt in prompts:
            self._check_room(len(prompt), trees)
        try:
            for tree in trees:
                done = 0
                while done < len(prompts):
                    done += self._score_some(prefix, prompts, done, tree, found)
        except BaseException:
            self._empty(self._slots.all)
            raise
        first, *others = self._slots.all
        # Prompts too long to lie beside the prefix were computed in its place
        self._empty(others if first.tokens else [first, *others])
        self._slots.remember(first)
        return found

    def _empty(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self._slots.empty(slot, unknown=True)

    def _branches(self) -> int:
        return self._sequences - 1 if self._forks else 1

    def _check_room(self, tokens: int, trees: Sequence[Tree]) -> None:
        """Raise PromptTooLong where a prompt of so many tokens leaves no room for the continuations."""
        needed = tokens + max((len(tree.nodes) for tree in trees), default=0)
        if needed > self._backend.context:
            raise PromptTooLong(needed, self._backend.context)

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
        for prompt in prompts[first : first + max(1, (self._sequences - 1) // tree.width)]:
            length = common(prefix, prompt)
            more = len(prompt) - length + len(tree.nodes)
            # A window may have forgotten what lies further back
            whole = length == len(prefix) or not self._backend.window
            if not (self._forks and whole and cells + more <= self._backend.context) or (
                group and rows + more > BATCH
            ):
                break
            group.append(length)
            rows, cells = rows + more, cells + more
        if not group:
            self._empty(self._slots.all)
            self._decode_rows(self._rows(prompts[first], first, 0, range(tree.width), tree), tree, found)
            return 1
        self._keep(prefix)
        table: list[Wanted] = []
        for index, length in enumerate(group):
            branches = range(1 + index * tree.width, 1 + (index + 1) * tree.width)
            for branch in branches:
                self._backend.copy(0, branch, length)
            table += self._rows(prompts[first + index], first + index, length, branches, tree)
        self._decode_rows(table, tree, found)
        return len(group)

    def _keep(self, prefix: Sequence[int]) -> None:
        """Have the prefix, and nothing else, in sequence 0, and the others empty."""
        slots, first = self._slots, self._slots.all[0]
        self._empty(slots.all[1:])
        if first.adapters != slots.own:
            self._empty([first])
            first.adapters = slots.own
        if first.tokens == list(prefix):
            return
        length = shared(first.tokens, prefix)
        if not self._backend.keep(0, length):
            length = 0
        first.tokens = first.tokens[:length]
        slots.read(first, prefix[length:])

    def _rows(
        self, prompt: Sequence[int], index: int, start: int, branches: Sequence[int], tree: Tree
    ) -> Iterator[Wanted]:
        last, every = len(prompt) - 1, tuple(branches)
        for position in range(start, len(prompt)):
            here = position == last
            yield Wanted(Row(prompt[position], position, every, here), index, () if here else None)
        for path, below in tree.nodes.items():
            some = tuple(branches[branch] for branch in below)
            yield Wanted(Row(path[-1], last + len(path), some, True), index, path)

    def _decode_rows(
        self, rows: Iterator[Wanted] | list[Wanted], tree: Tree, found: NDArray[np.float64]
    ) -> None:
        """Decode in batches of at most BATCH tokens and `sequences` rows of logits, and add up what they score."""
        batch: list[Wanted] = []
        scored = 0
        for row in rows:
            if len(batch) == BATCH or (row.path is not None and scored == self._sequences):
                self._score_batch(batch, tree, found)
                batch, scored = [], 0
            batch.append(row)
            scored += row.path is not None
        self._score_batch(batch, tree, found)

    def _score_batch(self, batch: Sequence[Wanted], tree: Tree, found: NDArray[np.float64]) -> None:
        self._backend.decode([wanted.row for wanted in batch])
        for at, wanted in enumerate(batch):
            if wanted.path is None:
                continue
            values = self._backend.logits(at)
            top = values.max()
            total = float(top) + np.log(np.exp(values - top).sum(dtype=np.float64))
            for continuation, token in tree.ends[wanted.path]:
                found[wanted.prompt, continuation] += values[token] - total


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
