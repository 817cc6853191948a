"""Constants of SpiNNaker 2 from power logs: intervals that hold the truth, refusals, and the way to an estimate.

All logs are synthetic: no board was at hand.
"""

import json

import h5py
import numpy as np
import pytest

from rheobase.backends.artifact import open_artifact
from rheobase.backends.exporters.spinnaker2 import calibrate, load_images, power, work
from rheobase.backends.exporters.spinnaker2.estimate import CHIP, LEVELS, estimate, level_toml, read_levels
from rheobase.backends.exporters.spinnaker2.plan import fired_of
from rheobase.backends.trace import StoredTrace, artifact_trace, load_trace, save_trace
from rheobase.cli import run
from rheobase.spiking.errors import ConfigError, FormatError

LEVEL = LEVELS[1]
CHIP_W, ASLEEP_W, CYCLE_J = 0.11, 2.5e-3, 20e-12
BEGIN = 1_790_000_000.0
"""21 September 2026"""


def noise(rng, n, *, watts=4e-3, lasts=4):
    """[n] with a correlation of e^-1 at `lasts` samples."""
    a, own = np.exp(-1 / lasts), watts * rng.standard_normal(n)
    own[0] /= np.sqrt(1 - a * a)
    for i in range(1, n):
        own[i] += a * own[i - 1]
    return own


def recording(rng, elements=10, *, turns=15, offset=0.0):
    """Windows of a run, as `read_recording` would give them: 10 idle, 10 running, in turns."""
    rate = np.where(np.arange(20 * turns) // 10 % 2, 0.6, 0.01) * rng.uniform(0.8, 1, 20 * turns) * elements * 300e6
    watts = CHIP_W + offset + elements * ASLEEP_W + rate * CYCLE_J + noise(rng, len(rate))
    return power.Recording("log.csv", LEVEL, elements, 0.1, watts, rate, "a log")


def independent(found):
    """Half of the intervals if windows were independent: ordinary least squares."""
    x = np.column_stack([np.ones(len(found.rate)), found.rate / found.rate.max()])
    values, left, *_ = np.linalg.lstsq(x, found.watts)
    own = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * left / (len(x) - 2))
    return values / [1, found.rate.max()], 1.972 * own / [1, found.rate.max()]


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth = np.array([CHIP_W + 10 * ASLEEP_W, CYCLE_J])
    held, naive = np.zeros(2, int), np.zeros(2, int)
    for seed in range(200):
        made = recording(np.random.default_rng(seed))
        values, half, clusters = calibrate.fit([made])
        assert clusters == "10 blocks"
        held += np.abs(values - truth) <= half
        values, half = independent(made)
        naive += np.abs(values - truth) <= half
    # 190 of 200 are expected; 181 and 199 are three standard deviations off
    assert (181 <= held).all() and (held <= 199).all(), held
    assert naive[0] < 140, "windows taken for independent hold it as well: the test shows nothing"


def test_intervals_over_recordings_hold_the_truth_as_often_as_they_say():
    """Of chip, asleep and cycle apart, where each recording has an offset of its own."""
    truth, held = np.array([CHIP_W, ASLEEP_W, CYCLE_J]), np.zeros(3, int)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        numbers = (50, 75, 100, 125) * 2
        values, half, clusters = calibrate.fit(
            [recording(rng, n, turns=2, offset=5e-3 * rng.standard_normal()) for n in numbers]
        )
        held += np.abs(values - truth) <= half
    assert clusters == "8 recordings" and (181 <= held).all() and (held <= 199).all(), held


def test_a_fit_by_hand():
    """Without noise the constants come back, with no interval."""
    rate = np.tile([0.0, 1e9, 2e9, 0.0, 3e9], 12)
    found = power.Recording("log.csv", LEVEL, 4, 0.1, 0.2 + 15e-12 * rate, rate, "a log")
    values, half, clusters = calibrate.fit([found])
    assert values == pytest.approx([0.2, 15e-12], rel=1e-9, abs=0) and half == pytest.approx([0, 0], abs=1e-12)
    assert clusters == "10 blocks"


def test_a_run_that_never_woke_fixes_nothing():
    asleep = power.Recording("log.csv", LEVEL, 4, 0.1, np.full(60, 0.2), np.zeros(60), "a log")
    with pytest.raises(FormatError, match="see idle and running both, got 0 to 0 M"):
        calibrate.fit([asleep])
    with pytest.raises(FormatError, match="expected 2 constants, got 1 that the recordings fix"):
        calibrate.fit([asleep] * 6)


