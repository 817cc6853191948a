"""Placements, routing tables and machine of an image in PACMAN's JSON, and the lint that reads them back.

A slice of units sends under keys of its own, key / mask [31:16] (see `image`), and has one entry in the router of
each chip that its events reach. An entry's `spinnaker_route` has a bit a destination: 0 to 5 the links to other
chips (0 east, 3 west), 6 + p the PE p; 6 the management core, which stands for the host. Keys of the tables are those
of the schemas in `pacman.utilities.file_format_schemas`, SpiNNaker_PACMAN 1!7.4.1; its schema caps the route at 24
bits, those of SpiNNaker 1 with 18 cores a chip, and a chip of 152 PEs needs 159.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rheobase.backends.exporters.spinnaker2.chip import HOST, IN_QUAD, QUADS, Place, hops, of_number, place
from rheobase.backends.exporters.spinnaker2.image import EGRU, EMBEDDING, KEY_MASK, LOGITS, PROGRAM, TOKEN, Image, key
from rheobase.backends.exporters.spinnaker2.program import COLUMNS, OPS, Instruction
from rheobase.spiking.errors import FormatError

PLACEMENTS, TABLES, MACHINE = "placements.json", "routing_tables.json", "machine.json"
ENTRIES = 16_384
"""of a chip's router; arXiv 2607.24396 and SpiNNMachine 1!7.4.1"""
LINKS, EAST, WEST = 6, 0, 3
SDRAM = 1 << 30
"""bytes of DRAM a chip, as SpiNNMachine 1!7.4.1 has them; 2 GB by arXiv 2607.24396"""
Pes = Sequence[tuple[str, Image]]


@dataclass(frozen=True)
class Stream:
    """The events of a slice: their key, the most of them at a tick, who sends and who listens, by file; "host"."""

    key: int
    packets: int
    source: str
    listeners: tuple[str, ...]


def streams(dram: Image | None, pes: Pes) -> list[Stream]:
    """Every slice's events, from what the images say that they send and listen to.

    raises  FormatError: a key that two send, that is listened to and nobody sends, or is sent and nobody listens to
    """
    sends: dict[int, tuple[str, int]] = {}
    listens: dict[int, list[str]] = defaultdict(list)

    def sender(base: int, where: str, packets: int) -> None:
        if base in sends:
            raise FormatError(where, "a key of its own", f"{base:#010x}, of {sends[base][0]} too", "export it anew")
        sends[base] = (where, packets)

    if dram is None:
        sender(key(TOKEN, 0), "host", 1)
    else:
        sender(key(0, 0), "host", dram.fields["embedding"])
    for where, image in pes:
        f = image.fields
        if image.kind == EMBEDDING:
            sender(key(0, f["slice"]), where, f["width"])
            listens[key(TOKEN, 0)].append(where)
        else:
            for stream in sent_by(image):
                sender(key(stream, f["slice"]), where, f["units"])
                if stream == LOGITS:
                    listens[key(stream, f["slice"])].append("host")
            for heard in image.regions["keys"].reshape(-1, 4)[:, 0].tolist():
                listens[heard].append(where)
    if dram is not None:
        for heard in dram.regions["slices"].reshape(-1, 3)[:, 0].tolist():
            listens[heard].append("host")
    for base in [*(listens.keys() - sends.keys()), *(sends.keys() - listens.keys())]:
        who, what = (listens[base][0], "sent by none") if base in listens else (sends[base][0], "heard by none")
        raise FormatError(who, "keys that are sent and listened to", f"{base:#010x}, {what}", "export it anew")
    return [Stream(base, packets, who, tuple(dict.fromkeys(listens[base]))) for base, (who, packets) in sends.items()]


def sent_by(image: Image) -> dict[int, str]:
    """The streams that a layer, a section or a head sends, and the port that shows them to a probe."""
    if image.kind == PROGRAM:
        return {row.s0: str(row.a) for row in program_of(image) if OPS[row.op] == "send"}
    return {image.fields["layer"] + 1: "y"} if image.kind == EGRU else {LOGITS: "out"}


def program_of(image: Image) -> list[Instruction]:
    """A section's program."""
    return [Instruction(*row) for row in image.regions["program"].reshape(-1, len(COLUMNS)).tolist()]


def places(pes: Pes) -> dict[str, Place]:
    """Where each PE lies, by its file, in the order of the stages; and the host."""
    return {"host": HOST} | {where: place(index) for index, (where, _) in enumerate(pes)}


