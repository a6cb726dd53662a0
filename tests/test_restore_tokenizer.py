"""From a GGUF vocabulary back to tokenizer.json, each kind held to llama.cpp's ids of the file."""

import json
from pathlib import Path

import pytest
from tiny import byte_letters

from edge import gguf_header
from edge.convert import tokenizer
from edge.convert.gguf import head
from edge.convert.tokenizer import probes
from edge.convert.tokenizer.pretokenizers import REGEXES, SAME, WHOLE_WORDS, steps_for
from edge.convert.tokenizer.restore import check, restore
from edge.convert.tokenizer.trial import model
from edge.errors import ConversionError

tokenizers = pytest.importorskip("tokenizers")
SHARED = Path(__file__).parents[2] / "shared" / "tokenizers"
# folder of real tokenizer files → rows of its model's embedding
REAL = {"llama-2": 32000, "roberta-base": 50265, "t5-small": 32128, "bert-base-uncased": 30522}


def rebuilt(tmp_path, fields, rows):
    """Write the fields as a GGUF file, rebuild and check its tokenizer: (folder, notes)."""
    path, folder = tmp_path / "vocab.gguf", tmp_path / "rebuilt"
    keys = {"general.architecture": "llama", "llama.context_length": 512, **fields}
    path.write_bytes(head(keys, []).data)
    folder.mkdir(exist_ok=True)
    with model(path) as vocab:
        found = restore(path, gguf_header.read(path), vocab)
        (folder / "tokenizer.json").write_text(json.dumps(found.tokenizer))
        (folder / "tokenizer_config.json").write_text(json.dumps(found.settings))
        return folder, check(folder, {}, rows, fields.get("tokenizer.ggml.pre", "default"), vocab)


@pytest.fixture(scope="module")
def merged():
    """Byte-level merges that were learnt from the probes without splitting them, so that each split shows."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = byte_letters()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    bpe.train_from_iterator(probes.HARD * 2, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    return alphabet, [" ".join(merge) for merge in learnt["merges"]]


def byte_level(merged, pre, **more):
    alphabet, merges = merged
    tokens = ["<end>", "<start>", *alphabet, *dict.fromkeys(merge.replace(" ", "") for merge in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, f"[PAD{len(tokens)}]"],
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2) + [5],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        **more,
    }


@pytest.mark.parametrize("pre", [*REGEXES, "roberta-bpe", "dbrx"])
def test_text_is_split_as_llama_cpp_does_it(tmp_path, merged, pre):
    fields = byte_level(merged, pre)
    _, notes = rebuilt(tmp_path, fields, len(fields["tokenizer.ggml.tokens"]))
    cased = pre in ("tekken", "gpt-4o")
    assert bool(notes) == cased, notes
    assert all("upper from lower case in ASCII" in note for note in notes)


def test_each_other_name_of_a_way_to_split_is_one_that_llama_cpp_has(tmp_path, merged):
    for pre in (*SAME, *WHOLE_WORDS):
        steps_for(pre)
        path = tmp_path / "vocab.gguf"
        fields = byte_level(merged, pre)
        path.write_bytes(head({"general.architecture": "llama", **fields}, []).data)
        with model(path) as vocab:
            assert vocab.size > 1000


def test_a_wrong_rebuild_is_caught(tmp_path, merged):
    fields = byte_level(merged, "smollm")
    folder, _ = rebuilt(tmp_path, fields, 5000)
    changed = json.loads((folder / "tokenizer.json").read_text())
    changed["pre_tokenizer"] = steps_for("qwen2")
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    with (
        model(tmp_path / "vocab.gguf") as vocab,
        pytest.raises(ConversionError, match="rebuilt from the file is not what"),
    ):
        check(folder, {}, 5000, "smollm", vocab)


def test_the_files_say_what_stands_around_a_text_and_end_without_padding(tmp_path, merged):
    around = {"tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ messages }}"}
    folder, _ = rebuilt(tmp_path, byte_level(merged, "llama-bpe", **around), 5000)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert made.encode("a", "b").ids[0] == made.encode("a").ids[0] == 1
    assert made.token_to_id("<start>") == 1
    assert not any(token.startswith("[PAD") for token in made.get_vocab())
    assert made.decode(made.encode(" Grüße, 世界").ids) == " Grüße, 世界"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<start>", "<end>")
    assert settings["chat_template"] == "{{ messages }}"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "of the kind 'rwkv'"),
        ({"tokenizer.ggml.pre": "viking"}, "pre-tokenizer 'viking' is not known"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 types"),
        ({"tokenizer.ggml.merges": ["a b c d e"]}, "package does not read"),
        ({"tokenizer.ggml.merges": [1, 2]}, "merges holds other things than str"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(tmp_path, merged, change, words):
    whole, broken = tmp_path / "whole.gguf", tmp_path / "broken.gguf"
    keys = {"general.architecture": "llama", "llama.context_length": 512, **byte_level(merged, "smollm")}
    whole.write_bytes(head(keys, []).data)
    broken.write_bytes(head({**keys, **change}, []).data)

    def through():
        found = restore(broken, gguf_header.read(broken), vocab)
        (tmp_path / "tokenizer.json").write_text(json.dumps(found.tokenizer))
        check(tmp_path, {}, 5000, "smollm", vocab)

    with model(whole) as vocab, pytest.raises(ConversionError, match=words):
        through()


@pytest.mark.skipif(not SHARED.exists(), reason="the real tokenizer files lie beside the repository")
@pytest.mark.parametrize("name", REAL)
def test_a_real_tokenizer_comes_back_and_converts_again(tmp_path, name):
    first = tokenizer.convert(SHARED / name, {}, REAL[name])
    folder, _ = rebuilt(tmp_path, first.fields, REAL[name])
    again = tokenizer.convert(folder, {}, REAL[name])
    differing = {key for key, value in first.fields.items() if again.fields.get(key) != value}
    # Llama 2's come from tokenizer.model the first time; their order is what counts
    assert differing <= {"tokenizer.ggml.scores"}
    assert (differing == set()) == (name != "llama-2")
