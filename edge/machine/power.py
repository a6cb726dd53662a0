"""What keeps a measurement from being evidence: heat, saving of power, a clock rate that changed, a busy machine.

Take a `State` after the first warm-up and one at the end; `marks` says what happened between. Whatever a machine does
not tell is None and marks nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

from edge.machine import heat
from edge.machine.busy import Ticks, load, shares, ticks, waited_us
from edge.machine.energy import SUPPLIES, batteries
from edge.machine.system import System, here

CHANGED = 0.10  # of the clock rate
BUSY = 0.15  # of the CPUs, used by other processes
STOLEN = 0.05  # of the CPUs, used by other guests
WAITED = (
    0.5  # of the time; asked where /proc/stat is hidden. Our own threads wait a little for each other too
)
WIDE = 0.25  # the spread of repetitions over their median, at the median of all that was measured
WAKING_S = 0.1  # in which governors have raised a clock rate
# With these drivers "powersave" is the usual governor, and the preference beside it says what is saved
PREFERRING = ("intel_pstate", "amd-pstate-epp", "amd-pstate")


@dataclass(frozen=True)
class State:
    """Heat, power and work of a machine at one time; None and "" where it does not tell.

    at               seconds of a clock that only counts on
    flags            a Raspberry Pi's throttle flags
    throttles        times that Intel's CPUs were throttled by heat since the start
    limit_percent    what macOS leaves of the CPU's speed
    celsius          the hottest sensor of the CPU
    saving           what saves power: "governor powersave"
    mhz, max_mhz     the fastest of this process's CPUs after a moment of work, and what they reach
    load             of the last minute
    waited_us        a task waited for a CPU, since the start
    """

    at: float
    flags: int | None
    throttles: int | None
    limit_percent: int | None
    celsius: float | None
    on_battery: bool | None
    battery_percent: int | None
    saving: str
    mhz: float | None
    max_mhz: float | None
    governor: str
    load: float | None
    ticks: Ticks | None
    waited_us: int | None


def power_state(system: System | None = None) -> State:
    """Look: some milliseconds, or a tenth of a second where a clock rate is told. Nothing is raised for what cannot be
    read."""
    system = system or here()
    mac = system.platform == "darwin"
    on_battery, percent = _mac_supply(system) if mac else _supply(system)
    return State(
        at=perf_counter(),
        flags=heat.firmware_flags(system),
        throttles=heat.throttle_count(system),
        limit_percent=heat.speed_limit(system) if mac else None,
        celsius=heat.celsius(system),
        on_battery=on_battery,
        battery_percent=percent,
        saving=_mac_saving(system) if mac else _saving(system),
        mhz=_mhz_at_work(system),
        max_mhz=heat.megahertz(system, "cpuinfo_max_freq"),
        governor=heat.governor(system),
        load=load(system),
        ticks=ticks(system),
        waited_us=waited_us(system),
    )


def marks(before: State, after: State, noise: float = 0.0) -> tuple[str, ...]:
    """Why what was measured between the two is no evidence, each in a phrase; empty where nothing speaks against it.

    noise  the median spread of what was repeated, as a share of its median
    """
    return (*_throttled(before, after), *_slowed(before, after), *_busy(before, after), *_wide(noise))


def _throttled(before: State, after: State) -> Iterator[str]:
    if before.flags is not None and after.flags is not None:
        names = heat.flag_names(before.flags, after.flags)
        if names:
            yield f"throttled: {', '.join(names)}"
    if before.throttles is not None and after.throttles is not None:
        times = after.throttles - before.throttles
        if times > 0:
            yield f"throttled: by heat, {times} time{'s' if times > 1 else ''}"
    limits = [state.limit_percent for state in (before, after) if state.limit_percent is not None]
    if limits and min(limits) < 100:
        yield f"throttled: macOS leaves the CPU {min(limits)} % of its speed"


def _slowed(before: State, after: State) -> Iterator[str]:
    saving = before.saving or after.saving
    if saving and (before.on_battery or after.on_battery):
        yield f"power saving on battery: {saving}"
    if before.mhz and after.mhz and abs(after.mhz - before.mhz) > CHANGED * before.mhz:
        yield f"clock rate changed: {before.mhz:.0f} MHz before, {after.mhz:.0f} MHz after"


def _busy(before: State, after: State) -> Iterator[str]:
    used = shares(before.ticks, after.ticks)
    if used is not None:
        others, stolen = used
        if others > BUSY:
            yield f"busy: other processes used {percent(others)} of the CPUs"
        if stolen > STOLEN:
            yield f"busy: other guests of the hypervisor took {percent(stolen)} of the CPUs"
    elif before.waited_us is not None and after.waited_us is not None and after.at > before.at:
        share = (after.waited_us - before.waited_us) / 1e6 / (after.at - before.at)
        if share > WAITED:
            yield f"busy: tasks waited for a CPU {percent(min(share, 1.0))} of the time"


def _wide(noise: float) -> Iterator[str]:
    if noise > WIDE:
        yield f"wide spread: repetitions differ by {percent(noise)}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _mhz_at_work(system: System) -> float | None:
    """The clock rate after a moment of work: before a run the CPUs may rest, whose rate says nothing."""
    if heat.megahertz(system) is None:
        return None
    until = perf_counter() + WAKING_S
    while perf_counter() < until:
        pass
    return heat.megahertz(system)


def _supply(system: System) -> tuple[bool | None, int | None]:
    """Whether a battery feeds the machine, and how full it is."""
    found = list(batteries(system))
    levels = [system.number(f"{folder}/capacity") for folder in found]
    percent = min((level for level in levels if level is not None and 0 <= level <= 100), default=None)
    online = [
        system.number(f"{SUPPLIES}/{name}/online")
        for name in system.names(SUPPLIES)
        if system.text(f"{SUPPLIES}/{name}/type").strip() in ("Mains", "USB")
    ]
    if any(online):
        return False, percent
    if any(system.text(f"{folder}/status").strip() == "Discharging" for folder in found):
        return True, percent
    return (False if found else None), percent


def _saving(system: System) -> str:
    if system.text("/sys/firmware/acpi/platform_profile").strip() == "low-power":
        return "profile low-power"
    folder = f"{heat.CPUS}/cpu{min(system.cpus, default=0)}/cpufreq"
    driver, governor, preference = (
        system.text(f"{folder}/{file}").strip()
        for file in ("scaling_driver", "scaling_governor", "energy_performance_preference")
    )
    if driver in PREFERRING:
        return "energy preference power" if preference == "power" else ""
    return "governor powersave" if governor == "powersave" else ""


def _mac_supply(system: System) -> tuple[bool | None, int | None]:
    text = system.run("pmset", "-g", "batt")
    source = re.search(r"drawing from '(AC|Battery) Power'", text)
    level = re.search(r"\b(\d{1,3})%;", text, re.A)
    return (source[1] == "Battery" if source else None), (int(level[1]) if level else None)


def _mac_saving(system: System) -> str:
    on = re.search(r"^\s*lowpowermode\s+1\b", system.run("pmset", "-g"), re.M)
    return "low power mode" if on else ""
