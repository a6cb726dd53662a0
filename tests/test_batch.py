"""Batches: order, rows that cannot be answered, slots that never idle, an output that is gone on with."""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import threading
import time
from contextlib import closing
from functools import partial

import pytest
from tiny import tiny_llama

from edge.chat.loaded import load
from edge.engine.sampling import Sampling
from edge.errors import BadData, DoesNotFit, EngineError, RequestError, StoreError
from edge.tasks import batch, journal, prompts
from edge.tasks.batch import Result, run
from edge.tasks.source import LONGEST, Source

SLOTS = 4
BASE = Sampling(max_tokens=6, seed=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture(scope="module")
def model(path, one_core):
    with load(path, ctx=128, parallel=SLOTS) as loaded:
        yield loaded


def source(data: bytes, name: str = "prompts.jsonl") -> Source:
    return Source(io.BytesIO(data), name, len(data), live=False)


def answered(model, *lines: bytes | str) -> list[Result]:
    """The results of JSON lines."""
    data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
    return list(run(model, prompts.read(source(data)), base=BASE))


# ---- answers


def test_results_are_in_order_and_those_of_each_row_alone(model):
    rows = [
        {"prompt": "in the " * (1 + at % 5), "max_tokens": 1 + 7 * at % 30, "seed": at, "temperature": 1.5}
        for at in range(30)
    ]
    together = list(run(model, rows))
    assert [result.index for result in together] == [*range(30)]
    assert [result.usage.completion_tokens for result in together] == [row["max_tokens"] for row in rows]
    for at in (0, 7, 29):
        (alone,) = run(model, rows[at : at + 1], first=at)
        assert alone == together[at]
    assert len({result.text for result in together}) > 25


def test_a_row_has_the_fields_of_chat_completions(model):
    whole, stopped, ended, chat = answered(
        model,
        json.dumps({"prompt": "the king", "temperature": 0, "max_tokens": 12}),
        json.dumps({"prompt": "the king", "temperature": 0, "max_tokens": 12, "stop": "STOP"}),
        json.dumps({"prompt": "the king", "logit_bias": {"2": 100}, "n": 1, "top_p": None}),
        json.dumps(
            {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True, "logit_bias": {"2": 100}}
        ),
    )
    assert (whole.finish_reason, whole.usage.completion_tokens) == ("length", 12)
    assert (stopped.text, stopped.finish_reason) == (whole.text, "length")
    assert (ended.text, ended.finish_reason) == ("", "stop")
    assert (chat.error, chat.finish_reason, chat.usage.completion_tokens) == ("", "length", 6)
    (cut,) = answered(
        model,
        json.dumps({"prompt": "the king", "temperature": 0, "max_tokens": 12, "stop": [whole.text[4:6]]}),
    )
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(whole.text[4:6])], "stop")


def test_a_row_s_own_name_goes_to_its_result(model):
    for wrong, ids in (
        ({"id": "a", "custom_id": "\ud800 b"}, {"id": "a", "custom_id": "\ud800 b"}),
        ({"id": None}, {}),
        ({"id": "a", "custom_id": 4}, {"id": "a"}),
    ):
        (result,) = run(model, [{"prompt": "the king", "max_tokens": 2, **wrong}])
        row = json.loads(result.line())
        assert {name: row[name] for name in row if name.endswith("id")} == ids
        assert ("error" in row) == (wrong.get("custom_id") == 4)
    (refused,) = run(model, [{"id": "c", "prompt": ""}])
    assert json.loads(refused.line()).keys() == {"index", "id", "error"}


def test_no_messages_are_an_error_where_a_system_prompt_is_known_to_do_best(model, monkeypatch):
    monkeypatch.setattr(model, "system", "Be kind.")
    (result,) = run(model, [{"messages": []}])
    assert "the conversation is empty" in result.error


def test_no_rows_are_no_results(model):
    assert list(run(model, [])) == []


def test_lines_are_json_of_the_promised_fields_and_each_is_one_line():
    row = json.loads(Result(3, "a\u2028b\x85\x1b", "stop", batch.Usage(4, 2)).line())
    assert row == {
        "index": 3,
        "text": "a\u2028b\x85\x1b",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 4, "completion_tokens": 2},
    }
    for result in (Result(3, "a\u2028b\x85\n\x1b"), Result(4, error="half \ud800")):
        assert result.line().isprintable()
        assert len(result.line().splitlines()) == 1
    assert json.loads(Result(4, error="no").line()) == {"index": 4, "error": "no"}


# ---- rows that cannot be answered

