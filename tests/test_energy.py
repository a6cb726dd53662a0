"""Energy on recorded machines: counters that wrap, sensors that lie, no permission."""

import time
from pathlib import Path

import pytest
from recorded_hosts import Recorded

from edge.machine import energy
from edge.machine.energy import Energy, Meter, battery_watts, ina_watts, pmic_watts

RAPL = "/sys/class/powercap/intel-rapl"
BATTERY = "/sys/class/power_supply/BAT0"
JETSON = "/sys/class/hwmon/hwmon3"
PMIC = """\
 3V7_WL_SW_A current(0)=0.09745420A
   VDD_CORE_A current(7)=1.20000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   VDD_CORE_V volt(15)=0.80000000V
      EXT5V_V volt(24)=5.15400800V
       BATT_V volt(25)=0.00488281V
"""
PI_5 = Recorded(
    files={"/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"},
    answers={("vcgencmd", "pmic_read_adc"): PMIC},
)


def rapl(domain: str, name: str, value: int | str, end: int | str = 262143328850) -> dict[str, str]:
    files = {"name": name, "energy_uj": value, "max_energy_range_uj": end}
    return {f"{RAPL}{domain}/{file}": f"{text}\n" for file, text in files.items()}


def taken(tmp_path: Path, before: dict[str, str], after: dict[str, str]) -> Energy:
    meter = Meter(Recorded(files=before).system(tmp_path))
    meter.start()
    Recorded(files=after).system(tmp_path)
    return meter.stop()


def test_packages_and_their_memory_are_summed_and_nothing_is_counted_twice(tmp_path):
    before = {
        **rapl(":0", "package-0", 1_000_000),
        **rapl(":0:0", "core", 500_000),
        **rapl(":0:1", "dram", 10),
        **rapl(":1", "package-1", 7),
        **rapl(":2", "psys", 5),
        **rapl("-mmio:0", "package-0", 1_000_000),
    }
    after = {
        **rapl(":0", "package-0", 3_000_000),
        **rapl(":0:0", "core", 900_000),
        **rapl(":0:1", "dram", 500_010),
        **rapl(":1", "package-1", 1_000_007),
        **rapl(":2", "psys", 90_000_000),
        **rapl("-mmio:0", "package-0", 3_000_000),
    }
    assert taken(tmp_path, before, after) == Energy(3.5, "RAPL: package-0, dram, package-1", "")


def test_a_counter_that_wraps_goes_on_from_zero(tmp_path):
    found = taken(
        tmp_path,
        rapl(":0", "package-0", 262_143_000_000, 262_143_328_850),
        rapl(":0", "package-0", 1_671_150, 262_143_328_850),
    )
    assert found.joules == pytest.approx(2.0)


@pytest.mark.parametrize(
    "after",
    [
        rapl(":0", "package-0", 5, ""),  # it went back, and nothing says where it wraps
        rapl(":0", "package-0", "garbage"),
        rapl(":0", "package-0", "9" * 5000),
        rapl(":0", "package-0", 1 << 70),
    ],
)
def test_a_counter_that_breaks_off_gives_none_and_why(tmp_path, after):
    before = rapl(":0", "package-0", 100, "")
    found = taken(tmp_path, before, {**before, **after})
    assert found == Energy(None, "", "RAPL's counter of package-0 broke off while it was read")


def test_counters_that_stand_still_tell_nothing(tmp_path):
    files = {**rapl(":0", "package-0", 100), **rapl(":0:1", "dram", 7)}
    assert taken(tmp_path, files, files) == Energy(None, "", "RAPL's counters stand still")


@pytest.mark.parametrize(("end", "value"), [(-1, 50), ("x", 50), (90, 50)])
def test_an_end_that_cannot_be_is_none(tmp_path, end, value):
    assert (
        taken(tmp_path, rapl(":0", "package-0", 100, end), rapl(":0", "package-0", value, end)).joules is None
    )


