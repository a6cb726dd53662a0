"""LoRA: a PEFT adapter becomes a GGUF one, and a model with it computes W + scale · (alpha / rank) · B · A."""

import ctypes
import json
import sys

import gguf
import numpy as np
import pytest
import tiny_checkpoints
from family_files import f32_file, random_weights, relative
from odd_models import encoder
from tiny import tiny_llama

import edge
from edge import gguf_header
from edge.chat.loaded import load
from edge.chat.talk import Talk
from edge.cli import run
from edge.cli.slash import Desk
from edge.cli.slash import run as slash
from edge.convert import lora, numpy_ops
from edge.convert.families import family_of
from edge.convert.proof import loaded
from edge.convert.safetensors import Writer
from edge.engine import Engine, Sampling, adapters
from edge.engine.binding import llama
from edge.errors import ConversionError, EngineError, ModelNotFound, RequestError, StoreError, UnsafeFile
from edge.planner import plan

LLAMA = tiny_checkpoints.LLAMA
IDS = np.random.default_rng(1).integers(3, 260, 40)


def family(raw):
    module = family_of(raw)
    return module, module.read_config(raw)


def base(folder, raw):
    """A base model's folder, with all that is asked of it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def adapter(folder, raw, *, rank=4, alpha=8.0, only="", seed=0, change=None, prefix="", **settings):
    """A random adapter of every matrix of the model whose name has `only`; {module: B · A} at PEFT's scale."""
    folder.mkdir()
    module, config = family(raw)
    draw = np.random.default_rng(seed)
    ranks, alphas = settings.get("rank_pattern", {}), settings.get("alpha_pattern", {})
    tensors, deltas = {}, {}
    for weight in module.weights(config):
        name = weight.source.removesuffix(".weight")
        if len(weight.shape) != 2 or "embed" in name or "wte" in name or "wpe" in name or only not in name:
            continue
        own = next((value for key, value in ranks.items() if name.endswith(key)), rank)
        strength = next((value for key, value in alphas.items() if name.endswith(key)), alpha)
        rows, columns = weight.target_shape
        a = (draw.standard_normal((own, columns)) / np.sqrt(columns)).astype(np.float32)
        b = (draw.standard_normal((rows, own)) / own).astype(np.float32)
        tensors[f"base_model.model.{prefix}{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{prefix}{name}.lora_B.weight"] = b
        scale = strength / (np.sqrt(own) if settings.get("use_rslora") else own)
        delta = scale * b.astype(np.float64) @ a
        deltas[weight.source] = delta if weight.target_shape == weight.shape and "c_" not in name else delta.T
    if change:
        change(tensors)
    save(folder, tensors, {"r": rank, "lora_alpha": alpha, **settings})
    return folder, deltas


