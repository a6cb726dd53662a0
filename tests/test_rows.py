"""Rows of every form: which field is what, and what is wrong with a line, by its number."""

from __future__ import annotations

import tracemalloc

import pytest

from edge.errors import BadData, RequestError
from edge.tasks.rows import Fields, Row, read
from edge.tasks.source import Source, opened


@pytest.fixture
def rows(tmp_path):
    """Rows of a file with the given name and content."""

    def call(name, content, form=None, **fields):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with opened(path) as source:
            return list(read(source, form, Fields(**fields)))

    return call


def test_lines_keep_their_number_and_their_blanks(rows):
    assert rows("a.txt", "one\r\n\n  two\u2028still \nthree") == [
        Row("one", line=1), Row("", line=2), Row("  two\u2028still ", line=3), Row("three", line=4),
    ]  # fmt: skip
    assert rows("a.anything", "") == []


def test_a_byte_order_mark_is_none_of_the_text(rows):
    assert rows("a.txt", b"\xef\xbb\xbfone\n") == [Row("one", line=1)]
    assert rows("a.csv", b"\xef\xbb\xbftext\none\n") == [Row("one", line=2)]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl"])
def test_a_wrong_encoding_names_the_line(rows, name):
    good = '{"text": "a"}\n' if name == "a.jsonl" else "text\n"
    with pytest.raises(BadData, match="line 2 is no UTF-8: byte 0xe9 at 4") as raised:
        rows(name, good.encode() + b"caf\xe9\n")
    assert "iconv" in raised.value.hint


def test_utf_16_is_said_to_be_that(rows):
    with pytest.raises(BadData, match="is UTF-16"):
        rows("a.txt", "text".encode("utf-16"))


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t")])
def test_columns_are_found_by_their_usual_names(rows, name, between):
    content = between.join(("id", "sentence", "category")) + "\n" + between.join(("1", "so good", "x")) + "\n"
    assert rows(name, content) == [Row("so good", line=2)]
    assert rows(name, content, labelled=True) == [Row("so good", label="x", line=2)]
    assert rows(name, content, text="category", pair="id") == [Row("x", pair="1", line=2)]


def test_numbers_name_columns_of_a_file_without_a_header(rows):
    found = rows("a.tsv", "0\tso good\n1\tso bad\n", text="2", label="1")
    assert found == [Row("so good", label="0", line=1), Row("so bad", label="1", line=2)]


def test_the_only_column_is_the_text(rows):
    assert rows("a.csv", "tweet\nhello\n") == [Row("hello", line=2)]


def test_a_record_of_csv_may_hold_lines_and_quotes(rows):
    content = 'text,label\n"one\n""two""",a\n\nthree,b\n'
    assert rows("a.csv", content) == [Row('one\n"two"', line=2), Row("three", line=5)]


def test_quotes_in_tsv_are_letters_unless_they_stand_around_a_field(rows):
    content = 'text\tlabel\n" half a quote\ta\n"a ""whole"" one"\tb\n"\tc\n"x"y"\td\n'
    assert [row.text for row in rows("a.tsv", content)] == ['" half a quote', 'a "whole" one', '"', '"x"y"']


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\na,b\n\na,b,c\n", "line 4 has 3 columns and the header 2"),
        ("a.csv", "text,label\na\n", "line 2 has 1 column and the header 2"),
        ("a.tsv", "text\tlabel\na\tb\nc\n", "line 3 has 1 column and the header 2"),
        ("a.csv", 'text\n"one\ntwo\n', "the record that begins on line 2 is no CSV"),
        ("a.csv", 'text\na\n"one"x\n', "the record that begins on line 3 is no CSV"),
        ("a.csv", "one,two\na,b\n", "no field that is plainly the text; its fields are one, two"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', "line 2 is no JSON"),
        ("a.jsonl", '{"text": "a"}\n\n["b"]\n', "line 3 is no JSON"),
        ("a.jsonl", '{"text": "a"}\n7\n', "line 2 is no JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}\n', "line 2 has no text"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "line 2 has no text"),
        ("a.jsonl", '{"text": 7}\n', "line 1 has a field that is no text"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "line 1 has half a surrogate pair"),
        ("a.jsonl", "[" * 100_000 + "\n", "no JSON"),
        ("a.json", '[\n{"text": "a"},\n{"text": b}\n]', "line 3 is no JSON"),
        ("a.json", '[\n{"text": "a"}\n', "no JSON: its list has no end"),
        ("a.conll", "Ada B-PER\nsleeps\n", "line 2 has a word without a tag"),
    ],
)
def test_what_is_wrong_names_its_line(rows, name, content, said):
    with pytest.raises(BadData) as raised:
        rows(name, content)
    assert said in str(raised.value)


