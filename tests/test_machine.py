"""The probes on recorded hosts (exact results), on damaged ones (never an exception), and on this machine."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_hosts import (
    APPLE_M2,
    BIG_LITTLE,
    GIB,
    GRAVITON_3,
    INTEL_GPU,
    MESA,
    MIB,
    NVIDIA,
    NVIDIA_LAPTOP,
    OLD_LAPTOP,
    PI_5,
    PI_ZERO_2,
    SAPPHIRE_RAPIDS,
    V1_CONTAINER,
    V2_CONTAINER,
    VULKAN_SUMMARY,
    Recorded,
)

from edge.cli import VERBS
from edge.cli.host import command, describe
from edge.machine import Accelerator, Cpu, Host, Memory, Rejected, examine, host
from edge.machine.cpu import arm_cores, cpu_list, first_fields
from edge.machine.installed import Installed, installed, libraries
from edge.machine.memory import kilobytes

X86 = ("F16C", "FMA", "AVX2")
RTX = "NVIDIA GeForce RTX 3060 Laptop GPU"
CUDA = Installed("0.3.36", frozenset({"base", "cpu", "cuda"}), "")
VULKAN = Installed("0.3.36", frozenset({"base", "cpu", "vulkan"}), "")


def look(recorded: Recorded, root: Path) -> Host:
    return examine(recorded.system(root), recorded.build)


def with_files(recorded: Recorded, files: dict[str, str], **changes: object) -> Recorded:
    return dataclasses.replace(recorded, files={**recorded.files, **files}, **changes)


@pytest.mark.parametrize(
    ("recorded", "cpu"),
    [
        (NVIDIA_LAPTOP, Cpu("12th Gen Intel(R) Core(TM) i7-12700H", (*X86, "AVX-VNNI"), 20, 14, 6)),
        (PI_5, Cpu("Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)", ("NEON", "FP16", "dotprod"), 4, 4, 4)),
        (PI_ZERO_2, Cpu("Raspberry Pi Zero 2 W Rev 1.0 (Cortex-A53)", ("NEON",), 4, 4, 4)),
        (
            BIG_LITTLE,
            Cpu("Radxa ROCK 5B (Cortex-A76 + Cortex-A55)", ("NEON", "FP16", "dotprod"), 8, 8, 4),
        ),
        (GRAVITON_3, Cpu("Neoverse-V1", ("NEON", "FP16", "BF16", "dotprod", "SVE", "i8mm"), 2, 2, 2)),
        (
            SAPPHIRE_RAPIDS,
            Cpu(
                "Intel(R) Xeon(R) Platinum 8488C",
                (*X86, "AVX-VNNI", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AMX-BF16", "AMX-INT8"),
                4,
                2,
                2,
            ),
        ),
        (OLD_LAPTOP, Cpu("Intel(R) Core(TM) i5-4300U CPU @ 1.90GHz", X86, 4, 2, 2)),
        (V2_CONTAINER, Cpu("AMD EPYC 7R13 Processor", X86, 2, 2, 2)),
        (V1_CONTAINER, Cpu("AMD EPYC 7R13 Processor", X86, 1, 1, 1)),
        (APPLE_M2, Cpu("Apple M2", ("NEON", "FP16", "BF16", "dotprod", "i8mm"), 8, 8, 4)),
    ],
)
def test_cpu(recorded, cpu, tmp_path):
    assert look(recorded, tmp_path).cpu == cpu


@pytest.mark.parametrize(
    ("recorded", "memory"),
    [
        (NVIDIA_LAPTOP, Memory(16 * GIB, 11 * GIB, None)),
        (PI_ZERO_2, Memory(416 * MIB, 290 * MIB, None)),
        (V2_CONTAINER, Memory(32 * GIB, (512 - 200 + 50) * MIB, 512 * MIB)),
        # the pod above this container allows 768 MiB, which only hierarchical_memory_limit tells
        (V1_CONTAINER, Memory(16 * GIB, (768 - 300 + 100) * MIB, 768 * MIB)),
        (APPLE_M2, Memory(16 * GIB, 9 * GIB, None)),
    ],
)
def test_memory(recorded, memory, tmp_path):
    assert look(recorded, tmp_path).memory == memory


def test_a_limit_of_a_parent_group_counts(tmp_path):
    folder = "/sys/fs/cgroup/user.slice/user-1000.slice"
    recorded = with_files(
        OLD_LAPTOP,
        {
            "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-2.scope\n",
            "/proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n",
            f"{folder}/session-2.scope/memory.max": "max\n",
            f"{folder}/session-2.scope/cpu.max": "max 100000\n",
            f"{folder}/memory.max": f"{2 * GIB}\n",
            f"{folder}/memory.current": f"{1 * GIB}\n",
            f"{folder}/cpu.max": "250000 100000\n",
        },
    )
    found = look(recorded, tmp_path)
    assert found.memory == Memory(8 * GIB, 1 * GIB, 2 * GIB)
    assert (found.cpu.cores, found.cpu.physical) == (3, 2)


@pytest.mark.parametrize("path", ["/kubepods/pod1/container", "/../../elsewhere"])
def test_a_group_whose_path_only_the_outside_knows_is_the_mount(path, tmp_path):
    recorded = with_files(V2_CONTAINER, {"/proc/self/cgroup": f"0::{path}\n"})
    assert look(recorded, tmp_path).memory.limit_bytes == 512 * MIB


@pytest.mark.parametrize("unlimited", ["9223372036854771712", "9223372036854710272", "-1", "max", ""])
def test_unlimited(unlimited, tmp_path):
    folder = "/sys/fs/cgroup/memory"
    files = {f"{folder}/memory.limit_in_bytes": unlimited, f"{folder}/memory.stat": "cache 1\n"}
    files["/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"] = "-1\n"
    found = look(with_files(V1_CONTAINER, files), tmp_path)
    assert found.memory == Memory(16 * GIB, 9 * GIB, None)
    assert found.cpu.cores == 4


def test_resource_limits_count(tmp_path):
    status = {"/proc/self/status": f"Name:\tpython\nVmSize:\t  {300 << 10} kB\nVmData:\t  {100 << 10} kB\n"}
    recorded = with_files(OLD_LAPTOP, status, rlimits={"AS": 1 * GIB, "DATA": 2 * GIB})
    assert look(recorded, tmp_path).memory == Memory(8 * GIB, (1024 - 300) * MIB, 1 * GIB)


@pytest.mark.parametrize(("anonymous", "counted"), [(10, 10), (200, 22)])
def test_what_an_interpreter_holds_is_part_of_what_a_model_takes(anonymous, counted, tmp_path):
    status = f"RssAnon:\t {anonymous << 10} kB\nRssFile:\t {20 << 10} kB\n"
    found = look(with_files(V2_CONTAINER, {"/proc/self/status": status}), tmp_path).memory
    assert found.available_bytes == (512 - 200 + 50 + counted) * MIB


def test_a_group_over_its_limit_has_nothing_left(tmp_path):
    recorded = with_files(V2_CONTAINER, {"/sys/fs/cgroup/memory.current": f"{600 * MIB}\n"})
    assert look(recorded, tmp_path).memory.available_bytes == 0


def test_nvidia_with_a_cpu_build_says_how_to_use_it(tmp_path):
    found = look(NVIDIA_LAPTOP, tmp_path)
    cuda = "this llama.cpp build has no CUDA: reinstall it with CMAKE_ARGS=-DGGML_CUDA=on"
    no_driver = "no Vulkan driver for it is installed (mesa-vulkan-drivers, or the maker's own)"
    vulkan = f"{no_driver}, and this llama.cpp build has no Vulkan"
    assert found.accelerators == (
        Accelerator("cuda", RTX, False, cuda),
        Accelerator("vulkan", "Intel GPU", False, vulkan),
    )
    assert found.chosen.backend == "llama.cpp-cpu"
    shared = "the only backend that this llama.cpp build and this machine share"
    assert found.chosen.reason == f"{shared}; the CPU has AVX-VNNI"
    assert found.chosen.rejected[0] == Rejected("llama.cpp-cuda", f"{RTX} is here, but {cuda}")


def test_nvidia_with_a_cuda_build_is_chosen(tmp_path):
    found = look(dataclasses.replace(NVIDIA_LAPTOP, build=CUDA), tmp_path)
    assert found.chosen.backend == "llama.cpp-cuda"
    assert found.chosen.reason == f"{RTX} is here, and this llama.cpp build has CUDA"
    why = {rejected.choice: rejected.reason for rejected in found.chosen.rejected}
    order = "usable, but comes after the one chosen: CUDA, ROCm, Metal, Vulkan, then the CPU"
    assert why["llama.cpp-cpu"] == order


def without(recorded: Recorded, part: str, **changes: object) -> Recorded:
    kept = {path: text for path, text in recorded.files.items() if part not in path}
    return dataclasses.replace(recorded, files=kept, **changes)


def test_a_container_that_was_not_given_the_gpu(tmp_path):
    found = look(without(NVIDIA_LAPTOP, "/dev/nvidia", build=CUDA), tmp_path)
    assert found.accelerators[0].reason == "no /dev/nvidia* here: start the container with --gpus all"
    assert found.chosen.backend == "llama.cpp-cpu"


def test_a_cuda_build_without_a_driver(tmp_path):
    pci = {
        "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "/sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
        "/sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",  # its sound device is no GPU
        "/sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",
    }
    found = look(with_files(OLD_LAPTOP, pci, build=CUDA), tmp_path)
    assert found.accelerators[0] == Accelerator("cuda", "NVIDIA GPU", False, "no NVIDIA driver is loaded")
    assert len([gpu for gpu in found.accelerators if gpu.kind == "cuda"]) == 1


def test_a_cuda_build_without_a_gpu(tmp_path):
    found = look(dataclasses.replace(OLD_LAPTOP, build=CUDA), tmp_path)
    assert found.backends[0].reason == "no NVIDIA GPU here; this llama.cpp build has CUDA"


def test_nvidia_under_wsl(tmp_path):
    answers = {("nvidia-smi", "-L"): "GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)\n"}
    found = look(with_files(OLD_LAPTOP, {"/dev/dxg": ""}, answers=answers, build=CUDA), tmp_path)
    assert found.chosen.reason == "NVIDIA GeForce RTX 4090 is here, and this llama.cpp build has CUDA"


def test_jetson(tmp_path):
    files = {"/proc/device-tree/model": "NVIDIA Jetson Orin Nano\0", "/dev/nvhost-gpu": ""}
    found = look(with_files(GRAVITON_3, files, build=CUDA), tmp_path)
    assert found.chosen.reason == "NVIDIA Jetson Orin Nano is here, and this llama.cpp build has CUDA"


def test_rocm(tmp_path):
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    files = {
        "/dev/kfd": "",
        f"{nodes}/0/properties": "cpu_cores_count 16\nsimd_count 0\n",
        f"{nodes}/1/properties": "cpu_cores_count 0\nsimd_count 192\n",
        f"{nodes}/1/name": "navi31\n",
    }
    build = Installed("0.3.36", frozenset({"cpu", "hip"}), "")
    found = look(with_files(OLD_LAPTOP, files, build=build), tmp_path)
    assert found.chosen.backend == "llama.cpp-rocm"
    assert found.chosen.reason == "AMD GPU navi31 is here, and this llama.cpp build has ROCm"


def test_vulkan_asks_the_loader_when_the_build_can_use_it(tmp_path):
    answers = {("vulkaninfo", "--summary"): VULKAN_SUMMARY}
    found = look(with_files(OLD_LAPTOP, INTEL_GPU | MESA, answers=answers, build=VULKAN), tmp_path)
    assert found.accelerators == (
        Accelerator("vulkan", "Intel(R) Graphics (ADL GT2)", True, "this llama.cpp build has Vulkan"),
        Accelerator(
            "vulkan",
            "llvmpipe (LLVM 17.0.6, 256 bits)",
            False,
            "it is a software renderer: the CPU kernels do the same work faster",
        ),
    )
    assert found.chosen.backend == "llama.cpp-vulkan"


def test_vulkan_without_vulkaninfo_goes_by_the_files(tmp_path):
    found = look(with_files(OLD_LAPTOP, INTEL_GPU | MESA, build=VULKAN), tmp_path)
    assert found.chosen.reason == "Intel GPU is here, and this llama.cpp build has Vulkan"


@pytest.mark.parametrize(
    ("recorded", "reason"),
    [
        (OLD_LAPTOP, "it is a software renderer: the CPU kernels do the same work faster"),
        (PI_5, "llama.cpp's Vulkan kernels do not run on VideoCore"),
    ],
)
def test_vulkan_that_is_not_worth_it(recorded, reason, tmp_path):
    found = look(dataclasses.replace(recorded, build=VULKAN), tmp_path)
    assert [gpu.reason for gpu in found.accelerators] == [reason]
    assert found.chosen.backend == "llama.cpp-cpu"


def test_metal(tmp_path):
    found = look(APPLE_M2, tmp_path)
    assert found.accelerators == (Accelerator("metal", "Apple M2", True, "this llama.cpp build has Metal"),)
    assert found.chosen.backend == "llama.cpp-metal"
    assert not look(dataclasses.replace(APPLE_M2, arch="x86_64"), tmp_path).accelerators


def test_nothing_installed(tmp_path):
    found = look(dataclasses.replace(NVIDIA_LAPTOP, build=Installed("", frozenset(), "")), tmp_path)
    assert (found.chosen.backend, found.chosen.reason) == ("none", "llama-cpp-python is not installed")
    assert found.accelerators[0].reason == "llama-cpp-python is not installed"


def test_libraries_are_read_from_file_names():
    names = [
        "libggml.so",
        "libggml-cpu-haswell.so",
        "libggml-cuda.so.0",
        "libggml-metal.dylib",
        "libllama.so",
    ]
    assert libraries([*names, "ggml-vulkan.dll", "ggml-cuda.cuh"]) == {"cpu", "cuda", "metal", "vulkan"}


def test_installed_reads_a_package_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text('raise SystemExit("imported")\n__version__ = "0.3.99"\n')
    (package / "lib" / "libggml-cuda.so").touch()
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    assert installed().llama_cpp == "0.3.99"
    assert installed().libraries == {"cuda"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "libggml-vulkan.so").touch()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(elsewhere))
    assert installed().libraries == {"vulkan"}
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "missing"))
    assert installed().libraries == set()


def test_32_bit_arm_calls_neon_by_another_name(tmp_path):
    text = PI_ZERO_2.files["/proc/cpuinfo"].replace("fp asimd evtstrm", "half thumb neon vfpv4")
    recorded = with_files(PI_ZERO_2, {"/proc/cpuinfo": text}, arch="armv7l")
    assert look(recorded, tmp_path).cpu.isa == ("NEON",)


def test_an_empty_machine_falls_back(tmp_path):
    """No /proc, no /sys, no /dev: what the kernel told the process itself is left."""
    found = look(Recorded(cpus=2, memory=(GIB, MIB)), tmp_path)
    assert found.cpu == Cpu("x86_64", (), 2, 2, 2)
    assert found.memory == Memory(GIB, MIB, None)
    assert found.accelerators == ()
    assert found.chosen.backend == "llama.cpp-cpu"


FILES = sorted(
    {path for recorded in (NVIDIA_LAPTOP, PI_5, V1_CONTAINER, V2_CONTAINER) for path in recorded.files}
)
WORDS = [
    "\0",
    "-",
    ",",
    ":",
    " - cgroup2 ",
    "/",
    "..",
    "9" * 5000,
    "-1",
    "max",
    "0-9",
    "\n",
    " kB\n",
    "٣",
    "\x85",
]
GARBAGE = st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map("".join), st.sampled_from(WORDS))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(FILES), GARBAGE, min_size=1, max_size=6))
def test_damaged_files_never_raise(files):
    with tempfile.TemporaryDirectory() as folder:
        surrogates = {path: text.encode("utf-8", "replace").decode() for path, text in files.items()}
        recorded = with_files(V1_CONTAINER, V2_CONTAINER.files | NVIDIA | surrogates, memory=(GIB, GIB))
        found = look(recorded, Path(folder))
    assert 1 <= found.cpu.performance_cores <= found.cpu.physical <= found.cpu.cores <= 4
    assert found.memory.available_bytes >= 0


@given(GARBAGE)
def test_parsers_take_anything(text):
    assert all(0 <= cpu < 1 << 16 for cpu in cpu_list(text))
    assert all(value >= 0 for value in kilobytes(text).values())
    first_fields(text)
    arm_cores(text)


# ---- this machine -----------------------------------------------------------------------------------------


def output(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"{words[0]} is not here")


def test_agrees_with_psutil():
    found = host()
    assert found.memory.total_bytes == psutil.virtual_memory().total
    assert found.memory.available_bytes <= psutil.virtual_memory().available + 256 * MIB
    assert found.cpu.cores <= (psutil.cpu_count() or 1)
    assert found.cpu.physical <= (psutil.cpu_count(logical=False) or found.cpu.cores)


@pytest.mark.skipif(sys.platform != "linux", reason="lscpu and nproc are Linux'")
def test_agrees_with_lscpu_and_nproc():
    found, lscpu = host(), first_fields(output("lscpu"))
    assert found.cpu.cores <= int(output("nproc"))
    assert ("AVX2" in found.cpu.isa) == ("avx2" in lscpu.get("Flags", ""))
    assert ("dotprod" in found.cpu.isa) == ("asimddp" in lscpu.get("Flags", ""))
    assert lscpu["Model name"] in found.cpu.name


def test_is_fast_enough_to_run_before_every_load():
    host()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        host()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.06


def test_imports_nothing_heavy():
    code = "import sys, edge.machine; edge.machine.host(); print(*sys.modules)"
    modules = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert "edge.machine" in modules
    assert not modules & {
        "llama_cpp",
        "onnxruntime",
        "numpy",
        "psutil",
        "click",
        "email",
        "importlib.metadata",
    }


def test_json_has_the_promised_keys():
    result = CliRunner().invoke(command, ["--json"])
    printed = json.loads(result.stdout)
    assert list(printed) == ["cpu", "memory", "accelerators", "backends", "chosen", "rates", "why_no_rates"]
    assert list(printed["cpu"])[:3] == ["name", "isa", "cores"]
    assert list(printed["memory"]) == ["total_bytes", "available_bytes", "limit_bytes"]
    assert all(list(backend) == ["name", "usable", "reason"] for backend in printed["backends"])
    assert list(printed["chosen"]) == ["backend", "reason", "rejected"]
    assert all(list(rejected) == ["choice", "reason"] for rejected in printed["chosen"]["rejected"])


def test_the_screen(tmp_path):
    lines = describe(look(NVIDIA_LAPTOP, tmp_path)).splitlines()
    assert lines[:4] == [
        "cpu       12th Gen Intel(R) Core(TM) i7-12700H",
        "isa       F16C, FMA, AVX2, AVX-VNNI",
        "cores     20 (14 physical, 6 of them fast)",
        "memory    11 GiB available of 16 GiB",
    ]
    assert lines[4] == "gpu       NVIDIA GeForce RTX 3060 Laptop GPU (cuda), not usable"
    assert lines[6].startswith("backend   llama.cpp-cpu: the only backend")
    assert lines[7].startswith("rejected  llama.cpp-cuda    NVIDIA GeForce")
    assert lines[8].startswith("          llama.cpp-rocm    no AMD GPU")


def test_the_screen_of_a_container(tmp_path):
    text = describe(look(V2_CONTAINER, tmp_path))
    assert "memory    362 MiB available of 32 GiB, limited to 512 MiB\ngpu       none found\n" in text


def test_help_is_the_line_of_the_overview():
    assert (command.help or "").splitlines()[0] == VERBS["host"]
