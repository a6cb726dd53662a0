"""The engines that are installed, what each can use of this machine, and the one to take."""

from __future__ import annotations

from dataclasses import dataclass

from edge.machine.gpus import Device
from edge.machine.installed import Installed

LLAMA = "llama-cpp-python"


@dataclass(frozen=True)
class Accelerator:
    """A GPU under one programming interface: `kind` is cuda, rocm, metal or vulkan."""

    kind: str
    name: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class Backend:
    """An engine with what it runs on, such as "llama.cpp-cpu"."""

    name: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class Rejected:
    """What else was possible, and why it was not taken."""

    choice: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """The backend to run GGUF models on ("none" when llama.cpp is not installed), and why."""

    backend: str
    reason: str
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class Interface:
    """A way to program a GPU: ggml's name for it, the option that builds it, what it runs on."""

    name: str
    library: str
    option: str
    hardware: str


# In the order they are preferred: a maker's own interface before the general one; the CPU comes last.
INTERFACES = {
    "cuda": Interface("CUDA", "cuda", "-DGGML_CUDA=on", "NVIDIA GPU"),
    "rocm": Interface("ROCm", "hip", "-DGGML_HIP=on", "AMD GPU with ROCm's driver"),
    "metal": Interface("Metal", "metal", "-DGGML_METAL=on", "Apple silicon"),
    "vulkan": Interface("Vulkan", "vulkan", "-DGGML_VULKAN=on", "GPU with a Vulkan driver"),
}


def accelerators(devices: list[Device], build: Installed) -> tuple[Accelerator, ...]:
    """Each device with whether this build of llama.cpp can use it."""
    return tuple(_accelerator(device, INTERFACES[device.kind], build) for device in devices)


def _accelerator(device: Device, interface: Interface, build: Installed) -> Accelerator:
    if not build.llama_cpp:
        reason = _version(build)
    elif interface.library not in build.libraries:
        missing = f"this llama.cpp build has no {interface.name}"
        # To reinstall is advice only where the machine itself is ready.
        advice = f"{missing}: reinstall it with CMAKE_ARGS={interface.option}"
        reason = f"{device.problem}, and {missing}" if device.problem else advice
    else:
        reason = device.problem
    if reason:
        return Accelerator(device.kind, device.name, False, reason)
    return Accelerator(device.kind, device.name, True, f"this llama.cpp build has {interface.name}")


def backends(found: tuple[Accelerator, ...], build: Installed) -> tuple[Backend, ...]:
    """Every backend in the order of preference, usable or not."""
    onnx = f"onnxruntime {build.onnxruntime}" if build.onnxruntime else "onnxruntime is not installed"
    return (
        *(_gpu_backend(kind, found, build) for kind in INTERFACES),
        Backend("llama.cpp-cpu", bool(build.llama_cpp), _version(build)),
        Backend("onnxruntime-cpu", bool(build.onnxruntime), onnx),
    )


def _version(build: Installed) -> str:
    return f"{LLAMA} {build.llama_cpp}" if build.llama_cpp else f"{LLAMA} is not installed"


def _gpu_backend(kind: str, found: tuple[Accelerator, ...], build: Installed) -> Backend:
    interface, name = INTERFACES[kind], f"llama.cpp-{kind}"
    mine = sorted((item for item in found if item.kind == kind), key=lambda item: not item.usable)
    if not build.llama_cpp:
        return Backend(name, False, _version(build))
    if mine:
        best, link = mine[0], "and" if mine[0].usable else "but"
        return Backend(name, best.usable, f"{best.name} is here, {link} {best.reason}")
    has = "has" if interface.library in build.libraries else "has no"
    return Backend(name, False, f"no {interface.hardware} here; this llama.cpp build {has} {interface.name}")


def choose(options: tuple[Backend, ...], isa: tuple[str, ...]) -> Chosen:
    """The first usable llama.cpp backend in the order of preference; the others with why not."""
    usable = [option for option in options if option.usable and option.name.startswith("llama.cpp")]
    if not usable:
        return Chosen("none", f"{LLAMA} is not installed", _rejected(options, ""))
    best = usable[0]
    if best.name == "llama.cpp-cpu":
        kernels = f"; the CPU has {isa[-1]}" if isa else ""
        reason = f"the only backend that this llama.cpp build and this machine share{kernels}"
    else:
        reason = best.reason
    return Chosen(best.name, reason, _rejected(options, best.name))


def _rejected(options: tuple[Backend, ...], taken: str) -> tuple[Rejected, ...]:
    return tuple(Rejected(option.name, _why_not(option)) for option in options if option.name != taken)


def _why_not(option: Backend) -> str:
    if not option.usable:
        return option.reason
    if option.name == "onnxruntime-cpu":
        return "it does not read GGUF"
    return "usable, but comes after the one chosen: CUDA, ROCm, Metal, Vulkan, then the CPU"
