"""Grammars: what is refused before llama.cpp sees it, and what an answer may be under one."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from tiny import tiny_llama

from edge.engine.binding import listen, llama
from edge.engine.chain import Chain
from edge.engine.gbnf import check_grammar
from edge.engine.grammar import Grammar
from edge.engine.sampling import Sampling
from edge.engine.vocab import Vocab
from edge.errors import RequestError

LETTER = 'root ::= "a"'


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    lib = llama()
    listen()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    path = tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    yield Vocab(model)
    lib.llama_model_free(model)


FOLLOWED = {
    "letters": 'root ::= "yes" | "no"',
    "classes": r'root ::= [^a-z\]\\"-]+ [\x41-\u005A] [a-]',
    "lines": '# said first\n\nroot ::= head # here\n   \nhead ::= ( "a"\n | # there\n "b" )\r\n',
    "counts": 'root ::= "a"{3} "b"{2,} "c"{0,4} ("d" "e"?){1,7} "f"* .+ x{0}\nx ::= "x"',
    "skippable loop": 'root ::= ("a"? "b"?)* "c"',
    "recursion": 'root ::= "[" (root ("," root)*)? "]"',
    "nothing": "root ::=",
    "an end": 'root ::= "a" |',
    "twice": 'root ::= gone\nroot ::= "b"\ngone ::= "c"',
    "brackets": "root ::= " + "(" * 199 + '"a"' + ")" * 199,
    "many alternatives": "root ::= " + " | ".join(f'"{n}"' for n in range(3000)),
    "many rules": "\n".join(f"r{n} ::= r{n + 1}" for n in range(1900)) + '\nr1900 ::= "z"\nroot ::= r0',
    "doubled": "root ::= " + "(" * 150 + '"a"' + "){2}" * 150,  # of 2^150 letters, one rule each
    "tokens": "root ::= <|im_start|> !<[5]> <[6]>",
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed_parses_natively_too(vocab, name, capfd):
    named = check_grammar(FOLLOWED[name])
    grammar = Grammar(FOLLOWED[name], vocab, frozenset())
    grammar.allows(50)
    grammar.close()
    assert named == (("<|im_start|>", "<[5]>", "<[6]>") if name == "tokens" else ())
    assert capfd.readouterr().err == ""


# What llama.cpp does with each stands behind it
REFUSED = {
    "no root": ('x ::= "a"', "has no rule root"),  # NULL
    "empty": ("  # nothing\n", "has no rule root"),  # NULL
    "undefined": ('root ::= "a"\nx ::= lost', "does not say what lost is"),  # a message on stderr
    "underscore": ('root ::= x_y\nx ::= "a"', "line 1 cannot be read from '_y"),
    "equals": ('root = "a"', "line 1 has no ::="),
    "open text": ('x ::= "a"\nroot ::= "abc', "line 2 cannot be read"),
    "open class": ("root ::= [abc", "line 1 cannot be read"),
    "open bracket": ('root ::= (("a")', r"line 1 lacks a \)"),
    "closed twice": ('root ::= "a")', r"line 1 has a \) too many"),
    "escape": (r'root ::= "\q"', "line 1 cannot be read"),
    "hex": (r'root ::= "\x4"', "line 1 cannot be read"),
    "star alone": ("root ::= *", "line 1 repeats nothing"),
    "star of nothing": ('root ::= ""*', "line 1 repeats nothing"),
    "NUL": ('root ::= "a\0"', "holds a NUL"),  # the text would end there
    "surrogate": ('root ::= "\ud800"', "half a surrogate"),
    "a limit too large": ('root ::= "a"{0,2001}', "repeats more than 2000 times"),
    "too many": ('root ::= "a"{2001}', "repeats more than 2000 times"),
    "multiplied": ('root ::= ("a"? "b"?){0,1999}', "repeats more than 2000 times"),
    "twenty digits": ('root ::= "a"{99999999999999999999}', "cannot be read"),
    "backwards": ('root ::= "a"{3,2}', "repeats from 3 to 2 times"),  # never ends, takes all memory
    "left": ('root ::= root "a" | "b"', "left recursion: root"),  # NULL
    "left, two": ('root ::= x "a" | "b"\nx ::= root', "left recursion"),  # NULL
    "left, hidden": ('root ::= a root "x" | "y"\na ::= b\nb ::= ""', "left recursion: root"),  # never ends
    "no text": ('root ::= e root\ne ::= f\nf ::= ""', "never ends: the rule root"),  # aborts the process
    "no end": ('root ::= "a" u | "y"\nu ::= "a" u', "never ends: the rule u"),
    "deep": ("root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000, "more than 200 brackets"),  # overflows
    "a long chain": (
        "\n".join(f"r{n} ::= r{n + 1}" for n in range(5000)) + '\nr5000 ::= "z"\nroot ::= r0',
        "more than 2000 rules",  # 100,000 overflow the stack
    ),
    "doubling": (
        "\n".join(f'r{n} ::= r{n + 1} "x" | r{n + 1} "y"' for n in range(40)) + '\nr40 ::= "z"\nroot ::= r0',
        "too ambiguous: r",  # never ends
    ),
    "hidden doubling": (
        "\n".join(f'a{n} ::= e b{n} | "x"\nb{n} ::= e a{n} | a{n + 1} "p" | a{n + 1} "q"' for n in range(40))
        + '\na40 ::= "z"\ne ::= f\nf ::= ""\nroot ::= a0',
        "too ambiguous: ",
    ),
    "alternatives": ("root ::= " + " | ".join(f'"{n}"' for n in range(9000)), "too ambiguous: root"),  # 10 s a token
    "signs": ('root ::= "a"' + "+" * 100_000, "makes the grammar too large"),
    "elements": ('root ::= "' + "a" * 4000 + '"{2000}', "makes the grammar too large"),
    "long": ("#" * 1_000_001, "1000001 characters long"),
    "classes": ("root ::= " + "[a-" * 100_000, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_soon_and_says_why(name, capfd):
    text, words = REFUSED[name]
    started = time.thread_time()
    with pytest.raises(RequestError, match=words) as caught:
        Sampling(grammar=text)
    assert time.thread_time() - started < 5
    assert "\n" not in str(caught.value)
    assert len(caught.value.line) < 200
    assert caught.value.hint
    assert capfd.readouterr().err == ""


def answer(grammar, vocab, *, seed=1, temperature=1.0, most=60, row=None, **changes):
    """The text that level logits, or `row`, give, and the last token."""
    logits = np.zeros(vocab.size, np.float32) if row is None else row
    chain = Chain(Sampling(grammar=grammar, temperature=temperature, **changes), vocab, seed, [5])
    said = []
    try:
        while len(said) < most and not (said and vocab.is_end(said[-1])):
            said.append(chain.draw_from(logits))
    finally:
        chain.close()
    return b"".join(vocab.piece(token) for token in said).decode("utf-8", "replace"), said[-1]


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= "yes" | "no"', "yes|no"),
        ("root ::= [0-9]{3} [a-f]+ [.]", r"[0-9]{3}[a-f]+\."),
        ('root ::= "é" [à-ü]{2}', "é[à-ü]{2}"),  # each of them two byte tokens
        ('root ::= "(" root? ")"', r"\(+\)+"),
    ],
)
def test_answers_match_their_grammar_and_end_with_it(vocab, grammar, pattern):
    for seed in range(6):
        text, last = answer(grammar, vocab, seed=seed, top_k=0)
        assert re.fullmatch(pattern, text), text
        assert vocab.is_end(last)
    assert answer(grammar, vocab, seed=1) == answer(grammar, vocab, seed=1)


def test_an_exhausted_grammar_only_ends(vocab):
    row = np.zeros(vocab.size, np.float32)
    row[vocab.tokens("b", add_special=False)[0]] = 50
    for temperature in (0.0, 1.0):
        text, last = answer(LETTER, vocab, row=row, temperature=temperature)
        assert (text, vocab.is_end(last)) == ("a", True)


def test_control_tokens_are_no_text_of_a_grammar(vocab):
    """llama.cpp would take <|im_start|> for twelve characters, of which the answer shows none."""
    row = np.zeros(vocab.size, np.float32)
    row[1] = 50
    text, _ = answer("root ::= [^a]{12}", vocab, row=row)
    assert len(text) == 12
    assert answer("root ::= <|im_start|>", vocab, row=row)[0] == ""


def test_the_same_draw_where_the_grammar_allows_it(vocab):
    """The grammar takes no random number of its own as long as the free draw fits."""
    row = (np.random.default_rng(3).standard_normal(vocab.size)).astype(np.float32)
    row[: one_byte(vocab, "a")] = row[one_byte(vocab, "z") + 1 :] = -np.inf
    free, bound = (Chain(Sampling(grammar=text), vocab, 9, [5]) for text in ("", "root ::= .*"))
    assert [free.draw_from(row) for _ in range(20)] == [bound.draw_from(row) for _ in range(20)]
    free.close()
    bound.close()


def one_byte(vocab, letter):
    return vocab.tokens(letter, add_special=False)[0]


def test_where_no_token_fits_there_is_an_error(vocab):
    with pytest.raises(RequestError, match="no token of the model fits the grammar"):
        answer(r'root ::= "\x00"', vocab)
    ends = {token: float("-inf") for token in range(vocab.size) if vocab.is_end(token)}
    with pytest.raises(RequestError, match="no token of the model fits the grammar"):
        answer(LETTER, vocab, logit_bias=ends)


def test_a_grammar_that_becomes_too_ambiguous_is_given_up(vocab):
    row = np.full(vocab.size, -50, np.float32)
    row[one_byte(vocab, "a")] = 0
    started = time.thread_time()
    with pytest.raises(RequestError, match="too many ways to read"):
        answer('root ::= "a" root "b" | "a" root "c" | "a"', vocab, row=row)
    assert time.thread_time() - started < 20


def test_a_grammar_and_ignored_ends_contradict_each_other():
    with pytest.raises(RequestError, match="contradict"):
        Sampling(grammar=LETTER, ignore_eos=True)
