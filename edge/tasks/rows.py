"""Labelled and unlabelled texts out of files and streams, a row at a time.

    lines   a text a line; what any other file name means, and stdin
    csv     a header line, then records; quoted fields may hold line breaks
    tsv     a header line, then a record a line; a field in double quotes is taken out of them
    jsonl   an object a line (.jsonl, .ndjson), or a list of objects (.json)
    conll   a word a line with its tag in the last column, an empty line between sentences

A field is named, or in a file without a header line numbered from 1 on. Never more than one record is held in memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import BadData, RequestError
from edge.tasks.source import Source

FORMATS = ("lines", "csv", "tsv", "jsonl", "conll")
SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".conll": "conll", ".bio": "conll", ".iob": "conll",
}  # fmt: skip
# looked for in this order where no field is named
TEXTS = (
    "text",
    "sentence",
    "content",
    "document",
    "review",
    "question",
    "query",
    "text_a",
    "words",
    "tokens",
)
LABELS = (
    "label", "labels", "category", "class", "intent", "sentiment", "target", "tags", "ner_tags", "ner",
)  # fmt: skip
FIELD = 1 << 26  # characters; an unclosed quote ends here, not in the whole file

Label = str | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Row:
    """A text of the input, what it is paired with, its label, and the line it begins on.

    `label` is a tuple where the data has a list. A sentence given word by word has `words`, and tags as its label;
    its text is the words with a space between.
    """

    text: str
    pair: str | None = None
    label: Label = None
    line: int = 0
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fields:
    """What the caller named: columns, keys, or numbers from 1 on; None is looked for."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    labelled: bool = False  # whether a label is wanted at all

    @property
    def numbered(self) -> bool:
        """Whether columns are numbers, so that the file has no header line."""
        return bool(self.text and self.text.isdecimal())


def read(source: Source, form: str | None, fields: Fields) -> Iterator[Row]:
    """The rows of a source in the given form, or in the one that its name's suffix says.

    Raises BadData, naming the line, for what cannot be read as that form: no UTF-8, a record with too few or too many
    columns, a field that is missing or no text; and where no text field is named and none can be told.
    """
    form = form or SUFFIXES.get(source.suffix, "lines")
    if form in ("lines", "conll") and (fields.text or fields.pair or fields.label):
        raise RequestError(
            f"{source.name} is read as {form}, without named fields",
            hint="--format csv, tsv or jsonl says otherwise",
        )
    return READERS[form](source, fields)


def lines(source: Source, fields: Fields) -> Iterator[Row]:
    """A text a line; empty ones too, so that what comes out has as many lines."""
    if fields.labelled:
        raise RequestError(
            f"{source.name} is read as lines, which have no labels", hint="--format csv, tsv, jsonl or conll"
        )
    for number, line in source:
        yield Row(line.rstrip("\r\n"), line=number)


def comma_separated(source: Source, fields: Fields) -> Iterator[Row]:
    """Records as RFC 4180 has them. A blank line between them is none."""
    csv.field_size_limit(FIELD)
    reader = csv.reader((line for _, line in source), strict=True)
    started = 0

    def records() -> Iterator[tuple[int, Sequence[str]]]:
        nonlocal started
        started = reader.line_num + 1
        for record in reader:
            if record:
                yield started, record
            started = reader.line_num + 1

    try:
        yield from columns(source, records(), fields)
    except csv.Error as error:
        raise BadData(
            f"{source.name}: the record that begins on line {started} is no CSV: {error}",
            hint="close its quotes, and write a quote inside a text twice",
        ) from None


def tab_separated(source: Source, fields: Fields) -> Iterator[Row]:
    """A record a line. Quotes have a meaning only around a whole field, since most such files know none."""
    records = (
        (number, [unquoted(cell) for cell in line.rstrip("\r\n").split("\t")])
        for number, line in source
        if line.strip("\r\n")
    )
    yield from columns(source, records, fields)


def unquoted(cell: str) -> str:
    """A cell without the quotes around it, if those inside are doubled."""
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        inside = cell[1:-1]
        if '"' not in inside.replace('""', ""):
            return inside.replace('""', '"')
    return cell


def columns(source: Source, records: Iterator[tuple[int, Sequence[str]]], fields: Fields) -> Iterator[Row]:
    """Rows out of records, all as wide as the first."""
    wanted: dict[str, int] = {}
    width = 0
    for number, record in records:
        if not width:
            width = len(record)
            names = (
                [str(at) for at in range(1, width + 1)]
                if fields.numbered
                else [cell.strip() for cell in record]
            )
            if width == 1 and ";" in names[0] and not fields.text:
                raise BadData(
                    f"{source.name} has one column, {shown(names[0])}, as if separated by semicolons",
                    hint="convert it to commas or tabs, or name that column with --text-field",
                )
            wanted = {part: names.index(name) for part, name in named(source, names, fields).items()}
            if not fields.numbered:
                continue
        if len(record) != width:
            first = "the first line" if fields.numbered else "the header"
            raise BadData(
                f"{source.name}: line {number} has {counted(len(record))} and {first} {width}",
                hint="quote a text that holds the separator" if len(record) > width else "complete the line",
            )
        cells = {part: record[at] for part, at in wanted.items()}
        yield Row(cells["text"], cells.get("pair"), labelled(source, number, cells.get("label")), number)


