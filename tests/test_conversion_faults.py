"""Conversions that are killed, interrupted, repeated, or meet a disk or a checkpoint that fails them."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_checkpoints

from edge import gguf_header
from edge.cli import run
from edge.convert import stream, to_gguf
from edge.convert.checkpoint import Checkpoint
from edge.convert.drafts import drafts, reserve
from edge.convert.safetensors import Writer, read_header
from edge.errors import ConversionError, StoreError, UnsafeFile

LEVELS = ["f32", "q8_0", "q4_k_m"]


@pytest.fixture
def source(tmp_path):
    return tiny_checkpoints.write("llama", tmp_path / "model")


@pytest.fixture
def slow(source):
    """A conversion in a process of its own that rests after every tensor."""
    code = (
        "import sys, time\n"
        "from edge.cli import run\n"
        "from edge.convert.drafts import Drafts\n"
        "finish = Drafts.finish\n"
        "def resting(self, step):\n"
        "    finish(self, step)\n"
        "    time.sleep(0.1)\n"
        "Drafts.finish = resting\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )

    def start(out):
        words = ["convert", str(source), "--level", ",".join(LEVELS), "--out", str(out)]
        return subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)

    return start


def journal(out):
    path = out / ".model.converting" / "journal"
    return path.read_text().splitlines()[1:] if path.exists() else []


def until(out, steps):
    deadline = time.monotonic() + 60
    while len(journal(out)) < steps:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_what_is_stopped_leaves_no_file_and_goes_on_at_its_tensor(source, slow, tmp_path, monkeypatch, sent):
    out = tmp_path / "out"
    with slow(out) as process:
        until(out, 5)
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 130), error
    assert visible(out) == []
    done = {step.removeprefix("tensor ") for step in journal(out)}
    assert len(done) >= 5

    read, chunks = set(), Checkpoint.chunks

    def noting(self, name, *args, **kwargs):
        read.add(name)
        return chunks(self, name, *args, **kwargs)

    monkeypatch.setattr(Checkpoint, "chunks", noting)
    resumed = to_gguf.convert(source, LEVELS, out)
    assert "model.embed_tokens.weight" not in read
    assert len(read) == len(gguf_header.read(resumed[0].path).tensors) - len(done)
    assert visible(out) == sorted(f"model-{level}.{end}" for level in LEVELS for end in ("gguf", "json"))
    assert not (out / ".model.converting").exists()
    whole = to_gguf.convert(source, LEVELS, tmp_path / "whole")
    assert [one.path.read_bytes() for one in resumed] == [one.path.read_bytes() for one in whole]


def test_other_settings_do_not_go_on_with_what_was_begun(source, slow, tmp_path):
    out = tmp_path / "out"
    with slow(out) as process:
        until(out, 3)
        process.kill()
    settings = to_gguf.Settings(output_type="f16")
    made = to_gguf.convert(source, LEVELS, out, settings=settings, prove=False)
    fresh = to_gguf.convert(source, LEVELS, tmp_path / "fresh", settings=settings, prove=False)
    assert [one.path.read_bytes() for one in made] == [one.path.read_bytes() for one in fresh]


def test_two_conversions_of_one_name_do_not_meet_and_two_of_others_do_not_mind(
    source, slow, tmp_path, capsys
):
    out = tmp_path / "out"
    with slow(out) as process:
        until(out, 1)
        assert run(["convert", str(source), "--level", "q8_0", "--out", str(out)]) == 1
        assert "is being converted" in capsys.readouterr().err
        assert run(["convert", str(source), "--level", "q8_0", "--out", str(out), "--name", "other"]) == 0
        assert process.wait(timeout=120) == 0
    names = {f"model-{level}.{end}" for level in LEVELS for end in ("gguf", "json")}
    assert set(visible(out)) == names | {"other-q8_0.gguf", "other-q8_0.json"}


def test_a_file_that_is_there_is_kept(source, tmp_path, capsys):
    there = tmp_path / "model-f16.gguf"
    there.write_bytes(b"mine")
    assert run(["convert", str(source), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "model-f16.gguf is there already" in error
    assert error.count("\n") == 1
    assert there.read_bytes() == b"mine"
    assert not (tmp_path / ".model.converting").exists()


def test_a_disk_that_fills_up_is_said_and_the_rest_goes_on_later(source, tmp_path):
    """A limit on the size of files is a full disk that needs no disk."""
    out = tmp_path / "out"
    words = ["convert", str(source), "--level", "f32", "--out", str(out)]
    code = "import sys; from edge.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert visible(out) == []
    (made,) = to_gguf.convert(source, ["f32"], out)
    assert made.certificate


def test_a_disk_without_room_is_seen_first(tmp_path):
    with pytest.raises(StoreError, match="1,152,921,504,606,846,976 bytes"):
        reserve(tmp_path, 1 << 60)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_is_said(source, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o500)
    assert run(["convert", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_file_where_the_folder_should_be_is_said(source, tmp_path, capsys):
    (tmp_path / "out").write_bytes(b"")
    assert run(["convert", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_lock_goes_with_its_process(tmp_path):
    with drafts(tmp_path, "model", {}) as held:
        with pytest.raises(StoreError, match="being converted"), drafts(tmp_path, "model", {}):
            pass
        assert held.folder.exists()
    with drafts(tmp_path, "model", {}) as again:
        again.finish("one")


def changed(source, change):
    """The checkpoint with some tensors' values changed by `change(name, values)`."""
    path = source / "model.safetensors"
    header, data = read_header(path), path.read_bytes()
    arrays = {
        name: np.frombuffer(data, np.float32, info.bytes // 4, info.offset).reshape(info.shape).copy()
        for name, info in header.items()
    }
    path.unlink()
    with Writer(path, [(name, "F32", values.shape) for name, values in arrays.items()]) as writer:
        for name, values in arrays.items():
            change(name, values)
            writer.write(name, values)


def test_weights_that_are_not_numbers_are_named(source, tmp_path):
    def spoil(name, values):
        if name == "model.layers.1.mlp.up_proj.weight":
            values[3, 5] = np.nan

    changed(source, spoil)
    with pytest.raises(
        UnsafeFile, match=r"layers.1.mlp.up_proj.weight has 1 values that are NaN .* \[3, 5\]"
    ):
        to_gguf.convert(source, ["q8_0"], tmp_path / "out")
    assert visible(tmp_path / "out") == []
    assert not (tmp_path / "out" / ".model.converting").exists()


def test_weights_beyond_f16_are_refused_there_and_kept_in_bf16(source, tmp_path):
    def enlarge(name, values):
        if name == "model.layers.0.mlp.up_proj.weight":
            values[0, 0] = 1e5

    changed(source, enlarge)
    with pytest.raises(
        ConversionError, match=r"blk\.0\.ffn_up\.weight: it has values beyond 65504, which F16"
    ):
        to_gguf.convert(source, ["f16"], tmp_path / "out")
    assert len(to_gguf.convert(source, ["bf16"], tmp_path / "out", prove=False)) == 1


def test_a_tied_output_that_was_saved_as_well_is_let_be(tmp_path):
    source = tiny_checkpoints.write("llama", tmp_path / "model")
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    (made,) = to_gguf.convert(source, ["f32"], tmp_path / "out")
    assert "output.weight" not in {tensor.name for tensor in gguf_header.read(made.path).tensors}


def test_layers_are_left_out_and_the_rest_is_proven(tmp_path):
    source = tiny_checkpoints.write("gemma2", tmp_path / "model")
    (made,) = to_gguf.convert(
        source, ["f32"], tmp_path / "out", settings=to_gguf.Settings(prune_layers=[1, 2])
    )
    header = gguf_header.read(made.path)
    assert (header.layers, header.metadata["edge.pruned_layers"]) == (2, (1, 2))
    assert "without layers 1, 2" in made.notes[-1]
    assert made.certificate.comparison.logit_error < 1e-3


def test_a_lock_that_another_program_holds_is_respected(tmp_path):
    folder = tmp_path / ".model.converting"
    folder.mkdir()
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process"), drafts(tmp_path, "model", {}):
            pass


def test_one_at_a_time_also_while_another_clears_up(tmp_path):
    """The lock is a file in a folder that goes with it: whoever waits must not hold the lock of a folder that went."""
    met, refusals = [], set()

    def convert_often():
        for _ in range(400):
            try:
                with drafts(tmp_path, "model", {}) as held:
                    os.close(os.open(held.folder / "mine", os.O_CREAT | os.O_EXCL))
                    held.finish("one")
                    assert (held.folder / "journal").read_text().endswith("one\n")
                    (held.folder / "mine").unlink()
                    met.append(held)
            except StoreError as error:
                refusals.add(str(error))

    with ThreadPoolExecutor(4) as pool:
        for task in [pool.submit(convert_often) for _ in range(4)]:
            task.result()
    assert met
    assert all("being converted" in refusal for refusal in refusals)
    assert not (tmp_path / ".model.converting").exists()


def test_a_name_cut_off_while_files_get_theirs_is_made_again_whole(source, tmp_path, monkeypatch):
    """All is written, one of two files has its name: killed there, the other's draft is all that is left."""
    out, named = tmp_path / "out", []

    def name_one(draft, final):
        if named:
            raise KeyboardInterrupt
        named.append(final)
        draft.replace(final)

    with monkeypatch.context() as patched:
        patched.setattr(to_gguf, "name_it", name_one)
        with pytest.raises(KeyboardInterrupt):
            to_gguf.convert(source, ["q8_0", "q4_0"], out, prove=False)
    whole = named[0].read_bytes()
    with pytest.raises(StoreError, match="is there already"):
        to_gguf.convert(source, ["q8_0", "q4_0"], out, prove=False)
    named[0].unlink()
    again = to_gguf.convert(source, ["q8_0", "q4_0"], out, prove=False)
    assert again[0].path.read_bytes() == whole


def test_a_file_that_came_meanwhile_is_kept(source, tmp_path, monkeypatch):
    there = tmp_path / "out" / "model-f16.gguf"

    def other_program(*args):
        there.write_bytes(b"mine")
        return stream.stream(*args)

    monkeypatch.setattr(to_gguf, "stream", other_program)
    with pytest.raises(StoreError, match="is there already"):
        to_gguf.convert(source, ["f16"], tmp_path / "out", prove=False)
    assert there.read_bytes() == b"mine"
    there.unlink()
    monkeypatch.undo()
    assert to_gguf.convert(source, ["f16"], tmp_path / "out", prove=False)


def test_a_link_in_the_drafts_place_is_not_followed(tmp_path):
    """All in the drafts' folder is removed in the end."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "letter").write_bytes(b"mine")
    (tmp_path / ".model.converting").symlink_to(tmp_path / "papers")
    with pytest.raises(StoreError, match="is no folder"), drafts(tmp_path, "model", {}):
        pass
    assert (tmp_path / "papers" / "letter").read_bytes() == b"mine"


def test_a_certificate_that_cannot_be_written_is_said(source, tmp_path, capsys):
    (made,) = to_gguf.convert(source, ["f32"], tmp_path / "out", prove=False)
    made.path.with_suffix(".json").mkdir()
    assert run(["convert", "--check", str(made.path), "--against", str(source)]) == 1
    error = capsys.readouterr().err
    assert f"{made.path.with_suffix('.json')} is there already" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("case", "left_out", "windows"),
    [
        ("gemma2", (1,), [True, True, False]),
        ("gemma3", (1,), [True] * 4 + [False, True]),
        ("qwen2-window", (0,), None),
    ],
)
def test_a_layer_that_stays_keeps_its_window(tmp_path, case, left_out, windows):
    """Gemma's layers have a window by their place, and another rotation with it."""
    model = tiny_checkpoints.write(case, tmp_path / "model")
    settings = to_gguf.Settings(prune_layers=left_out)
    (made,) = to_gguf.convert(model, ["f32"], tmp_path / "out", settings=settings)
    header = gguf_header.read(made.path)
    key = f"{header.architecture}.attention.sliding_window_pattern"
    assert header.metadata.get(key) == (tuple(windows) if windows else None)
    assert made.certificate.comparison.logit_error < 1e-3


def test_what_is_not_there_and_what_is_not_run_is_said(source, tmp_path):
    (made,) = to_gguf.convert(source, ["f16"], tmp_path / "plain", prove=False)
    assert made.notes == ("the checkpoint has no chat template: `edge chat` needs --template for the file",)
    settings = {"chat_template": "{{ messages }}", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (made,) = to_gguf.convert(source, ["f16"], tmp_path / "told", prove=False)
    assert gguf_header.read(made.path).chat_template == "{{ messages }}"
    (note,) = made.notes
    assert "tokenizer_config.json names code" in note
    assert "never run" in note


@pytest.mark.parametrize(
    "settings",
    [{"chat_template": "\ud800"}, {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}],
    ids=["half a pair of surrogates", "an id of 5000 digits"],
)
def test_tokenizer_settings_that_no_file_can_hold_are_refused(source, tmp_path, settings):
    if "added_tokens_decoder" in settings:  # it is read where there is no tokenizer.json
        (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConversionError) as refused:
        to_gguf.convert(source, ["f16"], tmp_path / "out")
    assert "\n" not in refused.value.line
    assert visible(tmp_path / "out") == [] if (tmp_path / "out").exists() else True
