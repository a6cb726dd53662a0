"""Machines that are not here, as the files and answers that a probe would see: excerpts in the true formats.

The CUDA, ROCm, Metal and Vulkan paths have only ever run against these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge.machine.installed import Installed
from edge.machine.system import System

GIB = 1 << 30
MIB = 1 << 20
CPU_ONLY = Installed("0.3.36", frozenset({"base", "cpu"}), "")


@dataclass(frozen=True)
class Recorded:
    """`files` by absolute path; `answers` are the outputs of commands by their words."""

    files: dict[str, str] = field(default_factory=dict)
    cpus: int = 1
    arch: str = "x86_64"
    platform: str = "linux"
    answers: dict[tuple[str, ...], str] = field(default_factory=dict)
    rlimits: dict[str, int | None] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)
    build: Installed = CPU_ONLY

    def system(self, root: Path) -> System:
        """Write the files below `root` and give the machine that reads them."""
        for path, text in self.files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return System(
            root=root,
            platform=self.platform,
            arch=self.arch,
            cpus=frozenset(range(self.cpus)),
            rlimits=self.rlimits,
            run=lambda *command: self.answers.get(command, ""),
            memory=lambda: self.memory,
        )


def meminfo(total: int, available: int) -> dict[str, str]:
    lines = (
        f"MemTotal:       {total >> 10} kB\nMemFree:        1024 kB\nMemAvailable:   {available >> 10} kB\n"
    )
    return {"/proc/meminfo": lines + "HugePages_Total:       0\n"}


def x86(name: str, flags: str, cpus: int) -> dict[str, str]:
    one = "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: {}\nflags\t\t: {}\npower management:\n\n"
    return {"/proc/cpuinfo": "".join(one.format(cpu, name, flags) for cpu in range(cpus))}


def arm(parts: list[str], features: str, tail: str = "") -> dict[str, str]:
    one = (
        "processor\t: {}\nBogoMIPS\t: 108.00\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU variant\t: 0x4\nCPU part\t: {}\nCPU revision\t: 1\n\n"
    )
    return {
        "/proc/cpuinfo": "".join(one.format(cpu, features, part) for cpu, part in enumerate(parts)) + tail
    }


def siblings(*groups: str) -> dict[str, str]:
    """Topology files: "0-1" says that CPUs 0 and 1 are one core."""
    files = {}
    for group in groups:
        first, _, last = group.partition("-")
        for cpu in range(int(first), int(last or first) + 1):
            files[f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"] = f"{group}\n"
    return files


AVX2 = "fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 bmi1 bmi2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl avx512vbmi"
A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
V1 = f"{A76} jscvt fcma sha3 sve asimdfhm uscat ilrcpc flagm paca dcpodp svei8mm svebf16 i8mm bf16 dgh rng"

NVIDIA = {
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.120\n",
    "/proc/driver/nvidia/gpus/0000:01:00.0/information": (
        "Model: \t\t NVIDIA GeForce RTX 3060 Laptop GPU\nIRQ:   \t\t 188\nBus Type: \t PCIe\nExcluded:\t No\n"
    ),
    "/dev/nvidiactl": "",
    "/dev/nvidia0": "",
}
INTEL_GPU = {
    "/dev/dri/renderD128": "",
    "/sys/class/drm/renderD128/device/uevent": "DRIVER=i915\nPCI_CLASS=30000\nPCI_ID=8086:46A6\n",
}
MESA = {
    f"/usr/share/vulkan/icd.d/{name}_icd.x86_64.json": "{}" for name in ("intel", "radeon", "lvp", "virtio")
}

NVIDIA_LAPTOP = Recorded(
    files={
        **x86("12th Gen Intel(R) Core(TM) i7-12700H", f"{AVX2} avx_vnni", 20),
        **siblings("0-1", "2-3", "4-5", "6-7", "8-9", "10-11", *(str(cpu) for cpu in range(12, 20))),
        "/sys/devices/cpu_core/cpus": "0-11\n",
        "/sys/devices/cpu_atom/cpus": "12-19\n",
        **meminfo(16 * GIB, 11 * GIB),
        **NVIDIA,
        **INTEL_GPU,
    },
    cpus=20,
)
PI_5 = Recorded(
    files={
        **arm(["0xd0b"] * 4, A76, "Revision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"),
        **siblings("0", "1", "2", "3"),
        "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        **meminfo(8 * GIB - 64 * MIB, 7 * GIB),
        "/dev/dri/renderD128": "",
        "/sys/class/drm/renderD128/device/uevent": "DRIVER=v3d\nOF_NAME=v3d\n",
        "/usr/share/vulkan/icd.d/broadcom_icd.aarch64.json": "{}",
        "/usr/share/vulkan/icd.d/lvp_icd.aarch64.json": "{}",
    },
    cpus=4,
    arch="aarch64",
)
PI_ZERO_2 = Recorded(
    files={
        **arm(["0xd03"] * 4, "fp asimd evtstrm crc32 cpuid"),
        "/proc/device-tree/model": "Raspberry Pi Zero 2 W Rev 1.0\0",
        **meminfo(416 * MIB, 290 * MIB),
    },
    cpus=4,
    arch="aarch64",
)
BIG_LITTLE = Recorded(  # RK3588: four little and four big cores
    files={
        **arm(["0xd05"] * 4 + ["0xd0b"] * 4, A76),
        "/proc/device-tree/model": "Radxa ROCK 5B\0",
        **{
            f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity": "530\n" if cpu < 4 else "1024\n"
            for cpu in range(8)
        },
        **meminfo(16 * GIB, 15 * GIB),
    },
    cpus=8,
    arch="aarch64",
)
GRAVITON_3 = Recorded(files={**arm(["0xd40"] * 2, V1), **meminfo(4 * GIB, 3 * GIB)}, cpus=2, arch="aarch64")
SAPPHIRE_RAPIDS = Recorded(
    files={
        **x86(
            "Intel(R) Xeon(R) Platinum 8488C",
            f"{AVX512} avx_vnni avx512_bf16 avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8",
            4,
        ),
        **siblings("0-1", "2-3"),
        **meminfo(32 * GIB, 30 * GIB),
    },
    cpus=4,
)
OLD_LAPTOP = Recorded(
    files={
        **x86("Intel(R) Core(TM) i5-4300U CPU @ 1.90GHz", AVX2, 4),
        **siblings("0-1", "2-3"),
        **meminfo(8 * GIB, 5 * GIB),
        "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json": "{}",
    },
    cpus=4,
)
V2_CONTAINER = Recorded(
    files={
        **x86("AMD EPYC 7R13 Processor", AVX2, 8),
        **siblings("0-1", "2-3", "4-5", "6-7"),
        **meminfo(32 * GIB, 20 * GIB),
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": (
            "1020 1010 0:29 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n"
        ),
        "/sys/fs/cgroup/memory.max": f"{512 * MIB}\n",
        "/sys/fs/cgroup/memory.high": "max\n",
        "/sys/fs/cgroup/memory.current": f"{200 * MIB}\n",
        "/sys/fs/cgroup/memory.stat": f"anon 1024\nfile 104857600\ninactive_file {50 * MIB}\nactive_file 1\n",
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
    },
    cpus=8,
)
_ID = "/docker/3f4e8a1b"
V1_CONTAINER = Recorded(
    files={
        **x86("AMD EPYC 7R13 Processor", AVX2, 4),
        **meminfo(16 * GIB, 9 * GIB),
        "/proc/self/cgroup": f"11:memory:{_ID}\n4:cpu,cpuacct:{_ID}\n1:name=systemd:{_ID}\n",
        "/proc/self/mountinfo": (
            f"731 729 0:33 {_ID} /sys/fs/cgroup/memory ro,nosuid master:16 - cgroup cgroup rw,memory\n"
            f"732 729 0:30 {_ID} /sys/fs/cgroup/cpu,cpuacct ro master:11 - cgroup cgroup rw,cpu,cpuacct\n"
        ),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1 * GIB}\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": f"{300 * MIB}\n",
        "/sys/fs/cgroup/memory/memory.stat": (
            f"inactive_file 7\nhierarchical_memory_limit {768 * MIB}\ntotal_inactive_file {100 * MIB}\n"
        ),
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    },
    cpus=4,
)
APPLE_M2 = Recorded(
    platform="darwin",
    arch="arm64",
    cpus=8,
    memory=(16 * GIB, 9 * GIB),
    answers={
        ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M2\n",
        ("sysctl", "hw", "machdep.cpu"): (
            "hw.ncpu: 8\nhw.logicalcpu: 8\nhw.physicalcpu: 8\nhw.nperflevels: 2\n"
            "hw.perflevel0.physicalcpu: 4\nhw.perflevel1.physicalcpu: 4\nhw.memsize: 17179869184\n"
            "hw.optional.neon: 1\nhw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_FP16: 1\n"
            "hw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1\n"
            "hw.optional.arm.FEAT_SME: 0\nmachdep.cpu.brand_string: Apple M2\nmachdep.cpu.core_count: 8\n"
        ),
    },
    build=Installed("0.3.36", frozenset({"base", "blas", "cpu", "metal"}), ""),
)
VULKAN_SUMMARY = """\
Devices:
========
GPU0:
	apiVersion         = 1.3.289
	vendorID           = 0x8086
	deviceType         = PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU
	deviceName         = Intel(R) Graphics (ADL GT2)
	driverName         = Intel open-source Mesa driver
GPU1:
	apiVersion         = 1.3.289
	deviceType         = PHYSICAL_DEVICE_TYPE_CPU
	deviceName         = llvmpipe (LLVM 17.0.6, 256 bits)
	driverName         = llvmpipe
"""
