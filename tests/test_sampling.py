"""Draws against an independent computation in NumPy, whose random numbers are libstdc++'s of the same seed."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from tiny import tiny_llama

from edge.chat.talk import settings
from edge.engine.binding import listen, llama
from edge.engine.chain import Chain
from edge.engine.fields import sampling_from
from edge.engine.logprobs import logprobs
from edge.engine.sampling import RANGES, Sampling
from edge.engine.vocab import Vocab
from edge.errors import EngineError, RequestError

OPEN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)  # nothing but the draw
GREEDY = Sampling(temperature=0)
HISTORY = [5, 6, 7, 8, 5, 6, 9, 5, 30, 31]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lib = llama()
    listen()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    path = tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    loaded = lib.llama_model_load_from_file(str(path).encode(), params)
    yield loaded
    lib.llama_model_free(loaded)


@pytest.fixture(scope="module")
def vocab(model):
    return Vocab(model)


def rows(vocab, count, loudness=3.0):
    random = np.random.default_rng(7)
    return [(random.standard_normal(vocab.size) * loudness).astype(np.float32) for _ in range(count)]


def drawn(sampling, vocab, logits, *, seed=11, prompt=HISTORY):
    chain = Chain(sampling, vocab, seed, prompt)
    try:
        return [chain.draw_from(row) for row in logits]
    finally:
        chain.close()


class Uniform:
    """std::uniform_real_distribution over std::mt19937 (libstdc++'s generate_canonical)."""

    def __init__(self, seed):
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed)

    def double(self):
        low, high = (int(each) for each in self._bits.random_raw(2))
        return (low + high * 2.0**32) / 2.0**64

    def single(self):
        return float(np.float32(int(self._bits.random_raw())) / np.float32(2.0**32))


def softmax(values):
    shares = np.exp(values - values.max())
    return shares / shares.sum()


