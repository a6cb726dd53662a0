"""Heat and what is done against it: temperatures, throttle flags and counters, clock rates."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edge.machine.system import System

THERMAL = "/sys/class/thermal"
HWMON = "/sys/class/hwmon"
CPUS = "/sys/devices/system/cpu"
FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
# Raspberry Pi documentation, "vcgencmd get_throttled": the same 16 bits higher says that it has been so since the start
FLAGS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
SINCE_START = 16
# Sensors of processors: the kernel's drivers coretemp, k10temp, zenpower and x86_pkg_temp, and device trees' names
SENSOR = re.compile(r"coretemp|k10temp|zenpower|x86_pkg_temp|cpu|soc|tcpu|big|little|package", re.I)
COLDEST, HOTTEST = -50.0, 150.0  # °C; beyond these a sensor is not connected
FASTEST_MHZ = 20_000.0


def firmware_flags(system: System) -> int | None:
    """A Raspberry Pi's throttle flags; elsewhere the bit of under-voltage where a sensor watches it, or None."""
    text = system.text(FIRMWARE).strip()
    if not text and "Raspberry Pi" in system.text("/proc/device-tree/model"):
        text = system.run("vcgencmd", "get_throttled").strip().removeprefix("throttled=")
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text):
        return int(text, 16)
    for chip in system.names(HWMON):
        if system.text(f"{HWMON}/{chip}/name").strip() == "rpi_volt":
            alarm = system.number(f"{HWMON}/{chip}/in0_lcrit_alarm")
            return alarm if alarm in (0, 1) else None
    return None


def flag_names(before: int, after: int) -> list[str]:
    """The flags that were up before or after, or rose and fell between: those "since start" that are new."""
    risen = (after & ~before) >> SINCE_START
    return [name for bit, name in enumerate(FLAGS) if (before | after | risen) >> bit & 1]


def throttle_count(system: System) -> int | None:
    """How often Intel's CPUs were throttled by heat since the start: all cores' counts and each package's once."""
    cores, packages = [], dict[str, int]()
    for cpu in system.cpus:
        folder = f"{CPUS}/cpu{cpu}"
        core = system.number(f"{folder}/thermal_throttle/core_throttle_count")
        package = system.number(f"{folder}/thermal_throttle/package_throttle_count")
        if core is not None:
            cores.append(core)
        if package is not None:
            packages[system.text(f"{folder}/topology/physical_package_id")] = package
    found = [*cores, *packages.values()]
    return sum(found) if found and all(0 <= count < 1 << 64 for count in found) else None


def speed_limit(system: System) -> int | None:
    """The percentage of its speed that macOS leaves the CPU."""
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d{1,3})\b", system.run("pmset", "-g", "therm"), re.A)
    return int(found[1]) if found else None


def celsius(system: System) -> float | None:
    """The hottest of the CPU's sensors, else of all."""
    found = list(_sensors(system))
    ours = [degrees for name, degrees in found if SENSOR.search(name)]
    return max(ours or [degrees for _, degrees in found], default=None)


def _sensors(system: System) -> Iterator[tuple[str, float]]:
    for zone in system.names(THERMAL):
        if zone.startswith("thermal_zone"):
            degrees = _degrees(system, f"{THERMAL}/{zone}/temp")
            if degrees is not None:
                yield system.text(f"{THERMAL}/{zone}/type").strip(), degrees
    for chip in system.names(HWMON):
        name = system.text(f"{HWMON}/{chip}/name").strip()
        for file in system.names(f"{HWMON}/{chip}"):
            if re.fullmatch(r"temp\d+_input", file):
                degrees = _degrees(system, f"{HWMON}/{chip}/{file}")
                if degrees is not None:
                    yield name, degrees


def _degrees(system: System, path: str) -> float | None:
    thousandths = system.number(path)
    if thousandths is None or not COLDEST * 1000 < thousandths < HOTTEST * 1000:
        return None
    return thousandths / 1000


def megahertz(system: System, file: str = "scaling_cur_freq") -> float | None:
    """The fastest of this process's CPUs: now, or with "cpuinfo_max_freq" at most. Idle CPUs tell nothing of speed."""
    found = (system.number(f"{CPUS}/cpu{cpu}/cpufreq/{file}") for cpu in system.cpus)
    return max((kilo / 1000 for kilo in found if kilo and 0 < kilo < FASTEST_MHZ * 1000), default=None)


def governor(system: System) -> str:
    """The frequency governors of this process's CPUs, "" where they are not told."""
    names = {system.text(f"{CPUS}/cpu{cpu}/cpufreq/scaling_governor").strip() for cpu in system.cpus}
    return ", ".join(sorted(names - {""}))
