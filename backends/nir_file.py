"""NIR files from strangers: HDF5 that is looked over before anything in it is read."""

import io
from pathlib import Path

from rheobase.spiking.errors import FormatError, UnsupportedError
from rheobase.spiking.files import read_bytes

MOST_BYTES, MOST_OBJECTS, DEEPEST = 1 << 30, 100_000, 12
MOST_INFLATION = 1100
"""deflate shrinks by a factor of 1,032 at most; more bytes than that are in no chunk of the file"""


def load_nir():
    """The library; raises UnsupportedError with the pip command where it is not there."""
    try:
        import nir
    except ModuleNotFoundError:
        raise UnsupportedError("nir", "the library", "none installed", 'pip install "nir>=1.0.8"') from None
    return nir


def read_nir(source: str | Path | bytes):
    """The nir.NIRGraph of a file, or of its bytes.

    raises  FormatError: no NIR, a link out of the file, or more numbers than the file can hold
    """
    nir = load_nir()
    where, data = (source, None) if isinstance(source, str | Path) else ("net.nir", source)
    with _opened(where, data) as file:
        try:
            _look_over(where, file)
            graph = nir.dict2NIRNode({**nir.serialization.hdf2dict(file["node"]), "type_check": False})
        except FormatError:
            raise
        except Exception as error:  # asserts, attribute and type errors of the library on what is not NIR
            got = f"{type(error).__name__}: {error}"[:200]
            raise FormatError(where, "a graph as NIR writes it", got, "write it anew") from None
    if not isinstance(graph, nir.NIRGraph):
        raise FormatError(where, "a NIRGraph", type(graph).__name__, "wrap the node in a graph")
    return graph


def read_nirdata(source: str | Path | bytes):
    """The nir.NIRGraphData of a file, or of its bytes; raises FormatError as `read_nir` does."""
    nir = load_nir()
    where, data = (source, None) if isinstance(source, str | Path) else ("events.nirdata", source)
    whole = _checked_bytes(where, data)
    with _opened(where, whole) as file:
        _look_over(where, file)
    try:
        return nir.read_data(io.BytesIO(whole))
    except Exception as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError(where, "events as NIR writes them", got, "write them anew") from None


def _checked_bytes(where, data: bytes | None) -> bytes:
    data = read_bytes(where, "a NIR file") if data is None else data
    if len(data) > MOST_BYTES:
        raise FormatError(where, f"at most {MOST_BYTES} bytes", str(len(data)), "do not use it")
    return data


def _opened(where, data):
    import h5py

    data = _checked_bytes(where, data)
    try:
        file = h5py.File(io.BytesIO(data), "r")
    except (OSError, ValueError, RuntimeError) as error:
        raise FormatError(where, "HDF5", str(error)[:200], "write it anew") from None
    file.attrs  # noqa: B018
    return file


def _look_over(where, file) -> None:
    """Refuse links, depth, and sizes before any dataset is read."""
    import h5py

    size, count, total = file.id.get_filesize(), 0, 0
    waiting = [(file, 0)]
    while waiting:
        group, depth = waiting.pop()
        for name in group:
            count += 1
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise FormatError(where, "no links", f"one at {group.name}/{name}", "do not use it")
            if depth > DEEPEST or count > MOST_OBJECTS:
                raise FormatError(where, f"at most {MOST_OBJECTS} objects, {DEEPEST} deep", "more", "do not use it")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((item, depth + 1))
                continue
            plain = isinstance(item, h5py.Dataset) and (
                item.dtype.kind in "iufbS" or h5py.check_string_dtype(item.dtype)
            )
            if not plain or item.is_virtual or item.external:
                raise FormatError(where, "numbers and text", f"other data at {item.name}", "do not use it")
            total += item.size * item.dtype.itemsize
            if total > min(MOST_BYTES, MOST_INFLATION * size):
                raise FormatError(where, "no more numbers than bytes", f"{total} bytes at {item.name}", "do not use it")