class Reference:
    """llama.cpp's samplers after their papers, in float64; candidates are (ids, logits) in the order of the draw."""

    def __init__(self, sampling, seed, said):
        self.settings, self.said = sampling, list(said)
        self.uniform, self.chance, self.mu = Uniform(seed), Uniform(seed), 2 * sampling.mirostat_tau

    def draw(self, row):
        s = self.settings
        ids, logits = np.arange(len(row)), row.astype(np.float64)
        for token, bias in s.logit_bias:
            logits[token] += bias
        if s.mirostat:
            token = self.mirostat(logits / s.temperature)
        else:
            self.penalise(logits)
            if s.temperature == 0:
                token = int(np.argmax(logits))
            else:
                ids, logits = self.truncate(ids, logits)
                shares = softmax(logits / s.temperature)
                token = int(ids[np.searchsorted(np.cumsum(shares), self.uniform.double() * shares.sum())])
        self.said.append(token)
        return token

    def penalise(self, logits):
        s = self.settings
        for token in set(self.said[-s.repeat_last_n :] if s.repeat_last_n else ()):
            count = self.said[-s.repeat_last_n :].count(token)
            logits[token] *= s.repeat_penalty if logits[token] <= 0 else 1 / s.repeat_penalty
            logits[token] -= count * s.frequency_penalty + s.presence_penalty

    def truncate(self, ids, logits):
        s = self.settings

        def only(order):
            return ids[order], logits[order]

        if s.top_k:
            ids, logits = only(np.argsort(-logits, kind="stable")[: s.top_k])
        if s.typical_p < 1:
            ids, logits = only(np.isfinite(logits))
            ids, logits = only(np.argsort(-logits, kind="stable"))
            shares = softmax(logits)
            away = np.abs(-np.log(shares) + (shares * np.log(shares)).sum())
            order = np.argsort(away, kind="stable")
            ids, logits = only(order[: int(np.sum(np.cumsum(shares[order]) <= s.typical_p)) + 1])
        if s.top_p < 1:
            ids, logits = only(np.argsort(-logits, kind="stable"))
            shares = np.cumsum(softmax(logits))
            ids, logits = only(slice(int(np.sum(shares < s.top_p)) + 1))
        if s.min_p > 0:
            ids, logits = only(logits >= logits.max() + np.log(s.min_p))
        if s.xtc_probability and len(ids) > 1 and self.chance.single() <= s.xtc_probability:
            ids, logits = only(np.argsort(-logits, kind="stable"))
            likely = int(np.sum(softmax(logits) >= s.xtc_threshold))
            ids, logits = only(slice(max(likely - 1, 0), None))
        return ids, logits

    def mirostat(self, logits):
        s = self.settings
        ids = np.argsort(-logits, kind="stable")
        shares = softmax(logits[ids])
        if s.mirostat == 1:
            first = shares[:100]
            steps = np.log(np.arange(2, len(first) + 1) / np.arange(1, len(first)))
            slope = (steps * np.log(first[:-1] / first[1:])).sum() / (steps**2).sum()
            rest = slope - 1
            keep = int(((rest * 2**self.mu) / (1 - len(ids) ** -rest)) ** (1 / slope))
        else:
            keep = int(np.sum(-np.log2(shares) <= self.mu))
        shares = shares[: max(keep, 1)] / shares[: max(keep, 1)].sum()
        at = 0 if len(shares) == 1 else int(np.searchsorted(np.cumsum(shares), self.uniform.double()))
        if len(shares) > 1:
            self.mu -= s.mirostat_eta * (-np.log2(shares[at]) - s.mirostat_tau)
        else:
            self.mu += s.mirostat_eta * s.mirostat_tau
        return int(ids[at])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 9},
        {"top_p": 0.7},
        {"top_p": 0.0},
        {"min_p": 0.2},
        {"typical_p": 0.4},
        {"typical_p": 0.9, "top_k": 50, "top_p": 0.8, "min_p": 0.02, "temperature": 1.7},
        {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
        {"typical_p": 0.6, "logit_bias": {3: -math.inf, 4: -math.inf}},
        {"repeat_penalty": 1.4, "top_k": 20},
        {"frequency_penalty": 1.5, "presence_penalty": -0.7, "repeat_penalty": 1.1},
        {"frequency_penalty": 2.0, "repeat_last_n": 3},
        {"repeat_penalty": 3.0, "repeat_last_n": 0},
        {"xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"xtc_probability": 1.0, "xtc_threshold": 0.02, "top_k": 30},
        {"logit_bias": {3: 5.0, 70: -math.inf, 71: -4.5}, "top_k": 12},
        {"mirostat": 1, "mirostat_tau": 3.0},
        {"mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.3},
        {"mirostat": 2, "temperature": 2.0, "repeat_penalty": 3.0},
    ],
)
def test_draws_are_those_of_an_independent_computation(vocab, changes):
    sampling = dataclasses.replace(OPEN, **changes)
    logits = rows(vocab, 60)
    reference = Reference(sampling, 11, HISTORY)
    assert drawn(sampling, vocab, logits) == [reference.draw(row) for row in logits]


@pytest.mark.parametrize(
    "changes",
    [
        {"repeat_penalty": 1.8},
        {"frequency_penalty": 1.2, "repeat_last_n": 5},
        {"presence_penalty": 2.0},
        {"logit_bias": ((12, 30.0), (13, -math.inf))},
        {"mirostat": 2},
        {"temperature": 1e-30},
    ],
)
def test_greedy_draws_too(vocab, changes):
    """Steering the surprise of a certain token changes nothing; a temperature next to 0 is 0."""
    sampling = dataclasses.replace(GREEDY, **changes)
    logits = rows(vocab, 30, loudness=1.0)
    reference = Reference(dataclasses.replace(sampling, temperature=0, mirostat=0), 11, HISTORY)
    assert drawn(sampling, vocab, logits) == [reference.draw(row) for row in logits]


def test_the_likeliest_is_what_the_chain_itself_would_choose(vocab):
    """Of equals the first; a ban sends the draw to the chain, as does anything that weighs tokens."""
    rounded = [np.round(row) for row in rows(vocab, 30, loudness=1.0)]
    for changes in ({}, {"ignore_eos": True}, {"mirostat": 1}, {"logit_bias": {50: float("-inf")}}):
        sampling = dataclasses.replace(GREEDY, **changes)
        chain = Chain(sampling, vocab, 11, HISTORY)
        assert chain._never is not None
        chain._never = None
        assert [chain.draw_from(row) for row in rounded] == drawn(sampling, vocab, rounded)
        chain.close()
    for changes in (
        {"logit_bias": {50: 1.0}},
        {"repeat_penalty": 1.1},
        {"dry_multiplier": 1.0},
        {"grammar": "root ::= [a-z]+"},
        {"temperature": 0.5},
    ):
        chain = Chain(dataclasses.replace(GREEDY, **changes), vocab, 11, HISTORY)
        assert chain._never is None
        chain.close()


def test_equal_seeds_give_equal_tokens(vocab):
    logits = rows(vocab, 20)
    for changes in ({}, {"mirostat": 1}, {"xtc_probability": 0.5}, {"grammar": "root ::= [a-z ]+"}):
        sampling = dataclasses.replace(OPEN, **changes)
        first = drawn(sampling, vocab, logits, seed=3)
        assert first == drawn(sampling, vocab, logits, seed=3)
        assert first != drawn(sampling, vocab, logits, seed=4)


def test_a_context_gives_what_its_logits_give(model, vocab):
    lib = llama()
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads, params.no_perf = 64, 1, True
    context = lib.llama_init_from_model(model, params)
    tokens = (lib.llama_token * 4)(*vocab.tokens("a the")[:4])
    assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, 3)) == 0
    row = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (vocab.size,)).copy()
    for changes in ({}, {"mirostat": 2}, {"frequency_penalty": 1.0}, {"grammar": "root ::= [a-f]+"}):
        sampling = dataclasses.replace(OPEN, temperature=2.0, **changes)
        chain = Chain(sampling, vocab, 5, HISTORY)
        assert [chain.draw(context, -1) for _ in range(12)] == drawn(sampling, vocab, [row] * 12, seed=5)
        chain.close()
        chain.close()
    lib.llama_free(context)


