"""Runs an image by the firmware's own C, compiled for the host: the machine of `machine`, bit for bit, and fast."""

import ctypes
import functools
from collections.abc import Iterable

import numpy as np

from rheobase.backends.exporters.spinnaker2.image import EMBEDDING, PROGRAM, TOKEN, Image, key, unpack
from rheobase.backends.exporters.spinnaker2.machine import dram_vectors, stages
from rheobase.spiking.errors import FormatError, ShapeError, UnsupportedError
from rheobase.spiking.ops.native import compiled

PROBLEMS = (
    "none",
    "no image",
    "another version",
    "a region outside of the image",
    "a region of another size",
    "a field out of range",
    "rows or targets out of order",
    "a shift out of range",
    "a program of what is not there",
)
"""what `pe_open` returns"""
ROOM = 1 << 22
"""events that are kept at once"""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled firmware, or None where no compiler was at hand at install."""
    lib = compiled("rheobase.backends.exporters.spinnaker2.firmware._host")
    if lib is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    lib.host_pe_bytes.restype = number
    lib.host_open.argtypes, lib.host_open.restype = [pointer, pointer, ctypes.c_uint32], ctypes.c_int32
    lib.host_reset.argtypes, lib.host_reset.restype = [pointer, number], None
    lib.host_run.argtypes = [pointer, pointer, number, pointer, number, pointer, pointer, pointer, pointer, number]
    lib.host_run.argtypes += [pointer, number, pointer, pointer, pointer, pointer]
    lib.host_joins.argtypes, lib.host_joins.restype = [pointer, ctypes.c_uint32], ctypes.c_int32
    lib.host_join.argtypes = [pointer, number, ctypes.c_uint32, ctypes.c_uint32, pointer, pointer, pointer, pointer]
    lib.host_run.restype = lib.host_join.restype = number
    lib.pe_receive.argtypes, lib.pe_receive.restype = [pointer, pointer, ctypes.c_uint32], None
    lib.host_tick.argtypes, lib.host_tick.restype = [pointer, pointer, pointer], number
    return lib


def check(data: bytes, where: str) -> None:
    """Let the firmware read one PE's image; raises FormatError with what it says is wrong."""
    lib = _library()
    element = np.zeros(lib.host_pe_bytes(), np.uint8)
    _open(lib, element, _aligned(data), where)


