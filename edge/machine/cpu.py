"""The CPU: its name, the instruction sets that GGML's kernels are written for, the cores we may use."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.machine.cgroup import cpu_quota
from edge.machine.parts import PARTS
from edge.machine.system import System, number

# Name → the flags of /proc/cpuinfo that must all be there; the strongest comes last. GGML compiles its
# AVX-512 kernels with f, cd, vl, dq and bw together (ggml/src/ggml-cpu/CMakeLists.txt). Flag names: the
# kernel's arch/x86/include/asm/cpufeatures.h and Documentation/arch/arm64/elf_hwcaps.rst.
X86_ISA = {
    "F16C": ("f16c",),
    "FMA": ("fma",),
    "AVX2": ("avx2",),
    "AVX-VNNI": ("avx_vnni",),
    "AVX-512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX-512 BF16": ("avx512_bf16",),
    "AMX-BF16": ("amx_tile", "amx_bf16"),
    "AMX-INT8": ("amx_tile", "amx_int8"),
}
ARM_ISA = {
    "NEON": ("asimd",),
    "FP16": ("asimdhp",),
    "BF16": ("bf16",),
    "dotprod": ("asimddp",),
    "SVE": ("sve",),
    "SVE2": ("sve2",),
    "i8mm": ("i8mm",),
}
# The same on macOS, from sysctl hw.optional (Apple: "Determining instruction set characteristics").
MAC_FLAGS = {
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.f16c": "f16c",
    "hw.optional.fma": "fma",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512cd": "avx512cd",
    "hw.optional.avx512vl": "avx512vl",
    "hw.optional.avx512dq": "avx512dq",
    "hw.optional.avx512bw": "avx512bw",
    "hw.optional.avx512vnni": "avx512_vnni",
}


@dataclass(frozen=True)
class Cpu:
    """The CPU as this process may use it.

    `isa` goes from common to strongest. `cores` are logical CPUs, cut to the affinity mask and to the control
    group's quota (rounded up). `physical` counts SMT siblings once, `performance_cores` leaves out the slower
    cores of a hybrid CPU; both are cut to the quota too, and equal `cores` where the system does not tell.
    """

    name: str
    isa: tuple[str, ...]
    cores: int
    physical: int
    performance_cores: int


def cpu(system: System) -> Cpu:
    """Look at the CPU; what cannot be read falls back to the architecture's name and no features."""
    if system.platform == "darwin":
        return _mac(system)
    text = system.text("/proc/cpuinfo")
    fields = first_fields(text)
    flags = frozenset((fields.get("flags") or fields.get("Features") or "").split())
    if "neon" in flags:  # the 32-bit name of asimd
        flags |= {"asimd"}

    quota = cpu_quota(system)
    cores = min(len(system.cpus), max(1, math.ceil(quota))) if quota else len(system.cpus)
    core_of = {cpu: min(_siblings(system, cpu)) for cpu in system.cpus}
    fast = {core_of[cpu] for cpu in _performance(system)}
    return Cpu(
        name=_linux_name(system, text, fields),
        isa=isa(flags),
        cores=cores,
        physical=min(cores, len(set(core_of.values()))),
        performance_cores=min(cores, len(fast)),
    )


def isa(flags: frozenset[str]) -> tuple[str, ...]:
    """The names of what the kernel's CPU flags offer, common first."""
    return tuple(name for name, needed in (X86_ISA | ARM_ISA).items() if flags.issuperset(needed))


def first_fields(text: str) -> dict[str, str]:
    """`key : value` lines of /proc/cpuinfo; the first processor's value of each key."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _linux_name(system: System, text: str, fields: dict[str, str]) -> str:
    cores = arm_cores(text)
    if not cores:
        return fields.get("model name") or system.arch
    board = system.text("/proc/device-tree/model").strip("\0 \n")
    return f"{board} ({cores})" if board else cores


def arm_cores(text: str) -> str:
    """The kinds of ARM core in /proc/cpuinfo, last first: "Cortex-A76 + Cortex-A55"."""
    names: list[str] = []
    implementer = ""
    for line in text.splitlines():
        key, _, value = (word.strip() for word in line.partition(":"))
        if key == "CPU implementer":
            implementer = value
        elif key == "CPU part":
            name = PARTS.get((implementer, value), f"ARM implementer {implementer} part {value}")
            names += [name] if name not in names else []
    return " + ".join(reversed(names))


def _siblings(system: System, cpu: int) -> frozenset[int]:
    """The logical CPUs of one physical core; the CPU alone where the kernel does not tell."""
    topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
    text = system.text(f"{topology}/core_cpus_list") or system.text(f"{topology}/thread_siblings_list")
    return cpu_list(text) | {cpu}


def _performance(system: System) -> frozenset[int]:
    """The CPUs that are not of a slower kind; all where the kernel does not tell.

    Hybrid Intel names its fast cores; ARM gives each CPU a capacity up to 1024. Two thirds of the largest
    keeps the middle cluster of three (about 800-900) and leaves out the little cores (about 250-550).
    """
    named = cpu_list(system.text("/sys/devices/cpu_core/cpus"))
    if named & system.cpus:
        return named & system.cpus
    capacity = {
        cpu: system.number(f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity") or 0 for cpu in system.cpus
    }
    largest = max(capacity.values(), default=0)
    return frozenset(cpu for cpu, value in capacity.items() if value * 3 >= largest * 2)


def cpu_list(text: str) -> frozenset[int]:
    """The kernel's list format, "0-3,8": damaged parts are left out."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        low, high = number(first), number(last or first)
        if low is not None and high is not None and 0 <= low <= high < 1 << 16:
            cpus.update(range(low, high + 1))
    return frozenset(cpus)


def _mac(system: System) -> Cpu:
    answers = first_fields(system.run("sysctl", "hw", "machdep.cpu"))
    flags = frozenset(flag for key, flag in MAC_FLAGS.items() if answers.get(key) == "1")
    cores = number(answers.get("hw.logicalcpu", "")) or len(system.cpus)
    physical = number(answers.get("hw.physicalcpu", "")) or cores
    fast = number(answers.get("hw.perflevel0.physicalcpu", "")) or physical
    return Cpu(answers.get("machdep.cpu.brand_string") or system.arch, isa(flags), cores, physical, fast)