# files


@pytest.fixture
def board(tmp_path):
    """What stands in for a board: writes log.csv and trace.h5 of a run in turns, and gives their paths.

    Its power is CHIP_W, ASLEEP_W an element, CYCLE_J a cycle. A turn is `spell` seconds of ticks of 5 ms and as long
    without; `change` may damage the columns before they are written.
    """

    def write(
        name="", *, elements=3, level=LEVEL.name, turns=12, spell=1.0, late=0.0, cycles=None, noisy=1e-4, change=dict
    ):
        rng = np.random.default_rng(len(name) + elements)
        running = 2 * spell * np.arange(turns)[:, None] + spell + np.arange(0, spell + 0.001, 0.005)
        ticks = BEGIN + np.append(0.0, running)
        made = rng.integers(300_000, 600_000, (len(ticks), elements)) if cycles is None else cycles
        made = np.resize(made, (len(ticks), elements)).astype(np.uint32)
        seconds = BEGIN - 2 + np.arange(0, 2 * spell * turns + 4, 0.02)
        # the elements work in the 5 ms before a tick's line; the meter gives the mean since its last sample
        begins = np.maximum(ticks[1:] - 0.005, ticks[:-1])
        worked = np.repeat(np.append(0, np.cumsum(made[1:].sum(1))), 2)[:-1]
        worked = np.interp(seconds, np.append(np.column_stack([ticks[:-1], begins]).ravel(), ticks[-1]), worked)
        busy = np.diff(worked, prepend=0) / 0.02
        watts = CHIP_W + elements * ASLEEP_W + CYCLE_J * busy + noise(rng, len(seconds), watts=noisy)
        data = {"seconds": seconds + late, "watts": watts, "ticks": ticks, "cycles": made}
        data |= change(**data)
        log, trace = tmp_path / f"{name}log.csv", tmp_path / f"{name}trace.h5"
        lines = [f"{t:.6f},{w:.9f}" for t, w in zip(data["seconds"], data["watts"], strict=True)]
        log.write_text("\n".join(["seconds,watts", *lines]) + "\n")
        save_trace(trace, StoredTrace(np.zeros((1, 1), np.int64), {}, {}, {}, "none", "board"))
        with h5py.File(trace, "a") as file:
            file["tick_seconds"], file["cycles"] = data["ticks"], data["cycles"]
            file.attrs["level"] = level
        return log, trace

    return write


@pytest.mark.parametrize("late", [-0.1, -0.02, 0.05, 0.1])
def test_a_clock_that_differs_by_half_a_window_changes_nothing(board, late):
    """A fit without the neighbours' weights gives 16.4 pJ at 0.1 s."""
    cycle = calibrate.calibrate([board(late=late)]).after.cycle
    assert cycle.low <= 1e12 * CYCLE_J <= cycle.high and cycle.high - cycle.low < 1


def test_a_clock_that_is_one_window_late_is_taken(board):
    calibrate.check_clocks(power.read_recording(*board(late=0.2)))
    with pytest.raises(FormatError, match=r"fits the trace better if it is \+0.4 s late"):
        calibrate.check_clocks(power.read_recording(*board(late=0.4)))


def test_a_window_is_ten_steps_of_the_slower_clock(board):
    def tenth(ticks, cycles, **_):
        return {"ticks": ticks[::10], "cycles": cycles[::10]}

    windows = (power.read_recording(*board(change=change)).window_s for change in (dict, tenth))
    assert list(windows) == pytest.approx([10 * 0.02, 10 * 10 * 0.005], rel=1e-4)


def test_files_give_the_constants_back(board):
    found = calibrate.calibrate([board()])
    idle, cycle = found.after.constants.values()
    assert idle.low <= 1e3 * (CHIP_W + 3 * ASLEEP_W) <= idle.high and idle.high - idle.low < 2
    assert cycle.low <= 1e12 * CYCLE_J <= cycle.high and cycle.high - cycle.low < 1
    assert idle.confidence == cycle.confidence == "measured" and "3 elements" in idle.scope
    assert "log.csv (sha256 " in cycle.source and cycle.source.endswith(" of board, recorded 2026-09-21")
    assert found.before is LEVEL and "cannot be told apart" in str(found) and "84.86 mW" in str(found)


