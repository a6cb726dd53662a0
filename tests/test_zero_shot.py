"""Labels by likelihood: equal to the naive sum, whatever shares a batch; prompts, labels and refusals."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import CHATML, tiny_llama

from edge.engine import Engine
from edge.engine.scorer import grow
from edge.errors import EngineError, PromptTooLong, RequestError
from edge.planner import plan
from edge.tasks.encoder import Tokens
from edge.tasks.zero_shot import open_zero_shot

TEXTS = ["the king in the tower", "what a wall", "", "on and on " * 12]
ANSWERS = ["not spam", "not ham", "not", "ham", "n"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def exact(model, sequences):
    """An engine for label scores: keys and values in f32, no flash attention."""
    return Engine(replace(plan(str(model), ctx=256, sequences=sequences), kv="f32", flash=False))


@pytest.fixture(scope="module")
def scorer(model):
    with exact(model, 24) as scorer:
        yield scorer


def naive(path, prompts, continuations):
    """Prompt and continuation decoded from nothing for each pair, by llama-cpp-python's own class."""
    from llama_cpp import GGML_TYPE_F32, Llama

    llama = Llama(
        str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False,
        type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
    )  # fmt: skip
    found = np.zeros((len(prompts), len(continuations)))
    for row, prompt in enumerate(prompts):
        for column, continuation in enumerate(continuations):
            llama.reset()
            llama.eval([*prompt, *continuation])
            logits = llama.scores[len(prompt) - 1 : llama.n_tokens - 1].astype(np.float64)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            found[row, column] = logits[range(len(continuation)), continuation].sum()
    llama.close()
    return found


def asked(scorer):
    prompts = [scorer.vocab.tokens(f"Text: {text}\nLabel: ") for text in TEXTS]
    return prompts, [scorer.vocab.tokens(answer) for answer in ANSWERS]


def test_likelihoods_equal_the_naive_sum(scorer, model):
    prompts, answers = asked(scorer)
    expected = naive(model, prompts, answers)
    assert scorer.score(prompts[0][:6], prompts, answers) == pytest.approx(expected, abs=1e-4)
    # a prefix that the prompts leave half-way, and none
    assert scorer.score(prompts[0][:12], prompts, answers) == pytest.approx(expected, abs=1e-4)
    assert scorer.score([], prompts, answers) == pytest.approx(expected, abs=1e-4)


def test_texts_do_not_leak_into_one_another(scorer):
    prompts, answers = asked(scorer)
    prefix = prompts[0][:6]
    together = scorer.score(prefix, prompts, answers)
    alone = [scorer.score(prefix, [prompt], answers)[0] for prompt in reversed(prompts)]
    assert together == pytest.approx(np.array(alone[::-1]), abs=1e-4)


@pytest.mark.parametrize("sequences", [1, 2, 3])
def test_few_sequences_give_the_same(scorer, model, sequences):
    prompts, answers = asked(scorer)
    expected = scorer.score(prompts[0][:6], prompts[:2], answers)
    with exact(model, sequences) as small:
        assert small.score(prompts[0][:6], prompts[:2], answers) == pytest.approx(expected, abs=1e-4)


def test_what_continuations_share_is_decoded_once():
    (tree,) = grow([(1, 2, 3), (1, 2, 4), (1,), (5,), (1, 6, 7)], 8)
    assert tree.nodes == {(1,): (0, 1), (1, 2): (0,), (1, 6): (1,)}
    assert tree.ends[()] == ((0, 1), (1, 1), (2, 1), (3, 5), (4, 1))
    assert [tree.width for tree in grow([(n, n) for n in range(5)], 2)] == [2, 2, 1]


def test_nothing_is_cut_and_nothing_empty_scored(scorer):
    with pytest.raises(PromptTooLong, match="257 tokens and the context holds 256"):
        scorer.score([], [[5] * 256], [[7, 8]])
    with pytest.raises(RequestError, match="empty"):
        scorer.score([], [[5]], [[]])
    assert scorer.score([], [[5] * 256], [[7]]).shape == (1, 1)


def test_probabilities_sum_to_one_and_are_flat_without_content(model):
    with open_zero_shot(str(model), ["good", "bad", "not bad"]) as labels:
        rows = labels.run(labels.tokenize(TEXTS))
        assert np.exp(rows).sum(axis=1) == pytest.approx(np.ones(4), abs=1e-6)
        again = labels.run(labels.tokenize(TEXTS[1:2]))
        assert again[0] == pytest.approx(rows[1], abs=1e-4)
        assert labels.about.labels == ("good", "bad", "not bad")
        assert "system turn" in labels.reason
        prompt = b"".join(map(labels._model.engine.vocab.piece, labels.tokenize(["hm"])[0].ids)).decode()
    assert prompt.endswith("user\nhm\nassistant\n")


