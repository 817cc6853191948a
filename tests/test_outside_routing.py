"""PACMAN and sPyNNaker, SpiNNaker's own tools, on where our processing elements lie and where our events go."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from spikegpts import TEXT, model_of
from test_routing import HOST, stack

from rheobase.backends import export
from rheobase.backends.artifact import open_artifact
from rheobase.backends.exporters.spinnaker2 import chip, load_images, partition, routing
from rheobase.models import EGRULM, EGRULMConfig

HERE = Path(__file__).parent
pytest.importorskip("pacman", reason="sPyNNaker is not installed: pip install 'rheobase[outside]'")


def peer(script: str, folder: Path, *arguments):
    """What a script of a peer found, run at home in a folder."""
    command = [sys.executable, HERE / script, *arguments, folder / "out.json"]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Artefacts of one chip whose layers are cut into many slices, by name."""
    folder = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    egru = EGRULM(EGRULMConfig(embedding=48, layers=(64, 48)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "PE_BYTES", 9000)
        export(egru, "spinnaker2", folder / "egru", calibration=TEXT)
        export(egru, "spinnaker2", folder / "egru, no DRAM", calibration=TEXT, dram=False)
        export(model_of(), "spinnaker2", folder / "spikegpt", calibration=TEXT)
    return folder


def pacman(folder, files, found, version):
    """What PACMAN says of some files, and of three faults in their tables."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "streams.json").write_text(json.dumps([dataclasses.asdict(s) for s in found]))
    tables = json.loads(files[routing.TABLES])
    heard = next(i for i, e in enumerate(tables[0]["entries"]) if e["spinnaker_route"] >> routing.LINKS)
    route = tables[0]["entries"][heard]["spinnaker_route"]
    least, unused = 1 << routing.LINKS, 1 << (routing.LINKS + 152)
    lowest = (route // least & -(route // least)) * least
    (folder / "planted").mkdir()
    for name, wrong in (("lost", route ^ lowest), ("astray", route | unused), ("nowhere", None)):
        changed = json.loads(files[routing.TABLES])
        if wrong is None:
            del changed[0]["entries"][heard]
        else:
            changed[0]["entries"][heard]["spinnaker_route"] = wrong
        (folder / "planted" / f"{name}.json").write_text(json.dumps(changed))
    return peer("pacman_peer.py", folder, folder, version)


def by_key(tables):
    return {(t["x"], t["y"], e["key"], e["mask"]): e["spinnaker_route"] for t in tables for e in t["entries"]}


def check(said, files):
    """Our files pass, and PACMAN's router, given our places and keys, writes the same tables."""
    assert said["routes"] is said["placements"] is None and said["read"] and said["free"]
    assert "did not reach" in said["planted"]["lost"] and "went to more" in said["planted"]["astray"]
    assert said["planted"]["nowhere"]
    tables = json.loads(files[routing.TABLES])
    assert by_key(said["routed"]) == by_key(tables)
    assert sum(len(t["entries"]) for t in said["routed"]) == sum(len(t["entries"]) for t in tables)


@pytest.mark.parametrize("name", ["egru", "egru, no DRAM", "spikegpt"])
def test_pacman_validates_and_finds_the_same_routes_on_one_chip(images, name, tmp_path):
    artifact = open_artifact(images / name)
    files = {n: artifact.read(n) for n in (routing.PLACEMENTS, routing.TABLES, routing.MACHINE)}
    said = pacman(tmp_path, files, routing.streams(*load_images(artifact)), "201")
    check(said, files)
    assert said["machine"] is None
    quads = [(p.quad, p.in_quad) for p in (chip.of_number((0, 0), n) for n in range(1, 153))]
    assert [((x, y), p) for x, y, p in said["quads"][1:]] == quads


def test_pacman_finds_the_same_routes_on_a_row_of_three_chips(tmp_path):
    pes = stack(60, 200, 100)
    files = routing.files(HOST, pes)
    said = pacman(tmp_path, files, routing.streams(HOST, pes), "248")
    check(said, files)
    assert "width=3 and height=1 not supported" in said["machine"]  # it knows boards of 48 chips, no rows


def test_what_pacman_says_of_spinnaker_2_is_that_of_spinnaker_1(images, tmp_path):
    """Its schema ends routes at 24 bits and its reader drops cores from 18 on, on a machine that has 153."""
    artifact = open_artifact(images / "egru")
    files = {n: artifact.read(n) for n in (routing.PLACEMENTS, routing.TABLES, routing.MACHINE)}
    said = pacman(tmp_path, files, routing.streams(*load_images(artifact)), "201")
    schemas = {"machine.json": [], "placements.json": [], "routing_tables.json": ["maximum", "spinnaker_route"]}
    assert said["schemas"] == schemas
    assert said["cores_read"] == 18 and "did not reach" in said["as_shipped"]


def test_spynnaker_maps_the_same_slices_onto_as_many_cores_and_routes_to_the_same(images, tmp_path):
    pytest.importorskip("spynnaker", reason="sPyNNaker is not installed: pip install 'rheobase[outside]'")
    artifact = open_artifact(images / "egru")
    pes = json.loads(artifact.read("partition.json"))["pes"]
    layers = list(dict.fromkeys(pe["layer"] for pe in pes))
    hears, units = {"host": []}, {"host": 48}
    for pe in pes:
        depth = layers.index(pe["layer"])
        below = [other["file"] for other in pes if other["layer"] == layers[depth - 1]] if depth else ["host"]
        hears[pe["file"]] = [*below, *(other["file"] for other in pes if other["layer"] == pe["layer"])]
        units[pe["file"]] = pe["units"][1] - pe["units"][0]
    (tmp_path / "network.json").write_text(json.dumps({"units": units, "hears": hears}))
    (tmp_path / ".spynnaker.cfg").write_text("[Machine]\nversion = 201\nvirtual_board = True\n")
    got = peer("spynnaker_peer.py", tmp_path, tmp_path / "network.json")

    at = {(c["x"], c["y"], c["p"]): c["of"] for c in got["cores"]}
    assert len(at) == len(got["cores"]) and {(x, y) for x, y, _ in at} == {(0, 0)}
    used = [of for of in at.values() if of in units]
    assert sorted(used) == sorted(units) and len(used) == len(pes) + 1 > 8

    def reached(key):
        (entry,) = [e for e in got["entries"] if key & e["mask"] == e["key"]]
        assert not entry["links"]
        return {at[0, 0, p] for p in entry["cores"]}

    theirs = {}
    for sent in got["keys"]:
        assert sent["units"] == units[sent["of"]]
        ends = [reached(sent["key"] + unit) for unit in (0, sent["units"] - 1)]
        assert ends[0] == ends[1]
        theirs[sent["of"]] = ends[0]
    assert theirs == {name: {other for other in hears if name in hears[other]} for name in units}

    places = {row["p"]: row["vertex_label"] for row in json.loads(artifact.read(routing.PLACEMENTS))}
    senders = {stream.key: stream.source for stream in routing.streams(*load_images(artifact))}
    (table,) = json.loads(artifact.read(routing.TABLES))
    ours = {}
    for entry in table["entries"]:
        bits = np.flatnonzero([entry["spinnaker_route"] >> b & 1 for b in range(160)]) - routing.LINKS
        ours[senders[entry["key"]]] = {places[p] for p in bits.tolist() if p}
    assert ours == theirs