def links_crossed(found: Iterable[Stream], at: Mapping[str, Place]) -> int:
    """Links between quads that are crossed at a tick if every unit sends; from another chip, (0, 0) is the origin."""
    total = 0
    for stream in found:
        source, chips = at[stream.source], defaultdict(list)
        for listener in stream.listeners:
            chips[at[listener].chip].append(at[listener].quad)
        for chip, quads in chips.items():
            total += stream.packets * hops(source.quad if chip == source.chip else HOST.quad, quads)
    return total


def tables(found: Iterable[Stream], at: Mapping[str, Place]) -> dict[tuple[int, int], list[dict]]:
    """The entries of each chip's router; chips lie in a row."""
    routers: dict[tuple[int, int], list[dict]] = defaultdict(list)
    for stream in found:
        start, goals = at[stream.source].chip[0], [at[listener] for listener in stream.listeners]
        ends = [start, *(goal.chip[0] for goal in goals)]
        for x in range(min(ends), max(ends) + 1):
            route = sum(1 << (LINKS + p) for p in {goal.p for goal in goals if goal.chip[0] == x})
            route |= (start <= x < max(ends)) << EAST | (min(ends) < x <= start) << WEST
            entry = {"key": stream.key, "mask": KEY_MASK, "defaultable": False, "spinnaker_route": route}
            routers[x, 0].append(entry)
    return dict(routers)


def files(dram: Image | None, pes: Pes) -> dict[str, bytes]:
    """The three JSON files; raises as `streams`."""
    at = places(pes)
    routers = tables(streams(dram, pes), at)
    chips = sorted({p.chip for p in at.values()} | routers.keys())
    resources = {"monitors": 1, "routerEntries": ENTRIES, "sdram": SDRAM, "tags": [], "virtual": False}
    last = len(chips) - 1

    def details(x: int) -> dict:
        ends = {EAST: last, WEST: 0}
        dead = [link for link in range(LINKS) if x == ends.get(link, x)]
        return {"cores": 1 + IN_QUAD * len(QUADS), "ethernet": [0, 0], "deadLinks": dead}

    machine = {
        "width": len(chips),
        "height": 1,
        "root": [0, 0],
        "ethernetResources": resources,
        "standardResources": resources,
        "chips": [[x, y, details(x), {}] for x, y in chips],
    }
    placed = [{"vertex_label": where, "x": at[where].chip[0], "y": 0, "p": at[where].p} for where, _ in pes]
    routes = [{"x": x, "y": y, "entries": entries} for (x, y), entries in sorted(routers.items())]
    tables_ = {PLACEMENTS: placed, TABLES: routes, MACHINE: machine}
    return {name: json.dumps(table).encode() + b"\n" for name, table in tables_.items()}


def read_places(data: bytes, pes: Pes) -> dict[str, Place]:
    """The places of `placements.json`; raises FormatError unless each PE of the image has one of its own."""
    rows = _load(data, PLACEMENTS, ("vertex_label", "x", "y", "p"))
    at = {"host": HOST}
    for row in rows:
        p = row["p"]
        if type(p) is not int or not 1 <= p <= IN_QUAD * len(QUADS):
            raise FormatError(PLACEMENTS, f"PEs from 1 to {IN_QUAD * len(QUADS)}", f"{p!r}", "export it anew")
        at[str(row["vertex_label"])] = of_number(_chip(row, PLACEMENTS), p)
    wanted = {"host", *(where for where, _ in pes)}
    if at.keys() != wanted or len(rows) != len(pes) or len(set(at.values())) != len(at):
        raise FormatError(PLACEMENTS, f"a place of its own for each of {len(pes)} PEs", f"{len(rows)}", "export anew")
    return at


