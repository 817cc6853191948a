"""Where processing elements lie, and whether events reach those who listen."""

import json

import numpy as np
import pytest

from rheobase.backends import verify
from rheobase.backends.artifact import open_artifact, reseal
from rheobase.backends.exporters.spinnaker2 import chip, load_images, routing
from rheobase.backends.exporters.spinnaker2.image import EGRU, HEAD, REGIONS, Image, key


def stack(*counts: int, units: int = 8):
    """PEs of layers with so many slices each, fed by the host, that hold nothing but their keys; and a head."""
    pes, before = [], [key(0, 0)]
    for layer, count in enumerate(counts):
        own = [key(layer + 1, s) for s in range(count)]
        for s in range(count):
            pes.append((f"{layer}.{s}", element(EGRU, layer, s, units, before + own)))
        before = own
    return [*pes, ("head", element(HEAD, len(counts), 0, units, before))]


def element(kind, layer, number, units, keys):
    regions = dict.fromkeys(REGIONS[kind], ()) | {"keys": np.array([[k, 0, units, 0] for k in keys])}
    return Image.of(kind, {"layer": layer, "slice": number, "units": units}, regions)


HOST = Image.of(1, {"embedding": 8}, dict.fromkeys(REGIONS[1], ()))


class Files:
    """An artefact that lives in memory."""

    def __init__(self, files):
        self.files = files

    def read(self, name):
        return self.files[name]


def test_the_quads_by_hand():
    grid = {(x, y) for x in range(1, 8) for y in range(1, 7)} - {(4, 3), (4, 4), (7, 3), (7, 4)}
    assert len(chip.QUADS) == 38 and set(chip.QUADS) == grid and sorted(chip.ORDER) == list(range(38))
    assert chip.of_number((0, 0), 1) == chip.Place((0, 0), 1, (7, 6), 0)
    assert chip.of_number((0, 0), 152) == chip.Place((0, 0), 152, (5, 3), 3)
    places = [chip.place(i) for i in range(2 * chip.USABLE)]
    assert len(set(places)) == 2 * chip.USABLE and {p.chip for p in places[: chip.USABLE]} == {(0, 0)}
    assert places[0] == chip.Place((0, 0), 77, (1, 1), 0) and places[148].chip == (1, 0)


def test_hops_by_hand_and_by_walking():
    assert chip.hops((1, 1), [(1, 1)]) == 0
    assert chip.hops((2, 2), [(4, 2), (4, 5), (1, 1)]) == 3 + 3 + 1
    rng = np.random.default_rng(0)
    for _ in range(100):
        quads = [chip.QUADS[i] for i in rng.integers(0, 38, rng.integers(2, 12))]
        links = set()
        for x, y in quads[1:]:
            at = quads[0]
            while at != (x, y):
                step = (np.sign(x - at[0]), 0) if x != at[0] else (0, np.sign(y - at[1]))
                after = (at[0] + int(step[0]), at[1] + int(step[1]))
                links.add((at, after))
                at = after
        assert chip.hops(quads[0], quads[1:]) == len(links)


def test_links_by_hand():
    """8 units from quad (1, 1) to (3, 2): 2 + 1 links. On another chip from its (0, 0): 3 along x, 1 and 2 along y."""
    stream = routing.Stream(key(1, 0), 8, "a", ("b", "c", "d"))
    here, there = (0, 0), (1, 0)
    at = {
        "a": chip.Place(here, 1, (1, 1), 0),
        "b": chip.Place(here, 2, (3, 2), 0),
        "c": chip.Place(there, 1, (1, 1), 0),
        "d": chip.Place(there, 2, (3, 2), 0),
    }
    assert routing.links_crossed([stream], at) == 8 * (3 + 6)


def test_our_order_crosses_fewer_links_than_that_of_the_numbers():
    pes = stack(9, 16, 9)
    found = routing.streams(HOST, pes)
    ours = routing.places(pes)
    by_number = {"host": chip.HOST} | {where: chip.of_number((0, 0), 1 + i) for i, (where, _) in enumerate(pes)}
    assert routing.links_crossed(found, ours) < 0.8 * routing.links_crossed(found, by_number)


