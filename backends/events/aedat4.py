"""iniVation's AEDAT4: packets of FlatBuffers behind a header in XML.

Own code: faery and aedat read it rightly, and faery writes it, but damage makes both panic, in a destructor too, which
ends the process; dv-processing hangs on some damage, and writes one event a Python call. Packets may be compressed,
and reading such needs lz4 or zstandard; they are written plain. Source: the public AEDAT 4.0 description and the
schemas of dv-processing (ioheader.fbs, events.fbs); checked against dv-processing, aedat, faery and evlib.
"""

import struct
from xml.etree import ElementTree

import numpy as np

from rheobase.backends.events._record import Limits, Recording, events
from rheobase.spiking.errors import FormatError, UnsupportedError

SUFFIXES = (".aedat4",)
LIMITS = Limits(t=1 << 62, x=1 << 15, y=1 << 15)
NEEDS_SENSOR = True
LARGEST_PACKET = 1 << 26
_MAGIC = b"#!AER-DAT4.0\r\n"
_EVENT = np.dtype({"names": "txyp", "formats": ["<i8", "<i2", "<i2", "u1"], "offsets": [0, 8, 10, 12], "itemsize": 16})
_PACKET_EVENTS = 1 << 13


class _Damage(Exception):
    pass


def _at(data: bytes, form: str, place: int) -> int:
    """The integer at a place of a FlatBuffer."""
    if not 0 <= place <= len(data) - struct.calcsize(form):
        raise _Damage(f"an offset to byte {place} of {len(data)}")
    return struct.unpack_from(form, data, place)[0]


def _root(data: bytes, kind: bytes) -> int:
    """The place of the root table of a FlatBuffer that begins with its size."""
    if data[8:12] != kind:
        raise _Damage(f"{data[8:12]!r} in place of {kind!r}")
    return 4 + _at(data, "<I", 4)


def _field(data: bytes, table: int, index: int) -> int:
    """The place of a table's field, 0 where it has its default."""
    layout = table - _at(data, "<i", table)
    offset = _at(data, "<H", layout + 4 + 2 * index) if 4 + 2 * index < _at(data, "<H", layout) else 0
    return table + offset if offset else 0


def _vector(data: bytes, table: int, index: int, item: int) -> bytes:
    """The bytes of a vector or string with items of `item` bytes."""
    if not (place := _field(data, table, index)):
        return b""
    start = place + _at(data, "<I", place)
    size = item * _at(data, "<I", start)
    if start + 4 + size > len(data):
        raise _Damage(f"{size} bytes in a packet of {len(data)}")
    return data[start + 4 : start + 4 + size]


def read(file, where: object) -> Recording:
    """The first stream of events of an open file; what else it holds is recorded as lost."""
    size = file.seek(0, 2)
    file.seek(0)
    try:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise _Damage("another beginning")
        start = file.read(4)
        header = start + file.read(min(_at(start, "<I", 0), size))
        root = _root(header, b"IOHE")
        compression, end = (_field(header, root, i) for i in range(2))
        compression = _at(header, "<i", compression) if compression else 0
        end = _at(header, "<q", end) if end else -1
        streams = _streams(_vector(header, root, 2, 1))
    except (_Damage, ElementTree.ParseError, UnicodeDecodeError, ValueError, TypeError) as damage:
        raise FormatError(where, "a header of AEDAT4", str(damage), "it is damaged or another format") from None
    chosen = min((i for i, (kind, _) in streams.items() if kind == "EVTS"), default=None)
    if chosen is None:
        raise FormatError(where, "a stream of events", str([kind for kind, _ in streams.values()]), "record events")
    if end > size:
        raise FormatError(where, f"{end:,} bytes of packets", f"{size:,}", "the file is cut: fetch it anew")
    recording = Recording(None, streams[chosen][1])
    unpack = _unpacker(compression, where)
    recording.chunks = _chunks(file, where, end if end >= 0 else size, unpack, streams, chosen, recording.lost)
    return recording


def _streams(xml: bytes) -> dict[int, tuple[str, tuple[int, int] | None]]:
    """The kind and the size in pixels of each stream of a header."""
    found = {}
    for out in ElementTree.fromstring(xml.decode().rstrip("\0")).iter("node"):
        for stream in out.findall("node") if out.get("name") == "outInfo" else ():
            said = {a.get("key"): a.text or "" for a in stream.iter("attr")}
            size = (int(said.get("sizeX", 0)), int(said.get("sizeY", 0)))
            found[int(stream.get("name"))] = said.get("typeIdentifier", ""), size if min(size) > 0 else None
    return found


