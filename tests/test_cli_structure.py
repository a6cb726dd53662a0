"""--schema, --grammar, --regex and --choices of `edge generate` and `edge chat`, on a tiny model."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_llama

from edge.cli import run

SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)


def test_an_answer_is_what_was_asked_for(model, tmp_path, capfd):
    (tmp_path / "s.json").write_text(SCHEMA)
    (tmp_path / "g.gbnf").write_text('root ::= "grammar" [0-9]{3}\n')
    for option, fits in (
        (["--schema", SCHEMA], lambda text: type(json.loads(text)["a"]) is bool),
        (["--schema", str(tmp_path / "s.json")], lambda text: type(json.loads(text)["a"]) is bool),
        (["--grammar", str(tmp_path / "g.gbnf")], lambda text: text[:7] == "grammar" and len(text) == 10),
        (["--regex", "x{3}|y{4}"], lambda text: text in ("xxx", "yyyy")),
        (["--choices", r"yes,no\, never"], lambda text: text in ("yes", "no, never")),
    ):
        for verb, prompt in (("generate", "Hello"), ("chat", "Hello")):
            assert run([verb, model, prompt, "--seed", "3", "--temp", "1", *option]) == 0
            out, err = capfd.readouterr()
            assert fits(out.removesuffix("\n")), (option, out)
            assert "cut short" not in err


def test_several_samples_each_fit(model, capfd):
    assert run(["generate", model, "Hello", "-n", "3", "--json", "--seed", "1", "--schema", SCHEMA]) == 0
    texts = json.loads(capfd.readouterr().out)["texts"]
    assert len(texts) == 3
    assert all(type(json.loads(text)["a"]) is bool for text in texts)


def test_an_answer_that_is_cut_short_says_so(model, capfd):
    for verb in ("generate", "chat"):
        assert run([verb, model, "Hello", "--max-tokens", "2", "--schema", SCHEMA]) == 0
        assert "it is not whole JSON" in capfd.readouterr().err
        assert run([verb, model, "Hello", "--max-tokens", "2", "--regex", "a{20}"]) == 0
        assert "not all that --regex asks for" in capfd.readouterr().err
    assert run(["generate", model, "Hello", "--json", "--stop", ":", "--schema", SCHEMA]) == 0
    assert "it is not whole JSON" in capfd.readouterr().err
    assert (
        run(
            [
                "generate",
                model,
                "Hello",
                "--max-tokens",
                "2",
                "--schema",
                '{"type": "integer", "minimum": 100}',
            ]
        )
        == 0
    )
    assert "it is not whole JSON" in capfd.readouterr().err  # 10 is a number, and not the one it was to be


def test_an_answer_that_ends_at_the_limit_and_is_whole_is_not_called_cut(model, tmp_path, capfd):
    (tmp_path / "g.gbnf").write_text("root ::= [0-9]+\n")
    for option, said in (
        (["--regex", "[0-9]+"], ""),  # more of them might have come, but each beginning matches
        (["--regex", "[0-9]{30}"], "the answer was cut short: it is not all that --regex asks for"),
        (["--choices", "a,ab"], ""),
        (["--choices", "abcdefghijklmnop"], "cut short: it is not all that --choices asks for"),
        (["--grammar", str(tmp_path / "g.gbnf")], "cut at --max-tokens or --ctx: it may not be all that"),
    ):
        limits = ["--max-tokens", "1" if "a,ab" in option else "3", "--seed", "1"]
        assert run(["generate", model, "Hello", *limits, *option]) == 0
        err = capfd.readouterr().err
        assert said in err
        assert ("was cut" in err) == bool(said), (option, err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--schema", "{}", "--regex", "a"], "--schema and --regex cannot both hold"),
        (["--schema", '{"not": {}}'], "not, which a grammar cannot express"),
        (["--schema", "[1]"], "is no object"),
        (["--schema", "none.json"], "not there"),
        (["--schema", "."], "a folder"),
        (["--schema", ""], "a folder"),
        (["--grammar", "none.gbnf"], "not there"),
        (["--regex", "("], "not closed"),
        (["--choices", "a,,b"], "a choice is empty"),
        (["--choices", ""], "a choice is empty"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_a_model_is_loaded(options, said, capfd):
    for verb in ("generate", "chat"):
        assert run([verb, "no-such-model", "Hello", *options]) == 2
        out, err = capfd.readouterr()
        assert not out
        assert said in err
        assert err.count("\n") == 1


def test_a_saved_conversation_goes_on_without_the_structure_of_one_answer(model, capfd):
    assert run(["chat", model, "Hello", "--session", "a", "--choices", "yes", "--temp", "0"]) == 0
    assert capfd.readouterr().out == "yes\n"
    assert run(["chat", model, "And?", "--session", "a", "--max-tokens", "4"]) == 0
    assert capfd.readouterr().out != "yes\n"


def test_a_conversation_takes_no_structure(model, monkeypatch, capfd):
    monkeypatch.setattr("edge.cli.chat.with_stdin", lambda prompt: prompt)
    assert run(["chat", model, "--choices", "a,b"]) == 2
    assert "--choices is for one answer" in capfd.readouterr().err