GOOD = '{"prompt": "the king"}'
BAD = {
    "{": "line 2 is no JSON",
    "[1]": "line 2 is no JSON object",
    "null": "line 2 is no JSON object",
    b'{"prompt": "caf\xe9"}': "line 2 is no UTF-8: byte 0xe9 at 16",
    "[" * 100_000: "line 2 is no JSON: nested too deep",
    '{"prompt": ' + "1" * 5000 + "}": "line 2 is no JSON",
    "{}": "this one has neither",
    '{"prompt": null}': "this one has neither",
    '{"prompt": "a", "messages": []}': "this one has both",
    '{"prompt": ["a"]}': "the prompt is no text",
    '{"prompt": "\\ud800"}': "the prompt has half a surrogate pair",
    '{"prompt": ""}': "the prompt is empty",
    '{"messages": "Hi"}': "messages is no list",
    '{"messages": []}': "the conversation is empty",
    '{"messages": ["Hi"]}': "message 1 is not an object of role and content",
    '{"messages": [{"role": "user"}]}': "message 1 is not an object of role and content",
    '{"messages": [{"role": ["user"], "content": "a"}]}': "message 1 has no known role",
    '{"messages": [{"role": "king", "content": "a"}]}': "message 1 has no known role",
    '{"messages": [{"role": "user", "content": 1}]}': "message 1 is no text",
    '{"prompt": "a", "max_token": 4}': "is called 'max_token'; did you mean max_tokens?",
    '{"prompt": "a", "zzz": 4}': "is called 'zzz'; known are dry_allowed_length, ",
    '{"prompt": "a", "custom_id": 4}': "the custom_id is no text",
    '{"messages": [{"role": "user", "content": "a", "image": "b"}]}': "message 1 has the field 'image'",
    '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': "no text: 'image_url'",
    '{"messages": [{"role": "user", "content": ["a"]}]}': "message 1 has a part that is no text: 'a'",
    '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}': "a part of message 1 is no text",
    '{"prompt": "a", "\\ud800": 4}': "no sampling setting",
    '{"prompt": "a", "max_tokens": 0}': "max-tokens is 0",
    '{"prompt": "a", "temperature": NaN}': "temperature is not a number",
    '{"prompt": "a", "seed": "x"}': "seed is 'x'",
    '{"prompt": "a", "stop": ""}': "an empty stop text",
    '{"prompt": "a", "n": 2}': "n is not 1",
    '{"prompt": "a", "n": [1]}': "n is not 1",
    '{"prompt": "a", "logprobs": true}': "logprobs",
    json.dumps({"prompt": "king " * 200}): "tokens and the context holds 128",
    json.dumps({"prompt": "king " * 1_000_000}): "tokens and the context holds 128",
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:40])
def test_a_row_that_cannot_be_answered_is_its_own_error_only(model, line):
    before, wrong, after = answered(model, GOOD, line, GOOD)
    assert BAD[line] in wrong.error
    assert set(json.loads(wrong.line())) == {"index", "error"}
    assert "\n" not in wrong.error
    assert (before.index, wrong.index, after.index) == (0, 1, 2)
    assert before.error == after.error == ""
    assert before.text == after.text != ""


def test_a_line_of_a_hundred_megabytes_is_an_error_and_not_held(model):
    def lines():
        yield b'{"prompt": "' + b"a" * (LONGEST - 20)
        yield b"a" * 40_000_000 + b'"}\n'
        yield GOOD.encode()

    data = io.BytesIO(b"".join(lines()))
    long = Source(data, "prompts.jsonl", len(data.getbuffer()), live=False)
    wrong, after = run(model, prompts.read(long), base=BASE)
    assert "line 1 is longer than 64 MiB" in wrong.error
    assert (after.index, after.error) == (1, "")
    assert long.done == long.size > 100_000_000


def test_messages_without_a_chat_template_are_errors_and_prompts_are_not(tmp_path):
    path = tiny_llama(tmp_path / "bare.gguf", chat_template=None)
    line = '{"messages": [{"role": "user", "content": "Hi"}]}'
    with load(str(path), ctx=128, parallel=2) as bare:
        if bare.engine.vocab.has("<|im_start|>"):  # by which ChatML would be recognised
            bare.form = "none such"
        first, second = answered(bare, line, GOOD)
    assert "chat template" in first.error
    assert second.error == ""


def test_blank_lines_and_a_mark_are_no_rows(model):
    results = answered(model, b"\xef\xbb\xbf" + GOOD.encode(), "", "  \t", GOOD, "")
    assert [(result.index, result.error) for result in results] == [(0, ""), (1, "")]


@pytest.mark.parametrize(
    ("data", "said"), [(b'[{"prompt": "a"}]', "JSON list"), (b"\xff\xfe{\x00", "UTF-16")]
)
def test_a_file_of_another_form_is_refused_whole(data, said):
    with pytest.raises(BadData, match=said):
        list(prompts.read(source(data)))


