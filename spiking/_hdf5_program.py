"""A program that reads an HDF5 file of a stranger for `hdf5.py`: PATH SECONDS PATIENCE ROOM.

PATH may be -, standard input, or /dev/fd/N, a file that was handed over open and may have no name any more.

It runs by itself, since the HDF5 library was seen to turn in circles and to crash on damaged files, where nothing but
the system ends it. Each answer may take SECONDS of the processor and PATIENCE of the clock, and all of it ROOM bytes
more than the interpreter. Its first answer is what lies in the file; then each line of its input, [path, index, most
bytes], gets an array.

An answer is the length of a line of JSON (u32), the line and, where that is a type and a shape, an array's bytes.
"""

import contextlib
import faulthandler
import io
import json
import sys

import numpy as np

MOST_OBJECTS, DEEPEST = 100_000, 12
MOST_TEXT, MOST_SAID = 1 << 24, 1 << 16
"""bytes of one array of text, whose items are all as long as the longest; numbers of an attribute"""
BYTES_A_SECOND, CACHE = 100_000_000, 1 << 26
"""that are read at least; bytes of unpacked pieces of a dataset that are kept for the next part of it"""


class Refused(Exception):
    """What was expected and what was found."""


def objects(file):
    """Every group and dataset with its path; links elsewhere are refused before they are followed."""
    import h5py

    waiting, count = [("", file, 0)], 0
    while waiting:
        path, item, depth = waiting.pop()
        yield path, item
        names = item if isinstance(item, h5py.Group) else ()
        if count + len(names) > MOST_OBJECTS:
            raise Refused(f"at most {MOST_OBJECTS} objects, {DEEPEST} deep", "more")
        for name in reversed(list(names)):  # the last one that waits is the next
            count += 1
            if not isinstance(item.get(name, getlink=True), h5py.HardLink):
                raise Refused("no links", f"one at {path}/{name}")
            if depth >= DEEPEST or count > MOST_OBJECTS:
                raise Refused(f"at most {MOST_OBJECTS} objects, {DEEPEST} deep", "more")
            waiting.append((f"{path}/{name}".lstrip("/"), item[name], depth + 1))


def kind_of(dtype) -> str:
    """NumPy's name of a type of numbers, "text", "rows" of numbers, each of its own length, or "other"."""
    import h5py

    rows = h5py.check_vlen_dtype(dtype)
    if h5py.check_string_dtype(dtype) or dtype.kind == "S":
        return "text"
    if rows is not None:
        return "rows" if getattr(rows, "kind", "") in tuple("iuf") else "other"
    return dtype.str if dtype.kind in "iufb" else "other"


def about(item) -> list:
    """[attributes, kind, shape, bytes of a piece that is unpacked whole]; the last three of datasets alone."""
    import h5py

    said = {}
    for name, value in item.attrs.items():
        array = np.asarray(value)
        if array.size <= MOST_SAID and (array.dtype.kind in "iufbSU" or array.dtype.kind == "O"):
            with contextlib.suppress(Refused):  # what is neither number nor text is not asked for
                array = plain("", array)
                text = array.dtype.kind == "S"
                said[name] = np.char.decode(array, errors="replace").tolist() if text else array.tolist()
    if not isinstance(item, h5py.Dataset):
        return [said, None, None, 0]
    kind, shape = ("other", ()) if item.shape is None else (kind_of(item.dtype), item.shape)
    piece = item.dtype.itemsize * int(np.prod(item.chunks or (0,), dtype=object))
    return [said, kind, shape, piece]


def opened(file, path: str):
    """(A dataset, its kind, the type of its numbers), if it is one that is read."""
    import h5py

    item = file[path]
    kind = kind_of(item.dtype)
    if kind == "other" or item.is_virtual or item.external:
        raise Refused("numbers and text", f"other data at {path}")
    return item, kind, h5py.check_vlen_dtype(item.dtype) if kind == "rows" else item.dtype


def part(path: str, item, kind: str, dtype, index: list, most: int) -> np.ndarray:
    """A part of a dataset, of at most so many bytes."""
    where = tuple(slice(*i) if isinstance(i, list) else i for i in index)
    shape = [len(range(*i.indices(n))) for i, n in zip(where, item.shape, strict=False) if isinstance(i, slice)]
    size = dtype.itemsize * int(np.prod([*shape, *item.shape[len(where) :]], dtype=object))
    if size > most:
        raise Refused(f"at most {most} bytes", f"{size} at {path}")
    found = np.asarray(item[where], dtype if kind == "rows" else None)
    found = np.asarray(plain(path, found), order="C")
    if found.nbytes > most:
        raise Refused(f"at most {most} bytes", f"{found.nbytes} at {path}")
    return found


def plain(path: str, array: np.ndarray) -> np.ndarray:
    """The array itself, or text as bytes of one length."""
    if array.dtype.kind in "OU":
        if not all(isinstance(v, bytes | str) for v in array.reshape(-1)):
            raise Refused("numbers and text", f"other data at {path}")
        encoded = [v.encode(errors="surrogateescape") if isinstance(v, str) else v for v in array.reshape(-1)]
        if len(encoded) * max(map(len, encoded), default=0) > MOST_TEXT:
            raise Refused(f"at most {MOST_TEXT} bytes of text", f"more at {path}")
        array = np.array(encoded, "S").reshape(array.shape)
    return array


def limit(seconds: int, patience: int) -> None:
    """So many seconds of the processor, and of the clock, from now on."""
    faulthandler.dump_traceback_later(patience, exit=True)
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, hard))


def confine(room: int) -> None:
    """No core file, and so many bytes of memory more than now."""
    with contextlib.suppress(ImportError, OSError):  # where there is no /proc, the memory is not bounded
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/statm") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def answer(head, array=None) -> None:
    """Write an answer."""
    line = json.dumps(head).encode()
    out = sys.stdout.buffer
    out.write(len(line).to_bytes(4, "little") + line)
    if array is not None:
        out.write(array.reshape(-1).view(np.uint8).data)
    out.flush()
    faulthandler.cancel_dump_traceback_later()


def main(path: str, seconds: int, patience: int, room: int) -> None:
    """Serve one file."""
    import h5py

    asked = sys.stdin.buffer
    source = path if path != "-" else io.BytesIO(asked.read(int.from_bytes(asked.read(8), "little")))
    if path.startswith("/dev/fd/"):
        source = open(path, "rb")  # noqa: SIM115, for as long as the program runs
    confine(room)
    try:
        limit(seconds, patience)
        with h5py.File(source, "r", rdcc_nbytes=CACHE) as file:
            answer({path: about(item) for path, item in objects(file)})
            datasets = {}
            for line in asked:
                path, index, most = json.loads(line)
                limit(seconds + most // BYTES_A_SECOND, patience)
                if path not in datasets:
                    datasets[path] = opened(file, path)
                found = part(path, *datasets[path], index, most)
                answer([found.dtype.str, found.shape], found)
    except Refused as refused:
        answer([*refused.args, ""])
    except Exception as error:  # whatever the library makes of a damaged file
        answer([None, f"{type(error).__name__}: {error}"[:200], ""])


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
