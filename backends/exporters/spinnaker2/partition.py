"""Which processing element owns which units, and the images that follow from it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import products
from rheobase.backends.exporters.spinnaker2.chip import USABLE as PES
from rheobase.backends.exporters.spinnaker2.fitting import Stage, cut, remedy
from rheobase.backends.exporters.spinnaker2.image import DRAM, EGRU, EMBEDDING, HEAD, Image, key
from rheobase.backends.exporters.spinnaker2.quantise import IntegerEGRUCell, IntegerEmbedding, IntegerLinear
from rheobase.backends.exporters.spinnaker2.sections import Plan, Slices, images_of, plan_of, weight_of
from rheobase.spiking import registry
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph, Node, Tokens

PE_BYTES = 93_184
"""the image of one PE: 96 KiB of data memory less 4 KiB of stack and heap and 1 KiB of the firmware's own data"""
MOST_SLICES = 256
"""slices of a stage that a key can tell apart"""


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


@dataclass(frozen=True, eq=False)
class Partition:
    """A graph on processing elements.

    placed  every PE in the order of the stages and their slices
    dram    embedding and head, where they lie in DRAM
    probes  what `machine.Machine` shows, "stage.port" or "embedding", and which signal of the graph it is
    where   node -> the layer or section whose PEs compute it; what is not here lies in DRAM
    """

    placed: list[Placed]
    dram: Image | None
    probes: dict[str, str]
    where: dict[str, str]

    @property
    def images(self) -> tuple[Image | None, list[tuple[str, Image]]]:
        """The dram image, and each PE's by the name of its file."""
        return self.dram, [(f"pe/{number:03d}.bin", pe.image) for number, pe in enumerate(self.placed)]


def layers_of(graph: EventGraph) -> list[Layer]:
    """The layers, first to last; raises UnsupportedError where the graph is not embedding, EGRU layers and a head."""
    cells = [n for group in graph.order() for n in map(graph.node, group) if isinstance(n.op, IntegerEGRUCell)]
    streams = {f"{n.name}.out": 0 for n in graph.nodes if isinstance(n.op, IntegerEmbedding)}
    found = []
    for index, cell in enumerate(cells):
        edges = graph.inputs_of(cell.name)
        kernel, recurrent = edges["a"].source_node, edges["q"].source_node
        fed = all(isinstance(graph.node(e.source_node).op, IntegerLinear) and not e.delay for e in edges.values())
        source, back = (graph.inputs_of(name)["x"] for name in (kernel, recurrent)) if fed else edges.values()
        chained = source.source in streams and not source.delay and back.source == f"{cell.name}.y" and back.delay
        if not (fed and chained):
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
    heads = [n for n in rest if isinstance(n.op, IntegerLinear) and f"{n.name}.out" in graph.outputs.values()]
    if not found or len(rest) != 1 or not heads:
        raise UnsupportedError(
            "graph",
            "an embedding, EGRU layers and one head",
            f"{[n.name for n in rest]}",
            "export an EGRU model",
        )
    return found


class TooLarge(Exception):
    """A graph does not fit: where, what was expected and what was found, or nothing where its PEs are too many."""


def fewest(stage: Stage, most: int) -> list[Image]:
    """The images of the fewest PEs that hold a stage.

    most    PEs there are
    raises  TooLarge: one unit alone does not fit, or there are not so many PEs
    """
    most = min(most, MOST_SLICES, stage.units)
    for n_pes in range(min(stage.least_pes(PE_BYTES, most), stage.units), most + 1):
        images = stage.make(cut(stage.units, n_pes))
        largest = max(sum(image.sizes().values()) for image in images)
        if largest <= PE_BYTES:
            return images
        if n_pes == stage.units:
            wanted = f"at most {PE_BYTES} bytes a processing element"
            raise TooLarge(stage.name, wanted, f"{largest} bytes with one unit of {stage.sources} sources")
    raise TooLarge


def build(graph: EventGraph, *, dram: bool = True, chips: int = 1) -> Partition:
    """The images of a graph.

    dram     embedding and head lie in DRAM; False: they are on PEs too, and there is no dram image
    chips    how many chips there are
    raises   UnsupportedError: a layer, or the whole, does not fit; the message says by how much, and what would
    """
    if len(graph.outputs) != 1:
        raise UnsupportedError("spinnaker2", "a graph of one output", f"{sorted(graph.outputs)}", "drop the others")
    plan, most = _plan(graph), chips * PES
    if isinstance(plan, Plan) and not dram:
        raise UnsupportedError("spinnaker2 export", "a SpikeGPT with its head in DRAM", "none", "leave dram=False out")
    try:
        placed, keys = _place(graph, dram, most)
    except TooLarge as found:
        where, wanted, got = found.args or _too_many(graph, dram, most)
        would_do = remedy(graph, partial(_fits, most=most), partial(_holds, most=most), PE_BYTES, dram)
        if not would_do:
            others = "" if found.args else ": take fewer layers, or more chips"
            would_do = f"no pruning and no width would do{others}"
        raise UnsupportedError(where, wanted, got, would_do) from None
    if isinstance(plan, Plan):
        where, probes = _shown_of_sections(plan)
        made = _dram_image(graph, plan.embedded, plan.head, len(plan.sections), keys)
        return Partition(placed, made, probes, where)
    embedding, head = _embedding_and_head(graph, plan)
    where, probes = _shown_of_layers(plan, embedding)
    if dram:
        return Partition(placed, _dram_image(graph, f"{embedding.name}.out", head, len(plan), keys), probes, where)
    return Partition(placed, None, probes, where | {node.name: node.name for node in (embedding, head)})


