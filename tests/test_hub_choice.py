"""`edge pull --for-host`: which file of a repository, by names, sizes and what was measured of this host."""

import json

import pytest
from fake_hub import COMMIT, FakeHub, gguf, point_at

from edge.cli import run
from edge.errors import Offline, RequestError
from edge.goals import Goal
from edge.hub_choice import choose_file, level_in
from edge.memory import PROCESS_BYTES
from edge.planner import host
from edge.rates import Attention, Bandwidth, Kernel, Layer, Rates, Scaling, key_of, save
from edge.store import hub as hub_module
from edge.store.refs import parse

NAMES = (
    "m-F16.gguf",
    "m-Q8_0.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_0.gguf",
    "mmproj-F16.gguf",
    "README.md",
    "m.imatrix.gguf",
)
SIZES = (160_000, 85_000, 50_000, 45_000, 9_000, 100, 500)


def rates():
    kernels = tuple(Kernel("Q8_0", 512, 1, rows, 1e-9, 8.5, 0.0) for rows in (1, 512))
    return Rates(
        key_of(host()), (Bandwidth(1, 1.0, 1.0, 1.0),), kernels, (Layer(512, 1, 1, 0.0),),
        (Attention(1, 1, 0.0, 0.0),), (Scaling(1, 1.0, 1.0),), 1, 1, 0.0, 0.0, 0.0, 1.0,
    )  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as hub:
        point_at(hub, monkeypatch, tmp_path / "hf" / "hub")
        hub.files["o/r"] = {
            name: gguf(size, seed) for seed, (name, size) in enumerate(zip(NAMES, SIZES, strict=True))
        }
        yield hub


def test_a_listing_has_each_whole_model_with_the_reference_that_pulls_it(hub):
    hub.files["o/r"] |= {
        "big-Q6_K-00001-of-00002.gguf": gguf(30, 1),
        "big-Q6_K-00002-of-00002.gguf": gguf(50, 2),
        "torn-Q5_0-00002-of-00002.gguf": gguf(50, 3),
        ".hidden/x-Q5_1.gguf": gguf(50, 3),
    }
    found = dict(hub_module.ggufs(parse("hf:o/r")))
    assert found[f"hf:o/r/m-Q8_0.gguf@{COMMIT}"] == 85_000
    assert found[f"hf:o/r/big-Q6_K-00001-of-00002.gguf@{COMMIT}"] == 80
    assert not any("torn" in ref or "hidden" in ref or "mmproj" in ref for ref in found)


def test_without_a_measurement_it_is_what_everybody_takes_and_the_reason_says_why(hub):
    found = choose_file("hf:o/r", Goal())
    assert found.pick == f"hf:o/r/m-Q4_K_M.gguf@{COMMIT}"
    assert "quality not measured" in found.reason
    assert [row.level for row in found.rows] == ["F16", "Q8_0", "Q4_K_M", "Q4_0"]
    assert all(row.reason.startswith("to pull; ") for row in found.rows)
    assert any("edge host --measure" in note for note in found.notes)


def test_goals_pick_another(hub):
    assert choose_file("hf:o/r", Goal("quality")).picked.level == "F16"
    with pytest.raises(RequestError, match="goal speed cannot be judged: this host is not measured"):
        choose_file("hf:o/r", Goal("speed"))
    assert choose_file("hf:o/r", Goal("quality", memory=PROCESS_BYTES + 100_001)).picked.level == "Q8_0"


def test_what_kernels_rearrange_is_read_once(hub):
    rows = choose_file("hf:o/r", Goal("quality", memory=PROCESS_BYTES + 45_000)).rows
    assert [row.level for row in rows if row.fits] == ["Q4_0"]


def test_a_time_to_the_first_token_cannot_be_judged_by_names(hub, capsys):
    save(rates())
    assert run(["pull", "hf:o/r", "--for-host", "--goal", "ttft=1"]) == 2
    assert "ttft cannot be judged" in capsys.readouterr().err
    found = choose_file("hf:o/r", Goal("speed"))
    assert "fastest" in found.reason
    assert " in 0." not in found.reason  # attention is not counted: the rank is known, the time is not


def test_the_file_that_is_chosen_is_pulled(hub, capsys):
    assert run(["pull", "hf:o/r", "--for-host", "--goal", "quality", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["bytes"] == 160_000
    assert "F16 of 4 files: the most bits a weight" in err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["hf:o/r:Q8_0", "--for-host"], 2, "is one model, and --for-host chooses"),
        (["hf:o/r/m-Q8_0.gguf", "--for-host"], 2, "is one model"),
        (["smollm2-135m-instruct", "--for-host"], 2, "is one model"),
        (["hf:o/r", "--goal", "speed"], 2, "give --for-host"),
        (["hf:o/r", "--for-host", "--goal", "speed", "--goal", "quality"], 2, "contradict"),
        (
            ["hf:o/r", "--for-host", "--goal", "memory=1MiB"],
            4,
            "the smallest to run, Q4_0 of 45,000",
        ),
        (["hf:o/none", "--for-host"], 1, "the hub has no"),
        (["hf:o/checkpoint", "--for-host"], 2, "has no GGUF file whose name says its level"),
    ],
)
def test_refusals_are_one_line(hub, args, code, says, capsys):
    hub.files["o/checkpoint"] = {"config.json": b"{}", "model.safetensors": b"x"}
    assert run(["pull", *args]) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_the_network_may_be_ruled_out(hub, monkeypatch):
    monkeypatch.setenv("EDGE_OFFLINE", "1")
    with pytest.raises(Offline):
        choose_file("hf:o/r", Goal())


def test_the_only_file_is_taken_whatever_it_is_called(hub):
    hub.files["o/one"] = {"model.gguf": gguf(1000)}
    assert choose_file("hf:o/one", Goal(), on=host()).pick == f"hf:o/one/model.gguf@{COMMIT}"
    hub.files["o/one"]["other.gguf"] = gguf(2000)
    with pytest.raises(RequestError, match="says its level"):
        choose_file("hf:o/one", Goal())


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("hf:o/r/m-Q4_K_M.gguf@main", "Q4_K_M"),
        ("hf:o/r/IQ4_NL/m.iq4_nl.gguf@main", "IQ4_NL"),
        ("hf:o/Q8_0/m.gguf@main", ""),
        ("m-Q4_K.gguf", ""),
        ("m-F16-00001-of-00002.gguf", "F16"),
        ("BF16-to-Q4_0.gguf", "Q4_0"),
    ],
)
def test_the_level_in_a_name(name, level):
    assert level_in(name) == level
