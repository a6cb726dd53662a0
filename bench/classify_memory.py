"""Memory of `edge classify --input` over a long input, sampled while it runs."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter

from edge.child import python_m
from edge.errors import EngineError, RequestError

from .picture import BLUE, save

MIB = 1 << 20
WORDS = 8  # of a text: lines are short, and how many there are is measured
LOADED = 0.05  # share of the lines after which the process has all that it needs


@dataclass(frozen=True)
class Sample:
    """At so many seconds from the start: lines answered and resident bytes."""

    seconds: float
    lines: int
    rss_bytes: int


@dataclass(frozen=True)
class Course:
    """A whole run. `growth_bytes` is the most of the last quarter of the lines over the most of the first."""

    lines: int
    seconds: float
    samples: tuple[Sample, ...]

    @property
    def growth_bytes(self) -> int:
        def most(start: float, end: float) -> int:
            part = [one.rss_bytes for one in self.samples if start <= one.lines / self.lines <= end]
            return max(part, default=0)

        return most(0.75, 1) - most(LOADED, 0.25)


def memory(ref: str, texts: Sequence[str], *, lines: int = 1_000_000, every: float = 0.5) -> Course:
    """Classify `lines` short lines made of the texts, sampling every so many seconds.

    Raises EngineError where the command fails, RequestError on a system without /proc.
    """
    if not Path("/proc/self/statm").exists():
        raise RequestError("memory is sampled from /proc, which this system lacks", hint="run it on Linux")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lines.txt")
        with file.open("w", encoding="utf-8") as out:
            short = cycle(" ".join(text.split()[:WORDS]) for text in texts)
            out.writelines(f"{text} {number}\n" for number, text in enumerate(islice(short, lines)))
        return watched(python_m("edge", "classify", ref, "--input", str(file), "--json"), lines, every)


def watched(command: list[str], lines: int, every: float) -> Course:
    """Run the command, count the lines it writes, and sample its memory."""
    answered, ended = 0, threading.Event()

    def count() -> None:
        nonlocal answered
        assert process.stdout
        while chunk := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            answered += chunk.count(b"\n")
        ended.set()

    samples = []
    started = perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        threading.Thread(target=count, daemon=True).start()
        while not ended.wait(every):
            if resident := rss_bytes(process.pid):
                samples.append(Sample(perf_counter() - started, answered, resident))
        seconds = perf_counter() - started
    if process.returncode or answered != lines:
        raise EngineError(
            f"edge classify exited with {process.returncode} after {answered:,} of {lines:,} lines",
            hint="its last words are above",
        )
    return Course(lines, seconds, tuple(samples))


def rss_bytes(pid: int) -> int:
    """Resident bytes of a process (proc_pid_statm(5)); 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    import resource

    return pages * resource.getpagesize()


def lines(course: Course, rows: int = 12) -> list[str]:
    """The course as a Markdown table of about so many rows."""
    step = max(1, len(course.samples) // rows)
    table = ["| seconds | lines | RSS |", "|---|---|---|"]
    table += [
        f"| {one.seconds:.0f} | {one.lines:,} | {one.rss_bytes / MIB:.0f} MiB |"
        for one in course.samples[::step]
    ]
    pace = course.lines / course.seconds
    peak = max((one.rss_bytes for one in course.samples), default=0)
    table += [
        "",
        f"{course.lines:,} lines in {course.seconds:.0f} s ({pace:,.0f}/s), at most {peak / MIB:.0f} MiB; "
        f"the last quarter's most is {course.growth_bytes / MIB:+.1f} MiB from the first's",
    ]
    return table


def draw(course: Course, title: str, path: Path) -> None:
    """Draw memory over the lines answered into a PNG file. Raises StoreError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(
        [one.lines for one in course.samples],
        [one.rss_bytes / MIB for one in course.samples],
        color=BLUE,
        lw=1,
    )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("lines answered")
    axes.set_ylabel("resident memory (MiB)")
    axes.set_title(title, fontsize=10)
    save(figure, path)