def test_without_permission_it_says_so(tmp_path):
    files = {f"{RAPL}:0/name": "package-0\n"}  # all of the folder but energy_uj can be read
    found = taken(tmp_path, files, files)
    assert found.joules is None
    assert "root" in found.why


def test_a_machine_that_tells_nothing_says_so(tmp_path):
    found = taken(tmp_path, {}, {})
    assert found.joules is None
    assert found.why.startswith("this machine tells no energy")


def test_a_stop_without_a_start_is_no_error(tmp_path):
    assert Meter(Recorded().system(tmp_path)).stop().joules is None


def battery(**files: object) -> dict[str, str]:
    return {f"{BATTERY}/{name}": f"{text}\n" for name, text in {"type": "Battery", **files}.items()}


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        (battery(status="Discharging", power_now=12_500_000), 12.5),
        (battery(status="Discharging", power_now=-12_500_000), 12.5),
        (battery(status="Discharging", current_now=1_500_000, voltage_now=12_000_000), 18.0),
        (battery(status="Charging", power_now=30_000_000), None),
        (battery(status="Discharging"), None),
        (battery(status="Discharging", power_now="?", current_now=1), None),
        (battery(status="Discharging", power_now=10**18), None),
        (battery(status="Discharging", power_now="9" * 400), None),
        (battery(status="Discharging", power_now=500_000, scope="Device"), None),  # a mouse's
    ],
)
def test_a_battery_in_use_tells_the_power(tmp_path, files, watts):
    assert battery_watts(Recorded(files=files).system(tmp_path)) == watts


def jetson(*rails: tuple[str, object, object]) -> dict[str, str]:
    files = {f"{JETSON}/name": "ina3221\n"}
    for channel, (label, volts, amperes) in enumerate(rails, 1):
        files[f"{JETSON}/in{channel}_label"] = f"{label}\n"
        files[f"{JETSON}/in{channel}_input"] = f"{volts}\n"
        files[f"{JETSON}/curr{channel}_input"] = f"{amperes}\n"
    return files


@pytest.mark.parametrize(
    ("rails", "watts"),
    [
        ([("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 800), ("VDD_SOC", 5000, 400)], 10.0),
        ([("VDD_GPU_SOC", 20000, 100), ("VDD_CPU_CV", 20000, 50)], 3.0),
        ([("VDD_IN", "", "garbage")], None),
        ([], None),
    ],
)
def test_a_jetson_tells_its_input_or_the_sum_of_its_rails(tmp_path, rails, watts):
    assert ina_watts(Recorded(files=jetson(*rails)).system(tmp_path)) == watts


def test_a_raspberry_pi_5_sums_its_regulators(tmp_path):
    assert pmic_watts(PI_5.system(tmp_path)) == pytest.approx(0.09745420 * 3.7 + 1.2 * 0.8)


def test_another_board_is_not_asked_for_a_pmic(tmp_path):
    assert pmic_watts(Recorded(answers=PI_5.answers).system(tmp_path)) is None


def test_power_is_integrated_until_the_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "EVERY_S", 0.01)
    meter = Meter(Recorded(files=battery(status="Discharging", power_now=10_000_000)).system(tmp_path))
    start = time.perf_counter()
    meter.start()
    begun = time.perf_counter()
    time.sleep(0.1)
    ending = time.perf_counter()
    found = meter.stop()
    ended = time.perf_counter()
    assert found.source == "battery"
    assert found.joules is not None
    assert 9.9 * (ending - begun) <= found.joules <= 10.1 * (ended - start)


def test_power_that_goes_missing_in_between_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "EVERY_S", 0.01)
    meter = Meter(Recorded(files=battery(status="Discharging", power_now=10_000_000)).system(tmp_path))
    meter.start()
    Recorded(files=battery(status="Charging")).system(tmp_path)
    found = meter.stop()
    assert found.joules is None
    assert "battery" in found.why


def test_this_machine_tells_its_energy_or_why_not():
    meter = Meter()
    meter.start()
    found = meter.stop()
    assert (found.joules is None) == bool(found.why)