def test_a_field_that_is_not_there_is_said_with_those_that_are(rows):
    with pytest.raises(BadData, match="has no field body; its fields are text, label"):
        rows("a.csv", "text,label\na,b\n", text="body")
    with pytest.raises(BadData, match="no field that is plainly the label; its fields are text, x"):
        rows("a.csv", "text,x\na,b\n", labelled=True)
    with pytest.raises(RequestError, match="read as lines, without named fields"):
        rows("a.txt", "a\n", text="body")
    with pytest.raises(RequestError, match="read as conll, without named fields"):
        rows("a.conll", "Ada B-PER\n", label="tag")
    with pytest.raises(RequestError, match="read as lines, which have no labels"):
        rows("a.txt", "a\n", labelled=True)


def test_an_empty_label_names_its_line(rows):
    with pytest.raises(BadData, match="line 3 has an empty label"):
        rows("a.csv", "text,label\na,b\nc, \n", labelled=True)


@pytest.mark.parametrize("label", ['"\\udc00"', '["a", "\\ud83d"]'])
def test_a_label_that_nothing_can_write_names_its_line(rows, label):
    with pytest.raises(BadData, match="line 1 has half a surrogate pair"):
        rows("a.jsonl", f'{{"text": "a", "label": {label}}}\n', labelled=True)


def test_objects_a_line_and_objects_in_a_list(rows):
    objects = '{"text": "a", "label": 1}', '{"label": ["x", "y"], "text": "b"}'
    expected = [Row("a", label="1", line=1), Row("b", label=("x", "y"), line=2)]
    assert rows("a.jsonl", "\n".join(objects), labelled=True) == expected
    assert rows("a.json", f"[{objects[0]},\n{objects[1]}]\n", labelled=True) == expected
    spread = '[\n  {\n    "text": "a",\n    "label": 1\n  },\n  {"text": "b", "label": true}\n]\n'
    assert rows("a.json", spread, labelled=True) == [
        Row("a", label="1", line=2),
        Row("b", label="true", line=6),
    ]
    assert rows("a.json", "[]") == []


def test_sentences_of_words_with_tags(rows):
    content = "-DOCSTART- -X- O\n\nAda NNP I-PER\nsleeps VBZ O\n\n\nYork\tB-LOC\n"
    assert rows("a.conll", content) == [
        Row("Ada sleeps", None, ("I-PER", "O"), 3, ("Ada", "sleeps")),
        Row("York", None, ("B-LOC",), 7, ("York",)),
    ]
    assert rows("a.testb", content, form="conll") == rows("a.conll", content)
    words = '{"words": ["Ada", "sleeps"], "ner": ["B-PER", "O"]}'
    assert rows("a.jsonl", words, labelled=True) == [
        Row("Ada sleeps", None, ("B-PER", "O"), 1, ("Ada", "sleeps"))
    ]
    with pytest.raises(BadData, match="line 1 has not as many tags as words"):
        rows("a.jsonl", '{"words": ["Ada", "sleeps"], "ner": ["O"]}', labelled=True)


def test_a_line_without_end_is_not_read_whole():
    class Endless:
        def readline(self, limit):
            return b"x" * limit

    with pytest.raises(BadData, match="line 1 is longer than 64 MiB"):
        next(iter(Source(Endless(), "stdin")))


def test_no_more_than_a_record_is_held(tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("text,label\n" + "so good,positive\n" * 5_000)
    with opened(path) as source:
        found = read(source, None, Fields())
        next(found)
        tracemalloc.start()
        count = sum(1 for _ in found)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count == 4_999
    assert source.done == source.size
    assert peak < 50_000  # of 85,000 bytes


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"), opened(tmp_path / "nothing"):
        pass


def test_semicolons_between_columns_are_said(rows):
    with pytest.raises(BadData, match="has one column, text;label, as if separated by semicolons"):
        rows("a.csv", "text;label\ngood;positive\n", labelled=True)
    assert rows("a.csv", "a;b\ngood\n", text="a;b") == [Row("good", line=2)]
