"""Heat, power and work of recorded machines: what marks a measurement, and what garbage does not."""

import dataclasses
import json
import multiprocessing
import time

import pytest
from recorded_hosts import APPLE_M2, PI_5, Recorded

from edge.machine.power import State, marks, power_state

CPU = "/sys/devices/system/cpu"
SUPPLY = "/sys/class/power_supply"
FLAGS = "/sys/devices/platform/soc/soc:firmware/get_throttled"


def state(tmp_path, files=None, **facts) -> State:
    folder = tmp_path / str(time.perf_counter_ns())
    return power_state(Recorded(files=files or {}, **facts).system(folder))


def said(tmp_path, before, after, noise=0.0, **facts):
    return marks(state(tmp_path, before, **facts), state(tmp_path, after, **facts), noise)


def test_a_machine_that_tells_nothing_is_unknown_and_unmarked(tmp_path):
    found = state(tmp_path)
    told = {name: value for name, value in dataclasses.asdict(found).items() if value not in (None, "")}
    assert set(told) == {"at"}
    assert marks(found, found) == ()


def test_a_state_is_json(tmp_path):
    found = state(tmp_path, work(busy=10))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["ticks"]["busy"] == 10


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("0", "0", ()),
        ("0", "1", ("throttled: under-voltage",)),
        ("4", "0", ("throttled: throttled",)),
        ("0", "f000f", ("throttled: under-voltage, frequency capped, throttled, soft temperature limit",)),
        ("0", "80000", ("throttled: soft temperature limit",)),  # it came and went in between
        ("50000", "50000", ()),  # before the measurement
        ("50000", "70005", ("throttled: under-voltage, frequency capped, throttled",)),
    ],
)
def test_a_raspberry_pi_tells_its_flags(tmp_path, before, after, expected):
    assert said(tmp_path, {FLAGS: f"{before}\n"}, {FLAGS: f"{after}\n"}) == expected


@pytest.mark.parametrize("text", ["garbage", "-1", "0x", "999999999999", "\0\xff"])
def test_flags_that_are_none_are_unknown(tmp_path, text):
    assert state(tmp_path, {FLAGS: text}).flags is None


def test_flags_come_from_vcgencmd_where_the_kernel_has_none(tmp_path):
    answers = {("vcgencmd", "get_throttled"): "throttled=0x50005\n"}
    assert state(tmp_path, PI_5.files, answers=answers).flags == 0x50005
    assert state(tmp_path, {}, answers=answers).flags is None  # no Raspberry Pi: not asked


def test_under_voltage_comes_from_its_sensor_too(tmp_path):
    chip = "/sys/class/hwmon/hwmon2"
    for value, flags in (("1", 1), ("0", 0), ("7", None)):
        assert (
            state(tmp_path, {f"{chip}/name": "rpi_volt\n", f"{chip}/in0_lcrit_alarm": value}).flags == flags
        )


def counts(cpu, core, package, socket=0):
    folder = f"{CPU}/cpu{cpu}"
    return {
        f"{folder}/thermal_throttle/core_throttle_count": f"{core}\n",
        f"{folder}/thermal_throttle/package_throttle_count": f"{package}\n",
        f"{folder}/topology/physical_package_id": f"{socket}\n",
    }


def test_throttling_by_heat_is_counted_once_a_package(tmp_path):
    before = {**counts(0, 1, 5), **counts(1, 0, 5), **counts(2, 0, 9, socket=1)}
    after = {**counts(0, 3, 6), **counts(1, 0, 6), **counts(2, 0, 9, socket=1)}
    assert said(tmp_path, before, after, cpus=3) == ("throttled: by heat, 3 times",)
    assert said(tmp_path, before, before, cpus=3) == ()


def test_a_throttle_counter_that_wraps_or_is_garbage_marks_nothing(tmp_path):
    assert said(tmp_path, counts(0, 1 << 31, 5), counts(0, 0, 0)) == ()
    for bad in ("x", -1, 1 << 80):
        assert said(tmp_path, counts(0, 0, 0), counts(0, bad, bad)) == ()


def test_the_cpu_s_hottest_sensor_counts(tmp_path):
    files = {
        "/sys/class/thermal/thermal_zone0/type": "acpitz\n",
        "/sys/class/thermal/thermal_zone0/temp": "95000\n",
        "/sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
        "/sys/class/thermal/thermal_zone1/temp": "61500\n",
        "/sys/class/thermal/thermal_zone2/type": "cpu-thermal\n",
        "/sys/class/thermal/thermal_zone2/temp": "999999\n",  # no sensor is there
        "/sys/class/hwmon/hwmon0/name": "coretemp\n",
        "/sys/class/hwmon/hwmon0/temp1_input": "72000\n",
        "/sys/class/hwmon/hwmon0/temp2_input": "garbage\n",
        "/sys/class/hwmon/hwmon1/name": "nvme\n",
        "/sys/class/hwmon/hwmon1/temp1_input": "99000\n",
    }
    assert state(tmp_path, files).celsius == 72.0
    others = {path: text for path, text in files.items() if "zone0" in path}
    assert state(tmp_path, others).celsius == 95.0