def _plan(graph: EventGraph) -> list[Layer] | Plan:
    return layers_of(graph) if any(isinstance(n.op, IntegerEGRUCell) for n in graph.nodes) else plan_of(graph)


def _place(graph: EventGraph, dram: bool, most: int) -> tuple[list[Placed], list[list[int]]]:
    """Every PE, and the keys that the head hears; raises TooLarge."""
    placed: list[Placed] = []

    def hold(stage: Stage) -> Slices:
        images = fewest(stage, most)
        placed.extend(Placed(stage.name, number, image) for number, image in enumerate(images))
        return _slices(images)

    keys = _hold(graph, dram, hold)
    if len(placed) > most:
        raise TooLarge
    return placed, keys


def _least_pes(graph: EventGraph, dram: bool, room: int, most: int) -> dict[str, int]:
    """Stage -> PEs of so many bytes, no fewer of which hold it; most + 1 where so many do not."""
    least: dict[str, int] = {}

    def hold(stage: Stage) -> Slices:
        least[stage.name] = stage.least_pes(room, most)
        return cut(stage.units, min(least[stage.name], stage.units))

    _hold(graph, dram, hold)
    return least


def _fits(graph: EventGraph, dram: bool, room: int, most: int) -> bool:
    least = _least_pes(graph, dram, room, most).values()
    return max(least) <= MOST_SLICES and sum(least) <= most


def _holds(graph: EventGraph, dram: bool, most: int) -> bool:
    try:
        return bool(_place(graph, dram, most))
    except TooLarge:
        return False


def _too_many(graph: EventGraph, dram: bool, most: int) -> tuple[str, str, str]:
    """Where most PEs would go, how many there are, and how many it takes."""
    least = _least_pes(graph, dram, PE_BYTES, 10 * most)
    worst = max(least, key=least.get)
    if min(least[worst], most) > MOST_SLICES:
        return worst, f"at most {MOST_SLICES} processing elements", f"{least[worst]} or more"
    needed = max(sum(least.values()), most + 1)
    return worst, f"at most {most} processing elements in all", f"{needed} or more, {least[worst]} of them for it"


def _hold(graph: EventGraph, dram: bool, hold: Callable[[Stage], Slices]) -> list[list[int]]:
    """Have `hold` cut each stage, first to last; returns the keys that the head hears."""
    plan = _plan(graph)
    return _hold_sections(graph, plan, hold) if isinstance(plan, Plan) else _hold_layers(graph, plan, dram, hold)


def _hold_sections(graph: EventGraph, plan: Plan, hold: Callable[[Stage], Slices]) -> list[list[int]]:
    sent = {plan.embedded: [(0, graph.shape_of(plan.embedded)[0])]}
    for number, section in enumerate(plan.sections):

        def images(slices, number=number, sent=sent):
            return images_of(graph, plan, number, sent, slices)

        loads = [products.load_of(weight_of(graph, node), section.units) for node, _ in section.products]
        slices = hold(Stage(section.name, section.units, images, loads))
        sent |= dict.fromkeys(section.sends, slices)
    return _keys(plan.streams[plan.head_source], sent[plan.head_source], 0)


