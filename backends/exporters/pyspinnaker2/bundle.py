"""The files of a bundle, and a network of them again."""

import io
import json
import zipfile
from dataclasses import dataclass

import numpy as np

from rheobase.backends.artifact import Artifact
from rheobase.backends.exporters.pyspinnaker2.network import Network, Population, Projection
from rheobase.backends.exporters.pyspinnaker2.words import CONFIG, converted
from rheobase.backends.nir_file import read_nir
from rheobase.spiking.errors import FormatError

CONVERSION, WEIGHTS, SPIKES = "conversion.json", "weights.npz", "spike_list.json"
EXPECTED, NET = "expected_spikes.npz", "net.nir"
MOST_CELLS = 1 << 28
CONSTANTS = ("threshold", "alpha_decay", "i_offset")
RESETS = {True: ("SUBTRACT", "reset_by_subtraction"), False: ("ZERO", "reset_to_v_reset")}


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds: `conversion.json`, the network, and bool [ticks, n] of each source and population."""

    said: dict
    populations: list[Population]
    projections: list[Projection]
    spikes: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


def conversion(net: Network, ticks: int) -> dict:
    """`conversion.json`: the fields of py-spinnaker2's ConversionConfig, then sources, units and projections."""
    populations = {
        p.name: {
            "size": p.size,
            "depth": p.depth,
            "w_scale": p.w_scale,
            "reset": RESETS[p.subtract][1],
            **{key: getattr(p, key).astype(float).tolist() for key in CONSTANTS},
        }
        for p in net.populations
    }
    return {
        "config": {**CONFIG, "reset": RESETS[net.populations[0].subtract][0]},
        "ticks": ticks,
        "sources": {s.name: s.size for s in net.sources},
        "populations": populations,
        "projections": [{"pre": q.pre, "post": q.post, "node": q.node} for q in net.projections],
    }


def read(artifact: Artifact) -> Bundle:
    """A bundle; raises FormatError: its files do not fit together."""
    try:
        said, spikes = json.loads(artifact.read(CONVERSION)), json.loads(artifact.read(SPIKES))
        with np.load(io.BytesIO(artifact.read(WEIGHTS)), allow_pickle=False) as file:
            weights = [file[str(i)] for i in range(len(said["projections"]))]
        populations = [
            Population(
                name,
                p["depth"],
                p["w_scale"],
                *(np.asarray(p[key], np.float32) for key in CONSTANTS),
                p["reset"] == RESETS[True][1],
            )
            for name, p in said["populations"].items()
        ]
        projections = [Projection(**q, weight=w) for q, w in zip(said["projections"], weights, strict=True)]
        ticks, sizes = said["ticks"], [*said["sources"].values(), *(p.size for p in populations)]
        if not 0 < ticks * max(sizes) <= MOST_CELLS:
            raise ValueError(f"{ticks} ticks of up to {max(sizes)} units")
        sent = {name: dense(spikes[name], size, ticks) for name, size in said["sources"].items()}
        expected = {}
        with np.load(io.BytesIO(artifact.read(EXPECTED)), allow_pickle=False) as file:
            for p in populations:
                expected[p.name] = np.zeros((ticks, p.size), bool)
                expected[p.name][file[f"{p.name}/ticks"], file[f"{p.name}/units"]] = True
    except (LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
        found = f"{type(error).__name__}: {error}"
        raise FormatError(artifact.path, "files that fit together", found, "export it anew") from None
    return Bundle(said, populations, projections, sent, expected)


def late(values: np.ndarray, depth: int, ticks: int) -> np.ndarray:
    """Spikes [T, n] of the graph's steps, so many ticks later: bool [ticks, n]."""
    out = np.zeros((ticks, values.shape[1]), bool)
    out[depth : depth + len(values)] = values != 0
    return out


def lists(spikes: np.ndarray) -> dict[str, list[int]]:
    """Ticks of each line that spikes, as `spike_list` takes them."""
    return {str(line): np.nonzero(spikes[:, line])[0].tolist() for line in np.nonzero(spikes.any(0))[0]}


def dense(spikes: dict[str, list[int]], size: int, ticks: int) -> np.ndarray:
    """What `lists` was given."""
    out = np.zeros((ticks, size), bool)
    for line, times in spikes.items():
        out[times, int(line)] = True
    return out


def events(spikes: np.ndarray) -> dict[str, np.ndarray]:
    """Ticks and units of spikes, in the order of time."""
    ticks, units = np.nonzero(spikes)
    return {"ticks": ticks.astype(np.int32), "units": units.astype(np.int32)}


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """NumPy's archive, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def nir_problems(artifact: Artifact, bundle: Bundle) -> list[str]:
    """Where the network that s2_nir makes of `net.nir` is another than the bundle's."""
    where, problems = artifact.path / NET, []
    graph = read_nir(artifact.read(NET))
    into = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    for p in bundle.populations:
        if p.name not in graph.nodes:
            return [f"{where}: no {p.name}"]
        bias = sum(getattr(graph.nodes[a], "bias", 0.0) for a in into[p.name])
        made = converted(graph.nodes[p.name], bias, bundle.said["config"])
        problems += [f"{where}: {key} of {p.name} differs" for key in CONSTANTS if (made[key] != getattr(p, key)).any()]
    found = sorted((pre, post, _key(graph.nodes[name].weight.T))
                   for post in into for name in into[post] if hasattr(graph.nodes[name], "weight")
                   for pre in into[name])  # fmt: skip
    wanted = sorted((q.pre, q.post, _key(q.weight)) for q in bundle.projections)
    return problems + ([f"{where}: other projections"] if found != wanted else [])


def _key(weight: np.ndarray) -> tuple:
    return weight.shape, weight.astype(float).tobytes()