def test_several_numbers_of_elements_tell_chip_and_asleep_apart(board, tmp_path, capsys):
    numbers = (2, 3, 5, 8, 13, 21)
    pairs = [board(str(n), elements=n, turns=4) for n in numbers]
    options = [o for log, trace in pairs for o in ("--power", str(log), "--trace", str(trace))]
    assert run(["targets", "calibrate", "spinnaker2", *options, "--out", str(tmp_path / "s2.toml")]) == 0
    text = capsys.readouterr().out
    assert "6 recording(s)" in text and "from 6 recordings" in text and "told apart" not in text
    level = read_levels(tmp_path / "s2.toml")[1]
    for name, truth in {"chip": 1e3 * CHIP_W, "asleep": 1e3 * ASLEEP_W, "cycle": 1e12 * CYCLE_J}.items():
        assert level.constants[name].low <= truth <= level.constants[name].high, name
    assert estimate(level, elements=100, cycles=1e6, tick_us=1e3, ticks=2).watts == pytest.approx(0.37, rel=0.05)
    with pytest.raises(FormatError, match="one recording, or 6 and more, got 5"):
        calibrate.calibrate(pairs[:5])
    with pytest.raises(FormatError, match="recordings that differ, got one given twice"):
        calibrate.calibrate([*pairs, pairs[0]])
    one_differs = [pairs[0], *(board(name, elements=3, turns=4) for name in ("x", "xx", "xxx", "xxxx", "xxxxx"))]
    with pytest.raises(FormatError, match="expected 3 constants, got 2 that the recordings fix, or fix without one"):
        calibrate.calibrate(one_differs)
    with pytest.raises(FormatError, match=r"0\.8 V, 300 MHz, got 0\.5 V"):
        calibrate.calibrate([pairs[0], board("other", level="0.5 V, 150 MHz", cycles=np.array([9000]))])