def save(folder, tensors, settings):
    raw = {"peft_type": "LORA", "init_lora_weights": True, "bias": "none", "use_dora": False, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    table = [(name, "F32", array.shape) for name, array in tensors.items()]
    with Writer(folder / "adapter_model.safetensors", table, {"format": "pt"}) as writer:
        for name, array in tensors.items():
            writer.write(name, np.ascontiguousarray(array))


def reference(raw, weights, *changes):
    """The pass on weights to which (deltas, scale) are added."""
    module, config = family(raw)

    def weight(name):
        whole = weights[name].astype(np.float64)
        return whole + sum(scale * deltas[name] for deltas, scale in changes if name in deltas)

    return module.forward(numpy_ops, weight, config, IDS)[1]


def adapted_logits(model_file, *given):
    """llama.cpp's logits of IDS, with adapters FILE:SCALE as the engine adds them."""
    lib, chosen = llama(), [adapters.adapter_of(text) for text in given]
    for one in chosen:
        adapters.check_base(model_file, one)
    with loaded(model_file) as model:
        handles = adapters.load_adapters(lib, model, chosen)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 256
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = lib.GGML_TYPE_F32
        context = lib.llama_init_from_model(model, params)
        adapters.apply(lib, context, handles, chosen)
        batch = lib.llama_batch_init(len(IDS), 0, 1)
        for row, token in enumerate(IDS):
            batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.logits[row] = (
                int(token),
                row,
                1,
                True,
            )
            batch.seq_id[row][0] = 0
        batch.n_tokens = len(IDS)
        assert lib.llama_decode(context, batch) == 0
        rows = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
        logits = np.array(np.ctypeslib.as_array(rows, shape=(len(IDS), 320)))
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        return logits


def model_file(tmp_path, raw):
    module, config = family(raw)
    weights = random_weights(module, config)
    return f32_file(tmp_path / "base.gguf", module, config, weights), weights


# Bounds on the relative error: Gemma's GELU is a table in f16.
CASES = {"llama": 1e-3, "qwen2": 1e-3, "qwen3": 1e-3, "phi3": 1e-3, "gpt2": 1e-3, "gemma3": 4e-3}


@pytest.mark.parametrize("case", CASES)
def test_a_model_with_an_adapter_computes_the_changed_weights(tmp_path, case):
    raw = tiny_checkpoints.CASES[case]
    model, weights = model_file(tmp_path, raw)
    folder, deltas = adapter(tmp_path / "adapter", raw)
    file = lora.convert_adapter(
        folder, tmp_path / "lora.gguf", base=base(tmp_path / "model", raw), level="f32"
    )
    assert (
        relative(adapted_logits(model, f"{file}:0.5"), reference(raw, weights, (deltas, 0.5))) < CASES[case]
    )
    changed = reference(raw, weights, (deltas, 1))
    assert relative(adapted_logits(model, str(file)), changed) < CASES[case]
    assert relative(reference(raw, weights), changed) > 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"v_proj": 32}},
        {"use_rslora": True, "rank_pattern": {"down_proj": 1}, "alpha_pattern": {"q_proj": 2}},
        {"fan_in_fan_out": True, "only": "mlp"},
    ],
)
def test_every_module_has_the_scale_that_peft_gives_it(tmp_path, settings):
    model, weights = model_file(tmp_path, LLAMA)
    folder, deltas = adapter(tmp_path / "adapter", LLAMA, **settings)
    file = lora.convert_adapter(
        folder, tmp_path / "lora.gguf", base=base(tmp_path / "model", LLAMA), level="f32"
    )
    assert relative(adapted_logits(model, str(file)), reference(LLAMA, weights, (deltas, 1))) < 1e-3


def test_adapters_add_up(tmp_path):
    model, weights = model_file(tmp_path, LLAMA)
    home = base(tmp_path / "model", LLAMA)
    first, one = adapter(tmp_path / "first", LLAMA)
    second, two = adapter(tmp_path / "second", LLAMA, seed=1, only="v_proj", rank=1)
    files = [
        lora.convert_adapter(folder, tmp_path / f"{folder.name}.gguf", base=home, level="f32")
        for folder in (first, second)
    ]
    found = adapted_logits(model, str(files[0]), f"{files[1]}:-2")
    assert relative(found, reference(LLAMA, weights, (one, 1), (two, -2))) < 1e-3


def test_an_adapter_of_an_untied_embedding(tmp_path):
    model, weights = model_file(tmp_path, LLAMA)
    draw = np.random.default_rng(0)
    a, b = draw.standard_normal((4, 320)), draw.standard_normal((64, 4))

    def change(tensors):
        tensors.clear()
        name = "base_model.model.model.embed_tokens.lora_embedding_"
        tensors.update({f"{name}A": a.astype(np.float32), f"{name}B": b.astype(np.float32)})
        frozen = "base_model.model.model.embed_tokens.base_layer.weight"  # PEFT saves it beside
        tensors[frozen] = weights["model.embed_tokens.weight"]

    folder, _ = adapter(tmp_path / "adapter", LLAMA, change=change)
    file = lora.convert_adapter(
        folder, tmp_path / "lora.gguf", base=base(tmp_path / "model", LLAMA), level="f32"
    )
    deltas = {"model.embed_tokens.weight": 2 * (b @ a).T}
    assert relative(adapted_logits(model, str(file)), reference(LLAMA, weights, (deltas, 1))) < 1e-3


