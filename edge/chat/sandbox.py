"""Render a chat template of unknown origin: in Jinja's sandbox, within caps on output, memory and time.

Jinja's immutable sandbox keeps a template away from Python, but not from the machine's time and memory
(`'x' * 10**9`, nested loops over `range(99999)`, a text doubled sixty times). So each template is rewritten
when it is compiled: whatever makes a value or repeats work is metered. Every step and every character made is
paid from one budget, and the clock is read on the way, so the caps hold in the calling thread, with neither
signals nor child processes.

    a loop's turn, a call, a list's item   ITEM units
    a character made                       1 unit

What could make more than it is given in one C call (`join`, `replace`, `*`) is estimated before it runs;
filters and methods outside the lists below are refused by name. The invariant behind it: each value that a
template holds costs at most the budget to print, so copying, comparing or printing it once is bounded too.

This module imports jinja2; import it inside the function that renders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

from jinja2 import Template, nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from edge.chat.filters import FUNCTIONS, OFFERED
from edge.chat.meter import ITEM, METER, Meter, expect_numbers, expect_replace, expect_short, joined

SOURCE_CHARACTERS = 64 * 1024  # the largest published templates are about 20,000
TOKENS = (
    10_000  # Jinja's. They bound what compiling costs, some 0.1 ms each; a character of a template is 0.2
)


def words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (
        str,
        words(
            "capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower",
            "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace",
            "rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper",
        ),
    ),
    (dict, words("get items keys values")),
    ((list, tuple), words("count index")),
    (LoopContext, frozenset(name for name in dir(LoopContext) if not name.startswith("_"))),
    (Cycler, words("current next reset")),
)
SLOW_METHODS = words("lstrip rfind rindex rpartition rsplit rstrip strip")


def render(source: str, variables: Mapping[str, Any], *, characters: int, output_characters: int) -> str:
    """The text that `source` makes of `variables`.

    `characters` is how much the conversation holds; the budget grows with it. Raises SecurityError beyond the
    sandbox or its caps, Refused where the template raises by itself, and whatever else running it raises.
    """
    if len(source) > SOURCE_CHARACTERS:
        raise SecurityError(f"it is {len(source)} characters long, the cap is {SOURCE_CHARACTERS}")
    template = compiled(source)
    # Generous: templates copy each content some ten times (a chain of `+`), and loops nest at most twice.
    token = METER.set(Meter(4 * 1024 * 1024 + 64 * (characters + len(source))))
    try:
        pieces, made = [], 0
        for piece in template.generate(variables):
            METER.get().spend(ITEM)
            made += len(piece)
            if made > output_characters:
                raise SecurityError(f"its output passes {output_characters} characters")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        METER.reset(token)


@lru_cache(maxsize=8)
def compiled(source: str) -> Template:
    """The template as metered code; a conversation renders the same one at every turn."""
    # transformers' conventions, and no folding of constants: that would run filters before there is a meter.
    return MeteredEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=printable,
        extensions=[Counted, GenerationTag, loopcontrols],
    ).from_string(source)


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a meter wherever values are made, and with lists of what may be reached."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = dict(OFFERED)
        self.globals.pop("lipsum")
        self.globals.update(FUNCTIONS)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = MeteredTree().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(isinstance(obj, kind) and attr in names for kind, names in METHODS)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> None:
        """No wrapped `str.format`: is_safe_attribute refuses the plain one."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.spend(ITEM)
        meter.check(*(value for value in (*args, *kwargs.values()) if not isinstance(value, Namespace)))
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if not (isinstance(obj, (Macro, Joiner, Undefined)) or obj in self.globals.values()) and not (
            owner is not None and self.is_safe_attribute(owner, name, obj)
        ):
            raise SecurityError(f"it calls a {type(obj).__name__}")
        if isinstance(owner, str):
            if name == "join":
                return joined(owner, *args)
            if name == "replace":
                expect_replace(owner, *args)
            elif name in SLOW_METHODS:
                expect_short(*args, *kwargs.values())
        return meter.shallow(context.call(obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**"):
            expect_numbers(operator, left, right)
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("it formats text with %")
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            METER.get().spend(len(left) + len(right))
            return left + right
        return METER.get().deep(super().call_binop(context, operator, left, right))

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What `{% set %}…{% endset %}` and macros end in."""
        return joined("", pieces)


@pass_eval_context  # marks it as not constant: nothing is folded when the template is compiled
def printable(context: nodes.EvalContext, value: Any) -> Any:
    """A printed value: text was paid when it was made, the rest pays for becoming text."""
    return METER.get().text(value)


class MeteredTree(NodeTransformer):
    """Puts a meter around what makes values or repeats work: a filter whose name no template can spell."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise SecurityError("it has a recursive loop")
        self.generic_visit(node)
        node.iter = through("+steps", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return through("+concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return through("+deep", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return through("+deep", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return through("+shallow", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.Node:
        if node.attr.startswith("_"):
            raise SecurityError(f"it sets {node.attr!r} of a namespace")
        return node

    def refuse(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError(f"it has a statement that is out of bounds ({type(node).__name__.lower()})")

    visit_Extends = visit_Include = visit_Import = visit_FromImport = visit_Block = refuse
    visit_ScopedEvalContextModifier = refuse


def through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


class Counted(Extension):
    """Refuses a template of too many tokens while it is read, before there is a tree to walk and to compile."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for count, token in enumerate(stream):
            if count >= TOKENS:
                raise SecurityError(f"it has more than {TOKENS} tokens")
            yield token


class GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training; to a rendering it is nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance's set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)
