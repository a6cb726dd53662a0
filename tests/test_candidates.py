"""The levels that a model could be converted to: the headers they would have are those that the files get."""

import shutil
import weakref
from dataclasses import replace

import hostile
import pytest
import tiny_checkpoints
from recorded_rates import kernels_of, recorded_rates
from tiny import tiny_llama

from edge import gguf_header
from edge.candidate import HERE, MAKE
from edge.convert.candidates import candidates, fingerprint_of
from edge.convert.choices import choices
from edge.convert.onnx import to_onnx
from edge.convert.onnx.levels import LEVELS
from edge.convert.quantize import Settings, levels
from edge.convert.to_gguf import convert
from edge.errors import ConversionError, DoesNotFit, ModelNotFound, RequestError
from edge.evidence import record, row_of
from edge.goals import Goal
from edge.machine import host
from edge.machine.backends import Chosen
from edge.planner import plan
from edge.rates import key_of, save

MADE = ("f16", "q8_0", "q4_k_m", "iq4_nl")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_checkpoints.write("llama", tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """Files of the checkpoint, in a folder of their own."""
    folder = tmp_path_factory.mktemp("made")
    convert(source, MADE, folder, settings=Settings(threads=1))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with nothing in it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_each_levels_header_is_that_of_the_file_that_is_made(source, made):
    found = {one.level: one for one in candidates(source).levels}
    assert set(found) == set(levels())
    for level in MADE:
        path = made / f"model-{level}.gguf"
        real, said = gguf_header.read(path), found[level].header
        assert (found[level].name, found[level].bytes) == (path.name, path.stat().st_size)
        assert said.tensors == real.tensors
        assert (said.data_offset, said.file_bytes) == (real.data_offset, real.file_bytes)
        assert said.quantization == real.quantization
        assert said.get("{arch}.context_length", int) == real.get("{arch}.context_length", int)


def test_one_levels_head_is_held_at_a_time(source, monkeypatch):
    """With a vocabulary of 256,000 it is megabytes, and there are thirty levels."""
    from edge.convert import candidates as module

    heads, most = [], []
    real = module.file_of

    def counted(*given, **named):
        file = real(*given, **named)
        heads.append(weakref.ref(file.head))
        most.append(sum(head() is not None for head in heads))
        return file

    monkeypatch.setattr(module, "file_of", counted)
    candidates(source)
    assert len(heads) == len(levels())
    assert max(most) <= 2


def test_levels_that_need_an_importance_matrix_say_so(source):
    found = {one.level: one.needs_importance for one in candidates(source).levels}
    assert not found["q4_k_m"]
    assert candidates(source, ["iq1_s"]).levels[0].needs_importance == found["iq1_s"]


def test_all_levels_of_a_model_and_its_checkpoint_have_one_fingerprint_and_others_another(
    source, made, tmp_path
):
    of_files = {fingerprint_of(path) for path in made.glob("*.gguf")}
    assert of_files == {candidates(source, ["f16"]).fingerprint}
    assert candidates(made / "model-q8_0.gguf", ["f16"]).fingerprint in of_files
    other = tiny_llama(tmp_path / "other.gguf")
    assert fingerprint_of(other) not in of_files | {""}
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert fingerprint_of(tmp_path / "broken.gguf") == fingerprint_of(tmp_path / "none.gguf") == ""


def test_what_is_here_stands_beside_what_could_be_made(source, made, here):
    for level in ("q8_0", "iq4_nl"):
        shutil.copy(made / f"model-{level}.gguf", here)
    shutil.copy(made / "model-iq4_nl.gguf", here / "the same again.gguf")
    tiny_llama(here / "another model.gguf")
    (here / "damaged.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    found = choices(str(source), Goal())
    where = {one.level: (one.where, one.artifact) for one in found.candidates}
    assert len(found.candidates) == len(where) == len(levels())
    assert where["Q8_0"] == (HERE, str(here / "model-q8_0.gguf"))
    assert where["IQ4_NL"][0] == HERE
    assert where["Q4_K_M"] == (MAKE, "model-q4_k_m.gguf")
    assert not any(one.note for one in found.candidates)
    assert found.choice.picked.level == "Q4_K_M"  # nothing was measured
    assert found.picked.where == MAKE
    assert found.source == source


def test_files_without_vectors_are_no_files_of_a_model_without_levels(tmp_path, monkeypatch):
    """As of a family that only ONNX Runtime computes, whose fingerprint is empty like theirs."""
    monkeypatch.chdir(tmp_path)
    source = tiny_checkpoints.write("deberta-v2", tmp_path / "model")
    (tmp_path / "vocabulary.gguf").write_bytes(hostile.gguf([hostile.LLAMA], tensors=[], data=0))
    found = choices(str(source), Goal("quality"))
    assert {one.level for one in found.candidates} == {f"onnx {level}" for level in LEVELS}
    assert found.choice.picked.level == "onnx fp32"
    assert "32.00" in found.choice.reason


def test_by_a_gpu_nothing_is_chosen_that_was_measured_of_the_cpu(source, here, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    save(recorded_rates(kernels_of({"Q8_0": 1e-9, "Q4_K": 1e-9}), key=key_of(host())))
    machine = replace(host(), chosen=Chosen("llama.cpp-metal", "for the test", ()))
    assert any(row.prefill_tps for row in choices(str(source), Goal()).choice.rows)
    found = choices(str(source), Goal(), on=machine).choice
    assert not any(row.prefill_tps or row.decode_tps for row in found.rows)
    assert any("not predicted for llama.cpp-metal" in note for note in found.notes)
    with pytest.raises(RequestError, match="not predicted for llama"):
        choices(str(source), Goal("speed"), on=machine)


@pytest.mark.parametrize("case", ["bert", "llama"])
def test_memory_is_what_the_plan_of_the_file_says(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tiny_checkpoints.write(case, tmp_path / "model")
    cpu = replace(host().cpu, cores=8, physical=8, performance_cores=8)
    machine = replace(host(), cpu=cpu)
    before = {one.level: one.memory_bytes for one in choices(str(source), Goal(), on=machine).candidates}
    convert(source, ["q8_0"], tmp_path, settings=Settings(threads=1), prove=False)
    after = {one.level: one.memory_bytes for one in choices(str(source), Goal(), on=machine).candidates}
    planned = plan(str(tmp_path / "model-q8_0.gguf"), on=machine).memory.total_bytes
    assert before["Q8_0"] == after["Q8_0"] == planned


def test_a_gguf_source_bounds_what_is_made_of_it_and_the_rows_say_so(made, here):
    path = here / "model-q8_0.gguf"
    shutil.copy(made / "model-q8_0.gguf", path)
    found = choices(str(path), Goal())
    rows = {row.level: row for row in found.choice.rows}
    assert rows["Q8_0"].reason.startswith("here; ")
    assert rows["Q4_K_M"].reason.startswith("to make; ")
    assert "made from Q8_0, and what that lost stays lost" in rows["Q4_0"].reason
    assert "lost" not in rows["Q8_0"].reason
    best = choices(str(path), Goal("quality")).choice
    assert best.pick == str(path)  # and not the F32 that could be made of it
    assert "source itself" in best.reason
    by_level = {one.level: one for one in found.candidates}
    assert by_level["F32"].bits == pytest.approx(by_level["Q8_0"].bits)


def test_what_was_made_of_the_source_before_is_bounded_by_it_too(made, here):
    path = here / "model-iq4_nl.gguf"
    shutil.copy(made / "model-iq4_nl.gguf", path)
    convert(path, ["q8_0"], here, settings=Settings(threads=1), prove=False)
    found = choices(str(path), Goal("quality"))
    assert found.choice.pick == str(path)
    by_level = {one.level: one for one in found.candidates}
    assert by_level["Q8_0"].where == HERE
    assert by_level["Q8_0"].bits == pytest.approx(by_level["IQ4_NL"].bits)


def test_a_measured_quality_lets_a_level_take_the_place_of_what_everybody_takes(made, here, tmp_path):
    names = ("model-f16.gguf", "model-q4_k_m.gguf", "model-iq4_nl.gguf")
    for name in names:
        shutil.copy(made / name, here)
    text = tmp_path / "text"
    text.write_text("words")

    def measure(name, kld):
        return row_of(
            here / name, level="", base=here / names[0], base_name="model-f16", text=text, tokens=9, context=4,
            kld_mean=kld, kld_error=0.0, perplexity=9.0, top1_agreement=0.9,
        )  # fmt: skip

    record([measure(names[0], None), measure(names[1], 0.02), measure(names[2], 0.01)])
    found = choices(str(here / names[0]), Goal("quality", memory=None))
    klds = {row.level: row.kld_mean for row in found.choice.rows}
    assert (klds["F16"], klds["Q4_K_M"], klds["IQ4_NL"], klds["Q8_0"]) == (0.0, 0.02, 0.01, None)
    assert found.choice.notes[-1] == "kld: from model-f16, over 9 tokens of text"
    balanced = choices(str(here / names[0]), Goal()).choice
    assert balanced.picked.level == "Q4_K_M"  # how fast the other is was not measured
    assert balanced.picked.kld_mean == 0.02


def test_a_mixture_of_its_own_is_called_by_its_bits_and_takes_no_levels_place(made, here):
    header = gguf_header.read(made / "model-q8_0.gguf")
    metadata = {key: value for key, value in header.metadata.items() if key != "general.file_type"}
    assert header.quantization == "Q8_0"
    bits = 8 * sum(tensor.bytes for tensor in header.tensors) / header.parameters
    assert replace(header, metadata=metadata).quantization == f"{bits:.2f}bpw"


def test_a_budget_below_the_smallest_names_it(source, here):
    found = choices(str(source), Goal(memory=1 << 20))
    assert found.choice.pick is None
    smallest = min(found.candidates, key=lambda one: one.memory_bytes)
    with pytest.raises(DoesNotFit, match=f"{smallest.bytes:,} bytes"):
        _ = found.picked
    assert choices(str(source), Goal(), memory=1 << 20).choice.pick is None


def test_what_cannot_be_compared_is_one_line(source, here, tmp_path):
    with pytest.raises(ModelNotFound):
        choices("no-such-model", Goal())
    with pytest.raises(ModelNotFound, match="not on this disk"):
        choices("smollm2-135m-instruct", Goal())
    with pytest.raises(RequestError, match="out of range"):
        choices(str(source), Goal(), ctx=10**9)
    with pytest.raises(RequestError, match="is not a level"):
        candidates(source, ["q9"])
    folder = tmp_path / "deberta"
    tiny_checkpoints.write("deberta-v2", folder)
    with pytest.raises(ConversionError, match="no GGUF form"):
        candidates(folder)
    # what has no GGUF form is compared in its ONNX levels
    assert all(one.level.startswith("onnx ") for one in choices(str(folder), Goal()).candidates)


def test_an_importance_matrix_makes_its_levels_possible(source, here):
    calibrated = {one.level: one.blocked for one in choices(str(source), Goal(), calibrated=True).candidates}
    assert not any(calibrated.values())


def test_of_a_source_that_is_pulled_the_name_is_the_artifact(made, here, home):
    from edge import store

    store.pull(str(made / "model-q8_0.gguf"), "mine")
    found = choices("mine", Goal())
    assert {one.artifact for one in found.candidates if one.where == HERE} >= {"mine"}
    assert replace(found.candidates[0], note="").is_source


def test_onnx_folders_beside_it_are_rows_without_speeds_where_nothing_was_measured(tmp_path, here):
    folder = tiny_checkpoints.write("bert-classifier", tmp_path / "here" / "judge")
    to_onnx.convert(folder, ["int8"], here, prove=False)
    shutil.copytree(here / "judge-int8", here / "judge-other-int8")  # another model's
    found = choices(str(folder), Goal())
    (one,) = [one for one in found.candidates if one.header is None and one.where == HERE]
    assert (one.artifact, one.level, one.where) == (str(here / "judge-int8"), "onnx int8", HERE)
    (row,) = [row for row in found.choice.rows if row.level == "onnx int8"]
    assert row.prefill_tps is row.kld_mean is None
    assert "no speed is known" in row.reason
    alone = choices(str(here / "judge-int8"), Goal()).choice
    assert (alone.pick, alone.reason) == (str(here / "judge-int8"), "all there is")
