"""Energy that the machine takes, where it tells: counted by the processor, or summed up from power now and then.

What is counted differs: RAPL is processor and memory, a battery or a Jetson's input rail is the whole machine, and a
Raspberry Pi 5's regulators are all that hangs behind them, so only figures of one source compare. Sources: the kernel's
Documentation/power/powercap/powercap.rst, ABI/testing/sysfs-class-power and hwmon/ina3221.rst.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from edge.machine.system import System, here

POWERCAP = "/sys/class/powercap"
SUPPLIES = "/sys/class/power_supply"
HWMON = "/sys/class/hwmon"
EVERY_S = 1.0  # between looks at power; one costs milliseconds at worst, the start of vcgencmd
MOST_W = 100_000.0  # more is a sensor's error


@dataclass(frozen=True)
class Energy:
    """What was taken between start and stop: joules of `source`, or None and `why`."""

    joules: float | None
    source: str
    why: str


class Meter:
    """`start`, work, `stop`: the energy of the time between. Nothing is ever raised for what cannot be read.

    A counter (RAPL) is read twice. Power is read every second by a thread, so times under some seconds are rough.
    """

    def __init__(self, system: System | None = None) -> None:
        self._system = system or here()
        self._counters: dict[str, Counter] = {}
        self._sampler: Sampler | None = None

    def start(self) -> None:
        self._sampler = None
        self._counters = counters(self._system)
        source = None if self._counters else power_source(self._system)
        if source is not None:
            self._sampler = Sampler(*source)

    def stop(self) -> Energy:
        if self._sampler is not None:
            return self._sampler.stop()
        if not self._counters:
            return Energy(None, "", why_none(self._system))
        joules, after = 0.0, counters(self._system)
        for name, before in self._counters.items():
            taken = before.until(after.get(name))
            if taken is None:
                return Energy(None, "", f"RAPL's counter of {before.part} broke off while it was read")
            joules += taken
        if not joules:  # as some virtual machines show them
            return Energy(None, "", "RAPL's counters stand still")
        return Energy(joules, f"RAPL: {', '.join(one.part for one in self._counters.values())}", "")


@dataclass(frozen=True)
class Counter:
    """A RAPL domain's energy counter: microjoules, and where it starts again at 0 (None: not told)."""

    part: str
    value: int
    end: int | None

    def until(self, later: Counter | None) -> float | None:
        """Joules from here to `later`; None where it is gone, or went back without an end to have wrapped at."""
        if later is None:
            return None
        taken = later.value - self.value
        if taken < 0:
            if self.end is None or later.value > self.end or self.value > self.end:
                return None
            taken += self.end
        return taken / 1e6


def counters(system: System) -> dict[str, Counter]:
    """The packages' counters and their memory's, by domain. `psys` holds the packages and intel-rapl-mmio is their
    second door, so both stay out."""
    found = {}
    for domain in rapl_domains(system):
        value = reading(system, f"{POWERCAP}/{domain}/energy_uj")
        part = system.text(f"{POWERCAP}/{domain}/name").strip()
        if value is not None and value >= 0 and (part.startswith("package") or part == "dram"):
            end = reading(system, f"{POWERCAP}/{domain}/max_energy_range_uj")
            found[domain] = Counter(part, value, end if end and end > 0 else None)
    return found


def reading(system: System, path: str) -> int | None:
    """The number in a file of the kernel's, which has 64 bits; None for anything else."""
    value = system.number(path)
    return value if value is not None and abs(value) < 1 << 64 else None


def rapl_domains(system: System) -> list[str]:
    return [name for name in system.names(POWERCAP) if re.fullmatch(r"intel-rapl(:\d+)+", name)]


def why_none(system: System) -> str:
    """Why no energy can be read, in a line."""
    if rapl_domains(system):
        return "RAPL's counters are for root only (since Linux 5.10): run as root or chmod energy_uj"
    return "this machine tells no energy: no RAPL, no battery in use, no power sensor"


