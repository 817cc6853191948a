"""The bytes of an s2lm/1 image: regions, little-endian, each on a 16-byte boundary, listed in a header.

One file a processing element (PE), `pe/NNN.bin`, and `dram.bin` with embedding and head. A PE owns some units of
one layer with all their gates; the rows of its weights are stored by source, so that an event reads one row.

    header   "S2LM", u16 version, u16 kind (0 PE, 1 dram), 12 x u32 fields, then per region u32 id, offset, size
    key      [31:24] stream (0 the embedding, l + 1 layer l)  [23:16] slice of the source  [15:0] unit in the slice
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rheobase.spiking.errors import FormatError

MAGIC, VERSION = b"S2LM", 1
PE, DRAM = 0, 1
PREFIX = struct.Struct("<4sHH12I")
ENTRY = struct.Struct("<III")
ALIGN = 16
FIELDS = {
    PE: ("layer", "slice", "unit_lo", "units", "layer_units", "inputs", "streams_in", "zoneout", "regions"),
    DRAM: (
        "vocabulary",
        "embedding",
        "x_frac",
        "head_inputs",
        "logit_frac",
        "stream_in",
        "slices",
        "regions",
    ),
}
REGIONS = {
    PE: {
        "cell": "<i2",
        "thr": "<i2",
        "bias_a": "<i4",
        "bias_q": "<i4",
        "shift_a": "u1",
        "shift_q": "u1",
        "weight_a": "i1",
        "weight_q": "i1",
        "accumulators": "<i4",
        "sigmoid": "<i2",
        "tanh": "<i2",
        "keys": "<u4",
        "out_fifo": "<u4",
    },
    DRAM: {"table": "i1", "exponent": "i1", "bias": "<i4", "head_shift": "u1", "slices": "<u4"},
}
KEY_MASK = 0xFFFF0000


def key(stream: int, slice_: int, unit: int = 0) -> int:
    """The multicast key of a unit, or of the first unit of a slice."""
    return stream << 24 | slice_ << 16 | unit


@dataclass(frozen=True, eq=False)
class Image:
    """One file of the image: its kind, its header fields and its regions as arrays."""

    kind: int
    fields: Mapping[str, int]
    regions: Mapping[str, np.ndarray]

    def sizes(self) -> dict[str, int]:
        """Bytes of the header and of each region, padding included."""
        header = _padded(PREFIX.size + ENTRY.size * len(self.regions))
        return {"header": header} | {name: _padded(a.nbytes) for name, a in self.regions.items()}

    def pack(self) -> bytes:
        """The bytes of the file."""
        names = FIELDS[self.kind]
        fields = {**self.fields, "regions": len(self.regions)}
        numbers = [fields[n] for n in names] + [0] * (12 - len(names))
        sizes = self.sizes()
        offset, entries, body = sizes["header"], [], []
        for number, (name, dtype) in enumerate(REGIONS[self.kind].items()):
            data = np.ascontiguousarray(self.regions[name], dtype).tobytes()
            entries.append(ENTRY.pack(number, offset, len(data)))
            body.append(data.ljust(sizes[name], b"\0"))
            offset += sizes[name]
        head = PREFIX.pack(MAGIC, VERSION, self.kind, *numbers) + b"".join(entries)
        return head.ljust(sizes["header"], b"\0") + b"".join(body)


def unpack(data: bytes, where: str) -> Image:
    """Read a file of the image; raises FormatError where it is not one or a region lies outside of it."""
    if len(data) < PREFIX.size or data[:4] != MAGIC:
        raise FormatError(where, "an s2lm file", "another", "export it anew")
    _, version, kind, *numbers = PREFIX.unpack_from(data)
    if version != VERSION or kind not in FIELDS:
        raise FormatError(where, f"version {VERSION}", f"version {version}, kind {kind}", "export it with this release")
    fields = dict(zip(FIELDS[kind], numbers, strict=False))
    wanted = REGIONS[kind]
    if fields["regions"] != len(wanted) or len(data) < PREFIX.size + ENTRY.size * len(wanted):
        raise FormatError(where, f"{len(wanted)} regions", str(fields["regions"]), "export it anew")
    regions = {}
    for i, (name, dtype) in enumerate(wanted.items()):
        number, offset, size = ENTRY.unpack_from(data, PREFIX.size + i * ENTRY.size)
        if number != i or offset % ALIGN or offset + size > len(data) or size % np.dtype(dtype).itemsize:
            raise FormatError(f"{where}: {name}", "a region inside the file", f"{offset} + {size}", "export it anew")
        regions[name] = np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, offset)
    return Image(kind, fields, regions)


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
