"""The benchmarks of memory: what is left out, what a hard limit leaves, and scripts without a Python."""

import os
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_llama

from edge.bench import memory_caps
from edge.bench.memory import memory
from edge.errors import DoesNotFit, EngineError
from edge.machine import host
from edge.planner import plan

PEERS = Path(__file__).parent.parent / "bench" / "peers"
CAP = 1 << 30


@pytest.fixture
def model(tmp_path):
    return str(tiny_llama(tmp_path / "tiny.gguf", ctx=8192))


@pytest.fixture
def room_for(monkeypatch, model):
    """Leaves plans so much memory as a context of the model takes."""

    def so_much(context):
        found = host()
        enough = plan(model, ctx=context).memory.total_bytes
        less = replace(found, memory=replace(found.memory, available_bytes=enough))
        monkeypatch.setattr("edge.planner.host", lambda: less)

    return so_much


def test_what_does_not_fit_is_left_out_and_said(model, room_for, capsys):
    room_for(512)
    cells = memory([model], [256, 8192, 1 << 20, 512], kv=["f16"], threads=1, prompt=16)
    assert [cell.context for cell in cells] == [256, 512]
    misfit, untrained = capsys.readouterr().err.splitlines()
    name = plan(model).artifact
    assert misfit.startswith(f"edge: left out: {name} ctx 8192 parallel 1 kv f16 threads 1: {name} needs ")
    assert "ctx 1048576 " in untrained
    assert "out of range" in untrained


def test_where_nothing_fits_that_is_the_error(model, room_for):
    room_for(256)
    with pytest.raises(DoesNotFit, match="at a context of 4096"):
        memory([model], [4096, 1 << 20], kv=["f16"])


class Unlimited:
    """A control group where none can be made: it limits nothing."""

    def limit(self, count):
        pass

    def killed(self):
        return 0

    def command(self, words):
        return words


@pytest.fixture
def unlimited(monkeypatch):
    @contextmanager
    def group():
        yield Unlimited()

    monkeypatch.setattr(memory_caps, "group", group)


def test_a_cap_that_the_plan_refuses_is_not_survived(model, unlimited):
    asked = {"ref": model, "ctx": "auto", "memory": "1MiB", "prompt": 8}
    assert memory_caps.under(CAP, asked) == (None, 0)


def test_under_a_cap_in_which_nothing_fits_the_error_is_the_documented(model, unlimited, monkeypatch):
    def refused(command):
        raise DoesNotFit("tiny needs 52 MiB")

    monkeypatch.setattr(memory_caps, "ran", refused)
    with pytest.raises(EngineError, match="survived under 1,048,576 bytes"):
        memory_caps.capped(model, 1 << 20)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-model-here", "1G"], 1, "no-such-model-here"),
        (["{model}", "much"], 2, "'much' is not a size"),
    ],
)
def test_an_error_is_one_line(model, unlimited, monkeypatch, capsys, words, code, said):
    monkeypatch.setattr("sys.argv", ["memory_caps", *(word.format(model=model) for word in words)])
    with pytest.raises(SystemExit) as ended:
        memory_caps.main()
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("edge: ")
    assert said in line


@pytest.mark.parametrize(
    ("trained", "survives", "longest"),
    [(2000, 2000, 1792), (2000, 1536, 1536), (2048, 2048, 1792), (1536, 1536, 1536), (1700, 1700, 1536)],
)
def test_the_longest_is_found_whatever_the_trained_context(tmp_path, monkeypatch, trained, survives, longest):
    model = str(tiny_llama(tmp_path / "tiny.gguf", ctx=trained))
    asked_for = []

    def under(cap, asked):
        context = 1536 if asked["ctx"] == "auto" else asked["ctx"]
        asked_for.append(context)
        assert len(asked_for) < 20, "it goes on for ever"
        assert context <= trained
        return ({"artifact": "tiny", "context": context} if context <= survives else None), 0

    monkeypatch.setattr(memory_caps, "under", under)
    assert memory_caps.capped(model, CAP).longest == longest


def test_a_cap_is_measured_by_the_kernel(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["memory_caps", model, "1MiB"])
    try:
        with memory_caps.group():
            pass
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    with pytest.raises(SystemExit) as ended:
        memory_caps.main()
    assert ended.value.code == 1
    assert "survived under 1,048,576 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("script", sorted(PEERS.glob("*.sh")), ids=lambda script: script.stem)
@pytest.mark.parametrize("python", [None, "no/python"])
def test_a_script_without_a_python_says_so(tmp_path, script, python):
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    env |= {"PYTHON": python} if python else {}
    done = subprocess.run(
        ["bash", script, tmp_path / "peer"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    wanted = python or ".venv/bin/python"
    assert done.stderr == f"no Python: {wanted} is not here; run make chat first, or set PYTHON=…\n"
    assert not (tmp_path / "peer").exists()