def test_the_file_says_what_it_is_and_the_same_input_gives_the_same_bytes(tmp_path):
    home = base(tmp_path / "model", LLAMA)
    folder, _ = adapter(tmp_path / "adapter", LLAMA, base_model_name_or_path=str(home))
    first = lora.convert_adapter(folder, tmp_path / "first.gguf")
    second = lora.convert_adapter(folder, tmp_path / "second.gguf", base=model_file(tmp_path, LLAMA)[0])
    assert first.read_bytes() == second.read_bytes()
    header = gguf_header.read(first)
    assert (header.architecture, header.metadata["adapter.lora.alpha"]) == ("llama", 8.0)
    assert {tensor.type for tensor in header.tensors} == {"F16"}
    assert not list(tmp_path.glob("*.partial"))
    bf16 = lora.convert_adapter(folder, tmp_path / "bf16.gguf", level="bf16")
    assert {tensor.type for tensor in gguf_header.read(bf16).tensors} == {"BF16"}
    with pytest.raises(RequestError, match="cannot be q8_0"):
        lora.convert_adapter(folder, tmp_path / "q8_0.gguf", level="q8_0")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"use_dora": True}, "use_dora is 'True'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base model itself"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "big"}, "no usable lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "is an expression"),
        ({"alpha_pattern": ["q_proj"]}, "have to map names"),
        ({"r": 8}, "where \\(8, 64\\) fits the base"),
        ({"base_model_name_or_path": "somebody/model"}, "'somebody/model' is no folder here"),
    ],
)
def test_settings_that_a_gguf_adapter_cannot_carry_are_refused(tmp_path, settings, words):
    home = base(tmp_path / "model", LLAMA)
    folder, _ = adapter(tmp_path / "adapter", LLAMA)
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**raw, **settings}))
    with pytest.raises(ConversionError, match=words):
        lora.convert_adapter(
            folder, tmp_path / "lora.gguf", base=None if "base_model_name_or_path" in settings else home
        )
    assert not list(tmp_path.glob("*.gguf"))


def rename(old, new):
    def change(tensors):
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def put(name, value):
    return lambda tensors: tensors.update({name: value})


Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
HOSTILE = {
    "a magnitude of DoRA": (put("base_model.model.q.lora_magnitude_vector", np.ones(4, np.float32)), "no part of"),
    "a whole module": (put("base_model.model.lm_head.weight", np.ones((4, 4), np.float32)), "no part of a LoRA"),
    "a grown vocabulary": (
        put("base_model.model.model.embed_tokens.base_layer.weight", np.ones((321, 64), np.float32)), "no part of"),
    "half a pair": (lambda tensors: tensors.pop(Q_A), "lacks its A or B"),
    "another model's module": (rename("q_proj", "qkv_proj"), "which the base model has not"),
    "another width": (put(Q_A, np.ones((4, 65), np.float32)), "fits the base"),
    "not a number": (put(Q_A, np.full((4, 64), np.nan, np.float32)), "NaN|not finite|infinite"),
    "too much for f16": (put(Q_A, np.full((4, 64), 1e6, np.float32)), "beyond f16"),
    "nothing": (lambda tensors: tensors.clear(), "no tensors"),
    "a module twice": (put("base_model.model.x." + Q_A[17:], np.ones((4, 64), np.float32)), "under another name"),
    "an embedding as a matrix": (rename("layers.0.self_attn.q_proj", "embed_tokens"), "as what it is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_an_adapter_that_is_not_whole_or_of_another_model_is_refused(tmp_path, case):
    change, words = HOSTILE[case]
    folder, _ = adapter(tmp_path / "adapter", LLAMA, change=change)
    with pytest.raises((ConversionError, UnsafeFile), match=words) as error:
        lora.convert_adapter(folder, tmp_path / "lora.gguf", base=base(tmp_path / "model", LLAMA))
    assert "\n" not in error.value.line
    assert not list(tmp_path.glob("lora*"))


def test_what_is_tied_to_the_output_is_refused(tmp_path):
    tied = {**LLAMA, "tie_word_embeddings": True}
    home = base(tmp_path / "model", tied)
    folder, _ = adapter(tmp_path / "head", LLAMA, only="lm_head")
    with pytest.raises(ConversionError, match="which the base model has not") as error:
        lora.convert_adapter(folder, tmp_path / "lora.gguf", base=home)
    assert "tied" in error.value.hint
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    pair = {f"{name}A": np.ones((4, 320), np.float32), f"{name}B": np.ones((64, 4), np.float32)}
    folder, _ = adapter(
        tmp_path / "embedding", LLAMA, only="nothing", change=lambda tensors: tensors.update(pair)
    )
    with pytest.raises(ConversionError, match="to which the output is tied"):
        lora.convert_adapter(folder, tmp_path / "lora.gguf", base=home)
    file = lora.convert_adapter(folder, tmp_path / "lora.gguf", base=base(tmp_path / "untied", LLAMA))
    module, config = family(tied)
    model = f32_file(tmp_path / "base.gguf", module, config, random_weights(module, config))
    with pytest.raises(RequestError, match="which is its output"):
        load(str(model), lora=[str(file)])


def test_a_pickle_is_never_opened(tmp_path):
    folder, _ = adapter(tmp_path / "adapter", LLAMA)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UnsafeFile, match="never opened"):
        lora.convert_adapter(folder, tmp_path / "lora.gguf", base=base(tmp_path / "model", LLAMA))
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ConversionError, match="has no adapter_model"):
        lora.convert_adapter(folder, tmp_path / "lora.gguf", base=tmp_path / "model")