def level(vocab, **likely):
    """Logits of 0 but for some tokens, by their letter."""
    row = np.zeros(vocab.size, np.float32)
    for letter, value in likely.items():
        row[one(vocab, letter)] = value
    return row


def one(vocab, letter):
    return vocab.tokens(letter, add_special=False)[0]


def test_dry_weakens_what_goes_on_with_a_repeated_run(vocab):
    """After `xyzk…xyz` the run is 3 long, so k loses multiplier · base^(3 − 2)."""
    row = level(vocab, k=5.0, q=4.0)
    said = [one(vocab, letter) for letter in "xyzkwxyz"]
    for multiplier, letter in ((0.3, "k"), (0.7, "q")):  # 0.3 · 1.75 < 1 < 0.7 · 1.75
        sampling = dataclasses.replace(GREEDY, dry_multiplier=multiplier)
        assert drawn(sampling, vocab, [row], prompt=said) == [one(vocab, letter)]
    longer = dataclasses.replace(GREEDY, dry_multiplier=0.7, dry_allowed_length=3)
    assert drawn(longer, vocab, [row], prompt=said) == [one(vocab, "k")]
    short = dataclasses.replace(GREEDY, dry_multiplier=0.7, dry_penalty_last_n=4)
    assert drawn(short, vocab, [row], prompt=said) == [one(vocab, "k")]
    broken = [one(vocab, letter) for letter in "xyzkwx:z"]
    assert drawn(dataclasses.replace(GREEDY, dry_multiplier=9), vocab, [row], prompt=broken) == [
        one(vocab, "k")
    ]


def test_ignored_ends_are_never_drawn(vocab):
    row = np.zeros(vocab.size, np.float32)
    row[[2, 50]] = 9, 8
    assert vocab.is_end(2)
    assert drawn(GREEDY, vocab, [row]) == [2]
    assert drawn(dataclasses.replace(GREEDY, ignore_eos=True), vocab, [row]) == [50]


def test_what_the_vocabulary_cannot_do_is_refused(vocab):
    class Onnx:
        size, handle = vocab.size, None

    with pytest.raises(RequestError, match=f"names token {vocab.size}"):
        Chain(Sampling(logit_bias={vocab.size: 1.0}), vocab, 1, [])
    with pytest.raises(RequestError, match="bans every token"):
        Chain(Sampling(logit_bias=dict.fromkeys(range(vocab.size), -math.inf)), vocab, 1, [])
    with pytest.raises(RequestError, match="dry-multiplier needs"):
        Chain(Sampling(dry_multiplier=1.0), Onnx(), 1, [])
    with pytest.raises(RequestError, match="a grammar needs"):
        Chain(Sampling(grammar='root ::= "a"'), Onnx(), 1, [])
    for text in ("<nothing>", "<[320]>"):
        with pytest.raises(RequestError, match="is no token of the model"):
            Chain(Sampling(grammar=f"root ::= {text}"), vocab, 1, [])
    with pytest.raises(EngineError, match="no token could be drawn"):
        drawn(OPEN, vocab, [np.full(vocab.size, np.nan, np.float32)])


@pytest.mark.parametrize("field", RANGES)
def test_each_range_has_its_ends(field):
    low, high = RANGES[field]
    for value in (low, high):
        Sampling(**{field: value})
    for value in (low - 1, high + 1, math.nan, 10**400):
        with pytest.raises(RequestError, match=f"^{field.replace('_', '-')} is "):
            Sampling(**{field: value})


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        ({5: math.nan}, "token 5 is not a number"),
        ({5: math.inf}, "token 5 is inf"),
        ({5: 101}, "token 5 is 101"),
        ({-1: 0.0}, "token id of logit-bias is -1"),
        ({"5": 0.0}, "not a mapping"),
        ({True: 0.0}, "not a mapping"),
        ("5", "not a mapping"),
        (7, "not a mapping"),
    ],
)
def test_biases_that_cannot_be(bias, words):
    with pytest.raises(RequestError, match=words):
        Sampling(logit_bias=bias)


