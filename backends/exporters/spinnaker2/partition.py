"""Which processing element owns which units, and the images that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import products
from rheobase.backends.exporters.spinnaker2.image import DRAM, EGRU, EMBEDDING, HEAD, Image, key
from rheobase.backends.exporters.spinnaker2.quantise import IntegerEGRUCell, IntegerEmbedding, IntegerLinear
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph, Node, Tokens

PE_BYTES = 93_184
"""the image of one PE: 96 KiB of data memory less 4 KiB of stack and heap and 1 KiB of the firmware's own data"""
PES = 148
Slices = list[tuple[int, int]]


@dataclass(frozen=True)
class Layer:
    """One EGRU layer of the integer graph: its nodes' names, and where its input comes from."""

    name: str
    kernel: str
    recurrent: str
    stream_in: int
    inputs: int
    units: int
    zoneout: int


@dataclass(frozen=True, eq=False)
class Placed:
    """The image of one PE: the slice `number` of the node `name`."""

    name: str
    number: int
    image: Image


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


def cut(units: int, n_pes: int) -> Slices:
    """Units over PEs, as even as can be."""
    bounds = [units * i // n_pes for i in range(n_pes + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def fewest(name: str, units: int, make, weights: Sequence[np.ndarray]) -> list[Image]:
    """The images of the fewest PEs that hold some units.

    make     slices -> their images
    weights  of the node, [sources, ..]: no fewer PEs are tried than hold them
    raises   UnsupportedError: one unit alone does not fit, or there are not so many PEs
    """
    n_pes = max(1, sum(products.least_bytes(w) for w in weights) // PE_BYTES)
    sources = " + ".join(str(len(w)) for w in weights)
    if n_pes > PES:
        _refuse(name, n_pes, units, sum(np.size(w) for w in weights))
    while True:
        images = make(cut(units, n_pes))
        sizes = [sum(image.sizes().values()) for image in images]
        if max(sizes) <= PE_BYTES:
            return images
        if n_pes == units:
            raise UnsupportedError(
                name,
                f"at most {PE_BYTES} bytes a processing element",
                f"{max(sizes)} bytes with one unit of {sources} sources",
                f"prune its weights, or narrow it, to {100 * PE_BYTES // max(sizes)} % of that",
            )
        n_pes = min(n_pes + 1, units)
        if n_pes > PES:
            _refuse(name, n_pes, units, sum(np.size(w) for w in weights))


def build(graph: EventGraph, *, dram: bool = True) -> tuple[list[Placed], Image | None]:
    """Every PE in the order of the stages and their slices, and the dram image.

    dram     embedding and head lie in DRAM; False: they are on PEs too, and there is no dram image
    raises   UnsupportedError: a layer, or the whole, does not fit; the message says by how much
    """
    layers = layers_of(graph)
    embedding, head = _embedding_and_head(graph, layers)
    placed: list[Placed] = []

    def place(name: str, images: list[Image]) -> Slices:
        placed.extend(Placed(name, number, image) for number, image in enumerate(images))
        return [(i.fields["unit_lo"], i.fields["unit_lo"] + i.fields["units"]) for i in images]

    table = graph.arrays_of(embedding)["table"]
    vocabulary, width = table.shape
    # rows of the embedding a slice sends, one after the other; an embedding slice sends a whole vector
    sends: dict[int, list[tuple[int, int]]] = {0: [(0, width)]}
    if not dram:

        def embedding_images(slices):
            return _embedding_images(graph, embedding, slices)

        cuts = place(embedding.name, fewest(embedding.name, vocabulary, embedding_images, [table]))
        sends[0] = [(0, width)] * len(cuts)
    for index, layer in enumerate(layers):

        def layer_images(slices, index=index, layer=layer):
            return _layer_images(graph, index, layer, sends[layer.stream_in], slices)

        weights = [graph.arrays_of(graph.node(name))["weight"] for name in (layer.kernel, layer.recurrent)]
        images = fewest(layer.name, layer.units, layer_images, weights)
        sends[index + 1] = place(layer.name, images)
    last = sends[len(layers)]
    if not dram:

        def head_images(slices):
            return _head_images(graph, head, len(layers), last, slices)

        place(head.name, fewest(head.name, vocabulary, head_images, [table.T]))
    _refuse_too_many(placed)
    return placed, _dram_image(graph, embedding, head, len(layers), last) if dram else None


def _refuse_too_many(placed: list[Placed]) -> None:
    if len(placed) > PES:
        names = [p.name for p in placed]
        worst = max(dict.fromkeys(names), key=names.count)
        own = [p.image for p in placed if p.name == worst]
        n_bytes = sum(a.nbytes for i in own for region, a in i.regions.items() if region.startswith("weight"))
        _refuse(worst, len(placed), sum(i.fields["units"] for i in own), n_bytes)


def _refuse(name: str, needed: int, units: int, n_bytes: int) -> None:
    share = PES / needed
    raise UnsupportedError(
        name,
        f"at most {PES} processing elements in all",
        f"{needed} or more, with {n_bytes} bytes of its weights",
        f"prune to {50 * share:.0f} % of its weights, or make it narrower: about {int(units * share**0.5)} units would "
        "fit",
    )


def _keys(stream: int, slices: Slices, product: int) -> list[list[int]]:
    return [[key(stream, s), lo, hi - lo, product] for s, (lo, hi) in enumerate(slices)]


def _product(weight: np.ndarray, port: str = "") -> dict[str, np.ndarray]:
    return {f"{name}{port and '_'}{port}": array for name, array in products.pack(weight).items()}


def _layer_images(graph: EventGraph, index: int, layer: Layer, sends: Slices, slices: Slices) -> list[Image]:
    nodes = {"a": graph.node(layer.kernel), "q": graph.node(layer.recurrent)}
    thr = graph.arrays_of(graph.node(layer.name))["thr"]
    keys = _keys(layer.stream_in, sends, 0) + _keys(index + 1, slices, 1)
    images = []
    for number, (lo, hi) in enumerate(slices):
        columns = np.concatenate([gate * layer.units + np.arange(lo, hi) for gate in range(3)])
        regions = {"cell": np.zeros(hi - lo), "thr": thr[lo:hi], "accumulators": np.zeros(2 * len(columns))}
        for port, node in nodes.items():
            arrays = graph.arrays_of(node)
            regions |= {f"bias_{port}": arrays["bias"][columns]}
            regions |= {f"shift_{port}": node.op.shift(arrays["exponent"])[columns]}
            regions |= _product(arrays["weight"][:, columns], port)
        regions |= {"sigmoid": ints.sigmoid_table(), "tanh": ints.tanh_table(), "keys": np.array(keys)}
        fields = {"layer": index, "slice": number, "unit_lo": lo, "units": hi - lo, "inputs": layer.inputs}
        fields |= {"layer_units": layer.units, "listens": len(keys), "zoneout": layer.zoneout}
        images.append(Image.of(EGRU, fields, regions))
    return images


def head_image(fields: dict, weight: np.ndarray, bias: np.ndarray, shift: np.ndarray, keys) -> Image:
    """The image of some tokens' logits: weight [sources, tokens]."""
    regions = {"bias": bias, "shift": shift, "accumulators": np.zeros(len(bias))}
    regions |= _product(weight) | {"keys": np.array(keys)}
    fields = {**fields, "units": len(bias), "inputs": len(weight), "listens": len(keys)}
    return Image.of(HEAD, fields, regions)


def _head_images(graph: EventGraph, head: Node, stream: int, sends: Slices, slices: Slices) -> list[Image]:
    arrays, keys = graph.arrays_of(head), _keys(stream, sends, 0)
    shift = head.op.shift(arrays["exponent"])
    images = []
    for number, (lo, hi) in enumerate(slices):
        fields = {"layer": stream, "slice": number, "unit_lo": lo}
        weight = arrays["weight"][lo:hi].T
        images.append(head_image(fields, weight, arrays["bias"][lo:hi], shift[lo:hi], keys))
    return images


def _embedding_images(graph: EventGraph, embedding: Node, slices: Slices) -> list[Image]:
    arrays = graph.arrays_of(embedding)
    images = []
    for number, (lo, hi) in enumerate(slices):
        fields = {"layer": 0, "slice": number, "unit_lo": lo, "units": hi - lo}
        fields |= {"width": arrays["table"].shape[1], "x_frac": embedding.op.out_frac}
        regions = {"exponent": arrays["exponent"][lo:hi]} | _product(arrays["table"][lo:hi])
        images.append(Image.of(EMBEDDING, fields, regions))
    return images


def _embedding_and_head(graph: EventGraph, layers: list[Layer]) -> tuple[Node, Node]:
    embedding = next(n for n in graph.nodes if isinstance(n.op, IntegerEmbedding))
    head = next(n for n in graph.nodes if isinstance(n.op, IntegerLinear) and f"{n.name}.out" in graph.outputs.values())
    source = graph.inputs_of(head.name)["x"].source
    shared = head.arrays["weight"] == embedding.arrays["table"]
    if not shared or source != f"{layers[-1].name}.y":
        raise UnsupportedError(
            head.name, "a head tied to the embedding, fed by the last layer", source, "tie the decoder"
        )
    return embedding, head


def _dram_image(graph: EventGraph, embedding: Node, head: Node, stream: int, last: Slices) -> Image:
    tables, arrays = graph.arrays_of(embedding), graph.arrays_of(head)
    fields = {
        "vocabulary": len(tables["table"]),
        "embedding": tables["table"].shape[1],
        "x_frac": embedding.op.out_frac,
        "head_inputs": tables["table"].shape[1],
        "logit_frac": head.op.out_frac,
        "stream_in": stream,
        "slices": len(last),
    }
    regions = {
        "table": tables["table"],
        "exponent": tables["exponent"],
        "bias": arrays["bias"],
        "head_shift": head.op.shift(arrays["exponent"]),
        "slices": np.array([[key(stream, s), lo, hi - lo] for s, (lo, hi) in enumerate(last)]),
    }
    return Image.of(DRAM, fields, regions)
