"""The sequences of a context: who has one, and what the idle ones still know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.engine.adapters import Adapter
from edge.engine.backend import Backend, Row
from edge.engine.radix import RadixTree
from edge.memory import BATCH

if TYPE_CHECKING:
    from edge.engine.disk import DiskCache

TILE = 64  # llama.cpp ggml-cpu/common.h, GGML_FA_TILE_Q: rows that flash attention computes together


@dataclass(eq=False)
class Slot:
    """One sequence. `tokens` are those whose state it holds, computed with `adapters`."""

    index: int
    tokens: list[int] = field(default_factory=list)
    adapters: tuple[Adapter, ...] = ()
    busy: bool = False
    used: int = 0  # when it was last given away, counted
    known: list[int] | None = None  # what the tree has it under: the beginning of `tokens`, or all


class Slots:
    """Gives idle slots to requests, with as much of the prompt in them as is known anywhere.

    `alike` is set where a prompt is to be computed alike whatever lies in the slots: then only whole tiles are
    taken over, unless the prompt goes on from all that an idle slot holds, which is a conversation's next turn.
    `shared_cells` is set where the slots share the context's cells: then one request at a time has them all.
    `disk` keeps what was computed with the adapters `own`, which score labels, too.
    """

    def __init__(
        self,
        backend: Backend,
        count: int,
        *,
        alike: bool,
        shared_cells: bool,
        disk: DiskCache | None,
        own: tuple[Adapter, ...],
    ) -> None:
        self.all = [Slot(index) for index in range(count)]
        self._backend, self._alike, self._shared_cells = backend, alike, shared_cells
        self._disk, self.own = disk, own
        self._given = 0  # counts the slots given away
        self._trees: defaultdict[tuple[Adapter, ...], RadixTree[Slot]] = defaultdict(RadixTree)

    def idle(self) -> list[Slot]:
        """Those that no answer has."""
        return [slot for slot in self.all if not slot.busy]

    def take(self, prompt: Sequence[int], adapters: tuple[Adapter, ...], count: int) -> list[Slot]:
        """Idle slots, as many as that; the first holds a beginning of the prompt, its last token never in it."""
        source, length = self._best(prompt[:-1], adapters)
        slots = self._choose(source, length, count)
        first = slots[0]
        for slot in self.all if self._shared_cells else slots:
            if slot is not source:
                self._spill(slot)
                self.empty(slot)
        if source is not None and first is not source:
            self.fork(source, first)
        found = self._from_disk(first, prompt[:-1], adapters, length)
        self._forget(first)
        length = min(max(length, found), len(first.tokens))
        first.adapters = adapters
        if not length or not self._backend.keep(first.index, length):
            length = 0
            self._backend.keep(first.index, 0)
        first.tokens = first.tokens[:length]
        for slot in slots:
            self._given += 1
            slot.busy, slot.used = True, self._given
        return slots

    def clear(self, slot: Slot) -> None:
        """Empty an idle slot, and where the cells are shared all others too, so that it has room."""
        for one in self.all if self._shared_cells else [slot]:
            self._spill(one)
            self.empty(one)

    def read(self, slot: Slot, tokens: Sequence[int]) -> None:
        """Decode tokens after those the slot holds, for nothing but its state. Raises EngineError."""
        for at in range(0, len(tokens), BATCH):
            part, start = tokens[at : at + BATCH], len(slot.tokens)
            self._backend.decode(
                [Row(token, start + i, (slot.index,), False) for i, token in enumerate(part)]
            )
            slot.tokens += part

    def remember(self, slot: Slot) -> None:
        """Let others begin with what the slot holds now."""
        self._forget(slot)
        if slot.tokens:
            slot.known = slot.tokens[:]
            self._trees[slot.adapters].insert(slot.known, slot)

    def release(self, slot: Slot) -> None:
        """The slot is idle, and keeps what it holds."""
        slot.busy = False
        self.remember(slot)

    def fork(self, source: Slot, target: Slot) -> None:
        """Make `target` hold what `source` holds."""
        self.empty(target)
        self._backend.copy(source.index, target.index)
        target.tokens, target.adapters = source.tokens[:], source.adapters

    def empty(self, slot: Slot, *, unknown: bool = False) -> None:
        """Drop what the slot holds; `unknown` where that may be more than its tokens."""
        self._forget(slot)
        if slot.tokens or unknown:
            self._backend.keep(slot.index, 0)
            slot.tokens = []

    def spill_all(self) -> None:
        """Keep what the slots hold on the disk, where there is a cache."""
        for slot in self.all:
            self._spill(slot)

    def _best(self, prompt: Sequence[int], adapters: tuple[Adapter, ...]) -> tuple[Slot | None, int]:
        """The slot that most of the prompt can be taken from, and how much that is."""
        best: tuple[Slot | None, int] = (None, 0)
        for slot, shared in self._trees[adapters].matches(prompt):
            if shared <= best[1]:
                break
            if (usable := self._usable(slot, shared)) > best[1]:
                best = (slot, usable)
        return best

    def _usable(self, slot: Slot, shared: int) -> int:
        whole = not slot.busy and shared == len(slot.tokens)
        if whole:
            return shared
        if not self._backend.rolls_back:
            return 0
        return shared - shared % TILE if self._alike else shared

    def _choose(self, source: Slot | None, length: int, count: int) -> list[Slot]:
        """The slots to overwrite: the source itself where most of it is the prompt's, then those unused for longest."""
        others = sorted((slot for slot in self.idle() if slot is not source), key=lambda slot: slot.used)
        if source is None or source.busy:
            return others[:count]
        if not self._shared_cells and 2 * length < len(source.tokens) and len(others) >= count:
            return others[:count]
        return [source, *others[: count - 1]]

    def _from_disk(
        self, slot: Slot, prompt: Sequence[int], adapters: tuple[Adapter, ...], length: int
    ) -> int:
        """Load a longer beginning of the prompt than `length`, where the disk has one; how long it is, else 0."""
        if self._disk is None or adapters != self.own or not (entry := self._disk.longest(prompt)):
            return 0
        whole = entry.shared == entry.length
        usable = entry.shared if whole or self._backend.rolls_back else 0
        if self._alike and not whole:
            usable -= usable % TILE
        if usable <= length:
            return 0
        if (read := self._disk.read(entry)) is None:
            return 0
        tokens, state = read
        slot.tokens = list(tokens) if self._backend.load(slot.index, state) else []
        return usable

    def _spill(self, slot: Slot) -> None:
        if self._disk is not None and slot.tokens and slot.adapters == self.own:
            state = self._backend.save(slot.index)
            self._disk.write(slot.tokens, state, replaces=self._backend.rolls_back)

    def _forget(self, slot: Slot) -> None:
        if slot.known is not None:
            self._trees[slot.adapters].remove(slot.known, slot)
            slot.known = None
