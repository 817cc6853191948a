"""Which processing element owns which units, and the images that follow from it."""

from dataclasses import dataclass

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.image import DRAM, PE, Image, key
from rheobase.backends.exporters.spinnaker2.quantise import IntegerEGRUCell, IntegerEmbedding, IntegerLinear
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph, Tokens

PE_BYTES = 94_208
"""regions of one PE: 96 KiB of data memory less 4 KiB of stack and heap"""
PES = 148


@dataclass(frozen=True)
class Layer:
    """One EGRU layer of the integer graph: its nodes' names and their arrays, and where its input comes from."""

    name: str
    kernel: str
    recurrent: str
    stream_in: int
    inputs: int
    units: int
    zoneout: int


def layers_of(graph: EventGraph) -> list[Layer]:
    """The layers, first to last; raises UnsupportedError where the graph is not embedding, EGRU layers and a head."""
    cells = [n for group in graph.order() for n in map(graph.node, group) if isinstance(n.op, IntegerEGRUCell)]
    streams = {f"{n.name}.out": 0 for n in graph.nodes if isinstance(n.op, IntegerEmbedding)}
    found = []
    for index, cell in enumerate(cells):
        edges = graph.inputs_of(cell.name)
        kernel, recurrent = edges["a"].source_node, edges["q"].source_node
        source = graph.inputs_of(kernel)["x"]
        back = graph.inputs_of(recurrent)["x"]
        if source.source not in streams or source.delay or back.source != f"{cell.name}.y" or not back.delay:
            raise UnsupportedError(
                cell.name, "a layer fed by the one before and by itself", source.source, "export a stack"
            )
        units = graph.shape_of(f"{cell.name}.y")[0]
        found.append(
            Layer(cell.name, kernel, recurrent, streams[source.source], source.shape[0], units, cell.op.zoneout)
        )
        streams[f"{cell.name}.y"] = index + 1
    used = {part for layer in found for part in (layer.name, layer.kernel, layer.recurrent)}
    rest = [n for n in graph.nodes if n.name not in used and not isinstance(n.op, Tokens | IntegerEmbedding)]
    if not found or len(rest) != 1 or f"{rest[0].name}.out" not in graph.outputs.values():
        raise UnsupportedError(
            "graph",
            "an embedding, EGRU layers and one head",
            f"{[n.name for n in rest]}",
            "export an EGRU model",
        )
    return found


def pe_bytes(inputs: int, layer_units: int, units: int, streams: int) -> int:
    """Bytes of all regions of a PE that owns `units` units, without building it."""
    empty = _pe_image(0, 0, 0, units, layer_units, inputs, streams, 0, None)
    return sum(empty.sizes().values())