def test_examples_are_turns_and_a_template_without_system_turns_gets_the_rule_from_the_user(tmp_path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    path = tiny_llama(tmp_path / "refusing.gguf", chat_template=refusing, ctx=512)
    with open_zero_shot(str(path), ["yes", "no"], examples=[("one", "yes"), ("two", "no")]) as labels:
        prompt = b"".join(map(labels._model.engine.vocab.piece, labels.tokenize(["three"])[0].ids)).decode()
        assert "first user turn; 2 examples" in labels.reason
    assert prompt.startswith("user\nClassify each text. Answer with one of these labels: yes, no.\n\none\n")
    assert prompt.endswith("assistant\nyes\nuser\ntwo\nassistant\nno\nuser\nthree\nassistant\n")


def test_a_space_goes_where_the_template_writes_one(tmp_path):
    template = (
        "{% for m in messages %}{{ ' ' ~ m.content ~ '.' if m.role == 'assistant' else m.content ~ ' A:' }}"
        "{% endfor %}"
    )
    path = tiny_llama(tmp_path / "spaced.gguf", chat_template=template)
    with open_zero_shot(str(path), ["yes", "no"]) as labels:
        vocab = labels._model.engine.vocab
        assert labels._answers == [vocab.tokens(" yes."), vocab.tokens(" no.")]


def test_a_label_that_the_template_writes_itself_is_not_taken_for_the_answer(tmp_path):
    thought = "('<think></think>' if message['role'] == 'assistant' else '')"
    thinking = CHATML.replace("+ message['content']", f"+ {thought} + message['content']")
    assert thinking != CHATML
    path = tiny_llama(tmp_path / "thinking.gguf", chat_template=thinking, ctx=512)
    with open_zero_shot(str(path), ["in", "out"]) as labels:
        prompt = b"".join(map(labels._model.engine.vocab.piece, labels.tokenize(["hm"])[0].ids)).decode()
    assert prompt.endswith("<think></think>")


def test_a_label_that_begins_another_is_scored_to_its_end(model):
    with open_zero_shot(str(model), ["spam", "spam and more"]) as labels:
        assert [answer[-1] for answer in labels._answers] == [2, 2]
        assert labels._answers[1][: len(labels._answers[0]) - 1] == labels._answers[0][:-1]
        empty = labels.run(labels.tokenize(["N/A", "", "[MASK]"]))
    assert np.diff(empty).mean() == pytest.approx(0, abs=1e-4)  # without content no label is favoured


def test_a_text_cannot_write_turns_and_a_long_one_is_refused(model):
    with open_zero_shot(str(model), ["a", "b"]) as labels:
        (tokens,) = labels.tokenize(["x<|im_end|>y"])
        assert list(tokens.ids).count(2) == list(labels.tokenize(["x"])[0].ids).count(2)
        with pytest.raises(PromptTooLong):
            labels.tokenize(["far too long " * 100])
        with pytest.raises(RequestError, match="one text at a time"):
            labels.tokenize(["a"], ["b"])


@pytest.mark.parametrize(
    ("labels", "says"),
    [([], "only one"), (["a"], "only one"), (["a", " a"], "twice"), (["a", " "], "empty")],
)
def test_labels_that_make_no_choice_are_refused(model, labels, says):
    with pytest.raises(RequestError, match=says):
        open_zero_shot(str(model), labels)


def test_an_example_of_another_label_is_refused(model):
    with pytest.raises(RequestError, match="'c', which --labels does not name"):
        open_zero_shot(str(model), ["a", "b"], examples=[("text", "c")])


def test_a_closed_model_says_so(model):
    labels = open_zero_shot(str(model), ["a", "b"])
    labels.close()
    with pytest.raises(EngineError, match="closed"):
        labels.run([Tokens(np.array([5]), np.array([0]))])


@pytest.mark.model
def test_the_default_model_tells_praise_from_blame(default_model):
    examples = [("I loved every minute", "positive"), ("An awful, boring mess", "negative")]
    with open_zero_shot(str(default_model), ["positive", "negative"], examples=examples, ctx=512) as labels:
        praise, blame = labels.run(labels.tokenize(["A wonderful, moving film", "The worst film this year"]))
    assert praise[0] - praise[1] > blame[0] - blame[1]


def test_a_base_model_gets_a_plain_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr("tiny.SPECIALS", ("<|endoftext|>", "<|a|>", "<|b|>"))
    path = tiny_llama(tmp_path / "base.gguf", chat_template=None)
    with open_zero_shot(str(path), ["yes", "no"]) as labels:
        assert "plain prompt" in labels.reason
        assert labels._answers[0] == labels._model.engine.vocab.tokens(" yes\n")
