"""A recurrent model: what cannot be dropped from its state is never reused wrongly, beside others or alone."""

import gguf
import numpy as np
import pytest
from tiny import add_tokenizer, loudness

from edge.engine import Engine, Sampling
from edge.planner import plan

GREEDY = Sampling(temperature=0, max_tokens=12)
EMBD, INNER, STATE, RANK, KERNEL, VOCAB = 64, 128, 8, 4, 4, 320


def tiny_mamba(path, layers=2):
    """A Mamba of random weights with tests/tiny.py's tokenizer."""
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_name("tiny-mamba")
    writer.add_context_length(512)
    writer.add_embedding_length(EMBD)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(layers)
    writer.add_ssm_conv_kernel(KERNEL)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    add_tokenizer(writer, VOCAB, "smollm")
    random = np.random.default_rng(0)

    def add(name, *shape, scale=1.0):
        weights = random.standard_normal(shape) / np.sqrt(shape[-1]) * scale
        writer.add_tensor(name, weights.astype(np.float32))

    add("token_embd.weight", VOCAB, EMBD, scale=8.0)
    for layer in range(layers):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(EMBD, np.float32))
        add(f"{block}.ssm_in.weight", 2 * INNER, EMBD, scale=2.0)
        add(f"{block}.ssm_conv1d.weight", INNER, KERNEL)
        writer.add_tensor(f"{block}.ssm_conv1d.bias", np.zeros(INNER, np.float32))
        add(f"{block}.ssm_x.weight", RANK + 2 * STATE, INNER, scale=2.0)
        add(f"{block}.ssm_dt.weight", INNER, RANK)
        writer.add_tensor(f"{block}.ssm_dt.bias", np.full(INNER, -1.0, np.float32))
        decay = -np.tile(np.arange(1, STATE + 1, dtype=np.float32) / 8, (INNER, 1))
        writer.add_tensor(f"{block}.ssm_a", decay)
        writer.add_tensor(f"{block}.ssm_d", np.ones(INNER, np.float32))
        add(f"{block}.ssm_out.weight", EMBD, INNER, scale=2.0)
    writer.add_tensor("output_norm.weight", np.full(EMBD, 4.0, np.float32))
    add("output.weight", VOCAB, EMBD)
    writer.tensors[0]["output.weight"].tensor[:] *= loudness(VOCAB)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_mamba(tmp_path_factory.mktemp("mamba") / "mamba.gguf")


def tokens(chunks):
    return [chunk.token for chunk in chunks]


def cold(model, prompt):
    with Engine(plan(str(model), ctx=256, threads=1)) as engine:
        return tokens(engine.submit(prompt, GREEDY))


PROMPTS = [[70, 71, 72], [80, 81], [70, 71, 90, 91, 92], [70, 71, 72, 73]]


@pytest.mark.parametrize("given", [{}, {"parallel": 3}])
def test_conversations_do_not_cross_and_shared_beginnings_are_read_anew(model, given):
    with Engine(plan(str(model), ctx=256, threads=1, **given)) as engine:
        assert not engine._backend.rolls_back
        streams = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        assert [tokens(stream) for stream in streams] == [cold(model, prompt) for prompt in PROMPTS]


def test_a_next_turn_goes_on_from_the_state(model):
    with Engine(plan(str(model), ctx=256, threads=1)) as engine:
        first = tokens(engine.submit([70, 71, 72], GREEDY))
        longer = [70, 71, 72, *first, 75]
        again = list(engine.submit(longer, GREEDY))
        assert again[0].reused_tokens == 3 + 11
        assert tokens(again) == cold(model, longer)
        other = list(engine.submit(longer[:8], GREEDY))  # shorter than what is there: it cannot be cut
        assert other[0].reused_tokens == 0
        assert tokens(other) == cold(model, longer[:8])


def test_several_answers_fork_the_state(model):
    with Engine(plan(str(model), ctx=256, threads=1, sequences=3)) as engine:
        answers = [[] for _ in range(3)]
        for chunk in engine.submit([70, 71, 72], GREEDY, n=3):
            answers[chunk.index].append(chunk.token)
    assert answers == [cold(model, [70, 71, 72])] * 3


def test_a_text_that_repeats_itself_is_the_same_without_guesses(model):
    repeated = [70, 71, 72, 73] * 12
    with Engine(plan(str(model), ctx=256, threads=1)) as engine:
        chunks = list(engine.submit(repeated, GREEDY))
    assert not any(chunk.guessed for chunk in chunks)
    assert tokens(chunks) == cold(model, repeated)
