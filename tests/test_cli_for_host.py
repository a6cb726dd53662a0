"""`edge convert --for-host`: exactly the level that the plan picks is made, and what is here is not made again."""

import json

import pytest
import tiny_checkpoints
from recorded_rates import kernels_of, recorded_rates

from edge.cli import run
from edge.cli.for_host import rates_for_host
from edge.errors import RequestError
from edge.machine import host
from edge.rates import key_of, save

WORDS = "The ferry left late, and nobody on the quay seemed to mind. " * 40


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(tiny_checkpoints.write("llama", tmp_path_factory.mktemp("source") / "model"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_pick_is_made_and_its_reason_said(source, here, capsys):
    assert run(["convert", source, "--for-host", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [one["level"] for one in json.loads(out)] == ["q4_k_m"]
    assert "Q4_K_M: " in err
    assert "quality not measured" in err
    assert "edge host --measure" in err
    assert {path.name for path in here.iterdir()} == {"model-q4_k_m.gguf", "model-q4_k_m.json"}
    assert run(["plan", "--all", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pick"] == str(here / "model-q4_k_m.gguf")
    assert run(["convert", source, "--for-host"]) == 0
    assert "nothing to make: " in capsys.readouterr().err
    assert run(["convert", source, "--for-host", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_goal_makes_another_and_a_dry_run_says_which(source, here, capsys):
    assert run(["convert", source, "--for-host", "--goal", "quality", "--dry-run", "--json"]) == 0
    (size,) = json.loads(capsys.readouterr().out)
    assert size["level"] in ("f32", "f16", "bf16")
    assert not any(here.iterdir())


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--goal", "speed"], 2, "give --for-host"),
        (["--for-host", "--level", "q8_0"], 2, "--level does not go with --for-host"),
        (["--for-host", "--tensor-type", "x=q8_0"], 2, "--tensor-type does not go with --for-host"),
        (["--for-host", "--goal", "speed", "--goal", "quality"], 2, "contradict"),
        (["--for-host", "--goal", "memory=1MiB"], 4, "nothing fits in 1 MiB"),
        (
            ["--for-host", "--fit", "1MiB", "--goal", "speed", "--calibrate", "a b"],
            2,
            "--goal does not go with --fit",
        ),
        (["--for-host", "--fit", "1MiB", "--calibrate", WORDS], 2, "which types are fast here is not known"),
        (["--for-host", "--to", "onnx"], 2, "--for-host does not go with --to onnx"),
    ],
)
def test_refusals_are_one_line(source, args, code, says, capsys):
    assert run(["convert", source, *args]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


# Nanoseconds a weight of a type takes
COSTS = {"Q8_0": 6, "Q6_K": 5, "Q5_K": 9, "Q4_K": 5.5, "IQ4_NL": 2, "MXFP4": 3}
KERNELS = kernels_of({kind: cost * 1e-9 for kind, cost in COSTS.items()})


def test_a_file_is_squeezed_for_this_host_by_a_good_measurement_only():
    save(recorded_rates(KERNELS, key=key_of(host())))
    assert rates_for_host().kernels == KERNELS
    save(recorded_rates(KERNELS, key=key_of(host()), marks=("busy",)))
    with pytest.raises(RequestError, match="no evidence, as it was busy"):
        rates_for_host()