class Host:
    """All PEs of an image, with embedding and head from its dram if they lie there; one stream of tokens.

    joined  take the rows of sparse weights that an event reads on many PEs as one: the same integers, in less time
            (the PEs' rows are short, and a processor guesses wrong where each ends) and at five bytes a weight more
    raises  UnsupportedError: no C library;  FormatError: images that the firmware refuses or that do not fit together
    """

    def __init__(self, dram: Image | None, pes: Iterable[tuple[str, Image]], *, joined: bool = False):
        self._lib = _library()
        groups = stages(dram, pes)
        images = [(where, image) for group in groups for where, image in group]
        size = self._lib.host_pe_bytes()
        self._elements = np.zeros((len(images), size), np.uint8)
        packed = [image.pack() for _, image in images]
        begins = np.cumsum([0] + [-(-len(data) // 16) * 16 for data in packed])
        self._memory = _aligned(b"".join(data.ljust(-(-len(data) // 16) * 16, b"\0") for data in packed))
        self._images = [self._memory[begin:][: len(data)] for begin, data in zip(begins, packed, strict=False)]
        for element, data, (where, _) in zip(self._elements, self._images, images, strict=True):
            _open(self._lib, element, data, where)
        self._last = np.cumsum([len(group) for group in groups])
        self._vectors = None if dram is None else np.ascontiguousarray(dram_vectors(dram), np.int32)
        self.outputs = sum(image.fields["units"] for _, image in groups[-1])
        self.tokens = sum(i.fields["units"] for _, i in groups[0]) if dram is None else len(self._vectors)
        listens: dict[int, list[int]] = {}
        units: dict[int, int] = {}
        for number, (_, image) in enumerate(images):
            entries = image.regions["keys"].reshape(-1, 4) if image.kind != EMBEDDING else [[key(TOKEN, 0), 0, 0, 0]]
            for first, _, n, _ in entries:
                base = int(first) >> 16
                listens.setdefault(base, []).append(number)
                units[base] = max(units.get(base, 0), int(n))
        self._of_base = np.zeros(1 << 16, np.int32)
        self._of_base[list(listens)] = np.arange(1, 1 + len(listens))
        self._keep = []
        slices = [(0,) * 6]  # what nobody hears; slice_t of host.h
        for base, hear in listens.items():
            rows = self._join(base << 16, units[base]) if joined else (0, 0, 0, 0)
            alone = [n for n in hear if not (joined and self._joins(n, base << 16))]
            slices.append((self._hold(np.array(alone, np.int32)), *rows[:3], len(alone), rows[3]))
        self._slices = np.array(slices, np.int64)
        most = [sum(map(_most_events, group)) for group in groups]
        width = 0 if self._vectors is None else self._vectors.shape[1]
        self._room = np.empty(max(*most, width, 1), np.uint64)
        self._most = sum(most)
        self.events = 0

    def _hold(self, array: np.ndarray) -> int:
        """The address of an array, which stays."""
        self._keep.append(array)
        return array.ctypes.data

    def _joins(self, number: int, base: int) -> bool:
        return bool(self._lib.host_joins(self._elements[number].ctypes.data, base))

    def _join(self, base: int, units: int) -> tuple[int, int, int, int]:
        """Addresses of a slice's rows through all PEs: sums, weights, starts; and how many they are."""
        start = np.zeros(units + 1, np.int64)
        given = self._elements.ctypes.data, len(self._elements), base, units, self._memory.ctypes.data
        kept = self._lib.host_join(*given, start.ctypes.data, None, None)
        at, weight = np.empty(kept, np.int32), np.empty(kept, np.int8)
        self._lib.host_join(*given, start.ctypes.data, at.ctypes.data, weight.ctypes.data)
        return self._hold(at), self._hold(weight), self._hold(start), units

    def reset(self) -> None:
        """Begin a new stream of tokens."""
        self._lib.host_reset(self._elements.ctypes.data, len(self._elements))

    def run(self, tokens, *, logits: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Some tokens [T], the state carried on: (logits [T, V], or [0, V]; each PE's hash after each, [T, PEs])."""
        return self._run(self._checked(tokens), logits, None, None)

    def events_of(self, tokens) -> tuple[np.ndarray, np.ndarray]:
        """As `run`, and what layers or sections send: (logits [T, V]; (token, key, payload) of each event, [E, 3])."""
        row = self._checked(tokens)
        at_once = max(1, ROOM // self._most)
        sent, n_sent = np.empty((min(at_once, row.size) * self._most, 2), np.int32), np.empty(at_once, np.int64)
        logits, events = [np.empty((0, self.outputs), np.int32)], [np.empty((0, 3), np.int64)]
        for begin in range(0, row.size, at_once):
            part = row[begin : begin + at_once]
            logits.append(self._run(part, True, sent.ctypes.data, n_sent.ctypes.data)[0])
            counts = np.diff(n_sent[: part.size], prepend=0)
            got = sent[: counts.sum()]
            token = begin + np.repeat(np.arange(part.size), counts)
            events.append(np.stack([token, got[:, 0].view(np.uint32).astype(np.int64), got[:, 1]], 1))
        return np.concatenate(logits), np.concatenate(events)

    def images(self) -> list[Image]:
        """Each PE's image as it is now: cells and registers are those after the last token."""
        return [unpack(data.tobytes(), f"PE {number}") for number, data in enumerate(self._images)]

    def _checked(self, tokens) -> np.ndarray:
        row = np.ascontiguousarray(np.reshape(tokens, -1), np.int64)
        if row.size and not 0 <= row.min() <= row.max() < self.tokens:
            wrong = row[(row < 0) | (row >= self.tokens)][0]
            raise ShapeError("host", f"token ids from 0 to {self.tokens - 1}", str(wrong), "check the tokenizer")
        return row

    def _run(self, row: np.ndarray, logits: bool, sent: int | None, n_sent: int | None):
        out = np.empty((row.size if logits else 0, self.outputs), np.int32)
        hashes = np.empty((row.size, len(self._elements)), np.uint32)
        vectors = self._vectors
        self.events += self._lib.host_run(
            self._elements.ctypes.data,
            self._last.ctypes.data,
            len(self._last),
            None if vectors is None else vectors.ctypes.data,
            0 if vectors is None else vectors.shape[1],
            self._slices.ctypes.data,
            self._of_base.ctypes.data,
            self._memory.ctypes.data,
            row.ctypes.data,
            row.size,
            out.ctypes.data if logits else None,
            self.outputs,
            hashes.ctypes.data,
            self._room.ctypes.data,
            sent,
            n_sent,
        )
        return out, hashes


class Alone:
    """One PE by itself, that is told what it hears; raises as `Host`."""

    def __init__(self, image: Image, where: str = "pe"):
        self._lib = _library()
        self._element = np.zeros(self._lib.host_pe_bytes(), np.uint8)
        self._image = _aligned(image.pack())
        self._room = np.empty((_most_events((where, image)), 2), np.int32)
        _open(self._lib, self._element, self._image, where)

    def receive(self, keys: np.ndarray, payloads: np.ndarray) -> None:
        """Some events."""
        for key_, payload in zip(keys.tolist(), payloads.tolist(), strict=True):
            event = np.array([key_ & 0xFFFFFFFF, payload & 0xFFFFFFFF], np.uint32)
            self._lib.pe_receive(self._element.ctypes.data, event.ctypes.data, 1)

    def tick(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The events it sends, keys and payloads, and its hash."""
        hash_ = ctypes.c_uint32()
        sent = self._lib.host_tick(self._element.ctypes.data, self._room.ctypes.data, ctypes.byref(hash_))
        return self._room[:sent, 0].view(np.uint32), self._room[:sent, 1], hash_.value


def _most_events(pe: tuple[str, Image]) -> int:
    """Events that a PE can send at a tick."""
    _, image = pe
    if image.kind == PROGRAM:
        return image.fields["instructions"] * image.fields["units"]
    return image.fields["width" if image.kind == EMBEDDING else "units"]


def _library() -> ctypes.CDLL:
    lib = library()
    if lib is None:
        raise UnsupportedError("host", "the firmware compiled for the host", "none", "install a C compiler, reinstall")
    return lib


def _aligned(data: bytes) -> np.ndarray:
    words = np.zeros(-(-len(data) // 16) * 2, np.uint64)
    words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    return words.view(np.uint8)[: len(data)]


def _open(lib: ctypes.CDLL, element: np.ndarray, data: np.ndarray, where: str) -> None:
    problem = lib.host_open(element.ctypes.data, data.ctypes.data, len(data))
    if problem:
        raise FormatError(where, "an image that the firmware takes", PROBLEMS[problem], "export it anew")