# ---- many rows


def test_no_more_than_a_bounded_number_of_rows_is_held(model):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield {"prompt": "a", "max_tokens": 1}

    ahead = []
    with closing(run(model, endless())) as results:
        for result in itertools.islice(results, 400):
            ahead.append(taken - result.index)
    assert 1 < max(ahead) <= batch.HELD * SLOTS


def test_short_rows_are_answered_while_a_long_one_before_them_runs(model):
    taken = 0

    def rows():
        nonlocal taken
        yield {"prompt": "a", "max_tokens": 100, "ignore_eos": True}
        for _ in range(59):
            taken += 1
            yield {"prompt": "a", "max_tokens": 2, "ignore_eos": True}

    results = run(model, rows())
    first = next(results)
    assert (first.index, first.usage.completion_tokens) == (0, 100)
    assert taken == 59  # not only as many as fit beside it
    assert [result.index for result in results] == [*range(1, 60)]


def test_what_runs_is_not_held_back_for_a_slow_input(model):
    written = []

    def slow():
        for _ in range(3):
            yield {"prompt": "a", "max_tokens": 2}
        yield None
        assert written == [0, 1, 2]
        yield {"prompt": "a", "max_tokens": 2}

    for result in run(model, slow()):
        written.append(result.index)
    assert written == [0, 1, 2, 3]


def test_a_run_that_is_left_leaves_the_engine_to_others(model):
    results = run(model, [{"prompt": "a", "max_tokens": 100, "ignore_eos": True}] * 50)
    next(results)
    started = time.process_time()
    results.close()
    (after,) = answered(model, GOOD)
    assert after.error == ""
    assert time.process_time() - started < 1


def test_an_error_of_the_input_ends_the_run_and_frees_its_slots(model):
    def rows():
        yield {"prompt": "a", "max_tokens": 100}
        raise BadData("no more")

    with pytest.raises(BadData, match="no more"):
        list(run(model, rows()))
    assert answered(model, GOOD)[0].error == ""


def test_a_closed_engine_ends_the_run_instead_of_failing_row_by_row(path):
    with load(path, ctx=128, parallel=2) as loaded:
        results = run(loaded, ({"prompt": "a", "max_tokens": 2} for _ in range(100)))
        next(results)
    with pytest.raises(EngineError):
        list(results)