def counted(columns: int) -> str:
    return f"{columns} column{'' if columns == 1 else 's'}"


def named(source: Source, names: Sequence[str], fields: Fields) -> dict[str, str]:
    """Which field is the text, the pair and the label: the one named, the only one, or a usual name."""
    usual = [name for name in TEXTS if name in names]
    text = fields.text or (usual[0] if usual else names[0] if len(names) == 1 else None)
    found = {"text": text}
    if fields.pair:
        found["pair"] = fields.pair
    if fields.label or fields.labelled:
        found["label"] = fields.label or next((name for name in LABELS if name in names), None)
    for part, name in found.items():
        if name is None or name not in names:
            lacking = f"no field {name}" if name else f"no field that is plainly the {part}"
            raise BadData(
                f"{source.name} has {lacking}; its fields are {', '.join(shown(each) for each in names)}",
                hint=f"name one with --{part}-field, or by its number in a file without a header line",
            )
    return {part: name for part, name in found.items() if name is not None}


def shown(name: str) -> str:
    """A field's name in an error: not a whole text where a file has no header."""
    return name if len(name) <= 30 else f"{name[:29]}…"


def labelled(source: Source, number: int, value: Any) -> Label:
    """A label as text, or as texts where the data has a list. None stands where none is wanted."""
    if isinstance(value, str):
        if not value.strip():
            raise BadData(f"{source.name}: line {number} has an empty label", hint="label it or leave it out")
        return encodable(source, number, value.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(each, (str, int)) for each in value):
        return tuple(encodable(source, number, str(each)) for each in value)
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    if value is None:
        return None
    raise BadData(
        f"{source.name}: line {number} has a label that is neither text nor a whole number",
        hint="write it as text",
    )


def encodable(source: Source, number: int, text: str) -> str:
    """The text, unless JSON's escapes spell half a surrogate pair in it, which nothing can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadData(
            f"{source.name}: line {number} has half a surrogate pair in a field", hint="write it anew"
        ) from None
    return text


def objects(source: Source, fields: Fields) -> Iterator[Row]:
    """Rows out of JSON objects. Each may have keys of its own; the first says which are meant where none is named."""
    wanted: Mapping[str, str] = {}
    for number, value in source.values():
        if not isinstance(value, dict):
            raise BadData(f"{source.name}: line {number} is no JSON object", hint='such as {"text": "…"}')
        if not wanted:
            wanted = named(source, list(value), fields)
        lacking = [name for name in wanted.values() if value.get(name) is None]
        if lacking:
            raise BadData(
                f"{source.name}: line {number} has no {shown(lacking[0])}", hint="complete it or leave it out"
            )
        yield from_object(source, number, {part: value[name] for part, name in wanted.items()})


def from_object(source: Source, number: int, cells: Mapping[str, Any]) -> Row:
    text, pair, label = cells["text"], cells.get("pair"), labelled(source, number, cells.get("label"))
    words: tuple[str, ...] = ()
    if isinstance(text, list) and all(isinstance(word, str) for word in text):
        words, text = tuple(text), " ".join(text)
        if label is not None and (isinstance(label, str) or len(label) != len(words)):
            raise BadData(
                f"{source.name}: line {number} has not as many tags as words", hint="give each word its tag"
            )
    for value in (text, pair or ""):
        if not isinstance(value, str):
            raise BadData(
                f"{source.name}: line {number} has a field that is no text", hint="write it as text"
            )
        encodable(source, number, value)
    return Row(text, pair, label, number, words)


def sentences(source: Source, fields: Fields) -> Iterator[Row]:
    """Sentences of words with tags, columns apart by spaces or tabs; lines of -DOCSTART- are none."""
    words: list[str] = []
    tags: list[str] = []
    begun = 0
    for number, line in source:
        parts = line.strip("\r\n \t").replace("\t", " ").split(" ")
        if parts == [""] or parts[0] == "-DOCSTART-":
            if words:
                yield Row(" ".join(words), None, tuple(tags), begun, tuple(words))
            words, tags = [], []
            continue
        if len(parts) < 2:
            raise BadData(
                f"{source.name}: line {number} has a word without a tag",
                hint="write word and tag, a space between",
            )
        begun = begun if words else number
        words.append(parts[0])
        tags.append(parts[-1])
    if words:
        yield Row(" ".join(words), None, tuple(tags), begun, tuple(words))


READERS = {"lines": lines, "csv": comma_separated, "tsv": tab_separated, "jsonl": objects, "conll": sentences}