# The engine: llama.cpp ends the process over most of these.


def adapter_file(path, tensors, *, architecture="llama", kind="adapter", method="lora", alpha=8.0):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", kind)
    if method:
        writer.add_string("adapter.type", method)
    if isinstance(alpha, list):
        writer.add_array("adapter.alora.invocation_tokens", alpha)
    elif isinstance(alpha, str):
        writer.add_string("adapter.lora.alpha", alpha)
    else:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(rows, columns, target="blk.0.attn_q.weight", rank=4, kind=np.float32):
    return {
        f"{target}.lora_a": np.ones((rank, columns), kind),
        f"{target}.lora_b": np.ones((rows, rank), kind),
    }


BAD = {
    "a model": (pair(64, 64), {"kind": "model"}, UnsafeFile, "no LoRA adapter but a model"),
    "a control vector": (pair(64, 64), {"method": "vector"}, UnsafeFile, "no LoRA adapter"),
    "an aLoRA": (pair(64, 64), {"alpha": [5, 6]}, UnsafeFile, "certain tokens"),
    "an alpha of words": (pair(64, 64), {"alpha": "8"}, UnsafeFile, "float is expected"),
    "an infinite alpha": (pair(64, 64), {"alpha": float("inf")}, UnsafeFile, "not a number"),
    "whole numbers": (pair(64, 64, kind=np.int32), {}, UnsafeFile, "no part of a LoRA"),
    "three dimensions": (
        {name: array[None].repeat(2, 0) for name, array in pair(64, 64).items()}, {}, UnsafeFile, "no part of"),
    "a norm beside": ({**pair(64, 64), "output_norm.weight": np.ones(64, np.float32)}, {}, UnsafeFile, "no part of"),
    "half a pair": ({"blk.0.attn_q.weight.lora_a": np.ones((4, 64), np.float32)}, {}, UnsafeFile, "other half"),
    "two ranks": ({**pair(64, 64), "blk.0.attn_q.weight.lora_b": np.ones((64, 5), np.float32)}, {}, UnsafeFile,
                  "differ in rank"),
    "nothing": ({}, {}, UnsafeFile, "no tensors"),
    "another architecture": (pair(64, 64), {"architecture": "gemma3"}, RequestError, "adapts a gemma3"),
    "another model's tensor": (pair(64, 64, "blk.9.attn_q.weight"), {}, RequestError, "which tiny.gguf has not"),
    "a norm": (pair(1, 64, "blk.0.attn_norm.weight"), {}, RequestError, "no plain matrix"),
    "another width": (pair(64, 65), {}, EngineError, "incorrect shape"),
    "another height": (pair(65, 64), {}, EngineError, "incorrect shape"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_llama_cpp_could_not_apply_is_refused_in_a_line(tmp_path, tiny, case):
    tensors, settings, error, words = BAD[case]
    file = adapter_file(tmp_path / "bad.gguf", tensors, **settings)
    with pytest.raises(error, match=words) as refused:
        load(str(tiny), lora=[str(file)])
    assert "\n" not in refused.value.line


def test_a_scale_stands_after_the_last_colon(tmp_path):
    odd = adapter_file(tmp_path / "a:2", pair(64, 64))
    assert (adapters.adapter_of(str(odd)).path, adapters.adapter_of(str(odd)).scale) == (odd, 1.0)
    assert (adapters.adapter_of(f"{odd}:-0.5").path, adapters.adapter_of(f"{odd}:-0.5").scale) == (odd, -0.5)
    for text, words in (
        (f"{odd}:much", "'much' is no scale"),
        (f"{odd}:nan", "is nan"),
        (f"{odd}:1e39", "is 1e.39"),
    ):
        with pytest.raises(RequestError, match=words):
            adapters.adapter_of(text)
    with pytest.raises(ModelNotFound, match="there is no adapter"):
        adapters.adapter_of(str(tmp_path / "none.gguf"))


def test_the_plan_counts_what_is_loaded_beside_the_model(tmp_path, tiny):
    file = adapter_file(tmp_path / "good.gguf", pair(64, 64))
    with load(str(tiny), lora=[str(file), f"{file}:0.5"]) as model:
        beside = model.plan.memory.total_bytes - edge.plan(str(tiny)).memory.total_bytes
    assert beside == 2 * file.stat().st_size


@pytest.mark.parametrize("verb", [["chat", "--temp", "0"], ["generate", "--temp", "0"]])
def test_the_command_answers_with_an_adapter(tmp_path, tiny, capsys, monkeypatch, verb):
    draw = np.random.default_rng(0)
    loud = {name: draw.standard_normal(array.shape).astype(np.float32)
            for name, array in pair(320, 64, "output.weight").items()}  # fmt: skip
    file = adapter_file(tmp_path / "loud.gguf", loud)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def says(*given):
        assert run([verb[0], str(tiny), "the king", *verb[1:], "--max-tokens", "12", *given]) == 0
        return capsys.readouterr().out

    plain = says()
    assert says("--lora", f"{file}:0") == plain
    assert says("--lora", str(file)) != plain
    assert run([verb[0], str(tiny), "the king", "--lora", str(tiny)]) == 3
    assert "no LoRA adapter but a model" in capsys.readouterr().err


def test_another_model_goes_without_the_adapter_and_one_that_fails_brings_it_back(
    tmp_path, tiny, capsys, monkeypatch
):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    file = adapter_file(tmp_path / "query.gguf", pair(64, 64, "blk.0.attn_q.weight"))
    with load(str(tiny), lora=[f"{file}:0.5"]) as model:
        desk = Desk(Talk(model, str(tiny)))
        with pytest.raises(EngineError, match="does not continue a text"):
            slash(desk, f"/model {encoder(tmp_path / 'encoder.gguf')}")
        slash(desk, "/stats")
        assert "with query.gguf:0.5" in capsys.readouterr().out
        slash(desk, f"/model {tiny}")
        told = capsys.readouterr().out
        assert "goes on without query.gguf" in told
        assert "with query.gguf:0.5" not in told
        desk.talk.model.close()


@pytest.mark.model
def test_the_real_model_speaks_otherwise_with_an_adapter(tmp_path, default_model):
    module = family_of({"architectures": ["LlamaForCausalLM"]})
    raw = module.config_json(gguf_header.read(default_model), None)
    folder, _ = adapter(tmp_path / "adapter", raw, only="v_proj", alpha=4.0)
    file = lora.convert_adapter(folder, tmp_path / "lora.gguf", base=default_model)
    settings = edge.Sampling(temperature=0, max_tokens=6)

    def says(*given):
        with load(str(default_model), ctx=256, lora=given) as model:
            return "".join(chunk.text for chunk in model.generate("The capital of France is", settings))

    plain = says()
    assert "Paris" in plain
    assert says(f"{file}:4") != plain


def test_a_file_that_is_there_is_kept(tmp_path):
    folder, _ = adapter(tmp_path / "adapter", LLAMA)
    there = tmp_path / "lora.gguf"
    there.write_bytes(b"mine")
    with pytest.raises(StoreError, match="is there already"):
        lora.convert_adapter(folder, there, base=base(tmp_path / "model", LLAMA))
    assert there.read_bytes() == b"mine"


def test_a_base_named_so_that_no_file_can_be_is_refused(tmp_path):
    folder, _ = adapter(tmp_path / "adapter", LLAMA, base_model_name_or_path="x" * 5000)
    with pytest.raises(ConversionError, match="is no folder here"):
        lora.convert_adapter(folder, tmp_path / "lora.gguf")


def test_requests_of_one_engine_have_each_their_own_adapters(tmp_path, tiny):
    draw = np.random.default_rng(3)
    one, other = (
        adapters.adapter_of(str(adapter_file(tmp_path / f"{which}.gguf", {
            name: draw.standard_normal(array.shape).astype(np.float32)
            for name, array in pair(320, 64, "output.weight").items()
        }))) for which in "ab"
    )  # fmt: skip
    greedy = Sampling(temperature=0, max_tokens=16)
    sets = [(), (one,), (other,), (one, other)]
    expected = []
    for chosen in sets:
        with Engine(plan(str(tiny), ctx=256), chosen) as alone:
            expected.append([chunk.token for chunk in alone.submit([5, 6, 7], greedy)])
    assert len(set(map(tuple, expected))) == 4
    with Engine(plan(str(tiny), ctx=256, parallel=3), (one, other)) as engine:
        streams = [engine.submit([5, 6, 7], greedy, lora=chosen) for chosen in sets * 2]
        assert [[chunk.token for chunk in stream] for stream in streams] == expected * 2
        assert [chunk.token for chunk in engine.submit([5, 6, 7], greedy)] == expected[3]
        with pytest.raises(RequestError, match="was not loaded with the model"):
            engine.submit([5], lora=(adapters.Adapter(tmp_path / "third.gguf", 1.0, 1),))
