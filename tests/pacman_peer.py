"""PACMAN reads, checks and computes anew what routing.py writes. A process of its own: PACMAN's state is global.

    python pacman_peer.py FOLDER VERSION OUT

FOLDER holds machine.json, placements.json, routing_tables.json, streams.json with who sends what to whom, and
planted/*.json, routing tables that are wrong. VERSION is one of SpiNNMachine's, 201 (a chip of SpiNNaker 2) or 248 (a
board of 48). OUT gets JSON.
"""

import json
import sys
from pathlib import Path

import jsonschema
from pacman.config_setup import unittest_setup
from pacman.data.pacman_data_writer import PacmanDataWriter
from pacman.model.graphs.application import ApplicationEdge
from pacman.model.graphs.application.abstract import AbstractOneAppOneMachineVertex
from pacman.model.graphs.common import Slice
from pacman.model.graphs.machine import SimpleMachineVertex
from pacman.model.partitioner_splitters import SplitterOneAppOneMachine
from pacman.model.placements import Placement, Placements
from pacman.model.routing_info import AppVertexRoutingInfo, BaseKeyAndMask, MachineVertexRoutingInfo, RoutingInfo
from pacman.model.routing_tables.multicast_routing_tables import from_json, to_json
from pacman.operations.multi_cast_router_check_functionality.valid_routes_checker import validate_routes
from pacman.operations.router_algorithms import route_application_graph
from pacman.operations.routing_table_generators import basic_routing_table_generator
from pacman.utilities.file_format_schemas import validate
from pacman.utilities.json_utils import placement_from_json
from spinn_machine.data import MachineDataView
from spinn_machine.json_machine import machine_from_json
from spinn_machine.router import Router
from spinn_machine.virtual_machine import virtual_machine_by_boards
from spinn_utilities.config_holder import set_config

MASK = 0xFFFF0000
FILES = ("machine.json", "placements.json", "routing_tables.json")


def said(function, *arguments) -> str | None:
    """The error that a call ends with, or None."""
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def schema(table, name: str) -> list[str]:
    """What the JSON schema that PACMAN ships for a file finds wrong: the kind of each error and where."""
    try:
        validate(table, name)
    except jsonschema.ValidationError as error:
        return [str(error.validator), str(error.path[-1])]
    return []


def vertex(writer, name: str, units: int):
    """A vertex of one core, with as many keys as it sends."""
    inside = SimpleMachineVertex(None, name, vertex_slice=Slice(0, units - 1))
    made = AbstractOneAppOneMachineVertex(inside, name)
    made.splitter = SplitterOneAppOneMachine()
    writer.add_vertex(made)
    return made


def build(writer, streams, placements) -> None:
    """The network as PACMAN has it: who sends to whom, with our keys, at our places; the host is core 0."""
    units = {s["source"]: s["packets"] for s in sorted(streams, key=lambda s: s["packets"])}
    rows = [*placements, {"vertex_label": "host", "x": 0, "y": 0, "p": 0}]
    vertices = {
        row["vertex_label"]: vertex(writer, row["vertex_label"], units.get(row["vertex_label"], 1)) for row in rows
    }
    keys = RoutingInfo()
    for s in streams:
        source, name, own = vertices[s["source"]], f"{s['key']:#010x}", BaseKeyAndMask(s["key"], MASK)
        for listener in s["listeners"]:
            writer.add_edge(ApplicationEdge(source, vertices[listener]), name)
        keys.add_routing_info(MachineVertexRoutingInfo(own, name, source.machine_vertex, 0))
        keys.add_routing_info(AppVertexRoutingInfo(own, name, source, MASK, 16, 0))
    places = [Placement(vertices[r["vertex_label"]].machine_vertex, r["x"], r["y"], r["p"]) for r in rows]
    writer.set_placements(Placements(places))
    writer.set_routing_infos(keys)


def main(folder: str, version: str, out: str) -> None:
    folder = Path(folder)
    ours = {name: json.loads((folder / name).read_text()) for name in (*FILES, "streams.json")}
    tables = ours["routing_tables.json"]
    unittest_setup()
    set_config("Machine", "version", version)
    writer = PacmanDataWriter.mock()
    board = virtual_machine_by_boards(1)
    writer.set_machine(board)
    build(writer, ours["streams.json"], ours["placements.json"])
    chips = {(chip.x, chip.y): chip for chip in board.chips}
    places = [(row["x"], row["y"], row["p"]) for row in ours["placements.json"]]
    found = {
        "schemas": {name: schema(ours[name], name) for name in FILES},
        "machine": said(machine_from_json, ours["machine.json"]),
        "placements": said(lambda: Placements(map(placement_from_json, ours["placements.json"]))),
        "quads": [MachineDataView.get_machine_version().id_to_qx_qy_qp(p) for p in range(153)],
        "free": all(p in chips[x, y].placable_processors_ids for x, y, p in places),
        "cores_read": Router.MAX_CORES_PER_ROUTER,
        "as_shipped": said(validate_routes, from_json(tables)),
    }
    Router.MAX_CORES_PER_ROUTER = board[0, 0].n_processors
    found["read"] = to_json(from_json(tables)) == tables
    found["routes"] = said(validate_routes, from_json(tables))
    planted = sorted((folder / "planted").glob("*.json"))
    found["planted"] = {p.stem: said(validate_routes, from_json(json.loads(p.read_text()))) for p in planted}
    writer.set_routing_table_by_partition(route_application_graph())
    found["routed"] = to_json(basic_routing_table_generator())
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
