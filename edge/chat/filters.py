"""The filters and functions that a template may use, each paying for what it makes.

This module imports jinja2; import it inside the function that renders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import pass_eval_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.nodes import EvalContext

from edge.chat.meter import ITEM, METER, expect_range, expect_replace, expect_short, joined

# Filters that make no more than they are given. join, replace, indent, tojson and round are guarded below.
PLAIN_FILTERS = """
    abs capitalize count d default dictsort e escape first float int items last length list lower map max min
    reject rejectattr reverse safe select selectattr sort string title trim unique upper
""".split()  # noqa: SIM905 - easier to read than thirty quoted strings


class Refused(TemplateError):
    """The template's own `raise_exception(message)`: it does not want these messages."""


def metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is paid; `map` can repeat one large default, so its result is paid in depth."""
    deep = function is FILTERS["map"]

    @wraps(function)  # keeps the marks of @pass_environment and its kin
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.spend(ITEM)
        meter.check(*args, *kwargs.values())
        if function is FILTERS["trim"]:
            expect_short(*args[1:], *kwargs.values())
        value = meter.shallow(function(*args, **kwargs))
        return meter.deep(value) if deep else value

    return run


def refusing(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise SecurityError(f"it uses the filter {name!r}")

    return refuse


@pass_eval_context
def join(context: EvalContext, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    items = METER.get().steps(value)
    if attribute is not None:
        items = map(make_attrgetter(context.environment, attribute), items)
    return joined(str(d), items)


def replace(s: Any, old: str, new: str, count: int = -1) -> str:
    text = METER.get().text(s)
    expect_replace(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
    prefix = width if isinstance(width, str) else " " * expect_range(width)
    expect_short(prefix)
    return METER.get().shallow(FILTERS["indent"](s, prefix, first, blank))


def rounded(value: float, precision: int = 0, method: str = "common") -> Any:
    return FILTERS["round"](value, expect_range(precision), method)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: no escaping for HTML."""
    METER.get().spend(METER.get().weight(value))
    expect_short(*(separators or ()))
    width = None if indent is None else expect_range(indent)
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=width, separators=separators, sort_keys=sort_keys
    )
    METER.get().spend(len(text))
    return text


GUARDED_FILTERS: dict[str, Callable[..., Any]] = {
    "indent": indent,
    "join": join,
    "replace": replace,
    "round": rounded,
    "tojson": tojson,
    "+concat": lambda pieces: joined("", pieces),
    "+deep": lambda value: METER.get().deep(value),
    "+shallow": lambda value: METER.get().shallow(value),
    "+steps": lambda values: METER.get().steps(values),
}


def make_dict(*args: Any, **kwargs: Any) -> Any:
    return METER.get().deep(dict(*args, **kwargs))


def raise_exception(message: Any) -> None:
    raise Refused(METER.get().text(message))


def strftime_now(format: str) -> str:
    expect_short(format)
    return datetime.now().strftime(format)


OFFERED = {
    **{name: refusing(name) for name in FILTERS},
    **{name: metered(FILTERS[name]) for name in PLAIN_FILTERS},
    **GUARDED_FILTERS,
}
FUNCTIONS = {"dict": make_dict, "raise_exception": raise_exception, "strftime_now": strftime_now}
