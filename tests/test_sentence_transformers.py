"""What a sentence-transformers folder says of pooling, and what of it llama.cpp cannot follow."""

import json

import pytest

from edge.convert.sentence_transformers import described
from edge.errors import ConversionError

FLAGS = dict.fromkeys(
    ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"), False
) | {"word_embedding_dimension": 384}


def folder(tmp_path, modules, pooling=None, settings=None):
    """The files of a folder, by their names in it."""
    found = {}
    types = [{"type": f"sentence_transformers.models.{module}"} for module in modules]
    for name, value in (
        ("modules.json", types),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", settings),
    ):
        if value is not None:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(value))
            found[name] = tmp_path / name
    return found


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (FLAGS | {"pooling_mode_mean_tokens": True}, "mean"),
        (FLAGS | {"pooling_mode_cls_token": True}, "cls"),
        (FLAGS | {"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 384}, "last"),
    ],
)
def test_the_way_of_pooling_is_read(tmp_path, pooling, expected):
    files = folder(tmp_path, ["Transformer", "Pooling", "Normalize"], pooling, {"max_seq_length": 256})
    said = described({"hidden_size": 384}, files)
    assert said["hidden_size"] == 384
    assert said["sentence_transformers"] == {"pooling": expected, "normalize": True, "reads": 256}


def test_a_folder_of_another_kind_is_left_as_it_is(tmp_path):
    config = {"hidden_size": 384}
    assert described(config, {}) is config
    said = described(config, folder(tmp_path, ["Transformer"]))["sentence_transformers"]
    assert said == {"pooling": "none", "normalize": False, "reads": 0}


@pytest.mark.parametrize(
    ("modules", "pooling", "words"),
    [
        (["Transformer", "Pooling", "Dense"], FLAGS | {"pooling_mode_mean_tokens": True}, "a Dense module"),
        (["MLMTransformer", "SpladePooling"], None, "a MLMTransformer module"),
        (["Transformer", "Pooling"], FLAGS | {"pooling_mode_max_tokens": True}, "by pooling_mode_max_tokens"),
        (["Transformer", "Pooling"], {"pooling_mode": "weightedmean"}, "pools by weightedmean"),
        (["Transformer", "Pooling"], FLAGS, "pools by none"),
        (
            ["Transformer", "Pooling"],
            FLAGS | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            r"cls_token \+ pooling_mode_mean",
        ),
        (["Transformer", "Pooling"], None, "there is no 1_Pooling/config.json"),
        (["Transformer", "Pooling"], ["mean"], "no JSON object"),
    ],
)
def test_what_llama_cpp_cannot_follow_is_refused(tmp_path, modules, pooling, words):
    with pytest.raises(ConversionError, match=words):
        described({}, folder(tmp_path, modules, pooling))


@pytest.mark.parametrize("text", ["[", "{}", "[1]", "[" * 100_000])
def test_a_damaged_list_of_modules_is_refused(tmp_path, text):
    path = tmp_path / "modules.json"
    path.write_text(text)
    with pytest.raises(ConversionError, match=r"modules\.json is no"):
        described({}, {"modules.json": path})