class Sampler:
    """Power of one source, read by a thread until it is stopped; the trapezoids under it are the energy."""

    def __init__(self, name: str, watts: Callable[[], float | None]) -> None:
        self._name, self._watts = name, watts
        self._joules = 0.0
        self._last: tuple[float, float] | None = None
        self._missed = False
        self._ended = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._run, name="edge-energy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        watts, now = self._watts(), perf_counter()
        if watts is None:
            self._missed = True
            return
        if self._last is not None:
            then, before = self._last
            self._joules += (now - then) * (watts + before) / 2
        self._last = now, watts

    def stop(self) -> Energy:
        self._ended.set()
        self._thread.join()
        self._look()
        if self._missed:
            return Energy(None, "", f"the power of {self._name} could not be read all the time")
        return Energy(self._joules, self._name, "")


def power_source(system: System) -> tuple[str, Callable[[], float | None]] | None:
    """The first sensor that gives the machine's power now, with the function that reads its watts."""
    sources: tuple[tuple[str, Callable[[System], float | None]], ...] = (
        ("INA3221", ina_watts),
        ("battery", battery_watts),
        ("PMIC", pmic_watts),
    )
    for name, watts in sources:
        if watts(system) is not None:
            return name, partial(watts, system)
    return None


def battery_watts(system: System) -> float | None:
    """Watts drawn from the batteries; None where none discharges: on mains their power is that of charging."""
    found = []
    for folder in batteries(system):
        if system.text(f"{folder}/status").strip() != "Discharging":
            continue
        power = reading(
            system, f"{folder}/power_now"
        )  # microwatts; some drivers count what is drawn as negative
        if power is None:
            current, voltage = (reading(system, f"{folder}/{what}_now") for what in ("current", "voltage"))
            power = current * voltage // 1_000_000 if current is not None and voltage is not None else None
        found.append(power)
    return believable(sum(abs(power) for power in found if power is not None) / 1e6)


def batteries(system: System) -> Iterator[str]:
    """Folders of the batteries that feed this machine; a mouse's has the scope Device."""
    for name in system.names(SUPPLIES):
        folder = f"{SUPPLIES}/{name}"
        kind, scope = (system.text(f"{folder}/{what}").strip() for what in ("type", "scope"))
        if kind == "Battery" and scope != "Device":
            yield folder


def ina_watts(system: System) -> float | None:
    """Watts at a Jetson's INA3221: its input rail, or the sum of all rails where it has no such."""
    rails: dict[str, float] = {}
    for chip in system.names(HWMON):
        folder = f"{HWMON}/{chip}"
        if system.text(f"{folder}/name").strip() != "ina3221":
            continue
        for channel in range(1, 4):
            millivolts = reading(system, f"{folder}/in{channel}_input")
            milliamperes = reading(system, f"{folder}/curr{channel}_input")
            if millivolts is not None and milliamperes is not None:
                label = system.text(f"{folder}/in{channel}_label").strip() or f"{chip}/{channel}"
                rails[label] = millivolts * milliamperes / 1e6
    whole = [watts for label, watts in rails.items() if label in ("VDD_IN", "POM_5V_IN")]
    return believable(sum(whole or rails.values()))


def pmic_watts(system: System) -> float | None:
    """Watts behind a Raspberry Pi 5's regulators: volts × amperes of every rail that `vcgencmd` names with both."""
    if "Raspberry Pi 5" not in system.text("/proc/device-tree/model"):
        return None
    text = system.run("vcgencmd", "pmic_read_adc")
    found = re.findall(
        r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=(\d{1,6}\.\d{1,12})[AV]\s*$", text, re.M | re.A
    )
    values = {(rail, unit): float(value) for rail, unit, value in found}
    return believable(
        sum(amperes * values.get((rail, "V"), 0.0) for (rail, unit), amperes in values.items() if unit == "A")
    )


def believable(watts: float) -> float | None:
    """The watts, or None where no machine takes them: nothing, or more than a sensor's error explains."""
    return watts if 0 < watts < MOST_W else None
