"""What a plan depends on, of one file form of a model: its header, its memory, what it was trained for."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edge import encoder_memory, gguf_header, onnx_folder, onnx_memory, store
from edge.errors import BadGGUF, RequestError, UnsafeFile
from edge.gguf_header import Header
from edge.machine import Chosen, Host, Rejected
from edge.memory import Cache, Memory, best_mapped, has_cache, predict, weights
from edge.onnx_folder import OnnxFolder
from edge.sizes import mib
from edge.store.checkpoints import is_adapter

ONNX_BACKEND = "onnxruntime-cpu"
UNSTATED_CONTEXT = 4096  # tokens, where a header does not say what the model was trained for


@dataclass(frozen=True)
class Artifact:
    """What a plan depends on: `predict(context, cache, available)`, and the `trained` context in tokens.

    mapped    whether the file is mapped, and else why it is read
    refusals  why what fits is not of use
    header    None for ONNX
    folder    None for GGUF
    encodes   gives vectors or labels: several batches side by side, each on one thread
    """

    level: str
    trained: int
    chosen: Chosen
    predict: Callable[[int, Cache, int], Memory]
    refusals: tuple[str, ...]
    header: Header | None = None
    folder: OnnxFolder | None = None
    mapped: bool = True
    mapped_reason: str = ""

    @property
    def encodes(self) -> bool:
        if self.folder is not None:
            return self.folder.task != "generation"
        return self.header is not None and not has_cache(self.header)


def is_onnx(model: store.Model) -> bool:
    """Whether a model is an ONNX folder, or the graph in one."""
    return model.path.suffix == ".onnx" or onnx_folder.is_folder(model.path)


def of_gguf(model: store.Model, machine: Host, mmap: bool | None = None) -> Artifact:
    """A GGUF file, mapped or read as `mmap` says, or as leaves less in memory. Raises what `read_artifact` raises."""
    return of_header(read_artifact(model), machine, mmap)


def of_header(header: Header, machine: Host, mmap: bool | None = None) -> Artifact:
    """A GGUF file that is here or could be. Raises BadGGUF for a header that makes no sense."""
    isa = machine.cpu.isa
    encodes = not has_cache(header)
    mapped, why = (True if encodes else mmap), ""
    if mapped is None:
        on_cpu = machine.chosen.backend.endswith("-cpu")
        mapped, why = choose_mapped(header, isa) if on_cpu else (True, "")

    def memory(tokens: int, cache: Cache, available: int) -> Memory:
        if encodes:
            return encoder_memory.of_gguf(header, tokens, cache.workers, isa=isa, available_bytes=available)
        return predict(header, tokens, cache, isa=isa, mapped=mapped, available_bytes=available)

    trained = header.get("{arch}.context_length", int, UNSTATED_CONTEXT)
    if encodes:  # its greatest text
        trained = min(trained, header.get("edge.max_tokens", int, trained))
    if trained < 1:
        raise BadGGUF(
            f"the header states a context of {trained} tokens", hint="get another file of this model"
        )
    level = header.quantization
    return Artifact(level, trained, machine.chosen, memory, refusals(header), header, None, mapped, why)


def choose_mapped(header: Header, isa: Sequence[str]) -> tuple[bool, str]:
    """Whether to map the file, and why not: what is rearranged is not read again where it was mapped."""
    if best_mapped(header, isa):
        return True, ""
    both = (sum(weights(header, isa, mapped)) for mapped in (True, False))
    saved = next(both) - next(both)
    return False, f"the file is read, not mapped: {mib(saved)} of it are rearranged and need not stay twice"


def of_onnx(model: store.Model) -> Artifact:
    """Raises what `edge.onnx_folder` raises for a folder that is not whole or contradicts itself."""
    return of_onnx_folder(onnx_folder.read(model.path))


def of_onnx_folder(folder: OnnxFolder) -> Artifact:
    """A folder that is here or could be. Raises UnsafeFile where a decoder's words make no sense."""
    gguf = Rejected("llama.cpp", "runs GGUF files, and this is ONNX")
    chosen = Chosen(ONNX_BACKEND, "the model is ONNX, which ONNX Runtime runs, on the CPU", (gguf,))
    if folder.task == "generation" and folder.ours:
        said = onnx_folder.decoder_of(folder)

        def decoding(tokens: int, cache: Cache, available: int) -> Memory:
            return onnx_memory.of_decoder(
                folder, said, tokens, sequences=cache.sequences, available_bytes=available
            )

        return Artifact(folder.level, said.context, chosen, decoding, (), folder=folder)

    def encoding(tokens: int, cache: Cache, available: int) -> Memory:
        return onnx_memory.of_encoder(folder, tokens, cache.workers, available_bytes=available)

    refusal = f"no text: its task is {folder.task}, so chat and generate refuse it"
    return Artifact(folder.level or "ONNX", folder.max_tokens, chosen, encoding, (refusal,), folder=folder)


def read_artifact(model: store.Model) -> Header:
    """The header of a GGUF model; for one split into parts, the tensors and bytes of all of them."""
    if model.path.is_dir():
        adapter = is_adapter([path.name for path in model.files])
        name = shlex.quote(model.name if model.added else model.ref)
        compare = "" if adapter else f"; `edge plan --all {name}` compares what it could be made into"
        raise RequestError(
            f"{model.name} is not a GGUF file but {'a LoRA adapter' if adapter else 'a checkpoint'}",
            hint=f"run `edge convert {name}`, then give {'--lora' if adapter else 'this command'} the file that it "
            f"writes{compare}",
        )
    if model.path.suffix == ".onnx":
        raise RequestError(f"{model.name} is not a GGUF file ({model.path.name})", hint="name a GGUF model")
    first = gguf_header.read(model.path)
    if first.get("general.type", str, "model") == "adapter":
        raise RequestError(
            f"{model.name} is not a model but an adapter of one",
            hint="name the model, and this file after --lora",
        )
    if first.split_count == 1:
        return first
    if len(model.files) != first.split_count:
        raise UnsafeFile(
            f"{model.name} is one of {first.split_count} parts and {len(model.files)} are here",
            hint="pull the model again",
        )
    parts = [first, *(gguf_header.read(path, part=n) for n, path in enumerate(model.files[1:], 2))]
    return replace(
        first,
        tensors=tuple(tensor for part in parts for tensor in part.tensors),
        file_bytes=sum(part.file_bytes for part in parts),
    )


def refusals(header: Header) -> tuple[str, ...]:
    """What fits is not always of use: the reason why `chat` and `generate` refuse an encoder once it is loaded."""
    causal = header.get("{arch}.attention.causal", bool, True)
    if has_cache(header) and causal and header.architecture not in ("t5", "t5encoder"):
        return ()
    return (f"no text: {header.architecture} does not continue one, so chat and generate refuse it",)