def _unpacker(compression: int, where):
    try:
        if compression == 0:
            return lambda data: data
        if compression in (1, 2):
            import lz4.frame

            def lz4_frame(data):
                stream = lz4.frame.LZ4FrameDecompressor()
                plain = stream.decompress(data, LARGEST_PACKET)
                if not stream.eof:
                    raise _Damage("an LZ4 frame without its end")
                return plain

            return lz4_frame
        if compression in (3, 4):
            import zstandard

            def zstd_frame(data):
                try:
                    return zstandard.ZstdDecompressor().stream_reader(data).read(LARGEST_PACKET)
                except zstandard.ZstdError as error:
                    raise _Damage(str(error)) from None

            return zstd_frame
    except ModuleNotFoundError as missing:
        raise UnsupportedError(where, f"{missing.name}", "none", "pip install 'rheobase[events]'") from None
    raise FormatError(where, "compression 0 to 4", str(compression), "the file is damaged")


def _chunks(file, where, end, unpack, streams, chosen, lost):
    others: dict[str, int] = {}
    while (place := file.tell()) < end:
        head = file.read(8)
        stream, size = struct.unpack("<ii", head) if len(head) == 8 else (-1, 0)
        if stream not in streams or not 0 <= size <= min(end - place - 8, LARGEST_PACKET):
            got = f"stream {stream}, {size} bytes at byte {place:,} of {end:,}"
            raise FormatError(where, "a whole packet of a known stream", got, "the file is cut or damaged")
        data = file.read(size)
        if stream != chosen:
            others[streams[stream][0]] = others.get(streams[stream][0], 0) + 1
            continue
        try:
            plain = unpack(data)
            packet = np.frombuffer(_vector(plain, _root(plain, b"EVTS"), 0, _EVENT.itemsize), _EVENT)
            if (packet["p"] > 1).any() or (packet["x"] < 0).any() or (packet["y"] < 0).any():
                raise _Damage("a negative pixel or a polarity above 1")
        except (_Damage, RuntimeError, ValueError, EOFError) as damage:
            raise FormatError(where, f"events at byte {place:,}", str(damage), "the file is damaged") from None
        yield events(packet["t"], packet["x"], packet["y"], packet["p"])
    lost += [f"{n:,} packets of {kind} left out" for kind, n in others.items()]


def write(file, where: object, sensor, chunks) -> None:
    """Events into an open file, as stream 0."""
    attributes = {"compression": "NONE", "originalOutputName": "events", "typeIdentifier": "EVTS"}
    of = "/mainloop/Recorder/outInfo/"
    dv = ElementTree.Element("dv", version="2.0")
    stream = ElementTree.SubElement(ElementTree.SubElement(dv, "node", name="outInfo", path=of), "node")
    stream.attrib.update(name="0", path=f"{of}0/")
    for key, text in attributes.items():
        ElementTree.SubElement(stream, "attr", key=key, type="string").text = text
    info = ElementTree.SubElement(stream, "node", name="info", path=f"{of}0/info/")
    ElementTree.SubElement(info, "attr", key="source", type="string").text = "rheobase"
    for key, size in zip(("sizeX", "sizeY"), sensor, strict=True):
        ElementTree.SubElement(info, "attr", key=key, type="int").text = str(size)
    xml = ElementTree.tostring(dv)
    # a table with fields 1 and 2: the place of the packets' index, -1 for none, and the XML; field 0, compression, is 0
    table = struct.pack("<6HiIqI", 10, 16, 0, 8, 4, 0, 12, 12, -1, len(xml)) + xml + b"\0"
    header = struct.pack("<I4s", 20, b"IOHE") + table
    file.write(_MAGIC + struct.pack("<I", len(header)) + header)
    for chunk in chunks:
        for start in range(0, len(chunk), _PACKET_EVENTS):
            part = chunk[start : start + _PACKET_EVENTS]
            packet = np.zeros(len(part), _EVENT)
            for name in "txyp":
                packet[name] = part[name]
            # a table with one field, the vector of events, which lies at a multiple of 8 bytes
            head = struct.pack("<I4sHHHHiII", 16, b"EVTS", 6, 8, 4, 0, 8, 4, len(part))
            file.write(struct.pack("<iiI", 0, 4 + len(head) + packet.nbytes, len(head) + packet.nbytes) + head)
            file.write(packet.data)