def test_the_way_from_an_image_to_its_measured_estimate(board, small_image, tmp_path, capsys):
    """The cycles of the small run's own image as the tick plan counts them, a log of a known machine, and back."""
    artifact = open_artifact(small_image)
    dram, pes = load_images(artifact)
    trace = artifact_trace(artifact)
    fired = fired_of(pes, trace.signals, artifact.manifest["probes"], trace.tokens)
    cycles = np.stack([work.instructions(i, work.recorded(i, fired)) for _, i in pes], 1).round()
    log, h5 = board(elements=len(pes), cycles=cycles, noisy=1e-6)
    out = tmp_path / "measured.toml"
    argv = ["targets", "calibrate", "spinnaker2", "--power", str(log), "--trace", str(h5)]
    assert run([*argv, "--json"]) == 0 and not out.exists()
    table = json.loads(capsys.readouterr().out)
    assert table["after"]["elements"] == len(pes) and table["before"]["cycle"]["central"] == 15.0
    assert run([*argv, "--out", str(out)]) == 0
    assert f"rheobase inspect DIR --target {out}" in capsys.readouterr().out
    assert run(["inspect", str(small_image), "--json"]) == 0
    before = json.loads(capsys.readouterr().out)["estimates"]
    arguments = ["inspect", str(small_image), "--target", str(out)]
    assert run([*arguments, "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["estimates"][:2] == before[:2]
    assert [e["measured"] for e in after["estimates"]] == [False, False, True, True]
    assert after["constants"]["0.8 V, 300 MHz"]["cycle"]["confidence"] == "measured"
    seconds, mean = before[2]["seconds"], sum(pe["mean"] for pe in artifact.manifest["tick_plan"]["pes"].values())
    truth = seconds * (CHIP_W + len(pes) * ASLEEP_W) + mean * CYCLE_J
    assert after["estimates"][2]["low"] < truth < after["estimates"][2]["high"]
    assert after["estimates"][2]["joules"] == pytest.approx(truth, rel=0.02) != before[2]["joules"]
    assert run([*arguments, "--out", str(tmp_path / "map.png")]) == 0
    text = capsys.readouterr().out
    assert text.count("; measured, ") == 2 and "0.8 V, 300 MHz, measured: idle " in text and log.name in text
    assert "as much of them as the meter covered" in text
    assert load_trace(h5).simulator == "board", "the trace is still a trace"


def test_a_sum_serves_its_own_number_of_elements_alone(board, tmp_path):
    found = calibrate.calibrate([board(elements=3)])
    (tmp_path / "s2.toml").write_bytes(level_toml(found.after))
    low, high = read_levels(tmp_path / "s2.toml")
    assert low is LEVELS[0] and high == found.after
    made = estimate(high, elements=3, cycles=1e6, tick_us=1e3, ticks=1)
    assert made.asleep == 0 and made.joules == pytest.approx(1e-3 * (CHIP_W + 3 * ASLEEP_W) + 1e6 * CYCLE_J, rel=0.02)
    with pytest.raises(ConfigError, match="an image of 3 elements, as it was measured with, got 4"):
        estimate(high, elements=4, cycles=1e6, tick_us=1e3, ticks=1)
    assert CHIP.interval.central == 0.0752, "what is published stays"


def at(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda seconds, **_: {"seconds": at(seconds, 7, seconds[5])}, "time 7: expected times that rise"),
        (lambda seconds, **_: {"seconds": seconds - BEGIN}, "expected Unix seconds, got -2.0"),
        (lambda seconds, **_: {"seconds": 1e3 * seconds}, "expected Unix seconds"),
        (lambda seconds, **_: {"seconds": at(seconds, 4, np.nan)}, "time 4: expected Unix seconds, got nan"),
        (lambda seconds, **_: {"seconds": seconds + 3600}, "expected a time in common with"),
        (
            lambda seconds, **_: {"seconds": seconds + 0.6 * (seconds > BEGIN + 9)},
            "expected a sample every 0.02 s or so",
        ),
        (lambda watts, **_: {"watts": at(watts, 3, np.nan)}, "sample 3: expected watts of 0 or more, got nan"),
        (lambda watts, **_: {"watts": at(watts, 3, np.inf)}, "sample 3: expected watts of 0 or more, got inf"),
        (lambda watts, **_: {"watts": -watts}, "sample 0: expected watts of 0 or more"),
        (lambda ticks, **_: {"ticks": at(ticks, 9, ticks[8])}, "tick_seconds time 9: expected times that rise"),
        (lambda ticks, **_: {"ticks": at(ticks, 0, np.nan)}, "tick_seconds time 0: expected Unix seconds, got nan"),
        (lambda ticks, **_: {"ticks": ticks.astype(np.int64)}, "tick_seconds: expected floats [n], two at least"),
        (lambda cycles, **_: {"cycles": 1.0 * cycles}, "expected integers [2413, elements], got float64 (2413, 3)"),
        (lambda cycles, **_: {"cycles": cycles[:-1]}, "expected integers [2413, elements], got uint32 (2412, 3)"),
        (lambda cycles, **_: {"cycles": at(cycles.astype(int), 5, -1)}, "expected counts of 0 or more, got -1"),
        (lambda cycles, **_: {"cycles": cycles * [1, 0, 1]}, "cycles[:, 1]: expected a counter that counts, got 0"),
        (lambda cycles, **_: {"cycles": cycles * [1, 1, 9]}, "cycles[:, 2]: expected 300 M a second at most"),
        (lambda watts, **_: {"watts": np.full_like(watts, 0.2)}, "intervals narrower than their values, got cycle"),
        (lambda watts, **_: {"watts": watts.max() - watts}, "intervals narrower than their values"),
    ],
)
def test_what_does_not_fix_the_constants_is_refused_in_one_line(board, capsys, change, line):
    log, trace = board(change=change)
    assert run(["targets", "calibrate", "spinnaker2", "--power", str(log), "--trace", str(trace)]) == 1
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and "internal" not in error, error


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"turns": 2}, "expected 32 windows of 0.2 s in common with the trace, got 20"),
        ({"turns": 2, "spell": 6.0}, "expected 6 blocks of time that see idle and running both, got "),
        ({"cycles": np.full(1, 2_000)}, "intervals narrower than their values, got cycle"),
        ({"late": 0.6}, "a log that fits the trace better if it is +0.6 s late"),
        ({"late": -0.4}, "a log that fits the trace better if it is -0.4 s late"),
        ({"level": "0.7 V, 300 MHz"}, "did you mean '0.8 V, 300 MHz'?"),
        ({"level": "0.5 V, 150 MHz", "cycles": np.full(1, 840_000)}, "expected 150 M a second at most, got 168 M"),
    ],
)
def test_runs_that_fix_too_little_are_refused(board, options, line):
    with pytest.raises(FormatError) as error:
        calibrate.calibrate([board(**options)])
    assert line in str(error.value), error.value


