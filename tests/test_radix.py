"""The radix tree, held to a plain list of everything that was inserted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge.engine.radix import RadixTree

few = st.lists(st.integers(0, 2) | st.sampled_from([255, 256, 2**31 - 1]), max_size=8)


def shared(one, other):
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


class Held(RuleBasedStateMachine):
    """Any order of inserts, removals and queries gives what a list would."""

    def __init__(self):
        super().__init__()
        self.tree = RadixTree()
        self.known = []

    @rule(tokens=few)
    def insert(self, tokens):
        self.known.append((tokens, len(self.known)))
        self.tree.insert(tokens, self.known[-1][1])

    @rule(data=st.data())
    def remove(self, data):
        if self.known:
            tokens, value = self.known.pop(data.draw(st.integers(0, len(self.known) - 1)))
            self.tree.remove(tokens, value)

    @rule(tokens=few)
    def query(self, tokens):
        wanted = [(value, shared(kept, tokens)) for kept, value in self.known]
        wanted = [(value, count) for value, count in wanted if count]
        found = list(self.tree.matches(tokens))
        assert sorted(found) == sorted(wanted)
        assert [count for _, count in found] == sorted((count for _, count in wanted), reverse=True)
        assert self.tree.longest(tokens) == (found[0] if found else None)

    @rule(tokens=few)
    def remove_what_is_not_there(self, tokens):
        with pytest.raises(KeyError):
            self.tree.remove(tokens, -1)

    @invariant()
    def it_is_no_larger_than_it_must_be(self):
        """Nothing is left of what was removed: each node ends a value or is a fork."""
        nodes = [*self.tree._root.children.values()]
        while nodes:
            node = nodes.pop()
            assert node.values or len(node.children) > 1
            assert all(first == child.label[:4] for first, child in node.children.items())
            nodes += node.children.values()


TestHeld = Held.TestCase


@given(few, few)
def test_one_entry_shares_its_common_beginning(kept, asked):
    tree = RadixTree()
    tree.insert(kept, "it")
    count = shared(kept, asked)
    assert tree.longest(asked) == (("it", count) if count else None)


def test_an_entry_that_ends_where_the_query_ends_comes_before_longer_ones():
    """A recurrent state cannot be cut back, so the exact one is of more use."""
    tree = RadixTree()
    tree.insert([1, 2, 3, 4], "longer")
    tree.insert([1, 2], "exact")
    tree.insert([1, 2, 3], "long")
    assert list(tree.matches([1, 2])) == [("exact", 2), ("long", 2), ("longer", 2)]


def test_thousands_of_tokens():
    tree, prompt = RadixTree(), [7 * token % 49152 for token in range(5000)]
    for length in range(0, 5000, 50):
        tree.insert([*prompt[:length], 1], length)
    assert tree.longest(prompt) == (4950, 4950)
    assert tree.longest(prompt[:120]) == (150, 120)
    assert tree.longest([2]) is None


def test_ids_beyond_32_bits_are_refused():
    with pytest.raises(OverflowError):
        RadixTree().insert([2**31], 0)
