"""The measurement in a process of its own: what it takes of memory ends with it, and a crash is only its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from signal import SIGKILL
from threading import Timer
from typing import Any

from edge import rates
from edge.child import python_m
from edge.errors import EdgeError, EngineError, StoreError
from edge.rates import Rates

SECONDS = 600  # after which it hangs: a slow board takes a minute or two


def run(report: Callable[[str], None], kinds: Sequence[str], seconds: float) -> Rates:
    """Start it, pass its reports on, take its rates. The folder of its files is removed whatever happens."""
    try:
        with tempfile.TemporaryDirectory(prefix="edge-measure-", ignore_cleanup_errors=True) as folder:
            return listen(python_m("edge.measure.process", folder, str(seconds), *kinds), report)
    except OSError as error:
        raise StoreError(
            f"the host cannot be measured: {error.strerror}", hint="make room or set TMPDIR to another folder"
        ) from error


def listen(command: Sequence[str], report: Callable[[str], None]) -> Rates:
    """A line of JSON at a time: a text to report, the error that ended it, or the rates."""
    found: Rates | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as child:
        late: list[bool] = []

        def end() -> None:
            late.append(True)
            child.kill()

        hangs = Timer(SECONDS, end)
        hangs.start()
        try:
            for line in child.stdout or ():
                what = said(line)
                if "error" in what:
                    raise EngineError(what["error"], hint=what["hint"])
                if "report" in what:
                    report(what["report"])
                elif "rates" in what:
                    found = rates.parsed(what["rates"])
            child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            hangs.cancel()
    if found is None and late:
        raise EngineError(f"the measurement took over {SECONDS} s", hint="run it again when the host is idle")
    if found is None and child.returncode == -SIGKILL:
        raise EngineError(
            "the measurement was killed", hint="it takes some 300 MiB of memory; close something"
        )
    if found is None:
        raise EngineError(
            f"the measurement ended with code {child.returncode}",
            hint="update llama-cpp-python; a crash in it is a bug of llama.cpp on this CPU",
        )
    return found


def said(line: str) -> dict[str, Any]:
    """What a line says; nothing where it is not one of ours, as libraries print too."""
    try:
        what = json.loads(line)
    except ValueError:
        return {}
    return what if isinstance(what, dict) else {}


def main() -> None:
    from edge.measure.whole import Size, whole

    folder, seconds, *kinds = sys.argv[1:]

    def tell(**what: object) -> None:
        print(json.dumps(what), flush=True)

    try:
        measured = whole(Path(folder), Size(tuple(kinds), float(seconds)), lambda text: tell(report=text))
    except EdgeError as error:
        tell(error=str(error), hint=error.hint)
        return
    except OSError as error:
        tell(error=f"the host cannot be measured: {error.strerror}", hint="make room or set TMPDIR")
        return
    tell(rates=asdict(measured))


if __name__ == "__main__":
    main()
