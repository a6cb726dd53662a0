"""From the values that outputs need to nodes: several values at once where `RULES` know an operator for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import attention, relative
from .emit import EMITTERS, Emission
from .values import Value

EMITTERS |= {
    "attention": attention.scores,
    "rope": attention.rope,
    "distances": lambda emission, value: "",  # its readers read its table
    "convolution": relative.convolution,
    "head_biases": relative.head_biases,
    "relative_scores": relative.relative_scores,
}


@dataclass(frozen=True)
class Fused:
    """How a value is emitted: from these values, and which others get their names by it."""

    operands: tuple[Value, ...]
    emit: Callable[[Emission], str]
    provides: tuple[Value, ...] = ()


Uses = Mapping[int, Sequence[Value]]  # the values that read a value, by its index
Rule = Callable[[Value, Uses], Fused | None]


def lower(made: Sequence[Value], outputs: Sequence[Value], emission: Emission) -> list[str]:
    """Emit what the outputs need, in the order of the pass; the outputs' names."""
    uses = used(made, outputs)
    needed, provided, plan = {value.index for value in outputs}, set[int](), dict[int, Fused]()
    for value in reversed(made):
        if value.index in needed and value.index not in provided:
            plan[value.index] = chosen = choose(value, uses)
            needed.update(operand.index for operand in chosen.operands)
            provided.update(other.index for other in chosen.provides)
    for value in made:
        if value.index in plan and value.index not in provided:
            emission.names[value.index] = plan[value.index].emit(emission)
    return [emission.names[value.index] for value in outputs]


def used(made: Sequence[Value], outputs: Sequence[Value]) -> dict[int, list[Value]]:
    """Who reads each value, of those that the outputs need; an output is read by itself."""
    found = {value.index: [value] for value in outputs}
    for value in reversed(made):
        if value.index in found:
            for operand in operands_of(value):
                found.setdefault(operand.index, []).append(value)
    return found


def operands_of(value: Value) -> tuple[Value, ...]:
    return tuple(operand for operand in value.operands if isinstance(operand, Value))


def choose(value: Value, uses: Uses) -> Fused:
    for rule in RULES.get(value.kind, ()):
        if (found := rule(value, uses)) is not None:
            return found
    emitter = EMITTERS[value.kind]
    return Fused(operands_of(value), lambda emission: emitter(emission, value))


def only(value: Any, kind: str, uses: Uses) -> bool:
    """Whether it is a value of this kind that one other reads."""
    return isinstance(value, Value) and value.kind == kind and len(uses[value.index]) == 1


def joined(value: Value, uses: Uses) -> Fused | None:
    """join_heads(attention(…)): ONNX Runtime's own, which takes the three before they are split into heads."""
    (heads,) = value.operands
    if not only(heads, "attention", uses) or not attention.is_plain(heads):
        return None
    parts, bias = heads.operands[:3], heads.operands[3:]
    three = [attention.before_turning(part).operands[0] for part in parts]
    alone = all(only(part, "split_heads", uses) for part in parts)
    if alone and all(only(x, "linear", uses) and x.operands[2] is not None for x in three):
        read = tuple(x.operands[0] for x in three)
        return Fused((*read, *bias), lambda emission: attention.of_linears(emission, heads, three))

    def emit(emission: Emission) -> str:
        return attention.of_three(emission, heads, [attention.turned(emission, part) for part in parts])

    return Fused((*three, *bias), emit)


# By the kind of the last of the values; the first that knows it is taken
RULES: dict[str, list[Rule]] = {
    "join_heads": [joined],
}