def clock(*megahertz, **files):
    found = {
        f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq": f"{mhz * 1000}\n" for cpu, mhz in enumerate(megahertz)
    }
    return {**found, **{f"{CPU}/cpu0/cpufreq/{name}": f"{text}\n" for name, text in files.items()}}


def test_a_clock_rate_that_changed_is_said_with_both(tmp_path):
    changed = "clock rate changed: 2400 MHz before, 1500 MHz after"
    assert said(tmp_path, clock(600, 2400), clock(1500, 1500), cpus=2) == (changed,)
    assert said(tmp_path, clock(600, 2400), clock(2200, 600), cpus=2) == ()  # within a tenth


@pytest.mark.parametrize("mhz", ["-5", "x", "", "0", "9" * 30, "1e6"])
def test_a_clock_rate_that_is_none_is_unknown(tmp_path, mhz):
    files = {f"{CPU}/cpu0/cpufreq/scaling_cur_freq": mhz}
    assert state(tmp_path, files).mhz is None
    assert said(tmp_path, clock(2400), files) == ()


def supply(online, status="Discharging", capacity="55"):
    return {
        f"{SUPPLY}/AC/type": "Mains\n",
        f"{SUPPLY}/AC/online": f"{online}\n",
        f"{SUPPLY}/BAT0/type": "Battery\n",
        f"{SUPPLY}/BAT0/status": f"{status}\n",
        f"{SUPPLY}/BAT0/capacity": f"{capacity}\n",
    }


@pytest.mark.parametrize(
    ("files", "on_battery", "percent"),
    [
        (supply(0), True, 55),
        (supply(1), False, 55),
        (supply(0, "Full"), False, 55),
        (supply("x", "?", "101"), False, None),
        ({f"{SUPPLY}/AC/type": "Mains\n", f"{SUPPLY}/AC/online": "1\n"}, False, None),
        ({f"{SUPPLY}/hid/type": "Battery\n", f"{SUPPLY}/hid/scope": "Device\n"}, None, None),
    ],
)
def test_the_supply_of_power(tmp_path, files, on_battery, percent):
    found = state(tmp_path, files)
    assert (found.on_battery, found.battery_percent) == (on_battery, percent)


@pytest.mark.parametrize(
    ("files", "saving"),
    [
        (clock(scaling_governor="powersave", scaling_driver="acpi-cpufreq"), "governor powersave"),
        (clock(scaling_governor="powersave", scaling_driver="intel_pstate"), ""),
        (
            clock(
                scaling_governor="powersave",
                scaling_driver="intel_pstate",
                energy_performance_preference="power",
            ),
            "energy preference power",
        ),
        ({"/sys/firmware/acpi/platform_profile": "low-power\n"}, "profile low-power"),
        ({"/sys/firmware/acpi/platform_profile": "balanced\n"}, ""),
    ],
)
def test_saving_power_marks_on_battery_only(tmp_path, files, saving):
    assert state(tmp_path, files).saving == saving
    on_battery = {**files, **supply(0)}
    assert said(tmp_path, on_battery, on_battery) == (
        (f"power saving on battery: {saving}",) if saving else ()
    )
    on_mains = {**files, **supply(1)}
    assert said(tmp_path, on_mains, on_mains) == ()


def work(busy=0, idle=0, steal=0, own=0, cpus=1):
    """/proc/stat with the same counts for each CPU, and this process's time."""
    one = "cpu{} " + f"{busy} 0 0 {idle} 0 0 0 {steal} 0 0\n"
    command = "1 (a (b) c) R 1 1 1 0 -1 4194560 1 0 0 0"
    return {
        "/proc/stat": "cpu  1 2 3 4 5 6 7 8 9 10\n"
        + "".join(one.format(cpu) for cpu in range(cpus))
        + "intr 5 6 7\n",
        "/proc/self/stat": f"{command} {own} 0 0 0 20 0 1 0 100\n",
    }


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (work(busy=1000, own=1000), ()),
        (work(busy=600, idle=400, own=500), ()),  # others used a tenth
        (work(busy=700, idle=300, own=500), ("busy: other processes used 20 % of the CPUs",)),
        (
            work(busy=600, idle=300, steal=100, own=600),
            ("busy: other guests of the hypervisor took 10 % of the CPUs",),
        ),
        (work(busy=500, idle=500, own=700), ()),  # more of our own than of all: the ticks are coarse
        (work(busy=10), ()),  # too short to say
        (work(), ()),  # counts that stand still, as a sandbox's do
    ],
)
def test_what_others_used_of_the_cpus(tmp_path, after, expected):
    start = {**work(busy=0, idle=1), "/proc/loadavg": "8.00 4.00 2.00 3/99 12\n"}
    assert said(tmp_path, start, after) == expected