def test_steady_work_fixes_nothing(board):
    """Ticks throughout, each as long as the next: of elements busy all the time, or of cycles that are nearly equal."""

    def steady(ticks, **_):
        return {"ticks": np.linspace(ticks[0], ticks[-1], len(ticks))}

    with pytest.raises(FormatError, match="expected 6 blocks of time that see idle and running both, got 904"):
        calibrate.calibrate([board(change=steady, cycles=np.full(1, 3_000_000))])
    with pytest.raises(FormatError, match="intervals narrower than their values"):
        calibrate.calibrate([board(change=steady)])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("time,power\n1,2\n", "expected the line seconds,watts"),
        ("seconds,watts\n", "expected the line seconds,watts, and samples"),
        (f"seconds,watts\n{BEGIN},0.1,3\n{BEGIN + 1},0.1,3\n", "expected two numbers a line"),
        (f"seconds,watts\n{BEGIN},0.1\n", "two numbers a line, and two lines"),
        (f"seconds,watts\n{BEGIN},0.1\n{BEGIN + 1},a lot\n", "expected two numbers a line, got could not convert"),
        (f"seconds,watts\n{BEGIN},0.1\n{BEGIN + 1}\n", "expected two numbers a line"),
    ],
)
def test_a_log_that_is_none(tmp_path, text, line):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(FormatError) as error:
        power.read_log(tmp_path / "log.csv")
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_log_from_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "log.csv").write_bytes(f"\ufeffseconds,watts\r\n{BEGIN},0.25\r\n{BEGIN + 1},0.5\r\n".encode())
    assert [column.tolist() for column in power.read_log(tmp_path / "log.csv")] == [[BEGIN, BEGIN + 1], [0.25, 0.5]]


@pytest.mark.parametrize("name", ["tick_seconds", "cycles", "level"])
def test_a_trace_that_lacks_something(board, name):
    log, trace = board()
    with h5py.File(trace, "a") as file:
        del (file.attrs if name == "level" else file)[name]
    with pytest.raises(FormatError, match=f"{name}, got none"):
        power.read_recording(log, trace)


def test_usage(board, tmp_path, small_image, small_run, capsys):
    log, trace = (str(path) for path in board())
    for argv, line in (
        (["targets", "calibrate", "loihi1", "--power", log, "--trace", trace], "expected spinnaker2, got loihi1"),
        (["targets", "calibrate", "--power", log, "--trace", trace], "expected spinnaker2, got none"),
        (["targets", "calibrate", "spinnaker2", "--power", log], "a --power and a --trace of each run, got 1 and 0"),
        (["targets", "calibrate", "spinnaker2"], "got 0 and 0"),
        (["targets", "spinnaker2", "--power", log], "expected one NAME, or calibrate NAME"),
        (["targets", "spinnaker2", "loihi1"], "expected one NAME, or calibrate NAME"),
        (["targets", "calibrate", "spinnaker2", "--power", log, "--trace", log], "expected a trace in HDF5"),
        (["targets", "calibrate", "spinnaker2", "--power", trace, "--trace", trace], "expected two numbers a line"),
        (
            ["inspect", str(small_run.folder), "--target", log],
            "inspect --out, --target: expected an exported directory",
        ),
        (["inspect", str(small_image), "--target", str(tmp_path / "none.toml")], "expected a TOML file"),
    ):
        assert run(argv) == 1
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1, error


def test_a_file_of_constants_is_checked(board, tmp_path):
    level, path = calibrate.calibrate([board()]).after, tmp_path / "s2.toml"
    text = level_toml(level).decode()
    for old, new, line in (
        ("[cycle]", "[cycles]", "expected the keys cycle, elements, idle, level, title, got cycles"),
        ("elements = 3\n", "", "got cycle, idle, level, title"),
        ("elements = 3", "elements = 0", "expected a number above 0, got 0"),
        (f'level = "{LEVEL.name}', 'level = "0.8 V, 310 MHz', "did you mean '0.8 V, 300 MHz'"),
        ('"pJ"', '"mW"', "cycle: expected a unit among J"),
        ('"22 nm FDSOI"', '""', "idle: expected a node"),
    ):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(FormatError) as error:
            read_levels(path)
        assert line in str(error.value), error.value
    path.write_bytes(level_toml(LEVEL))
    assert read_levels(path) == LEVELS and not read_levels(path)[1].measured
