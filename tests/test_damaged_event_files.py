"""Damaged event files: any cut or change gives a stated error of one line or events in order, never anything else."""

import itertools
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheobase.backends import events
from rheobase.backends.events import EVENT, Recording, open_events
from rheobase.backends.events._hdf5 import without_loss
from rheobase.spiking.errors import FormatError, RheobaseError

SENSOR = (200, 180)
EVENT_BYTES = {".dat": 8, ".bs2": 5}
SUFFIXES = (".aedat4", ".raw", ".evt3.raw", ".dat", ".es", ".bs2", ".npy")


def made(n=16):
    rng = np.random.default_rng(1)
    found = np.empty(n, EVENT)
    found["t"] = np.cumsum(rng.integers(0, 300, n))
    found["x"], found["y"], found["p"] = rng.integers(0, 200, n), rng.integers(0, 180, n), rng.integers(0, 2, n)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of one small recording in each format, without a sidecar."""
    folder = tmp_path_factory.mktemp("whole")
    for suffix in (*SUFFIXES, ".h5"):
        path = folder / f"a{suffix}"
        if suffix == ".npy":
            np.save(path, made())
        elif suffix == ".evt3.raw":
            t, x, y, p = (made()[name].astype(int) for name in "txyp")
            words = np.stack([0x8000 | t >> 12, 0x6000 | t & 0xFFF, y, 0x3000 | p << 11 | x, 0x5001 + 0 * t], 1)
            path.write_bytes(b"% evt 3.0\n% geometry 200x180\n% end\n" + words.astype("<u2").tobytes())
        else:
            events.write_events(path, Recording([made()], SENSOR))
    return folder, {suffix: (folder / f"a{suffix}").read_bytes() for suffix in (*SUFFIXES, ".h5")}


def outcome(path):
    """The events of a damaged file, or None where it is refused in one line; a hang is an error."""
    signal.setitimer(signal.ITIMER_REAL, 120)
    try:
        with open_events(path) as recording:
            read = np.concatenate([np.empty(0, EVENT), *recording.chunks])
    except RheobaseError as error:  # a damaged file may also ask for a library, or for a choice of rows
        assert str(error).count("\n") == 0 and path.name in str(error)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert (np.diff(read["t"]) >= 0).all()
    return read


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_cut_is_refused_or_leaves_whole_events(suffix, files):
    folder, whole = files
    path, data, wanted = folder / f"cut{suffix}", whole[suffix], made()
    path.write_bytes(data)
    assert np.array_equal(outcome(path), wanted)
    counts = {}
    for end in range(len(data)):
        path.write_bytes(data[:end])
        read = outcome(path)
        if read is not None:
            assert np.array_equal(read, wanted[: len(read)])
            counts[end] = len(read)
    if suffix in EVENT_BYTES:  # a cut between events cannot be seen, except by the sidecar; any other is
        assert counts == {len(data) - k * EVENT_BYTES[suffix]: 16 - k for k in range(1, 17)}
    elif suffix in (".npy", ".aedat4"):
        assert set(counts.values()) <= {0}, "only the header, all of it"
    else:
        assert all(later >= earlier for earlier, later in itertools.pairwise(counts.values()))


def test_cut_hdf5_is_refused(files):
    """Cuts only, a process each; other damage is in `fuzz_readers.py`."""
    folder, whole = files
    data = whole[".h5"]
    for end in range(0, len(data), 199):
        (folder / "cut.h5").write_bytes(data[:end])
        assert outcome(folder / "cut.h5") is None, end


damage = st.lists(
    st.tuples(
        st.sampled_from(["set", "drop", "add"]), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)
    ),
    min_size=1,
    max_size=4,
)


def damaged(data, changes):
    data = bytearray(data)
    for kind, where, piece in changes:
        at = int(where * len(data))
        end = at + (0 if kind == "add" else len(piece))
        data[at:end] = b"" if kind == "drop" else piece
    return bytes(data)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=150)
@given(changes=damage)
def test_any_damage_is_refused_or_read(suffix, files, changes):
    folder, whole = files
    path = folder / f"damaged{suffix}"
    path.write_bytes(damaged(whole[suffix], changes))
    outcome(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60)
@given(changes=damage)
def test_a_damaged_header_is_refused_or_read(suffix, files, changes):
    folder, whole = files
    path = folder / f"head{suffix}"
    path.write_bytes(damaged(whole[suffix][:700], [(kind, where / 4, piece) for kind, where, piece in changes]))
    outcome(path)


@pytest.mark.parametrize("suffix", (".aedat4", ".raw", ".dat", ".es", ".bs2", ".h5"))
@settings(max_examples=30)
@given(changes=damage)
def test_with_its_sidecar_no_damage_passes(suffix, files, changes):
    folder, whole = files
    path = folder / f"a{suffix}"
    data = damaged(whole[suffix], changes)
    path.write_bytes(data)
    read = outcome(path)
    assert (read is not None) == (data == whole[suffix])


@pytest.mark.parametrize("time", [np.nan, np.inf, 1e300, 1e305])
def test_times_that_are_no_microseconds_are_refused(time):
    with pytest.raises(FormatError, match="a.h5: expected finite times"):
        without_loss(np.array([0.5, time]), "a.h5", [])
