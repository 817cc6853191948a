"""The text before the data of EVT and DAT files: lines that begin with a percent sign."""

import re

from rheobase.spiking.errors import FormatError

LONGEST = 1 << 16


def read_header(file, where: object) -> dict[str, str]:
    """The lines of a header, "% key value", with keys in lower case; the file is left at the first byte of the data."""
    found: dict[str, str] = {}
    while True:
        start = file.tell()
        if start > LONGEST:
            raise FormatError(where, f"a header of at most {LONGEST} bytes", "more", "it is another format")
        line = file.readline(LONGEST)
        if not line.startswith(b"% "):
            file.seek(start)
            return found
        key, _, value = line[2:].decode("latin-1").strip().partition(" ")
        if key.lower() == "end":
            return found
        found.setdefault(key.lower(), value)


def header_sensor(header: dict[str, str]) -> tuple[int, int] | None:
    """(width, height) by the line "geometry", by "format", or by "width" and "height"; None without them."""
    by_format = dict(item.split("=", 1) for item in header.get("format", "").split(";") if "=" in item)
    geometry = header.get("geometry", "x").split("x")
    width, height = geometry if len(geometry) == 2 and all(geometry) else (None, None)
    sizes = [
        str(size or by_format.get(key) or header.get(key) or "") for size, key in ((width, "width"), (height, "height"))
    ]
    return tuple(map(int, sizes)) if all(re.fullmatch(r"[1-9]\d{0,4}", size) for size in sizes) else None
