"""A radix tree over token ids: which kept prefixes begin like this prompt, and how far.

Labels are the int32 bytes of their tokens, compared by halves: of the 0.14 ms that 2,000 tokens take, 0.12 are making
bytes of a list. NumPy takes as long (its array is made of the same list), a loop over tuples 0.31.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

V = TypeVar("V")
WIDTH = array("i").itemsize  # bytes a token


@dataclass(slots=True)
class Node(Generic[V]):
    """`label` leads here from the node above; `values` end here; children by the first token of their labels."""

    label: bytes = b""
    values: list[V] = field(default_factory=list)
    children: dict[bytes, Node[V]] = field(default_factory=dict)


class RadixTree(Generic[V]):
    """Values by the tokens they stand for; several may have the same. Not locked: one thread at a time."""

    def __init__(self) -> None:
        self._root: Node[V] = Node()

    def insert(self, tokens: Sequence[int], value: V) -> None:
        """Keep `value` under `tokens`, ids of 32 bits."""
        key, node, at = packed(tokens), self._root, 0
        while at < len(key):
            child = node.children.get(key[at : at + WIDTH])
            if child is None:
                node.children[key[at : at + WIDTH]] = Node(key[at:], [value])
                return
            same = shared_bytes(child.label, key[at : at + len(child.label)])
            if same < len(child.label):
                child = split(node, child, same)
            node, at = child, at + same
        node.values.append(value)

    def remove(self, tokens: Sequence[int], value: V) -> None:
        """Forget one `value` of those under exactly `tokens`. Raises KeyError where it is not."""
        path = self._path(key := packed(tokens))
        node = path[-1]
        if sum(len(step.label) for step in path) != len(key) or value not in node.values:
            raise KeyError(value)
        node.values.remove(value)
        if not node.values and not node.children and len(path) > 1:
            del path[-2].children[node.label[:WIDTH]]
            path.pop()
        tidy(path)

    def longest(self, tokens: Sequence[int]) -> tuple[V, int] | None:
        """The first of `matches`; None where nothing begins like `tokens`."""
        return next(self.matches(tokens), None)

    def matches(self, tokens: Sequence[int]) -> Iterator[tuple[V, int]]:
        """Each value with the number of tokens it shares with the beginning of `tokens`, most first; none with 0.

        A value that is longer, or goes on differently, shares a beginning too; of equals the shorter come first. The
        first takes time in the length of `tokens`. The tree must not change between two of them.
        """
        path = self._path(key := packed(tokens))
        shared = sum(len(step.label) for step in path)
        last, seen = path[-1], None
        if beyond := last.children.get(key[shared : shared + WIDTH]):
            shared += shared_bytes(beyond.label, key[shared : shared + len(beyond.label)])
            yield from below(beyond, shared // WIDTH)
            shared, seen = sum(len(step.label) for step in path), beyond
        for node in reversed(path):
            if not shared:
                return
            yield from below(node, shared // WIDTH, seen)
            shared, seen = shared - len(node.label), node

    def _path(self, key: bytes) -> list[Node[V]]:
        """The nodes whose labels `key` begins with, from the root."""
        node, at = self._root, 0
        path = [node]
        while child := node.children.get(key[at : at + WIDTH]):
            if not key.startswith(child.label, at):
                break
            node, at = child, at + len(child.label)
            path.append(node)
        return path


def packed(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


def shared_bytes(one: bytes, other: bytes) -> int:
    """How many whole tokens both begin with, in bytes."""
    low, high = 0, min(len(one), len(other)) // WIDTH  # the first `low` are equal; no more than `high` are
    while low < high:
        middle = (low + high + 1) // 2
        if one[low * WIDTH : middle * WIDTH] == other[low * WIDTH : middle * WIDTH]:
            low = middle
        else:
            high = middle - 1
    return low * WIDTH


def split(above: Node[V], child: Node[V], at: int) -> Node[V]:
    """Put a node into the label of `child`, which hangs below `above`, `at` bytes along; returns the new one."""
    middle: Node[V] = Node(child.label[:at])
    above.children[child.label[:WIDTH]] = middle
    child.label = child.label[at:]
    middle.children[child.label[:WIDTH]] = child
    return middle


def tidy(path: list[Node[V]]) -> None:
    """Join the last node with its only child where nothing ends between them."""
    node = path[-1]
    if len(path) > 1 and not node.values and len(node.children) == 1:
        (child,) = node.children.values()
        node.label += child.label
        node.values, node.children = child.values, child.children


def below(node: Node[V], shared: int, seen: Node[V] | None = None) -> Iterator[tuple[V, int]]:
    """All values at and below `node`, nearest first, but for those of its child `seen`."""
    level = [node]
    while level:
        for item in level:
            for value in item.values:
                yield value, shared
        level = [child for item in level for child in item.children.values() if child is not seen]
