"""Opening an encoder by reference: its forms found, the faster one picked by measuring, remembered, refused."""

import json
import shutil
import time

import pytest
from tiny_encoders import as_gguf, as_onnx, checkpoint

from edge import store
from edge.errors import ModelNotFound, RequestError, UnsafeFile
from edge.home import picks_file
from edge.tasks import artifacts, pick, rerank
from edge.tasks.open import load, open_encoder
from edge.tasks.rows import Row

pytest.importorskip("tokenizers")
CASE = "bert-classifier"


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder with the two forms of one model, and little time to measure them."""
    monkeypatch.setattr(pick, "ROUNDS", 3)
    shutil.copytree(as_onnx(CASE), tmp_path / "out" / "tiny-fp32")
    shutil.copy(as_gguf(CASE), tmp_path / "out" / "tiny-f32.gguf")
    return tmp_path / "out"


def slowed(monkeypatch, form, seconds=0.05):
    """Let one form take the processor for that much longer."""
    real = pick.OnnxEncoder if form == "onnx" else pick.GgufEncoder
    run = real.run

    def slow(self, batch):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return run(self, batch)

    monkeypatch.setattr(real, "run", slow)


@pytest.mark.parametrize(("slow", "chosen"), [("onnx", "llama.cpp-cpu"), ("gguf", "onnxruntime-cpu")])
def test_the_faster_form_is_taken_and_both_levels_are_named(out, monkeypatch, slow, chosen):
    slowed(monkeypatch, slow)
    encoder = open_encoder(str(out / "tiny"), threads=1, sample=["a ferry", "left"])
    assert encoder.about.backend == chosen
    names = ("tiny-fp32 · ONNX fp32", "tiny-f32.gguf · GGUF f32")
    assert encoder.reason.startswith(
        f"{names[chosen == 'llama.cpp-cpu']}, 1 thread: fastest of 2 here (tiny-f"
    )
    assert encoder.reason.endswith(" times as long)")
    assert encoder.about.name == "tiny"
    (tokens,) = encoder.tokenize(["a"])
    assert encoder.run([tokens])[0].shape == (3,)
    encoder.close()


def test_what_was_measured_is_not_measured_again_until_a_file_changes(out, monkeypatch):
    slowed(monkeypatch, "onnx")
    reason = open_encoder(str(out), threads=1).reason
    measured = []
    real = pick.measure
    monkeypatch.setattr(pick, "measure", lambda *given: measured.append(1) or real(*given))
    assert open_encoder(str(out), threads=1).reason == reason
    assert not measured
    (out / "tiny-f32.gguf").touch()
    open_encoder(str(out), threads=1)
    assert len(measured) == 1
    open_encoder(str(out), threads=1, sample=["x" * 2000] * 20)
    assert len(measured) == 2
    picks_file().write_text("{damaged")
    open_encoder(str(out), threads=1)
    assert len(measured) == 3
    assert len(json.loads(picks_file().read_text())) == 1


def test_for_one_text_nothing_is_timed(out, monkeypatch):
    monkeypatch.setattr(pick, "measure", lambda *given: pytest.fail("timed"))
    loaded = []
    real = pick.OnnxEncoder.__init__
    monkeypatch.setattr(pick.OnnxEncoder, "__init__", lambda *given: loaded.append(1) or real(*given))
    encoder = open_encoder(str(out), threads=1, sample=["a ferry"])
    sizes = {"tiny-fp32": (out / "tiny-fp32" / "model.onnx").stat().st_size, "tiny-f32.gguf": 0}
    sizes["tiny-f32.gguf"] = (out / "tiny-f32.gguf").stat().st_size
    assert encoder.about.path.name == min(sizes, key=sizes.__getitem__)
    assert "the smallest of 2, which are not timed for one text" in encoder.reason
    assert len(loaded) == (encoder.about.backend == "onnxruntime-cpu")
    assert not picks_file().exists()


@pytest.mark.parametrize(("slow", "chosen"), [("onnx", "llama.cpp-cpu"), ("gguf", "onnxruntime-cpu")])
def test_one_text_is_read_by_what_was_the_fastest_for_others(out, monkeypatch, slow, chosen):
    slowed(monkeypatch, slow)
    reason = open_encoder(str(out), threads=1, sample=["x" * 300] * 3).reason
    monkeypatch.setattr(pick, "measure", lambda *given: pytest.fail("timed"))
    encoder = open_encoder(str(out), threads=1, sample=["a ferry"])
    assert (encoder.about.backend, encoder.reason) == (chosen, reason)


def test_what_takes_far_longer_is_timed_once(out, monkeypatch):
    runs = []
    slowed(monkeypatch, "gguf", 0.3)
    real = pick.GgufEncoder.run
    monkeypatch.setattr(pick.GgufEncoder, "run", lambda self, batch: runs.append(1) or real(self, batch))
    assert open_encoder(str(out), threads=1, sample=["a", "b"]).about.backend == "onnxruntime-cpu"
    assert len(runs) == 2  # to warm up, and once


def test_pairs_are_read_by_a_form_that_can(tmp_path, monkeypatch):
    slowed(monkeypatch, "onnx")
    shutil.copytree(as_onnx("bert-cross-encoder"), tmp_path / "cross-fp32")
    shutil.copy(as_gguf("bert-cross-encoder"), tmp_path / "cross-f32.gguf")
    encoder = open_encoder(str(tmp_path / "cross"), threads=1, sample=["a", "b"], pairs=True)
    assert encoder.about.backend == "onnxruntime-cpu"
    assert len(encoder.tokenize(["a"], ["b"])) == 1
    ranked = rerank.rerank(encoder, "a ferry", [Row("left at 7:45", line=1), Row("good", line=2)])
    assert {one.line for one in ranked} == {1, 2}


def test_a_backend_that_is_asked_for_is_not_measured(out):
    for backend, given in (("onnx", "onnxruntime-cpu"), ("gguf", "llama.cpp-cpu")):
        encoder = open_encoder(str(out / "tiny"), backend=backend, threads=1)
        assert (encoder.about.backend, encoder.reason) == (given, "")
    (out / "tiny-f32.gguf").unlink()
    with pytest.raises(RequestError, match="here as ONNX, not as GGUF"):
        open_encoder(str(out / "tiny"), backend="gguf")
    assert not picks_file().exists()


def test_a_level_that_costs_labels_is_not_picked_for_its_speed(out, monkeypatch):
    slowed(monkeypatch, "onnx")
    shutil.move(out / "tiny-f32.gguf", out / "tiny-q4_0.gguf")
    forms = [
        artifacts.artifact(out / "tiny-fp32"),
        artifacts.Artifact(out / "tiny-q4_0.gguf", "gguf", "q4_0", "classification"),
    ]
    encoder = pick.pick("tiny", forms, lambda form: load(form, "tiny", 1), [], 1)
    assert encoder.about.backend == "onnxruntime-cpu"
    assert "tiny-q4_0.gguf (GGUF) left out: its labels may differ" in encoder.reason


def test_every_way_to_name_one_form(out):
    for ref in (out / "tiny-fp32", out / "tiny-fp32" / "model.onnx", out / "tiny-f32.gguf"):
        encoder = open_encoder(str(ref), threads=1)
        assert (encoder.about.task, encoder.reason) == ("classification", "")
        assert artifacts.task(str(ref)) == "classification"
    store.pull(str(out / "tiny-fp32"), "kept")
    assert open_encoder("kept", threads=1).about.name == "kept"
    assert store.verify("kept").ok
    store.remove("kept")
    assert (out / "tiny-fp32" / "model.onnx").is_file()


def test_what_cannot_be_opened_says_what_to_do(out, tmp_path):
    with pytest.raises(RequestError, match="is a checkpoint") as caught:
        open_encoder(str(checkpoint(CASE)))
    assert "edge convert" in caught.value.hint
    shutil.copytree(as_onnx("bert-tokens"), out / "other-fp32")
    with pytest.raises(RequestError, match="2 models"):
        open_encoder(str(out))
    shutil.copytree(as_onnx("bert-tokens"), out / "tiny-int8")
    with pytest.raises(RequestError, match="different models"):
        open_encoder(str(out / "tiny"), threads=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no model"):
        open_encoder(str(tmp_path / "empty"))
    for absent in (str(tmp_path / "absent"), "absent"):
        with pytest.raises(ModelNotFound):
            open_encoder(absent)


def test_a_kept_checkpoint_is_called_by_its_name():
    store.pull(str(checkpoint(CASE)), "kept-source")
    with pytest.raises(RequestError, match=r"^kept-source is a checkpoint$") as caught:
        open_encoder("kept-source")
    assert "`edge convert kept-source --to onnx" in caught.value.hint


def test_a_folder_that_lost_its_graph_is_no_checkpoint(out):
    (out / "tiny-fp32" / "model.onnx").unlink()
    for look in (open_encoder, artifacts.task, store.resolve):
        with pytest.raises(
            RequestError, match=r"has no weights: .* neither \.safetensors nor \.onnx"
        ) as caught:
            look(str(out / "tiny-fp32"))
        assert "convert" in caught.value.hint


def test_a_damaged_form_is_not_passed_over_in_silence(out):
    (out / "tiny-fp32" / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(UnsafeFile):
        open_encoder(str(out / "tiny"), threads=1)
