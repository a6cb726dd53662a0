"""Grammars of regular expressions and choices, held to Python's `re` and to llama.cpp's own grammar sampler."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structures import Native, walk
from tiny import tiny_llama

from edge.engine.gbnf import check_grammar
from edge.errors import RequestError
from edge.structure.automaton import TEXT, both, compiled, outside, without
from edge.structure.choices import choices_grammar, split_choices
from edge.structure.grammar import read_grammar
from edge.structure.regex import parsed, regex_grammar


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    found = Native(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))
    yield found
    found.close()


CASES = [
    ("abc", ["abc"], ["ab", "abcd", "xabc"]),
    ("^abc$", ["abc"], ["^abc$"]),
    ("a|bc|", ["a", "bc", ""], ["b", "ac"]),
    ("(a*)*b", ["b", "aab"], ["a", "ba"]),
    ("(a|b)*a(a|b){3}", ["aabb", "bbabab"], ["bbbb", "aab"]),
    (r"\d{3}-\w+\s", ["123-a_Z9 ", "000-x\n"], ["12-a ", "123-é "]),
    (r"\D\W\S", ["a-b", "é😀ü"], ["1-b", "aab", "a- "]),
    ("[^a-c\\]]+?x", ["ddx", "xx"], ["ax", "]x"]),
    ("[]a]".replace("[]", "[\\]"), ["]", "a"], ["b"]),
    ("[a-]", ["a", "-"], ["b"]),
    (r"[\w.-]+@[\d-]", ["a.b-c@1", "x@-"], ["@1"]),
    ("(?:ab){2,}?c", ["ababc", "abababc"], ["abc"]),
    ("(?P<name>x)(?<other>y)", ["xy"], ["x"]),
    ("a{0}b{2}c{1,2}", ["bbc", "bbcc"], ["abbc", "bbccc", "bc"]),
    ("a{,x}|{", ["a{,x}", "{"], ["a"]),
    (r"\u00e9\xe9\u{1F600}\ud83d\ude00\U0001F600é", ["éé😀😀😀é"], ["éé"]),
    (r"\.\*\[\/\-\t\n", [".*[/-\t\n"], ["x*[/-\t\n"]),
    (".", ["a", "😀"], ["\n", "ab", ""]),
    ("(^a|b$)", ["a", "b"], ["ab"]),
    ("^a$|^b$", ["a", "b"], ["a|b"]),
    ('["\\\\^]+', ['"', "\\", "^^"], ["a"]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_an_expression_takes_what_matches_all_of_it(native, case):
    pattern, good, bad = case
    text = regex_grammar(pattern)
    for each in good:
        assert native.takes(text, each), each
    for each in bad:
        assert not native.takes(text, each), each


SAFE = st.sampled_from(["a", "b", "c", r"\d", r"\w", r"\s", ".", "[ab]", "[^a]", "[a-c0-9]", r"\.", "é", "x"])
PATTERNS = st.recursive(
    SAFE,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "+?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(pattern=PATTERNS, text=st.text("abc1é .x\n", max_size=8), seed=st.integers(0, 2**32))
def test_any_expression_means_what_python_says(native, pattern, text, seed):
    grammar = regex_grammar(pattern)
    check_grammar(grammar)
    draw = random.Random(seed)
    for _ in range(4):
        answer = walk(grammar, draw, 30)
        plain = re.sub(r"[^\S\n]", " ", answer)  # what is a space to us is one to re.ASCII
        assert re.fullmatch(pattern, plain, re.ASCII), answer
    assert compiled(parsed(pattern)).accepts(text) == bool(re.fullmatch(pattern, text, re.ASCII))
    assert native.takes(grammar, text) == bool(re.fullmatch(pattern, text, re.ASCII))
    assert compiled(parsed(pattern, search=True)).accepts(text) == bool(re.search(pattern, text, re.ASCII))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(one=PATTERNS, other=PATTERNS, text=st.text("abc1é .x", max_size=6))
def test_automata_combine_as_sets_do(one, other, text):
    first, second = compiled(parsed(one)), compiled(parsed(other))
    assert both(first, second).accepts(text) == (first.accepts(text) and second.accepts(text))
    assert without(first, second).accepts(text) == (first.accepts(text) and not second.accepts(text))


def test_the_complement_of_a_class_is_all_the_rest():
    assert outside(()) == TEXT
    assert outside(TEXT) == ()
    assert outside(((0, 96), (98, 0x10FFFF))) == ((97, 97),)


REFUSED = [
    ("(?=a)", "lookaround"),
    ("(?!a)", "lookaround"),
    ("(?<=a)b", "lookaround"),
    ("(?<!a)b", "lookaround"),
    (r"(a)\1", "backreference"),
    (r"(?P<n>a)(?P=n)", "reference"),
    (r"\k<n>", "backreference"),
    ("(?i)a", "flag"),
    ("a**", "repetition of a repetition"),
    ("a++", "repetition of a repetition"),
    ("*a", "repeats nothing"),
    ("[z-a]", "backwards"),
    ("[a-\\d]", "between classes"),
    ("[]", "empty"),
    ("(", "not closed"),
    (")", "closes nothing"),
    ("[a", "not closed"),
    ("a{3,2}", "more to fewer"),
    ("a{99999}", "too long"),
    ("a{9999999999}", "too long"),
    ("a{,3}", "least number"),
    ("a^b", "anchor"),
    ("a$b", "anchor"),
    ("(a$)b", "anchor"),
    (r"\bword\b", "not known"),
    (r"\p{L}", "not known"),
    ("\\", "not known"),
    (r"\x1", "hexadecimal"),
    (r"\ud800", "no character"),
    (r"\u{110000}", "no character"),
    ("\ud800", "surrogate"),
    (r"\01", "octal"),
    ("[[:alpha:]]", "POSIX"),
    ("(?<1>a)", "without a name"),
    ("[^\\d\\D]", "matches no text"),
    ("\\0", "matches no text"),
    ("(" * 100 + ")" * 100, "nested too deeply"),
    ("a" * 10_001, "10001 characters"),
    ("(a|b)*a(a|b){40}", "states"),
    ("(((a{1000}){1000}){1000})", "states"),
    ("(.{0,1000}a){0,1000}", "states"),
    ("((a?){200}b?){200}", "states"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: ascii(case[0][:30]))
def test_what_is_no_regular_expression_is_refused_in_one_line_and_quickly(case):
    pattern, said = case
    started = time.process_time()
    with pytest.raises(RequestError, match=said) as caught:
        regex_grammar(pattern)
    assert time.process_time() - started < 8
    assert "\n" not in caught.value.line


def test_choices_are_exact_texts(native):
    choices = ["yes", "no", "no way", 'q"\\', "a,b", "[^-]\n", "é😀", " "]
    text = choices_grammar(choices)
    check_grammar(text)
    for choice in choices:
        assert native.takes(text, choice)
    for other in ("", "ye", "yess", "no ", "Yes", "e"):
        assert not native.takes(text, other)
    assert {walk(text, random.Random(k)) for k in range(300)} == set(choices)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    choices=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, max_size=5
    )
)
def test_any_choices_are_taken(native, choices):
    text = choices_grammar(choices)
    assert all(native.takes(text, choice) for choice in choices)
    assert walk(text, random.Random(1)) in choices


def test_choices_that_no_answer_can_be_are_refused():
    for choices, said in (
        ([], "no choices"),
        ("abc", "one text"),
        (["a", ""], "empty"),
        (["a\0"], "answered"),
        (["\ud800"], "answered"),
        ([1], "not a text"),
        (["a"] * 10_001, "10001"),
        ([chr(k) * 9_000 + "x" for k in range(65, 185)], "200000"),
    ):
        with pytest.raises(RequestError, match=said):
            choices_grammar(choices)


def test_a_comma_in_a_choice_is_written_with_a_backslash():
    assert split_choices("A,B C, d") == ["A", "B C", " d"]
    assert split_choices(r"a\,b,c\\,d\n") == ["a,b", "c\\", r"d\n"]
    assert split_choices("a\\") == ["a\\"]


def test_a_grammar_file_is_read_or_refused(tmp_path, native):
    path = tmp_path / "a.gbnf"
    path.write_text('root ::= "a" tail\r\n# a comment\ntail ::= [0-9]{2} | (\n"x")\n')
    assert native.takes(read_grammar(path), "a12")
    for text, said in (
        ('root ::= "a"\nb ::= "c', "line 2"),
        ("", "root"),
        ('x ::= "b"', "root"),
        ("root ::= nothing", "nothing"),
        ('root ::= "a" root', "never ends"),
        ('root ::= a root "x" | "y"\na ::= b b\nb ::= "q" |', "left recursion"),
        ("root ::= " + "(" * 10_000, "brackets"),
        ('root ::= "a"{2001,3000}', "2000"),
        ("root ::= \0", "NUL"),
        ("root ::= " + "a" * 1_100_000, "larger"),
    ):
        path.write_text(text)
        with pytest.raises(RequestError, match=said) as caught:
            read_grammar(path)
        assert "\n" not in caught.value.line
    path.write_bytes(b"root ::= \xff")
    with pytest.raises(RequestError, match="not UTF-8 at byte 9"):
        read_grammar(path)
