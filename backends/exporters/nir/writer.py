"""Fragments as NIR nodes, and the file.

NIR's units obey tau dv/dt = v_leak - v + r I; every reader takes Euler's step, v' = v + dt / tau (v_leak - v + r I).
A product of its gain and r is thus fixed, not each; `gain` says where it goes.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rheobase.backends.exporters.nir.fragments import IMAGES, NEURONS, Wiring
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import Conv2d, EventGraph, LIFCell, Linear, SumPool2d

GAINS = ("weights", "r")


@dataclass(frozen=True, eq=False)
class Written:
    """What became of the fragments.

    nir         the nir.NIRGraph
    arrays      the graph's array -> where it is in the file: {"node", "field", "gain", "transposed", "shape", "dtype"}
    gains       neuron -> how its input's gain was written, "weights" or "r"
    deviations  what the file says in other words than the graph, each exactly the same
    """

    nir: object
    arrays: Mapping[str, dict]
    gains: Mapping[str, str]
    deviations: list[dict]


def build(graph: EventGraph, wiring: Wiring, *, dt_s: float, gain: str, relay: bool, metadata: Mapping) -> Written:
    """The NIR graph of the fragments; see `export` for the options."""
    import nir

    writer = _Writer(graph, wiring, dt_s, gain)
    nodes, edges = writer.nodes(relay), writer.edges
    table = {**metadata, "gain": gain}
    return Written(nir.NIRGraph(nodes, edges, metadata=table), writer.arrays, writer.gains, writer.deviations)


class _Writer:
    def __init__(self, graph, wiring, dt_s, gain):
        self.graph, self.wiring, self.dt_s, self.gain = graph, wiring, dt_s, gain
        self.dtype = np.result_type(np.float32, *(a.dtype for a in graph.arrays.values() if a.dtype.kind == "f"))
        self.arrays, self.gains, self.deviations, self.scale = {}, {}, [], {}
        self.edges = list(wiring.edges)

    def nodes(self, relay: bool) -> dict:
        import nir

        images = self._images()
        neurons = [n for n in self.wiring.nodes if type(self.graph.node(n).op) in NEURONS]
        made = {name: self._neuron(name, images[name]) for name in neurons}  # first: they scale the products
        made |= {n: self._product(n) for n in self.wiring.nodes if n not in made}
        ins = {name: nir.Input(np.array(images[name])) for name in self.wiring.inputs}
        outs = {name: nir.Output(np.array(images[end])) for name, end in self.wiring.outputs.items()}
        flat = {}
        for a, b in self.wiring.edges:
            if b not in made or type(self.graph.node(b).op) is not Linear:
                continue
            if len(images[a]) > 1:
                flat[f"{a}.flat"] = nir.Flatten({"input": np.array(images[a])}, 0, -1)
                self._through(a, f"{a}.flat", b)
            elif relay and self.graph.inputs_of(b)["x"].delay and a not in ins:
                flat[f"{b}.relay"] = nir.Flatten({"input": np.array(images[a])}, 0, 0)
                self._through(a, f"{b}.relay", b)
        return {**ins, **{n: made[n] for n in self.wiring.nodes}, **flat, **outs}

    def _through(self, a: str, middle: str, b: str) -> None:
        """Lead an edge through a node, in its place: Norse runs nodes in the order of edges."""
        at = self.edges.index((a, b))
        self.edges[at : at + 1] = [e for e in ((a, middle), (middle, b)) if e not in self.edges]

    def _images(self) -> dict[str, tuple[int, ...]]:
        """The shape that each node gives: an image where a convolution is near, a vector elsewhere."""
        shapes = {}
        for a, b in self.wiring.edges:
            if a in self.wiring.inputs and a not in shapes:
                op, shape = self.graph.node(b).op if b in self.wiring.nodes else None, self.wiring.inputs[a].shape
                shapes[a] = (shape[0] // math.prod(op.size), *op.size) if isinstance(op, IMAGES) else tuple(shape)
        for name in self.wiring.nodes:
            node = self.graph.node(name)
            size = tuple(self.graph.shape_of(f"{name}.{next(iter(node.op.outputs))}"))
            if isinstance(node.op, Conv2d):
                shapes[name] = node.op.image(self.graph.arrays_of(node)["weight"])
            elif isinstance(node.op, SumPool2d):
                shapes[name] = node.op.image(self.graph.inputs_of(name)["x"].shape[0])
            elif type(node.op) is Linear:
                shapes[name] = size
            else:
                before = [shapes[a] for a, b in self.wiring.edges if b == name and a in shapes]
                shapes[name] = max(before, key=len, default=size)
        for a, b in self.wiring.edges:
            into = self.graph.node(b).op if b in self.wiring.nodes else None
            flat = isinstance(into, IMAGES) and len(shapes[a]) == 1
            if flat or (type(into) in NEURONS and shapes[a] != shapes[b]):
                got = f"a vector of {shapes[a]} from {a}"
                raise UnsupportedError(
                    b, "images from an image: NIR makes none of a vector", got, "export it elsewhere"
                )
        return shapes

    def _neuron(self, name: str, shape):
        """LIF, IF or CubaLIF; sets the scale of the products before it."""
        import nir

        op, arrays = self.graph.node(name).op, self.graph.arrays_of(self.graph.node(name))
        theta = self._threshold(name, op, arrays.get("theta", op.theta))
        full = lambda value: np.broadcast_to(np.asarray(value, np.float64).reshape(-1), math.prod(shape)).reshape(shape)  # noqa: E731
        as_written = lambda value: np.array(full(value), self.dtype)  # noqa: E731
        common = {"v_threshold": as_written(theta), "v_reset": as_written(op.v_reset)}
        if isinstance(op, LIFCell):
            tau, leak, alpha = np.asarray(arrays.get("tau", op.tau), np.float64), op.v_reset, 0.0
            wanted = np.ones(1) if op.decay_input else tau
        else:
            tau, leak, alpha = np.asarray(1 / (1 - op.beta) if op.beta < 1 else math.inf), 0.0, op.alpha
            if alpha == 1:
                raise UnsupportedError(name, "a synapse that decays", "alpha = 1", "make alpha smaller")
            if np.isinf(tau) and (alpha or op.v_reset):
                got = "a synapse of its own" if alpha else f"v = 0 at rest and v_reset = {op.v_reset:g}"
                wanted = "units without a leak that read their input and begin at v_reset"
                raise UnsupportedError(name, wanted, got, "give them a leak, beta below 1")
            wanted = np.asarray(op.gain) * (1.0 if alpha or np.isinf(tau) else tau)
        if np.isinf(tau).any():
            if not np.isinf(tau).all():
                raise UnsupportedError(
                    name, "a leak in every unit, or in none", "some", "give all of them a finite tau"
                )
            r = self._r(name, np.ones(1) if isinstance(op, LIFCell) else wanted, np.ones(1))
            return nir.IF(r=as_written(r / self.dt_s), **common)
        common |= {"v_leak": as_written(leak)}
        if alpha:
            tau_syn = 1 / (1 - alpha)
            r = self._r(name, wanted, np.ones(1)) * tau
            times = {"tau_mem": as_written(tau * self.dt_s), "tau_syn": as_written(tau_syn * self.dt_s)}
            return nir.CubaLIF(**times, r=as_written(r), w_in=as_written(tau_syn), **common)
        r = self._r(name, wanted, np.ones(1) if self.gain == "weights" else tau)
        return nir.LIF(tau=as_written(tau * self.dt_s), r=as_written(r), **common)

    def _r(self, name, wanted, usual):
        """The r to write, so that r times the products' scale is `wanted`: `usual` where the products can take it."""
        ratio = np.asarray(wanted / usual)
        products = self.wiring.gained.get(name)
        wide = ratio.size > 1 and any(isinstance(self.graph.node(p).op, Conv2d) for p in products or ())
        folds = products is not None and not wide
        if (ratio == 1).all():
            self.gains[name] = "none"
            return usual
        self.gains[name] = "weights" if folds else "r"
        if not folds:
            return wanted
        self.scale |= dict.fromkeys(products, ratio if ratio.size > 1 else float(ratio.item()))
        return usual

    def _threshold(self, name, op, theta):
        """NIR fires at v > v_threshold; v >= theta is v > the next smaller number of the graph's type."""
        if isinstance(op, LIFCell) and op.fire == ">=":
            below = np.nextafter(np.asarray(theta, self.dtype), np.asarray(-np.inf, self.dtype))
            said = f"v > the next smaller {self.dtype} (the same for every v of that type)"
            self.deviations.append({"node": name, "field": "fire", "wanted": "v >= theta", "written": said, "bound": 0})
            return below
        return theta

    def _product(self, name):
        import nir

        node = self.graph.node(name)
        op, arrays = node.op, self.graph.arrays_of(node)
        if isinstance(op, SumPool2d):
            pool = nir.AvgPool2d if op.mean else nir.SumPool2d
            return pool(*(np.array([n, n]) for n in (op.kernel, op.stride, op.padding)))
        scale = self.scale.get(name)
        flip = isinstance(op, Linear) and not op.transposed
        given = {"weight": arrays["weight"].T if flip else arrays["weight"]} | (
            {"bias": arrays["bias"]} if "bias" in arrays else {}
        )
        written = {}
        for role, array in given.items():
            written[role] = np.ascontiguousarray(_scaled(array, scale))
            place = {"node": name, "field": role, "transposed": flip and role == "weight", "dtype": array.dtype.str}
            if scale is not None:
                place["gain"] = scale if isinstance(scale, float) else scale.tolist()
            if np.array_equal(restored(written[role], place), arrays[role]):
                self.arrays.setdefault(node.arrays[role], place)
        if isinstance(op, Conv2d):
            pair = lambda n: (n, n)  # noqa: E731
            bias = written.get("bias", np.zeros(len(written["weight"]), self.dtype))
            made = nir.Conv2d(op.size, written["weight"], pair(op.stride), pair(op.padding), pair(1), 1, bias)
            image, believed = op.image(arrays["weight"]), tuple(map(int, made.output_type["output"]))
            if image != believed:  # nir 1.0.8 takes the kernel's height for its width too
                got = f"{arrays['weight'].shape[2:]}, of which nir expects an image {believed} in place of {image}"
                raise UnsupportedError(name, "a square kernel", got, "fill it up with zeros")
            return made
        return nir.Affine(**written) if "bias" in written else nir.Linear(**written)