def test_a_table_by_hand():
    pes = stack(1, 2)
    at = routing.places(pes)
    ((chip_, entries),) = routing.tables(routing.streams(HOST, pes), at).items()
    routes = {e["key"]: e["spinnaker_route"] for e in entries}
    bit = {name: 1 << (6 + p.p) for name, p in at.items()}
    assert chip_ == (0, 0) and bit["host"] == 64
    assert routes == {
        key(0, 0): bit["0.0"],
        key(1, 0): bit["0.0"] | bit["1.0"] | bit["1.1"],
        key(2, 0): bit["1.0"] | bit["1.1"] | bit["head"],
        key(2, 1): bit["1.0"] | bit["1.1"] | bit["head"],
        key(0xFF, 0): bit["host"],
    }


@pytest.mark.parametrize("counts", [(9, 16, 9), (60, 200, 100)])
def test_what_is_written_passes_the_lint(counts):
    pes = stack(*counts)
    said = routing.lint(Files(routing.files(HOST, pes)), HOST, pes)
    assert f"{sum(counts) + 1} elements on {-(-(sum(counts) + 1) // 148)} chip(s)" in said


def test_the_lint_finds_what_is_planted():
    pes = stack(3, 160)
    files = {name: json.loads(data) for name, data in routing.files(HOST, pes).items()}

    def said(name, change):
        table = json.loads(json.dumps(files[name]))
        change(table)
        planted = files | {name: table}
        with pytest.raises(routing.FormatError) as error:
            routing.lint(Files({n: json.dumps(t).encode() for n, t in planted.items()}), HOST, pes)
        return str(error.value)

    def entry(table, base, chip=0):
        return next(e for e in table[chip]["entries"] if e["key"] == base)

    tables = routing.TABLES
    assert "match no common key" in said(tables, lambda t: entry(t, key(1, 0)).update(mask=0xFF000000))
    assert "a key inside its mask" in said(tables, lambda t: entry(t, key(1, 1)).update(mask=0xFF000000))
    assert "at most 16384 entries" in said(tables, lambda t: t[0].update(entries=t[0]["entries"] * 120))
    assert "no entry" in said(tables, lambda t: t[0]["entries"].remove(entry(t, key(2, 0))))
    assert "not there: 0." in said(tables, lambda t: entry(t, key(1, 0)).update(spinnaker_route=0))
    assert "does not listen" in said(tables, lambda t: entry(t, key(0, 0)).update(spinnaker_route=15 << 83))
    assert "PEs that there are" in said(tables, lambda t: entry(t, key(0, 0)).update(spinnaker_route=1 << 180))
    assert "a ring" in said(tables, lambda t: entry(t, key(1, 0), 1).update(spinnaker_route=8))
    assert "a chip (x, y)" in said(tables, lambda t: t[0].update(x=[]))
    assert "a list of tables" in said(tables, lambda t: t.append(3))
    assert "a place of its own" in said(routing.PLACEMENTS, lambda t: t[0].update(p=t[1]["p"]))
    assert "PEs from 1 to 152" in said(routing.PLACEMENTS, lambda t: t[0].update(p=0))
    assert "every chip that is used" in said(routing.MACHINE, lambda t: t["chips"].pop())
    assert "a list of chips" in said(routing.MACHINE, lambda t: t.clear())


def test_keys_that_fit_nobody_are_named():
    pes = stack(2)
    with pytest.raises(routing.FormatError, match="0.0: expected a key of its own, got 0x01000000, of 0.0 too"):
        routing.streams(HOST, [pes[0], *pes])
    with pytest.raises(routing.FormatError, match="0x01010000, sent by none"):
        routing.streams(HOST, [pes[0], pes[2]])
    with pytest.raises(routing.FormatError, match="host: .*0xfe000000, heard by none"):
        routing.streams(None, [(w, element(EGRU, 0, 0, 8, [key(1, 0)])) for w, _ in pes[:1]])


def test_verify_runs_the_lint(small_image):
    said = verify(small_image)
    assert said.ok and any("none overlap" in note for note in said.notes)
    path = small_image / routing.TABLES
    tables = json.loads(path.read_text())
    tables[0]["entries"].append(tables[0]["entries"][0])
    path.write_text(json.dumps(tables))
    reseal(small_image)
    assert "match no common key" in verify(small_image).problem
    dram, pes = load_images(open_artifact(small_image))
    assert routing.read_places((small_image / routing.PLACEMENTS).read_bytes(), pes) == routing.places(pes)
