"""The bytes of an s2lm/1 image: regions, little-endian, each on a 16-byte boundary, listed in a header.

One file a processing element (PE), `pe/NNN.bin`, and `dram.bin` with embedding and head. A PE owns some units of
one layer with all their gates; the rows of its weights are stored by source, so that an event reads one row.

    header   "S2LM", u16 version, u16 kind, 12 x u32 fields, then per region u32 id, offset, size
    key      [31:24] stream (0 the embedding, l + 1 layer l)  [23:16] slice of the source  [15:0] unit in the slice
    keys     per slice that is listened to: its first key, its first row, its units, and the port (product or vector)
             that they feed; first keys ascend
    weights  a product of R rows and W targets is either dense: weight [R, W], and no rows and gaps; or it lists what
             is kept: row r holds weight[rows[r] : rows[r + 1]], and its targets are the running sums of the gaps
             there, which rise. A gap over 255 takes further weights of 0. The smaller of the two is taken.

The firmware reads the same layout from `firmware/layout.h`, which is `layout_header()`.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import program
from rheobase.spiking.errors import FormatError

MAGIC, VERSION = b"S2LM", 1
EGRU, DRAM, HEAD, EMBEDDING, PROGRAM = range(5)
KINDS = ("egru", "dram", "head", "embedding", "program")
PREFIX = struct.Struct("<4sHH12I")
ENTRY = struct.Struct("<III")
N_FIELDS, ALIGN = 12, 16
_PLACE = ("layer", "slice", "unit_lo", "units")
FIELDS = {
    EGRU: (*_PLACE, "inputs", "layer_units", "listens", "zoneout", "regions"),
    DRAM: ("vocabulary", "embedding", "head_inputs", "stage", "slices", "regions"),
    HEAD: (*_PLACE, "inputs", "listens", "regions"),
    EMBEDDING: (*_PLACE, "width", "x_frac", "regions"),
    PROGRAM: (*_PLACE, "products", "vectors", "registers", "factors", "instructions", "listens", "regions"),
}


def _product(port: str = "") -> dict[str, str]:
    end = port and f"_{port}"
    return {f"rows{end}": "<u2", f"gaps{end}": "u1", f"weight{end}": "i1"}


REGIONS = {
    EGRU: {
        "cell": "<i2",
        "thr": "<i2",
        "bias_a": "<i4",
        "bias_q": "<i4",
        "shift_a": "i1",
        "shift_q": "i1",
        "accumulators": "<i4",
        **_product("a"),
        **_product("q"),
        "sigmoid": "<i2",
        "tanh": "<i2",
        "keys": "<u4",
    },
    DRAM: {"vectors": "<i2", "weight": "i1", "bias": "<i4", "shift": "i1", "slices": "<u4"},
    HEAD: {"bias": "<i4", "shift": "i1", "accumulators": "<i4", **_product(), "keys": "<u4"},
    EMBEDDING: {"exponent": "i1", **_product()},
    PROGRAM: {
        "products": "<u4",
        "vectors": "<u4",
        "gathered": "<i2",
        "bias": "<i4",
        "shift": "i1",
        "accumulators": "<i4",
        **_product(),
        "factors": "<i4",
        "registers": "<i4",
        "initial": "<i4",
        "program": "<i4",
        "sigmoid": "<i2",
        "power": "<i4",
        "keys": "<u4",
    },
}
KEY_MASK = 0xFFFF0000
LOG, TOKEN, LOGITS = program.LOG, 0xFE, 0xFF
"""streams of the host: what a PE reports; a token to the embedding, its id as the payload; logits from the head"""


def key(stream: int, slice_: int, unit: int = 0) -> int:
    """The multicast key of a unit, or of the first unit of a slice."""
    return stream << 24 | slice_ << 16 | unit


@dataclass(frozen=True, eq=False)
class Image:
    """One file of the image: its kind, its header fields and its regions as arrays."""

    kind: int
    fields: Mapping[str, int]
    regions: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, kind: int, fields: Mapping[str, int], regions: Mapping[str, np.ndarray]) -> "Image":
        """An image of arrays of any integer type that hold what its regions can hold."""
        cast = {name: np.asarray(regions[name]).astype(dtype) for name, dtype in REGIONS[kind].items()}
        return cls(kind, fields, cast)

    def sizes(self) -> dict[str, int]:
        """Bytes of the header and of each region, padding included."""
        header = padded(PREFIX.size + ENTRY.size * len(self.regions))
        return {"header": header} | {name: padded(a.nbytes) for name, a in self.regions.items()}

    def pack(self) -> bytes:
        """The bytes of the file."""
        names = FIELDS[self.kind]
        fields = {**self.fields, "regions": len(self.regions)}
        numbers = [fields[n] for n in names] + [0] * (N_FIELDS - len(names))
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
    """Read a file of the image; raises FormatError where it is not one, or regions overlap or lie outside of it."""
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
    free = PREFIX.size + ENTRY.size * len(wanted)
    for i, (name, dtype) in enumerate(wanted.items()):
        number, offset, size = ENTRY.unpack_from(data, PREFIX.size + i * ENTRY.size)
        inside = free <= offset <= offset + size <= len(data)
        if number != i or offset % ALIGN or not inside or size % np.dtype(dtype).itemsize:
            raise FormatError(f"{where}: {name}", "a region after the last", f"{offset} + {size}", "export it anew")
        free = offset + size
        regions[name] = np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, offset)
    return Image(kind, fields, regions)


def layout_header() -> str:
    """The text of `firmware/layout.h`."""
    lines = [
        "/* Generated by image.layout_header(): a test holds it to that. */",
        "#ifndef S2LM_LAYOUT_H",
        "#define S2LM_LAYOUT_H",
        "",
        f"#define S2LM_MAGIC 0x{int.from_bytes(MAGIC, 'little'):08x}u",
        f"#define S2LM_VERSION {VERSION}u",
        f"#define S2LM_FIELDS {N_FIELDS}",
        f"#define S2LM_PREFIX {PREFIX.size}u",
        f"#define S2LM_ENTRY {ENTRY.size}u",
        f"#define S2LM_ALIGN {ALIGN}u",
        f"#define S2LM_KEY_MASK 0x{KEY_MASK:08x}u",
        f"#define S2LM_LOG 0x{key(LOG, 0):08x}u",
        f"#define S2LM_TOKEN 0x{key(TOKEN, 0):08x}u",
        f"#define S2LM_LOGITS 0x{key(LOGITS, 0):08x}u",
        f"#define S2LM_TABLE_STEP {ints.TABLE_STEP}",
        f"#define S2LM_TABLE_SIZE {ints.TABLE_SIZE}u",
        f"#define S2LM_EVENT_FRAC {ints.EVENT_FRAC}",
        f"#define S2LM_ONE {ints.ONE}",
        f"#define S2LM_POWER_SIZE {program.POWER_SIZE}u",
        f"#define S2LM_MOST_PRODUCTS {program.MOST_PRODUCTS}",
        f"#define S2LM_MOST_VECTORS {program.MOST_VECTORS}",
        "",
        _enum([f"OP_{name.upper()}" for name in program.OPS] + ["S2LM_OPS"]),
        _enum([name.upper() for name in program.COLUMNS] + ["INSTRUCTION"]),
    ]
    lines.append(_enum([f"S2LM_{name.upper()}" for name in KINDS]))
    for kind, name in enumerate(KINDS):
        if kind != DRAM:
            lines.append(_enum([f"{name.upper()}_{field.upper()}" for field in FIELDS[kind]]))
            lines.append(_enum([f"{name.upper()}_AT_{r.upper()}" for r in REGIONS[kind]] + [f"{name.upper()}_END"]))
    return "\n".join([*lines, "", "#endif", ""])


def _enum(names: list[str]) -> str:
    return "enum {\n" + "".join(f"    {name},\n" for name in names) + "};"


def padded(size: int) -> int:
    """Bytes of a region of that many: up to the next boundary."""
    return -(-size // ALIGN) * ALIGN