def _scaled(array, scale):
    """Rows times a gain, in double precision, so that dividing gives a single back to the bit."""
    if scale is None:
        return array
    gain = np.asarray(scale).reshape(-1, *[1] * (array.ndim - 1))
    return array.astype(np.float64) * gain


def restored(written: np.ndarray, place: Mapping) -> np.ndarray:
    """The graph's array of what is in the file."""
    if "gain" in place:
        gain = np.asarray(place["gain"], np.float64).reshape(-1, *[1] * (written.ndim - 1))
        written = written / gain
    written = written.T if place["transposed"] else written
    return np.ascontiguousarray(written.astype(np.dtype(place["dtype"])))


def nir_bytes(graph, *, legacy: bool) -> bytes:
    """The HDF5 file; `legacy` leaves out v_reset, which is 0 in readers of nir before 1.0.6."""
    import h5py
    import nir

    buffer = io.BytesIO()
    nir.write(buffer, graph)
    if legacy:
        with h5py.File(buffer, "a") as file:
            for name, node in file["node/nodes"].items():
                if "v_reset" not in node:
                    continue
                if node["v_reset"][()].any():
                    raise UnsupportedError(name, "v_reset = 0 in the legacy form", "another", "leave legacy out")
                del node["v_reset"]
    return buffer.getvalue()