def test_only_the_cpus_of_this_process_count(tmp_path):
    start, end = work(idle=1, cpus=2), work(busy=1000, own=1000, cpus=1)
    other = {"/proc/stat": end["/proc/stat"] + "cpu1 1000 0 0 0 0 0 0 0 0 0\n"}
    assert said(tmp_path, start, {**end, **other}) == ()
    assert said(tmp_path, start, {**end, **other}, cpus=2) == ("busy: other processes used 50 % of the CPUs",)


@pytest.mark.parametrize(
    "files",
    [
        {"/proc/stat": "cpu0 garbage\n"},
        {"/proc/stat": "cpu0 -1 -2 -3 -4 -5\n"},
        {"/proc/stat": "cpu0 1 2\n"},
        {"/proc/stat": "cpu0 123456 2 3 4\n"},
        {"/proc/self/stat": ""},
        {"/proc/self/stat": "1 (a) R x\n"},
        {"/proc/self/stat": "1 (a) R 1 1 1 0 -1 4 1 0 0 0 a b c d\n"},
    ],
)
def test_counts_that_are_none_are_unknown(tmp_path, files):
    assert state(tmp_path, {**work(busy=5), **files}).ticks is None


def test_counts_that_go_back_mark_nothing(tmp_path):
    assert said(tmp_path, work(busy=1000, idle=1000), work(busy=5)) == ()


def test_without_the_counts_the_pressure_is_asked(tmp_path):
    some = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    before = state(tmp_path, {"/proc/pressure/cpu": some.format(1_000_000)})
    for total, expected in ((2_000_000, ()), (4_000_000, ("busy: tasks waited for a CPU 75 % of the time",))):
        after = state(tmp_path, {"/proc/pressure/cpu": some.format(total)})
        assert marks(before, dataclasses.replace(after, at=before.at + 4)) == expected


def test_a_wide_spread_is_no_evidence(tmp_path):
    quiet = state(tmp_path)
    assert marks(quiet, quiet, noise=0.25) == ()
    assert marks(quiet, quiet, noise=0.31) == ("wide spread: repetitions differ by 31 %",)


def test_a_mac_is_asked_by_its_commands(tmp_path):
    answers = {
        ("pmset", "-g", "therm"): "Note: No thermal warning level\n\tCPU_Scheduler_Limit \t= 100\n"
        "\tCPU_Available_CPUs \t= 8\n\tCPU_Speed_Limit \t= 70\n",
        (
            "pmset",
            "-g",
            "batt",
        ): "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t82%; discharging; 5:01\n",
        ("pmset", "-g"): "System-wide power settings:\n standby  1\n lowpowermode         1\n",
    }
    mac = dataclasses.replace(APPLE_M2, answers={**APPLE_M2.answers, **answers})
    found = power_state(mac.system(tmp_path))
    assert (found.on_battery, found.battery_percent, found.limit_percent) == (True, 82, 70)
    assert marks(found, found) == (
        "throttled: macOS leaves the CPU 70 % of its speed",
        "power saving on battery: low power mode",
    )


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.skipif(power_state().ticks is None, reason="/proc/stat is hidden here")
def test_this_machine_s_other_processes_are_seen_and_its_own_work_is_not():
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=spin, args=(30,))
    before = power_state()
    other.start()
    time.sleep(2)
    after = power_state()  # while the other still runs: its time is not our children's yet
    other.kill()
    other.join()
    assert before.ticks is not None
    assert after.ticks is not None
    used = after.ticks.busy - before.ticks.busy
    own = after.ticks.own - before.ticks.own
    assert used - own >= 20
    ours = power_state()
    spin(0.3)
    assert power_state().ticks.own - ours.ticks.own >= 20


def test_a_look_is_cheap():
    start = time.process_time()
    power_state()
    assert time.process_time() - start < 0.1


def test_a_clock_rate_is_read_of_a_cpu_that_works(tmp_path, monkeypatch):
    """One at rest would seem slowed down before a run, or after it."""
    rates = iter([800_000, 2_400_000])
    file = f"{CPU}/cpu0/cpufreq/scaling_cur_freq"
    system = Recorded(files={file: "0"}).system(tmp_path)
    read = type(system).number
    monkeypatch.setattr(
        type(system), "number", lambda self, path: next(rates) if path == file else read(self, path)
    )
    before = time.process_time()
    assert power_state(system).mhz == 2400
    assert time.process_time() - before > 0.005
