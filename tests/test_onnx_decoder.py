"""ONNX decoders: the graph beside NumPy's pass, the engine beside llama.cpp's on the same checkpoint, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_checkpoints
from tiny import CHATML

import edge
from edge.cli import run
from edge.convert import checkpoint as checkpoints
from edge.convert import numpy_ops, to_gguf
from edge.convert.onnx import decoder, generation, graph, to_onnx
from edge.convert.understood import understand
from edge.engine import Engine, Sampling, Tally
from edge.engine.state_key import model_digest
from edge.errors import BadONNX, ConversionError, EngineError, PromptTooLong, RequestError, UnsafeFile
from edge.onnx.session import Session
from edge.planner import plan

CASES = [
    "llama", "llama-llama3-rope", "llama-linear-rope", "llama-tied", "llama-biases-wide-heads", "mistral",
    "mistral-window", "qwen2", "qwen2-tied", "qwen2-yarn", "qwen2-window", "qwen3",
]  # fmt: skip
SETTINGS = {
    "eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "add_bos_token": False, "chat_template": CHATML,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_graph_computes_what_numpy_does_whole_in_pieces_and_token_by_token(case, tmp_path):
    ids = tiny_checkpoints.ids(tiny_checkpoints.CASES[case])
    with checkpoints.open(tiny_checkpoints.write(case, tmp_path / "source")) as original:
        model = understand(original)
        graph.write(decoder.decoder(model, "fp32", case), tmp_path / "model.onnx")
        _, expected = model.forward(numpy_ops, ids)
        session = Session(tmp_path / "model.onnx", 1)
        single = generation.continued(session, model.config, [ids[at : at + 1] for at in range(len(ids))])
        pieces = generation.continued(session, model.config, [ids[:7], ids[7:30], ids[30:]])
        whole = generation.continued(session, model.config, [ids])
    assert np.abs(single - expected).max() < 1e-4
    assert np.abs(pieces - expected[[6, 29, -1]]).max() < 1e-4
    assert np.abs(whole[0] - expected[-1]).max() < 1e-4


def exact(file, **settings):
    """llama.cpp with keys and values in float32, as ours are: its usual cache is in half."""
    return Engine(replace(plan(str(file), **settings), kv="f32", flash=False))


def made(case, folder):
    """A checkpoint as a GGUF file and as an ONNX folder, every weight kept."""
    source = tiny_checkpoints.write(case, folder / "tiny")
    (source / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (file,) = to_gguf.convert(source, ["f32"], folder)
    (onnx,) = to_onnx.convert(source, ["fp32"], folder)
    return file.path, onnx


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return made("llama-tied", tmp_path_factory.mktemp("both"))


@pytest.fixture
def engines(both):
    file, made = both
    with exact(file, sequences=3) as gguf, Engine(plan(str(made.path), sequences=3)) as onnx:
        yield gguf, onnx


def answers(engine, sampling, n=1, text="the king in the tower said é"):
    chunks = list(engine.submit(engine.vocab.tokens(text), sampling, n=n))
    return [
        [(chunk.token, chunk.text, chunk.finish_reason) for chunk in chunks if chunk.index == i]
        for i in range(n)
    ]


def test_it_says_greedily_what_llama_cpp_says(engines):
    gguf, onnx = engines
    settings = Sampling(temperature=0, max_tokens=40, repeat_penalty=1.3)
    assert answers(onnx, settings) == answers(gguf, settings)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mistral", "qwen2", "qwen3"])
def test_each_family_says_greedily_what_llama_cpp_says(case, tmp_path):
    file, onnx = made(case, tmp_path)
    settings = Sampling(temperature=0, max_tokens=40, repeat_penalty=1.3)
    with exact(file) as ours, Engine(plan(str(onnx.path))) as theirs:
        assert answers(theirs, settings) == answers(ours, settings)


def test_a_seed_draws_what_it_draws_on_llama_cpp(engines):
    gguf, onnx = engines
    settings = Sampling(temperature=1.2, top_k=50, top_p=0.9, min_p=0.02, seed=7, max_tokens=30)
    assert answers(onnx, settings) == answers(gguf, settings)


def test_several_answers_are_those_of_llama_cpp_though_some_end_before_others(engines):
    gguf, onnx = engines
    first = answers(onnx, Sampling(temperature=1.5, seed=3, max_tokens=20), 3)
    stop = (first[0][4][1] or "e", first[1][9][1] or "a")  # the first answers end early
    settings = Sampling(temperature=1.5, seed=3, max_tokens=20, stop=stop)
    assert answers(onnx, settings, 3) == answers(gguf, settings, 3)
    # and what is kept of them is what was computed
    again = list(onnx.submit(onnx.vocab.tokens("the king in the tower said no"), settings))
    with Engine(onnx.plan) as fresh:
        cold = list(fresh.submit(fresh.vocab.tokens("the king in the tower said no"), settings))
    assert again[0].reused_tokens > 0 == cold[0].reused_tokens
    assert [chunk.token for chunk in again] == [chunk.token for chunk in cold]


def test_the_certificate_says_how_it_computes(both):
    _, made = both
    assert made.certificate.comparison.logit_error < 1e-4
    assert made.certificate.comparison.top1_agreement == 1
    assert made.certificate.pieces_error < 1e-4
    assert (made.path / "model.onnx.data").exists()  # mapped, not read twice


def test_a_longer_prompt_reuses_what_it_shares_and_says_the_same(engines):
    _, onnx = engines
    settings = Sampling(temperature=0, max_tokens=8)
    ids = onnx.vocab.tokens("the king")
    said = [chunk.token for chunk in onnx.submit(ids, settings)]
    longer = [*ids, *said, *onnx.vocab.tokens(" and on")]
    again = list(onnx.submit(longer, settings))
    assert again[0].reused_tokens == len(ids) + len(said) - 1
    with Engine(onnx.plan) as fresh:
        assert [chunk.token for chunk in fresh.submit(longer, settings)] == [chunk.token for chunk in again]


def test_a_prompt_of_several_batches_equals_one_in_pieces(both, tmp_path):
    _, made = both
    with Engine(plan(str(made.path), ctx=512)) as engine:
        ids = (engine.vocab.tokens("the tower in the rain ") * 60)[:500]
        settings = Sampling(temperature=0, max_tokens=6)
        whole = [chunk.token for chunk in engine.submit(ids, settings)]
        list(engine.submit(ids[:123], Sampling(temperature=0, max_tokens=1)))
        resumed = list(engine.submit(ids, settings))
    assert resumed[0].reused_tokens == 123
    assert [chunk.token for chunk in resumed] == whole


def test_requests_are_refused_taken_over_and_ended(engines):
    _, onnx = engines
    with pytest.raises(RequestError, match="the prompt is empty"):
        onnx.submit([], Sampling())
    with pytest.raises(RequestError, match="4 answers"):
        onnx.submit([5], Sampling(), n=4)
    with pytest.raises(PromptTooLong):
        onnx.submit([5] * onnx.context, Sampling())
    with pytest.raises(PromptTooLong):
        onnx.vocab.check_length("word " * 100_000, onnx.context)
    settings = Sampling(temperature=0, max_tokens=5)
    first, second = (onnx.submit(ids, settings) for ids in ([5, 6, 7], [5, 6, 8]))
    after = [chunk.token for chunk in second]
    assert len(list(first)) == 5
    with Engine(onnx.plan) as fresh:
        assert [chunk.token for chunk in fresh.submit([5, 6, 8], settings)] == after
    last = onnx.submit([5, 6, 7], Sampling(temperature=0))
    next(last)
    onnx.close()
    onnx.close()
    with pytest.raises(EngineError, match="closed"):
        list(last)
    with pytest.raises(EngineError, match="closed"):
        onnx.submit([5], Sampling())
    with pytest.raises(EngineError, match="closed"):
        onnx.meta("general.name")


def test_the_plan_says_what_runs_it_and_what_it_takes(both):
    _, made = both
    small, large = plan(str(made.path), ctx=128), plan(str(made.path), ctx=512, sequences=2)
    assert small.backend == "onnxruntime-cpu"
    assert small.level == "fp32"
    assert [other.choice for other in small.rejected] == ["llama.cpp"]
    assert large.memory.kv_bytes == 8 * small.memory.kv_bytes
    with pytest.raises(RequestError, match="out of range"):
        plan(str(made.path), ctx=513)
    tight = plan(str(made.path), memory=plan(str(made.path), ctx=256).memory.total_bytes)
    assert not tight.fits
    assert tight.nearest.startswith("a context of 256 fits")


def test_chat_and_generate_run_the_folder(both, capsys, monkeypatch):
    file, made = both
    monkeypatch.setattr("sys.stdin", None)
    for verb in ("generate", "chat"):
        said = []
        for model in (made.path, file):
            assert run([verb, str(model), "the king", "--temp", "0", "--max-tokens", "12"]) == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        assert said[0].strip()


def test_a_conversation_goes_on_from_its_kept_prefix(both, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path))
    _, made = both
    prompt, greedy = "the king in the tower said " * 4, Sampling(temperature=0, max_tokens=4)
    said = []
    for _ in range(2):
        with edge.load(str(made.path), cache=True) as model:
            said.append(list(model.generate(prompt, greedy)))
    assert [chunk.token for chunk in said[0]] == [chunk.token for chunk in said[1]]
    assert said[0][-1].reused_tokens == 0
    assert said[1][-1].reused_tokens > 0


def test_a_draft_is_a_gguf_model(both):
    gguf, made = both
    with pytest.raises(RequestError, match="draft model is ONNX"):
        edge.load(str(gguf), draft=str(made.path))


def test_a_graphs_weights_are_part_of_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    graph, weights = tmp_path / "a.onnx", tmp_path / "a.onnx.data"
    graph.write_bytes(b"graph")
    weights.write_bytes(b"one")
    (tmp_path / "b.onnx").write_bytes(b"other")
    whole = model_digest(graph), model_digest(tmp_path / "b.onnx")
    assert whole[0] != whole[1]
    weights.write_bytes(b"another")
    assert model_digest(graph) != whole[0]
    assert model_digest(tmp_path / "b.onnx") == whole[1]


def test_a_folder_that_is_not_what_it_says_is_refused(both, tmp_path):
    _, made = both
    for part in made.path.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    config = json.loads((made.path / "config.json").read_text())
    config["edge"]["layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadONNX, match="not the decoder"):
        Engine(plan(str(tmp_path)))
    config["edge"] |= {"layers": 2, "ends": [99999]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeFile, match="makes no sense"):
        plan(str(tmp_path))


def test_other_families_are_refused_by_name(tmp_path):
    source = tiny_checkpoints.write("gemma2", tmp_path / "gemma")
    with pytest.raises(ConversionError, match="gemma are not written as ONNX"):
        to_onnx.convert(source, ["fp32"], tmp_path)


@pytest.mark.parametrize("level", ["fp16", "int8", "int8w", "int4"])
def test_every_level_decodes(level, tmp_path):
    source = tiny_checkpoints.write("llama", tmp_path / "tiny")
    (made,) = to_onnx.convert(source, [level], tmp_path)
    assert made.certificate.comparison.top1_agreement > (0.9 if level == "fp16" else 0.4)
    with Engine(plan(str(made.path))) as engine:
        tally = Tally()
        for chunk in engine.submit([5, 6, 7], Sampling(temperature=0, max_tokens=9)):
            tally.add(chunk)
    assert tally.usage.completion_tokens == 9