def lint(artifact, dram: Image | None, pes: Pes) -> str:
    """Check the three files of an artefact against its images; what was found, in one line.

    Two entries of a router that match a common key, more entries than a router has, a PE or a chip that is not there,
    and events that reach another set of PEs than those that listen to them are refused.

    raises  FormatError: names the first of these
    """
    found = streams(dram, pes)
    at = read_places(artifact.read(PLACEMENTS), pes)
    machine = _object(artifact.read(MACHINE), MACHINE)
    try:
        chips = {(int(x), int(y)) for x, y, *_ in machine["chips"]}
    except (KeyError, TypeError, ValueError):
        raise FormatError(MACHINE, "a list of chips", "none", "export it anew") from None
    routers = {}
    for row in _load(artifact.read(TABLES), TABLES, ("x", "y", "entries")):
        where = f"{TABLES}: chip {_chip(row, TABLES)}"
        entries = _rows(row["entries"], where, ("key", "mask", "spinnaker_route"))
        routers[_chip(row, TABLES)] = _checked(where, entries)
    missing = ({p.chip for p in at.values()} | routers.keys()) - chips
    if missing:
        raise FormatError(MACHINE, "every chip that is used", f"no chip {min(missing)}", "export it anew")
    numbers = {(p.chip, p.p): name for name, p in at.items()}
    for stream in found:
        for event in (stream.key, stream.key + stream.packets - 1):
            reached = _follow(event, at[stream.source].chip, routers, numbers)
            if reached != set(stream.listeners):
                who = min(reached ^ set(stream.listeners))
                what = "not there" if who in stream.listeners else "at one that does not listen"
                problem = f"{what}: {who}"
                raise FormatError(f"{TABLES}: key {event:#010x}", "events where they are heard", problem, "export anew")
    most = max(len(entries) for entries in routers.values())
    return (
        f"routing: {len(pes)} elements on {len(chips)} chip(s), {most} entries a router of {ENTRIES}, none overlap; "
        f"{len(found)} keys reach who listens, over {links_crossed(found, at):,} links if every unit sends"
    )


def _checked(where: str, entries: list[dict]) -> list[dict]:
    """Entries of one router; raises FormatError where they are too many or two of them match one key."""
    if len(entries) > ENTRIES:
        raise FormatError(where, f"at most {ENTRIES} entries", f"{len(entries)}", "spread it over more chips")
    for entry in entries:
        word = all(type(entry[k]) is int and 0 <= entry[k] < 1 << 32 for k in ("key", "mask"))
        if not word or entry["key"] & ~entry["mask"] or type(entry["spinnaker_route"]) is not int:
            raise FormatError(where, "a key inside its mask, and a route", f"{entry}", "export it anew")
    keys, masks = (np.array([e[name] for e in entries], np.uint32) for name in ("key", "mask"))
    for i in range(len(entries)):
        both = (keys[i] ^ keys[i + 1 :]) & masks[i] & masks[i + 1 :]
        if (both == 0).any():
            j = i + 1 + int(np.flatnonzero(both == 0)[0])
            pair = f"{keys[i]:#010x}/{masks[i]:#010x} and {keys[j]:#010x}/{masks[j]:#010x}"
            raise FormatError(where, "entries that match no common key", pair, "give each slice a key of its own")
    return entries


def _follow(event: int, start: tuple[int, int], routers: Mapping, numbers: Mapping) -> set[str]:
    """The PEs that an event reaches from the router of a chip."""
    reached, seen, chips = set(), set(), [start]
    while chips:
        chip = chips.pop()
        entry = next((e for e in routers.get(chip, ()) if event & e["mask"] == e["key"]), None)
        if chip in seen or entry is None:
            what = "a ring" if chip in seen else "no entry"
            raise FormatError(f"{TABLES}: chip {chip}", f"a route of key {event:#010x}", what, "export it anew")
        seen.add(chip)
        route = entry["spinnaker_route"]
        for bit in [b for b in range(route.bit_length()) if route >> b & 1]:
            if bit in (EAST, WEST):
                chips.append((chip[0] + (1 if bit == EAST else -1), chip[1]))
            elif (chip, bit - LINKS) in numbers:
                reached.add(numbers[chip, bit - LINKS])
            else:
                what = f"route to {bit} of chip {chip}"
                raise FormatError(
                    f"{TABLES}: key {event:#010x}", "routes to PEs that there are", what, "export it anew"
                )
    return reached


def _chip(row: Mapping, where: str) -> tuple[int, int]:
    if any(type(row[axis]) is not int or not 0 <= row[axis] < 256 for axis in "xy"):
        raise FormatError(where, "a chip (x, y)", f"{row['x']!r}, {row['y']!r}", "export it anew")
    return row["x"], row["y"]


def _object(data: bytes, where: str):
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        raise FormatError(where, "JSON", "other", "export it anew") from None


def _load(data: bytes, where: str, keys: Sequence[str]) -> list[dict]:
    return _rows(_object(data, where), where, keys)


def _rows(rows: object, where: str, keys: Sequence[str]) -> list[dict]:
    """A list of tables that have some keys."""
    if not isinstance(rows, list) or any(not isinstance(r, dict) or not r.keys() >= set(keys) for r in rows):
        raise FormatError(where, f"a list of tables with {', '.join(keys)}", "another", "export it anew")
    return rows
