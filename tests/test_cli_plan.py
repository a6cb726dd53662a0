"""edge plan: the JSON contract, the screen, refusals; chat and generate refuse the same way."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import gguf
import pytest
import tiny_checkpoints
from odd_models import encoder
from tiny import tiny_llama

from edge.cli import run
from edge.cli.plan import limited

MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture
def memory_group():
    group = Path("/sys/fs/cgroup/memory", f"edge-test-{uuid.uuid4().hex[:8]}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no writable version 1 memory controller here: {error.strerror}")
    yield group
    group.rmdir()


def test_the_json_has_the_promised_keys(model, capsys):
    assert run(["plan", model, "--json"]) == 0
    out, err = capsys.readouterr()
    assert not err
    plan = json.loads(out)
    promised = {"artifact", "backend", "reason", "rejected", "threads", "context", "memory", "fits"}
    assert promised <= set(plan)
    assert all(set(other) == {"choice", "reason"} for other in plan["rejected"])
    assert set(plan["threads"]) == {"prefill", "decode"}
    parts = ("weights", "repacked", "kv", "compute", "logits", "runtime")
    kinds = (*parts, "total", "available")
    assert set(plan["memory"]) == {"mapped", *(f"{kind}_bytes" for kind in kinds)}
    assert sum(plan["memory"][f"{kind}_bytes"] for kind in parts) == plan["memory"]["total_bytes"]
    assert (plan["artifact"], plan["context"], plan["fits"]) == ("tiny", 256, True)


def test_the_screen_names_each_part(model, capsys):
    assert run(["plan", model, "--ctx", "128"]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"model", "backend", "threads", "context", "weights", "KV cache", "compute", "total"} <= set(lines)
    assert lines["context"].split()[1:] == ["128", "tokens"]
    assert lines["fits"].split() == ["fits", "yes"]


def test_conversations_at_a_time_are_said(model, capsys):
    assert run(["plan", model, "--parallel", "3", "--kv", "f16"]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["parallel"].split()[1:] == ["3", "conversations", "at", "a", "time"]
    assert lines["context"].split()[1:] == ["256", "tokens", "each"]
    assert lines["KV cache"].endswith(" in f16")
    assert run(["plan", model, "--parallel", "3", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    said = {key: plan[key] for key in ("parallel", "sequences", "unified", "kv", "flash", "row_multiple")}
    expected = {
        "parallel": 3,
        "sequences": 3,
        "unified": False,
        "kv": "f16",
        "flash": True,
        "row_multiple": 2,
    }
    assert said == expected


def test_what_does_not_fit_is_4_and_still_printed(model, capsys):
    for args in ([], ["--json"]):
        assert run(["plan", model, "--memory", "1MiB", *args]) == 4
        out, err = capsys.readouterr()
        assert out
        assert err.startswith("edge: tiny needs ")
        assert "1 MiB are available; " in err
        assert err.count("\n") == 1
    assert json.loads(out)["fits"] is False


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--memory", "much"], 2, "'much' is not a size"),
        (["--memory", "0"], 2, "is not a size"),
        (["--memory", "9" * 400], 2, "is not a size"),
        (["--parallel", "0"], 2, "0 conversations at a time is out of range"),
        (["--kv", "q8_0"], 2, "its heads are 16 wide"),
        (["--kv", "q3"], 2, "'q3' is not one of"),
        (["--ctx", "-1"], 2, "context of -1 is out of range"),
        (["--ctx", "9" * 400], 2, "is out of range"),
    ],
)
def test_settings_out_of_range(args, code, says, model, capsys):
    assert run(["plan", model, *args]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == (code > 0)


def test_several_models_are_planned_beside_each_other(model, tmp_path, capsys):
    other = str(tiny_llama(tmp_path / "other.gguf"))
    single = {}
    for ref in (model, other):
        assert run(["plan", ref, "--json"]) == 0
        single[ref] = json.loads(capsys.readouterr().out)["memory"]
    assert run(["plan", model, other, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"plans", "fits"}
    assert found["fits"] is True
    totals = [one["memory"]["total_bytes"] for one in found["plans"]]
    assert max(one["total_bytes"] for one in single.values()) < min(totals)
    assert max(totals) < sum(one["total_bytes"] for one in single.values())  # the process is there once
    assert run(["plan", model, other]) == 0
    out = capsys.readouterr().out
    assert out.count("\nbackend ") == 2
    assert "\n\ntogether  " in out


def test_models_that_fit_alone_and_not_together_are_4(model, tmp_path, capsys):
    other = str(tiny_llama(tmp_path / "other.gguf"))
    assert run(["plan", model, other, "--json"]) == 0
    needs = [one["memory"]["total_bytes"] for one in json.loads(capsys.readouterr().out)["plans"]]
    room = str(max(needs) - 1)
    assert run(["plan", model, "--memory", room]) == 0
    capsys.readouterr()
    assert run(["plan", model, other, "--memory", room, "--json"]) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["fits"] is False
    assert shown.err.startswith("edge: together tiny, other need ")
    assert shown.err.count("\n") == 1
    assert run(["plan", model, other, "--ctx", "auto"]) == 2
    assert "--ctx auto is for one model" in capsys.readouterr().err


def test_the_limit_that_binds_is_the_one_whose_share_is_told():
    assert limited("bandwidth", 0.634) == "limited by memory bandwidth, at 63% of this host's peak"
    assert limited("arithmetic", 0.09) == "limited by arithmetic, at 9% of this host's peak"


def test_a_checkpoint_is_pointed_to_the_comparison(tmp_path, capsys):
    folder = tiny_checkpoints.write("llama", tmp_path / "model")
    assert run(["plan", str(folder)]) == 2
    err = capsys.readouterr().err
    assert f"`edge plan --all {folder}`" in err
    assert err.count("\n") == 1


def test_what_is_no_model_is_refused(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07" + bytes(100))
    assert run(["plan", str(tmp_path / "model.onnx")]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
    writer = gguf.GGUFWriter(tmp_path / "adapter.gguf", "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert run(["plan", str(tmp_path / "adapter.gguf")]) == 2
    assert "is not a model but an adapter" in capsys.readouterr().err


def test_a_plan_of_an_encoder_counts_no_cache_and_says_that_it_answers_nothing(tmp_path, capsys):
    assert run(["plan", str(encoder(tmp_path / "encoder.gguf"))]) == 0  # a plan is about memory
    said = capsys.readouterr().out
    assert "KV cache  0 B" in said
    assert "bert does not continue one, so chat and generate refuse it" in said


def test_chat_and_generate_refuse_what_does_not_fit_with_the_line_of_plan(model, memory_group):
    (memory_group / "memory.limit_in_bytes").write_text(str(36 * MIB))
    lines = set()
    for args in (["plan", model], ["chat", model, "--", "Hi"], ["generate", model, "Hi"]):
        script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", script, str(memory_group), sys.executable, "-m", "edge", *args],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 4, done.stderr
        assert done.stderr.count("\n") == 1
        # what is available differs by a page or two from one process to the next
        lines.add(done.stderr.split(" and ")[0] + done.stderr.split(";")[1])
    assert len(lines) == 1