def test_biases_are_kept_in_one_form():
    first = Sampling(logit_bias={9: -math.inf, 3: 1})
    assert first == Sampling(logit_bias=[(3, 1.0), (9, -math.inf)])
    assert hash(first) == hash(Sampling(logit_bias=first.logit_bias))


def test_a_saved_session_gives_its_settings_back():
    given = {
        "logit_bias": ((5, -math.inf), (7, 1.5)),
        "stop": ("a", "b"),
        "mirostat": 2,
        "dry_multiplier": 0.8,
    }
    saved = json.loads(json.dumps(given))
    assert Sampling(**settings(saved)) == Sampling(**given)


def test_fields_of_a_row():
    base = Sampling(temperature=0.5, top_k=7)
    row = {
        "max_tokens": 12, "top_p": 1, "stop": "END", "seed": 3.0, "logit_bias": {"5": -100, "9": False},
        "logprobs": True, "top_logprobs": 2, "ignore_eos": True, "presence_penalty": None,
    }  # fmt: skip
    assert sampling_from(row, base) == Sampling(
        temperature=0.5, top_k=7, max_tokens=12, top_p=1, stop=("END",), seed=3,
        logit_bias={5: -100.0, 9: -math.inf}, logprobs=2, ignore_eos=True,
    )  # fmt: skip
    assert sampling_from({}, base) == base
    assert sampling_from({"stop": ["a", "b"]}, base).stop == ("a", "b")
    assert sampling_from({"logprobs": 4}, base).logprobs == 4
    assert sampling_from({"logprobs": True}, base).logprobs == 0
    assert sampling_from({"logprobs": False, "top_logprobs": 0}, base).logprobs is None
    numbers = {name: 1 for name in RANGES if name != "logprobs"}
    assert sampling_from(numbers, base) == Sampling(**numbers)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"temprature": 1}, "called 'temprature'"),
        ({"n": 2}, "called 'n'"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": 200}, "temperature is 200"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_tokens": "1"}, "max_tokens is '1'"),
        ({"seed": float("nan")}, "seed is nan"),
        ({"seed": 10**400}, "seed is far out of range"),
        ({"stop": 3}, "stop is 3"),
        ({"stop": ["a", 3]}, "stop is "),
        ({"stop": ""}, "empty stop text"),
        ({"stop": ["x" * 100, 3]}, "stop is list"),
        ({"logit_bias": [5]}, "logit_bias is "),
        ({"logit_bias": {"five": 1}}, "token id of logit_bias is 'five'"),
        ({"logit_bias": {"5": "1"}}, "logit_bias of token 5 is '1'"),
        ({"logit_bias": {"9" * 5000: 1}}, "token id of logit_bias is str"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs is 21"),
        ({"logprobs": 3, "top_logprobs": 2}, "logprobs is 3"),
        ({"top_logprobs": 2}, "without logprobs"),
        ({"ignore_eos": 1}, "ignore_eos is 1"),
        ({"grammar": 5}, "grammar is 5"),
        ({"grammar": "root = 1"}, "grammar does not parse"),
    ],
)
def test_fields_that_cannot_be(row, words):
    with pytest.raises(RequestError, match=words):
        sampling_from(row, Sampling())


def test_logprobs_are_those_of_float64():
    row = (np.random.default_rng(1).standard_normal(5000) * 8).astype(np.float32)
    exact = [math.log(math.fsum(math.exp(float(x) - float(row[t])) for x in row)) * -1 for t in range(3)]
    for token in range(3):
        found = logprobs(row, token, 5)
        assert found[0] == (token, pytest.approx(exact[token], abs=1e-12))
        assert [each[0] for each in found[1:]] == list(np.argsort(-row, kind="stable")[:5])
    assert len(logprobs(row, 0, 0)) == 1
    assert math.fsum(math.exp(p) for _, p in logprobs(row[:20], 3, 20)[1:]) == pytest.approx(1, abs=1e-12)


def test_logprobs_of_equal_and_of_banned_tokens():
    row = np.array([1, 3, 3, 3, -np.inf], np.float32)
    assert [token for token, _ in logprobs(row, 4, 2)] == [4, 1, 2]
    assert logprobs(row, 4, 2)[0][1] == -math.inf
    assert [token for token, _ in logprobs(row, 0, 20)] == [0, 1, 2, 3, 0, 4]
