"""Joules from counters: a fake powercap tree and a fake NVML, and what is said where nothing can be read."""

import math
import sys
import types

import pytest
import torch

from rheobase.backends.counting import measure
from rheobase.backends.counting.measure import Counter, rapl
from rheobase.spiking.errors import ConfigError, UnsupportedError

RANGE = 262_143_328_850
"""max_energy_range_uj of a real package."""


@pytest.fixture
def powercap(tmp_path):
    """A powercap tree of two packages: a core and a memory within the first, the platform, and the mmio twin."""

    def zone(path, name, energy, span=RANGE):
        folder = tmp_path / path
        folder.mkdir(parents=True)
        for file, content in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", span)):
            (folder / file).write_text(f"{content}\n")

    zone("intel-rapl:0", "package-0", 1_000_000)
    zone("intel-rapl:0:0", "core", 500_000)
    zone("intel-rapl:0:1", "dram", 100_000)
    zone("intel-rapl:1", "package-1", RANGE - 250_000)
    zone("intel-rapl:2", "psys", 9_000_000)
    zone("intel-rapl-mmio:0", "package-0", 1_000_000)
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def set_energy(powercap, **energies):
    for zone in powercap.glob("intel-rapl*:*"):
        (zone / "energy_uj").write_text(
            f"{energies.get(zone.name[-1], 77_000_000) if zone.name.count(':') == 1 else 5}"
        )


def test_two_packages_one_of_which_wraps_and_nothing_twice(powercap):
    measured = measure(lambda: set_energy(powercap, **{"0": 3_500_000, "1": 750_000}), powercap=powercap)
    assert measured.joules == pytest.approx(2.5 + 0.25 + 0.75) and measured.counter == "RAPL, 2 packages"
    assert measured.above_idle_joules is None and measured.why == "" and measured.seconds > 0


def test_a_counter_that_is_set_back_is_no_wrap_and_another_device_has_none(powercap):
    measured = measure(lambda: set_energy(powercap, **{"0": 900_000}), powercap=powercap)
    assert measured.joules is None and "expected a counter that grows, got one that was set back" in measured.why
    with pytest.raises(ConfigError, match="measure device: expected cpu or cuda, got mps"):
        measure(lambda: None, "mps")


def test_the_idle_baseline_is_a_second_figure():
    readings = iter([(10.0,), (12.0,), (20.0,)])
    counter = Counter("fake", lambda: next(readings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[Counter.__module__], "rapl", lambda _: counter)
        measured = measure(lambda: None, idle_s=0.05)
    assert measured.joules == 8.0 and measured.above_idle_joules == pytest.approx(
        8 - 2 * measured.seconds / 0.05, rel=0.5
    )


def test_what_cannot_be_read_is_said_and_is_never_zero(powercap, tmp_path):
    stood = measure(lambda: None, powercap=powercap)
    assert stood.joules is None and "the same reading twice" in stood.why
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    (powercap / "intel-rapl:1" / "energy_uj").mkdir()
    ran = []
    unreadable = measure(lambda: ran.append(1), powercap=powercap)
    assert unreadable.joules is None and ran == [1] and "run as root" in unreadable.why
    assert "intel-rapl:1: expected a readable energy counter" in unreadable.why
    nothing = measure(lambda: ran.append(2), powercap=tmp_path / "nowhere")
    assert nothing.joules is None and ran == [1, 2] and "expected RAPL's packages, got none" in nothing.why


def test_a_run_in_which_a_counter_may_wrap_twice_has_no_figure(powercap):
    counter = rapl(powercap)
    assert counter.wraps == (RANGE / 1e6,) * 2
    with pytest.raises(UnsupportedError, match="wraps at most once"):
        counter.used((0.0, 0.0), (5.0, 5.0), seconds=600)
    assert Counter("gpu", tuple, (math.inf,)).used((1.0,), (4.0,), 1e6) == 3.0


def fake_gpu(monkeypatch, energies=None):
    """A CUDA device, and NVML that gives these readings in mJ, or refuses."""

    class NVMLError(Exception):
        pass

    def energy(handle):
        assert handle == "GPU-1234"
        if energies is None:
            raise NVMLError("Not Supported")
        return next(energies)

    module = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    properties = types.SimpleNamespace(uuid="1234", name="A100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_nvml_in_millijoules(monkeypatch):
    fake_gpu(monkeypatch, iter([0, 1_000, 1_000, 4_500]))
    measured = measure(lambda: None, "cuda")
    assert measured.joules == 3.5 and measured.counter == "NVML, A100"


def test_what_a_gpu_was_asked_for_is_done_when_the_time_is_taken(monkeypatch):
    fake_gpu(monkeypatch)
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("waits"))
    assert measure(lambda: seen.append("runs"), "cuda").joules is None
    assert seen == ["waits", "runs", "waits"]


def test_a_gpu_without_the_counter_or_the_bindings(monkeypatch):
    if not torch.cuda.is_available():
        assert "expected an NVIDIA GPU" in measure(lambda: None, "cuda").why
    fake_gpu(monkeypatch)
    assert "NVML, A100: expected an energy counter, got Not Supported" in measure(lambda: None, "cuda").why
    monkeypatch.setitem(sys.modules, "pynvml", None)
    measured = measure(lambda: None, "cuda")
    assert measured.joules is None and "nvidia-smi shows power alone" in measured.why