def _shown_of_sections(plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
    """What a partition says of a plan: where, probes."""
    where = {n.name: section.name for section in plan.sections for n in section.nodes}
    probes = {"embedding": plan.embedded}
    for stage, section in enumerate(plan.sections):
        made = {f"{n.name}.{port}" for n in section.nodes for port in n.op.outputs}
        probes |= {f"{stage}.{i}": name for i, name in enumerate(section.registers) if name in made}
    return where, probes


def _slices(images: list[Image]) -> Slices:
    return [(i.fields["unit_lo"], i.fields["unit_lo"] + i.fields["units"]) for i in images]


def _hold_layers(
    graph: EventGraph, layers: list[Layer], dram: bool, hold: Callable[[Stage], Slices]
) -> list[list[int]]:
    embedding, head = _embedding_and_head(graph, layers)
    table = graph.arrays_of(embedding)["table"]
    vocabulary, width = table.shape
    # a slice of a layer sends its units; a slice of the embedding a whole vector
    sends: dict[int, Slices] = {0: [(0, width)]}
    if not dram:

        def embedding_images(slices):
            return _embedding_images(graph, embedding, slices)

        cuts = hold(Stage(embedding.name, vocabulary, embedding_images, [products.load_of_rows(table)]))
        sends[0] = [(0, width)] * len(cuts)
    for index, layer in enumerate(layers):

        def layer_images(slices, index=index, layer=layer):
            return _layer_images(graph, index, layer, sends[layer.stream_in], slices)

        weights = [weight_of(graph, graph.node(name)) for name in (layer.kernel, layer.recurrent)]
        loads = [products.load_of(w, layer.units) for w in weights]
        sends[index + 1] = hold(Stage(layer.name, layer.units, layer_images, loads))
    keys = _keys(len(layers), sends[len(layers)], 0)
    if not dram:

        def head_images(slices):
            return _head_images(graph, head, len(layers), keys, slices)

        weight = weight_of(graph, head)
        hold(Stage(head.name, weight.shape[1], head_images, [products.load_of(weight, weight.shape[1])]))
    return keys


def _shown_of_layers(layers: list[Layer], embedding: Node) -> tuple[dict[str, str], dict[str, str]]:
    """What a partition says of layers: where, probes."""
    where = {node: layer.name for layer in layers for node in (layer.name, layer.kernel, layer.recurrent)}
    probes = {"embedding": f"{embedding.name}.out"}
    for i, layer in enumerate(layers):
        probes |= {f"{i}.a": f"{layer.kernel}.out", f"{i}.q": f"{layer.recurrent}.out"}
        probes |= {f"{i}.{port}": f"{layer.name}.{port}" for port in ("y", "c")}
    return where, probes


def _keys(stream: int, slices: Slices, product: int) -> list[list[int]]:
    return [[key(stream, s), lo, hi - lo, product] for s, (lo, hi) in enumerate(slices)]


def _product(weight: np.ndarray, port: str = "") -> dict[str, np.ndarray]:
    return {f"{name}{port and '_'}{port}": array for name, array in products.pack(weight).items()}


def _layer_images(graph: EventGraph, index: int, layer: Layer, sends: Slices, slices: Slices) -> list[Image]:
    nodes = {"a": graph.node(layer.kernel), "q": graph.node(layer.recurrent)}
    thr = graph.arrays_of(graph.node(layer.name))["thr"]
    keys = sorted(_keys(layer.stream_in, sends, 0) + _keys(index + 1, slices, 1))
    images = []
    for number, (lo, hi) in enumerate(slices):
        columns = np.concatenate([gate * layer.units + np.arange(lo, hi) for gate in range(3)])
        regions = {"cell": np.zeros(hi - lo), "thr": thr[lo:hi], "accumulators": np.zeros(2 * len(columns))}
        for port, node in nodes.items():
            arrays = graph.arrays_of(node)
            regions |= {f"bias_{port}": arrays["bias"][columns]}
            regions |= {f"shift_{port}": node.op.shift(arrays["exponent"])[columns]}
            regions |= _product(weight_of(graph, node)[:, columns], port)
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


def _head_images(graph: EventGraph, head: Node, stage: int, keys, slices: Slices) -> list[Image]:
    arrays = graph.arrays_of(head)
    shift = head.op.shift(arrays["exponent"])
    images = []
    for number, (lo, hi) in enumerate(slices):
        fields = {"layer": stage, "slice": number, "unit_lo": lo}
        weight = weight_of(graph, head)[:, lo:hi]
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
    edge = graph.inputs_of(head.name)["x"]
    if edge.source != f"{layers[-1].name}.y" or edge.delay:
        got = f"{edge.source}{' of the token before' * edge.delay}"
        raise UnsupportedError(head.name, "a head fed by the last layer", got, "export a stack")
    return embedding, head


def values_by_token(graph: EventGraph, source: str):
    """The values [V, n] of a signal that depends on the token alone."""
    kernels = registry.get("rheobase.backends.simulators", "integer").IntegerKernels()
    kernels.begin(graph)

    def value(source):
        node, port = graph.node(source.rpartition(".")[0]), source.rpartition(".")[2]
        if isinstance(node.op, Tokens):
            return np.arange(node.op.vocabulary)[:, None]
        inputs = {into: value(edge.source) for into, edge in graph.inputs_of(node.name).items()}
        return getattr(kernels, type(node.op).__name__.lower())(node, inputs)[port]

    return value(source)


def _dram_image(graph: EventGraph, embedded: str, head: Node, stage: int, keys) -> Image:
    arrays = graph.arrays_of(head)
    vectors, weight = values_by_token(graph, embedded), weight_of(graph, head).T
    fields = {"vocabulary": len(vectors), "embedding": vectors.shape[1], "stage": stage, "slices": len(keys)}
    fields["head_inputs"] = weight.shape[1]
    shift = head.op.shift(arrays["exponent"])
    slices = np.array(keys)[:, :3]
    regions = {"vectors": vectors, "weight": weight, "bias": arrays["bias"], "shift": shift, "slices": slices}
    return Image.of(DRAM, fields, regions)