def test_many_runs_share_one_model(model):
    rows = [{"prompt": "in the", "max_tokens": 9, "seed": at, "temperature": 1.2} for at in range(12)]
    alone, found = list(run(model, rows)), {}

    def go(name):
        found[name] = list(run(model, rows))

    threads = [threading.Thread(target=go, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [*found.values()] == [alone] * 3


# ---- how many at a time


def test_the_benchmark_compares_them(tmp_path):
    from edge.bench.batch import batch as paces
    from edge.bench.batch import lines

    path = tiny_llama(tmp_path / "tiny.gguf", ctx=1024)
    found = paces(str(path), (1, 2), rows=3, tokens=4, repetitions=1)
    assert [pace.parallel for pace in found] == [1, 2]
    assert found[0].ratio.median == 1
    assert found[1].ratio.median == found[1].tps.median / found[0].tps.median
    assert lines(found)[2].startswith("| 1 | ")


def test_eight_at_a_time_where_they_fit(path):
    parallel, reason = batch.choose_parallel(path, ctx=None, threads=None)
    assert parallel == 8
    assert reason.startswith("parallel 8: with 256 tokens each it takes ")


def test_fewer_at_a_time_where_eight_do_not_fit_and_none_where_one_does_not(path, monkeypatch):
    def needs(parallel):
        return batch.plan(path, parallel=parallel).memory.total_bytes

    plan = batch.plan
    for most in (4, 2, 1):
        between = (needs(most) + needs(2 * most)) // 2
        monkeypatch.setattr(batch, "plan", partial(plan, memory=between))
        assert batch.choose_parallel(path, ctx=None, threads=None)[0] == most
        monkeypatch.setattr(batch, "plan", plan)
    monkeypatch.setattr(batch, "plan", partial(plan, memory=1_000_000))
    with pytest.raises(DoesNotFit):
        batch.choose_parallel(path, ctx=None, threads=None)


# ---- the output

MADE_OF = {"input": "abc", "temperature": 0.5, "stop": ("\n",)}


def write(path, *lines, made_of=MADE_OF):
    with journal.opened(path, made_of) as output:
        for line in lines:
            output.write(line)
        return output.rows


def line(index):
    return json.dumps({"index": index, "text": "é\n"})


def test_an_output_is_gone_on_with_where_it_ends(tmp_path):
    out = tmp_path / "out.jsonl"
    assert write(out, line(0), line(1)) == 0
    assert write(out, line(2)) == 2
    assert write(out) == 3
    assert out.read_text().splitlines() == [line(0), line(1), line(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.batch"]


@pytest.mark.parametrize("half", [b"{", line(2).encode(), b"\xff\x00"])
def test_a_line_half_written_is_cut_off(tmp_path, half):
    out = tmp_path / "out.jsonl"
    write(out, line(0), line(1))
    whole = out.read_bytes()
    out.write_bytes(whole + half)
    assert write(out, line(2)) == 2
    assert out.read_bytes() == whole + line(2).encode() + b"\n"


@pytest.mark.parametrize(
    "wrong", ["", "x", "[0]", '{"text": ""}', line(1), line(3), '{"index": "2"}', "[" * 9999]
)
def test_an_output_with_lines_of_something_else_is_refused_and_kept(tmp_path, wrong):
    out = tmp_path / "out.jsonl"
    write(out, line(0), line(1), wrong)
    before = out.read_bytes()
    with pytest.raises(RequestError, match="line 3 is not the answer to row 2"):
        write(out, line(2))
    assert out.read_bytes() == before


def test_an_output_of_another_run_is_refused_by_what_differs(tmp_path):
    out = tmp_path / "out.jsonl"
    write(out, line(0))
    for other, named in (
        ({**MADE_OF, "input": "abd"}, "input"),
        ({**MADE_OF, "temperature": 0, "stop": ()}, "temperature, stop"),
        ({**MADE_OF, "new": None}, "new"),
        ({"input": "abc", "stop": ("\n",)}, "temperature"),
    ):
        with pytest.raises(RequestError, match=f"begun with another {named}$"):
            write(out, line(1), made_of=other)
    with pytest.raises(RequestError, match="stdin cannot be read again"):
        write(out, line(1), made_of=None)
    assert out.read_text() == line(0) + "\n"


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_an_output_that_nothing_tells_of_is_refused(tmp_path, content):
    out = tmp_path / "out.jsonl"
    write(out, line(0))
    beside = tmp_path / "out.jsonl.batch"
    beside.unlink()
    if content is not None:
        beside.write_bytes(content)
    with pytest.raises(RequestError, match=r"no out\.jsonl\.batch says what of"):
        write(out, line(1))


def test_an_output_without_lines_is_begun_anew(tmp_path):
    out = tmp_path / "out.jsonl"
    write(out)
    assert write(out, line(0), made_of={"input": "other"}) == 0
    assert write(out, made_of={"input": "other"}) == 1


def test_an_output_that_is_being_written_is_left_alone(tmp_path):
    out = tmp_path / "out.jsonl"
    with journal.opened(out, MADE_OF) as output:
        output.write(line(0))
        with pytest.raises(RequestError, match="another run writes"):
            write(out)
    assert write(out) == 1


def test_an_output_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path, "directory"),
        (tmp_path / "none" / "out.jsonl", "No such file"),
        (tmp_path / "pipe", "not a regular file"),
    ):
        with pytest.raises(RequestError, match=said):
            write(path)


def test_a_full_disk_leaves_whole_lines_and_a_typed_error(tmp_path):
    out = tmp_path / "out.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    long = json.dumps({"index": 1, "text": "a" * 5000})
    with journal.opened(out, MADE_OF) as output:
        output.write(line(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            with pytest.raises(StoreError, match="File too large"):
                output.write(long)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_text() == line(0) + "\n"
    assert write(out, long) == 1


def test_what_answers_follow_from_is_the_input_the_weights_and_the_settings(model, path, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(GOOD)
    first = journal.made_of(file, model, BASE)
    assert first == journal.made_of(file, model, BASE)
    assert {"input", "model", "weights", "context", "temperature", "max_tokens", "seed"} <= set(first)
    json.dumps(first)
    file.write_text(GOOD + "\n")
    changed = journal.made_of(file, model, Sampling(seed=2))
    assert {name for name in first if first[name] != changed[name]} == {"input", "seed", "max_tokens"}
    with pytest.raises(RequestError, match="cannot be read"):
        journal.made_of(tmp_path / "none", model, BASE)


def test_large_weights_are_told_apart_by_their_ends(tmp_path):
    one, other = tmp_path / "a" / "w.gguf", tmp_path / "b" / "w.gguf"
    for each, end in ((one, b"x"), (other, b"y")):
        each.parent.mkdir()
        each.write_bytes(bytes(3 * journal.ENDS) + end)
    assert journal.digest([one], ends=True) != journal.digest([other], ends=True)
    assert journal.weights(tmp_path) == [one, other]
