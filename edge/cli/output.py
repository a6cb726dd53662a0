"""What the verbs share when they print: JSON, aligned columns, sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from edge.chat.loaded import LoadedModel
    from edge.engine import Timings, Usage

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


SURROGATES = range(0xD800, 0xE000)  # of names and texts that are no Unicode: no stream takes them
# json.dumps escapes the ASCII controls; a terminal obeys these too
ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *SURROGATES)}


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person sits at `stream`; nobody does where the caller closed it, which Python shows as None."""
    return stream is not None and stream.isatty()


def emit_json(value: Any) -> None:
    """Print a dataclass, or plain data holding some, as indented JSON on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=plain)
    click.echo(text.translate(ESCAPED))


def plain(value: Any) -> Any:
    """What `json` cannot encode by itself: dataclasses become objects, paths become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Left-aligned columns, two spaces apart; the header, when given, in capitals above."""
    lines = [[cell.upper() for cell in header], *rows] if header else list(rows)
    if not lines:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def size(count: int) -> str:
    """Bytes in the unit people compare by: `94 MiB`, `1.6 GiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    step = min(len(units) - 1, max(0, count.bit_length() - 1) // 10)
    value = count / 1024**step
    return f"{value:.0f} {units[step]}" if value >= 10 or not step else f"{value:.1f} {units[step]}"


def counted(count: int, what: str) -> str:
    """`1 turn`, `2 turns`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def timing_line(usage: Usage, timings: Timings) -> str:
    """One line for stderr: `12 (8 kept) + 48 tokens · first after 0.08 s · prefill 450 t/s · decode 160 t/s`."""
    kept = f" ({usage.reused_tokens} kept)" if usage.reused_tokens else ""
    parts = [
        f"{usage.prompt_tokens}{kept} + {usage.completion_tokens} tokens",
        f"first after {timings.ttft_s:.2f} s",
    ]
    if timings.prefill_tps:
        parts.append(f"prefill {timings.prefill_tps:.0f} t/s")
    if timings.decode_tps:
        parts.append(f"decode {timings.decode_tps:.0f} t/s")
    return " · ".join(parts)


def model_line(model: LoadedModel) -> str:
    """One line for stderr: what runs, on what, in how much: `smollm2 · Q4_1 · llama.cpp-cpu, 2 threads · …`."""
    plan, memory = model.plan, model.plan.memory
    return " · ".join(
        (
            plan.artifact,
            plan.level,
            *(f"with {adapter.path.name}:{adapter.scale:g}" for adapter in model.adapters),
            f"{plan.backend}, {counted(plan.threads.decode, 'thread')}",
            f"context {plan.context}",
            f"{size(memory.total_bytes)} of {size(memory.available_bytes)}",
        )
    )


CONTROLS: dict[int, str | None] = {
    **{code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"},
    **dict.fromkeys(SURROGATES, "�"),
}


def printable(text: str) -> str:
    """`text` without the control characters by which a model could steer the terminal."""
    return text.translate(CONTROLS)
