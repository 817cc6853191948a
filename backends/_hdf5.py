"""A program: HDF5 of a stranger on standard input, its numbers as .npz on standard output, or one line of JSON.

It runs by itself, since the HDF5 library was seen to turn in circles on damaged files, where nothing but the system
ends it: its argument is how many seconds of the processor it may take. It looks a file over before it reads any of it:
links, depth, kinds and sizes.
"""

import contextlib
import io
import json
import sys

import numpy as np

MOST_BYTES, MOST_OBJECTS, DEEPEST = 1 << 30, 100_000, 12
MOST_TEXT = 1 << 24
"""of one array, whose items are all as long as the longest"""
MOST_INFLATION = 1100
"""deflate shrinks by a factor of 1,032 at most; more bytes than that are in no chunk of the file"""


class Refused(Exception):
    """What was expected and what was found."""


def flatten(data: bytes) -> dict[str, np.ndarray]:
    """Every dataset and attribute of a file: "d/path" or "a/path/name" -> array; text as bytes."""
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        found, size = {}, 0
        for path, item in _objects(file):
            for name, value in item.attrs.items():
                found[f"a{path}/{name}"] = array = _plain(path, np.asarray(value))
                size += array.nbytes
            if isinstance(item, h5py.Dataset):
                text = h5py.check_string_dtype(item.dtype)
                if not (item.dtype.kind in "iufbS" or text) or item.is_virtual or item.external:
                    raise Refused("numbers and text", f"other data at {path}")
                size += item.size * item.dtype.itemsize
                if size > min(MOST_BYTES, MOST_INFLATION * len(data)):
                    raise Refused("no more numbers than bytes", f"{size} bytes at {path}")
                found[f"d{path}"] = _plain(path, np.asarray(item[()]))
    return found


def _objects(file):
    import h5py

    waiting, count = [("", file, 0)], 0
    while waiting:
        path, item, depth = waiting.pop()
        yield path, item
        for name in item if isinstance(item, h5py.Group) else ():
            count += 1
            if not isinstance(item.get(name, getlink=True), h5py.HardLink):
                raise Refused("no links", f"one at {path}/{name}")
            if depth > DEEPEST or count > MOST_OBJECTS:
                raise Refused(f"at most {MOST_OBJECTS} objects, {DEEPEST} deep", "more")
            waiting.append((f"{path}/{name}", item[name], depth + 1))


def _plain(path, array):
    if array.dtype.kind in "OU":
        if not all(isinstance(v, bytes | str) for v in array.reshape(-1)):
            raise Refused("numbers and text", f"other data at {path}")
        encoded = [v.encode() if isinstance(v, str) else v for v in array.reshape(-1)]
        if len(encoded) * max(map(len, encoded), default=0) > MOST_TEXT:
            raise Refused(f"at most {MOST_TEXT} bytes of text", f"more at {path}")
        array = np.array(encoded, "S").reshape(array.shape)
    return array


def main() -> None:
    with contextlib.suppress(ImportError):  # not on Windows, where the parent's patience ends it
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1]) + 1))
    try:
        found = flatten(sys.stdin.buffer.read())
        buffer = io.BytesIO()
        np.savez(buffer, **found)
        answer = buffer.getvalue()
    except Refused as refused:
        answer = json.dumps(refused.args).encode()
    except Exception as error:  # whatever the library makes of a damaged file
        answer = json.dumps(["HDF5", f"{type(error).__name__}: {error}"[:200]]).encode()
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
