"""The accelerators this machine has, with what keeps each from working, whatever llama.cpp was built for.

CUDA, ROCm, Metal and Vulkan are tested by recorded hosts only (tests/recorded_hosts.py), never yet on a GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from edge.machine.system import System


@dataclass(frozen=True)
class Device:
    """An accelerator under one interface; `problem` is the machine's own fault, "" when there is none."""

    kind: str
    name: str
    problem: str


# DRM driver → what people call the GPU, and the word in the file name of its Vulkan driver.
DRM_DRIVERS = {
    "amdgpu": ("AMD GPU", "radeon|amd"),
    "i915": ("Intel GPU", "intel"),
    "xe": ("Intel GPU", "intel"),
    "nvidia": ("NVIDIA GPU", "nvidia"),
    "nouveau": ("NVIDIA GPU", "nouveau"),
    "v3d": ("VideoCore GPU", "broadcom"),
    "panfrost": ("Mali GPU", "panfrost"),
    "panthor": ("Mali GPU", "panfrost"),
    "msm": ("Adreno GPU", "freedreno"),
    "asahi": ("Apple GPU", "asahi"),
    "virtio_gpu": ("virtual GPU", "virtio"),
}
SOFTWARE = "it is a software renderer: the CPU kernels do the same work faster"
ICD_FOLDERS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")


def devices(system: System, libraries: frozenset[str]) -> list[Device]:
    """All accelerators found. `libraries` says which interfaces llama.cpp was built for: slow tools are only
    asked about those."""
    if system.platform == "darwin":
        return list(_metal(system))
    return [*_cuda(system), *_rocm(system), *_vulkan(system, ask="vulkan" in libraries)]


def _metal(system: System) -> Iterator[Device]:
    # ggml's Metal kernels are written for Apple's own GPUs; on Intel Macs they are not worth choosing.
    if system.arch == "arm64":
        name = system.run("sysctl", "-n", "machdep.cpu.brand_string").strip()
        yield Device("metal", name or "Apple GPU", "")


def _cuda(system: System) -> Iterator[Device]:
    nodes = system.names("/dev")
    models = _nvidia_models(system, nodes)
    # /proc shows the kernel's driver even to a container that was not given the device.
    visible = any(re.fullmatch(r"nvidia\d+|dxg|nvhost-gpu", node) for node in nodes)
    problem = "" if visible else "no /dev/nvidia* here: start the container with --gpus all"
    yield from (Device("cuda", model, problem) for model in models)
    if not models:
        for _ in range(_nvidia_on_pci(system)):
            yield Device("cuda", "NVIDIA GPU", "no NVIDIA driver is loaded")


def _nvidia_models(system: System, nodes: list[str]) -> list[str]:
    """Names of the NVIDIA GPUs that a driver serves."""
    folder = "/proc/driver/nvidia/gpus"
    texts = (system.text(f"{folder}/{gpu}/information") for gpu in system.names(folder))
    models = [found[1] for text in texts if (found := re.search(r"^Model:\s*(\S.*?)\s*$", text, re.M))]
    # Under WSL the GPU is not in /proc, but Windows' driver brings nvidia-smi along.
    if not models and "dxg" in nodes:
        models = re.findall(r"^GPU \d+: (.*?) \(UUID", system.run("nvidia-smi", "-L"), re.M)
    board = system.text("/proc/device-tree/model").strip("\0 \n")
    if not models and "nvhost-gpu" in nodes and "Jetson" in board:
        models = [board]
    return models


def _nvidia_on_pci(system: System) -> int:
    """Display controllers (PCI class 03) made by NVIDIA (vendor 10de)."""
    root = "/sys/bus/pci/devices"
    return sum(
        system.text(f"{root}/{slot}/vendor").strip() == "0x10de"
        and system.text(f"{root}/{slot}/class").startswith("0x03")
        for slot in system.names(root)
    )


def _rocm(system: System) -> Iterator[Device]:
    # /dev/kfd is the compute door of the amdgpu driver; a node with SIMDs is a GPU, one without is the CPU.
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    if "kfd" not in system.names("/dev"):
        return
    for node in system.names(nodes):
        found = re.search(r"^simd_count (\d{1,9})$", system.text(f"{nodes}/{node}/properties"), re.M)
        if found and int(found[1]):
            yield Device("rocm", f"AMD GPU {system.text(f'{nodes}/{node}/name').strip()}".strip(), "")


def _vulkan(system: System, ask: bool) -> Iterator[Device]:
    drivers = [name for folder in ICD_FOLDERS for name in system.names(folder) if name.endswith(".json")]
    nodes = [name for name in system.names("/dev/dri") if name.startswith("renderD")]
    found = [_render_node(system, node, drivers) for node in nodes]
    if not found and any("lvp" in name for name in drivers):
        found = [Device("vulkan", "llvmpipe", SOFTWARE)]
    if ask and any(not device.problem for device in found):
        # What the Vulkan loader itself says is better than what files suggest.
        found = _vulkaninfo(system.run("vulkaninfo", "--summary")) or found
    yield from found


def _render_node(system: System, node: str, icds: list[str]) -> Device:
    found = re.search(r"^DRIVER=(\S+)$", system.text(f"/sys/class/drm/{node}/device/uevent"), re.M)
    driver = found[1] if found else "unknown driver"
    name, icd = DRM_DRIVERS.get(driver.replace("-", "_"), (f"GPU ({driver})", "."))
    if driver == "v3d":
        # reported in ggml-org/llama.cpp issue 9801
        problem = "llama.cpp's Vulkan kernels do not run on VideoCore"
    elif not any(re.search(icd, file) for file in icds):
        problem = "no Vulkan driver for it is installed (mesa-vulkan-drivers, or the maker's own)"
    elif not os.access(system.path(f"/dev/dri/{node}"), os.R_OK | os.W_OK):
        problem = f"no permission to open /dev/dri/{node}: add the user to the group render"
    else:
        problem = ""
    return Device("vulkan", name, problem)


def _vulkaninfo(text: str) -> list[Device]:
    """`vulkaninfo --summary`: a deviceType and a deviceName for each device."""
    pairs = re.findall(r"deviceType\s*=\s*(\w+)\s+deviceName\s*=\s*([^\n]+)", text)
    return [Device("vulkan", name.strip(), SOFTWARE if kind.endswith("_CPU") else "") for kind, name in pairs]