def slices_of(layer: Layer, slices_in: int) -> list[tuple[int, int]]:
    """The units of each PE of a layer: the fewest PEs that fit, as even as can be.

    raises  UnsupportedError: one unit alone does not fit
    """
    for n_pes in range(1, layer.units + 1):
        most = -(-layer.units // n_pes)
        if pe_bytes(layer.inputs, layer.units, most, slices_in + n_pes) <= PE_BYTES:
            bounds = [layer.units * i // n_pes for i in range(n_pes + 1)]
            return list(zip(bounds, bounds[1:], strict=False))
    one = pe_bytes(layer.inputs, layer.units, 1, slices_in + layer.units)
    raise UnsupportedError(
        layer.name,
        f"at most {PE_BYTES} bytes a processing element",
        f"{one} bytes with one unit of {layer.inputs} + {layer.units} sources",
        f"make its inputs and units together fewer than {(layer.inputs + layer.units) * PE_BYTES // one}",
    )


def build(graph: EventGraph) -> tuple[list[tuple[Layer, int, Image]], Image]:
    """Every PE as (layer, slice, image), in the order of their numbers, and the dram image.

    raises  UnsupportedError: a layer, or the whole, does not fit; the message says by how much
    """
    layers = layers_of(graph)
    slices = {0: [(0, layers[0].inputs)]}
    for index, layer in enumerate(layers):
        slices[index + 1] = slices_of(layer, len(slices[layer.stream_in]))
    needed = {layer.name: len(slices[i + 1]) for i, layer in enumerate(layers)}
    if sum(needed.values()) > PES:
        worst = max(layers, key=lambda layer: needed[layer.name])
        shrink = (PES / sum(needed.values())) ** 0.5
        raise UnsupportedError(
            worst.name,
            f"at most {PES} processing elements in all",
            f"{sum(needed.values())}, of which {needed[worst.name]} for {_layer_bytes(worst)} bytes of its weights",
            f"make it narrower: about {int(worst.units * shrink)} units would fit",
        )
    pes = []
    for index, layer in enumerate(layers):
        weights = {}
        for port, node_name in (("a", layer.kernel), ("q", layer.recurrent)):
            node = graph.node(node_name)
            arrays = graph.arrays_of(node)
            weights[port] = (arrays["weight"], arrays["bias"], node.op.shift(arrays["exponent"]))
        thr = graph.arrays_of(graph.node(layer.name))["thr"]
        sources = [(layer.stream_in, 0, slices[layer.stream_in]), (index + 1, 1, slices[index + 1])]
        for number, (lo, hi) in enumerate(slices[index + 1]):
            streams = sum(len(s) for _, _, s in sources)
            parts = {"thr": thr[lo:hi]}
            columns = np.concatenate([gate * layer.units + np.arange(lo, hi) for gate in range(3)])
            for port, (weight, bias, shift) in weights.items():
                parts |= {
                    f"weight_{port}": weight[:, columns],
                    f"bias_{port}": bias[columns],
                    f"shift_{port}": shift[columns],
                }
            parts["keys"] = [
                [key(stream, s), first, port] for stream, port, cut in sources for s, (first, _) in enumerate(cut)
            ]
            image = _pe_image(index, number, lo, hi - lo, layer.units, layer.inputs, streams, layer.zoneout, parts)
            pes.append((layer, number, image))
    return pes, _dram_image(graph, layers, slices[len(layers)])


def _layer_bytes(layer: Layer) -> int:
    return 3 * layer.units * (layer.inputs + layer.units)


def _pe_image(layer, number, lo, units, layer_units, inputs, streams, zoneout, parts) -> Image:
    n, width = units, 3 * units
    shapes = {
        "cell": n,
        "thr": n,
        "bias_a": width,
        "bias_q": width,
        "shift_a": width,
        "shift_q": width,
        "weight_a": (inputs, width),
        "weight_q": (layer_units, width),
        "accumulators": 2 * width,
        "keys": (streams, 3),
        "out_fifo": (n, 2),
    }
    dtypes = {
        "cell": "<i2",
        "thr": "<i2",
        "shift_a": "u1",
        "shift_q": "u1",
        "weight_a": "i1",
        "weight_q": "i1",
    }
    regions = {}
    for name, shape in shapes.items():
        dtype = dtypes.get(name, "<u4" if name in ("keys", "out_fifo") else "<i4")
        given = None if parts is None else parts.get(name)
        regions[name] = np.zeros(shape, dtype) if given is None else np.asarray(given).astype(dtype).reshape(shape)
    regions |= {"sigmoid": ints.sigmoid_table(), "tanh": ints.tanh_table()}
    fields = {
        "layer": layer,
        "slice": number,
        "unit_lo": lo,
        "units": units,
        "layer_units": layer_units,
        "inputs": inputs,
        "streams_in": streams,
        "zoneout": zoneout,
    }
    return Image(PE, fields, regions)


def _dram_image(graph: EventGraph, layers: list[Layer], last: list[tuple[int, int]]) -> Image:
    embedding = next(n for n in graph.nodes if isinstance(n.op, IntegerEmbedding))
    head = next(n for n in graph.nodes if isinstance(n.op, IntegerLinear) and f"{n.name}.out" in graph.outputs.values())
    source = graph.inputs_of(head.name)["x"].source
    shared = head.arrays["weight"] == embedding.arrays["table"]
    if not shared or source != f"{layers[-1].name}.y":
        raise UnsupportedError(
            head.name, "a head tied to the embedding, fed by the last layer", source, "tie the decoder"
        )
    tables, arrays = graph.arrays_of(embedding), graph.arrays_of(head)
    fields = {
        "vocabulary": len(tables["table"]),
        "embedding": tables["table"].shape[1],
        "x_frac": embedding.op.out_frac,
        "head_inputs": tables["table"].shape[1],
        "logit_frac": head.op.out_frac,
        "stream_in": len(layers),
        "slices": len(last),
    }
    regions = {
        "table": tables["table"],
        "exponent": tables["exponent"],
        "bias": arrays["bias"],
        "head_shift": head.op.shift(arrays["exponent"]).astype(np.uint8),
        "slices": np.array([[key(len(layers), s), lo] for s, (lo, _) in enumerate(last)], "<u4"),
    }
    return Image(DRAM, fields, regions)
