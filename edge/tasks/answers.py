"""Rows through a classifier of texts or of tokens: answers, or the report that they make."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from edge.errors import RequestError
from edge.tasks import entities, stream
from edge.tasks.classify import Classified, Reading, classified, reading
from edge.tasks.encoder import Encoder
from edge.tasks.entities import Tagged, tagged
from edge.tasks.report import Entities, Multi, Report, Single, gold_labels, gold_tags
from edge.tasks.rows import Row

Answer = Classified | Tagged


@dataclass(frozen=True)
class Wish:
    """What the caller wants of the answers.

    labels     to choose among; all of the model's when empty
    top        labels a text shows at most
    threshold  the least probability of a label, or of an entity
    split      read a long text in windows, where it would be cut at the model's length
    """

    labels: tuple[str, ...] = ()
    top: int | None = None
    threshold: float | None = None
    split: bool = False


def opened(
    ref: str,
    labels: Sequence[str],
    examples: Sequence[tuple[str, str]],
    *,
    backend: str | None,
    threads: int | None,
    sample: Sequence[str],
    pairs: bool = False,
) -> tuple[Encoder, str]:
    """The model behind a reference, and why it runs as it does: an encoder, or a chat model that is given the labels.

    Raises RequestError where a chat model is given no labels, and where examples are given to another.
    """
    if generates(ref):
        from edge.tasks.artifacts import ONNX, artifact, located

        if all(artifact(path).form == ONNX for path in located(ref)[1]):
            raise RequestError(
                f"{ref} is an ONNX model that writes text, and labels from a chat model need its GGUF form",
                hint="`edge convert CHECKPOINT --level q8_0` makes it",
            )
        if not labels:
            raise RequestError(
                f"{ref} writes text and has no labels of its own",
                hint="name them: --labels positive,negative",
            )
        from edge.tasks.zero_shot import open_zero_shot

        model = open_zero_shot(ref, labels, examples=examples, threads=threads)
        return model, model.reason
    if examples:
        raise RequestError(
            f"{ref} has learnt its labels", hint="--examples is for chat models; `edge train` learns"
        )
    from edge.tasks.open import open_encoder

    encoder = open_encoder(ref, backend=backend, threads=threads, sample=sample, pairs=pairs)
    return encoder, getattr(encoder, "reason", "")


def generates(ref: str) -> bool:
    """Whether a reference is a model that writes text, and nothing else."""
    from edge.tasks.artifacts import artifact, located

    return all(artifact(path).task == "generation" for path in located(ref)[1])


def how(encoder: Encoder, wish: Wish) -> Reading:
    """How this model is read. Raises RequestError where it cannot do what is wished."""
    about = encoder.about
    if about.task not in ("classification", "tokens"):
        raise RequestError(
            f"{about.name} makes embeddings and has no labels",
            hint="`edge train` makes a classifier of it, `edge embed` gives what it makes",
        )
    if about.task == "tokens" and (wish.labels or wish.top):
        raise RequestError(
            f"{about.name} finds entities, which are not chosen among", hint="leave --labels and --top out"
        )
    return reading(about, wish.labels, top=wish.top, threshold=wish.threshold)


def answers(
    encoder: Encoder, rows: Iterable[Row], wish: Wish, *, live: bool = False
) -> Generator[Answer, None, None]:
    """An answer for each row, in order. Raises what the rows and the encoder raise, after the answers before it."""
    read = how(encoder, wish)
    tokens = encoder.about.task == "tokens"
    parted = stream.run_parts(encoder, checked(encoder, rows), spans=tokens, split=wish.split, live=live)
    with closing(parted):
        for row, parts in parted:
            if tokens:
                yield tagged(encoder.about, row, parts, wish.threshold or 0.0)
            else:
                yield classified(read, row, parts)


def checked(encoder: Encoder, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, refused where they are pairs and the task has none."""
    for row in rows:
        if row.pair is not None and encoder.about.task == "tokens":
            raise RequestError(f"{encoder.about.name} finds entities in one text", hint="leave the pair out")
        yield row


def report(
    encoder: Encoder,
    rows: Iterable[Row],
    wish: Wish,
    *,
    live: bool = False,
    tell: Callable[[Answer], None] = lambda answer: None,
) -> Report:
    """What the model makes of labelled rows, held against their labels. `tell` hears of every answer.

    Raises BadData for a label that the model lacks, RequestError for a regression.
    """
    read = how(encoder, wish)
    if encoder.about.task == "tokens":
        if wish.threshold is not None or wish.split:
            raise RequestError(
                "a report on entities takes each word as tagged, and no window but the first",
                hint="leave --threshold and --long split out",
            )
        return report_of_entities(encoder, rows, live, tell)
    if read.regression:
        raise RequestError(f"{encoder.about.name} gives numbers, not labels", hint="leave --report out")
    names = [encoder.about.labels[at] for at in read.chosen]
    golds: dict[int, tuple[str, ...]] = {}
    one, many = Single(names), Multi(names)

    def labelled() -> Iterator[Row]:
        """Labels are checked when a row is read: a wrong one is found before its window is run."""
        for number, row in enumerate(rows):
            if row.words:
                raise RequestError(
                    f"words with tags (CoNLL) are for models of entities, and {encoder.about.name} labels whole texts",
                    hint="give texts with a label each: --format csv, tsv or jsonl",
                )
            golds[number] = gold_labels(
                row, names, several=read.multi, numbered=not encoder.about.labels_given
            )
            yield row

    for number, answer in enumerate(answers(encoder, labelled(), replace(wish, top=None), live=live)):
        assert isinstance(answer, Classified)
        gold = golds.pop(number)
        if read.multi:
            many.add(gold, [scored.label for scored in answer.labels])
        else:
            one.add(gold[0], answer.label)
        tell(answer)
    return (many if read.multi else one).report()


def report_of_entities(
    encoder: Encoder, rows: Iterable[Row], live: bool, tell: Callable[[Answer], None]
) -> Report:
    """The same for words with tags: a word has the tag of its first piece, and words that were not read are outside."""
    about = encoder.about
    model = entities.scheme(about.labels)
    kinds = {model.parted(label)[1] for label in about.labels} - {""}
    counts = Entities(model)
    with closing(stream.run_parts(encoder, rows, spans=True, live=live)) as parted:
        for row, parts in parted:
            gold = replace(entities.scheme(row.label or ()), outside=model.outside)
            tags = gold_tags(row, kinds, gold)
            counts.add(tags, entities.tags_of_words(about, row, parts[0] if parts else None), gold)
            tell(Tagged(row.text, left_out=parts[0].tokens.left_out if parts else 0))
    return counts.report()
