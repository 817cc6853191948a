"""SANA-FE, a simulator of spiking hardware that knows nothing of ours, fires the spikes that ours fires."""

import importlib.util
import json
import math

import numpy as np
import pytest
from spikegpts import TEXT, model_of

from rheobase.backends import export, simulate, verify
from rheobase.backends.artifact import open_artifact, reseal
from rheobase.backends.exporters import sanafe
from rheobase.backends.trace import artifact_trace
from rheobase.spiking.errors import ConfigError, LossyExportError, UnsupportedError
from rheobase.spiking.graph import Add, CubaLIFCell, Edge, EventGraph, Frames, LIFCell, Linear, Node, TernaryLIFCell
from rheobase.spiking.tally import BINARY, DENSE

needs_sanafe = pytest.mark.skipif(
    importlib.util.find_spec("sanafe") is None, reason="SANA-FE is not installed: pip install 'rheobase[outside]'"
)
FORMS = {
    "spikegpt": LIFCell(),
    "subtracts": LIFCell(tau=4.0, v_reset=None, decay_input=False, fire=">"),
    "rests below": LIFCell(tau=3.0, theta=0.7, v_reset=-0.2),
    "keeps": LIFCell(tau=math.inf, theta=1.51, decay_input=False),
    "learnt": LIFCell(fire=">"),
    "current": CubaLIFCell(alpha=0.5, beta=0.8, gain=0.3, theta=0.4, v_reset=0.1),
    "current, subtracts": CubaLIFCell(alpha=0.3, beta=0.9, gain=0.5, theta=0.4, v_reset=None),
}
INPUTS, FIRST, SECOND = 12, 10, 8
LEARNT = {"tau": (1.0, 3.0), "theta": (0.4, 1.0)}


class Builder:
    """A graph of frames and what reads them."""

    def __init__(self, inputs=INPUTS):
        self.nodes, self.edges, self.arrays = [Node("frames", Frames((1, 1, inputs), BINARY))], [], {}
        self.rng = np.random.default_rng(0)

    def layer(self, name, op, source, units, targets, learnt=()):
        """A product of events with a bias and its cell; source "node.port"."""
        self.arrays |= {f"{name}.w": self.rng.normal(0.2, 0.5, (units, targets)), f"{name}.b": np.full(targets, 0.05)}
        self.nodes += [Node(f"{name}.product", Linear(), {"weight": f"{name}.w", "bias": f"{name}.b"})]
        self.nodes += [Node(name, op, {role: f"{name}.{role}" for role in learnt})]
        self.arrays |= {f"{name}.{role}": self.rng.uniform(*LEARNT[role], targets) for role in learnt}
        self.edges += [Edge(source, f"{name}.product.x", BINARY, (units,))]
        self.edges += [Edge(f"{name}.product.out", f"{name}.x", DENSE, (targets,))]

    def back(self, name, units):
        """Let a cell's last spikes into its input."""
        self.arrays[f"{name}.r"] = self.rng.normal(0, 0.3, (units, units))
        self.nodes += [Node(f"{name}.again", Linear(), {"weight": f"{name}.r"}), Node(f"{name}.sum", Add())]
        self.edges.remove(Edge(f"{name}.product.out", f"{name}.x", DENSE, (units,)))
        self.edges += [Edge(f"{name}.s", f"{name}.again.x", BINARY, (units,), 1)]
        for source, target in (("product.out", "sum.a"), ("again.out", "sum.b"), ("sum.out", "x")):
            self.edges += [Edge(f"{name}.{source}", f"{name}.{target}", DENSE, (units,))]

    def graph(self, output):
        return EventGraph(tuple(self.nodes), tuple(self.edges), self.arrays, {"s": output})


def frames(steps, inputs=INPUTS, rate=0.3):
    return (np.random.default_rng(1).random((1, steps, 1, 1, inputs)) < rate).astype(float)


def chain(first=FORMS["spikegpt"], second=FORMS["spikegpt"]):
    made = Builder()
    made.layer("one", first, "frames.out", INPUTS, FIRST)
    made.layer("two", second, "one.s", FIRST, SECOND)
    return made


@needs_sanafe
def test_every_form_fires_the_same_spikes_over_a_thousand_steps(tmp_path):
    made = Builder()
    for name, op in FORMS.items():
        learnt = tuple(LEARNT) if name == "learnt" else ()
        made.layer(f"{name} 1", op, "frames.out", INPUTS, FIRST, learnt)
        made.layer(f"{name} 2", op, f"{name} 1.s", FIRST, SECOND, learnt)
        made.back(f"{name} 2", SECOND)
    # without a leak nothing forgets what SANA-FE cuts off: weights of which it cuts nothing
    made.arrays |= {n: np.round(64 * a) / 64 for n, a in made.arrays.items() if n.startswith("keeps")}
    graph = made.graph("keeps 2.s")
    artifact = export(graph, "sanafe", tmp_path / "out", calibration=frames(1000))
    said = verify(tmp_path / "out")
    assert said.ok and said.mismatches == 0 and said.compared == 1000 * len(FORMS) * (FIRST + SECOND)
    rates = {name: spikes.mean() for name, spikes in artifact_trace(artifact).signals.items()}
    assert all(0.005 < rate < 0.9 for rate in rates.values()), rates
    left = [node for node, where in artifact.manifest["coverage"].items() if where != "SANA-FE"]
    assert left == ["frames"] and ["spikegpt 2.s", 2] in artifact.manifest["groups"].values()


@needs_sanafe
def test_a_membrane_at_its_threshold(tmp_path):
    """A spike of weight 1 meets theta = 1: >= fires at once, > at the next spike, on what is left of the first."""
    made = Builder(1)
    for name, fire in (("at", ">="), ("above", ">")):
        made.layer(name, LIFCell(theta=1.0, decay_input=False, fire=fire), "frames.out", 1, 1)
        made.arrays |= {f"{name}.w": np.ones((1, 1)), f"{name}.b": np.zeros(1)}
    given = np.zeros((1, 45, 1, 1, 1))
    given[0, ::10] = 1
    with pytest.raises(LossyExportError, match="a.*: expected a membrane that stays further than .* got 0; "):
        export(made.graph("at.s"), "sanafe", tmp_path / "out", calibration=given)
    export(made.graph("at.s"), "sanafe", tmp_path / "out", calibration=given, allow_lossy=True)
    assert verify(tmp_path / "out").ok
    spikes = artifact_trace(open_artifact(tmp_path / "out")).signals
    assert np.flatnonzero(spikes["at.s"]).tolist() == [0, 10, 20, 30, 40]
    assert np.flatnonzero(spikes["above.s"]).tolist() == [10, 30]


@needs_sanafe
def test_its_synapses_are_our_accumulates(tmp_path):
    """One layer without bias: its energy of synapses is a constant of its Loihi times what we count."""
    made = Builder()
    made.layer("one", LIFCell(), "frames.out", INPUTS, FIRST)
    made.nodes[1] = Node("one.product", Linear(), {"weight": "one.w"})
    graph = made.graph("one.s")
    artifact = export(graph, "sanafe", tmp_path / "out", calibration=frames(300))
    run = sanafe.run_network(tmp_path / "out" / sanafe.NETWORK, 301)
    acs = simulate(graph, frames(300)).tally.acs
    assert acs == FIRST * frames(300).sum() and math.isclose(run["energy"]["synapse"], 35.5e-12 * acs, rel_tol=1e-9)
    assert math.isclose(artifact.manifest["joules"]["acs"], 23.6e-12 * acs)


@needs_sanafe
def test_a_spike_fed_language_model(tmp_path):
    """Of its layers the one from spikes to spikes runs in SANA-FE, and the manifest says why no other does."""
    artifact = export(model_of(), "sanafe", tmp_path / "out", calibration=TEXT)
    said = verify(tmp_path / "out")
    assert said.ok and said.compared == 2 * 4 * 24 * 120 and not said.notes[0].startswith("0 ")
    where = artifact.manifest["coverage"]
    assert {name for name, place in where.items() if place == "SANA-FE"} == {
        f"blocks.{i}.ffn.{part}" for i in (0, 1) for part in ("key", "lif_h")
    }
    assert where["blocks.0.att.lif_k"] == "outside: reads other values than sums of weights of binary events"


@needs_sanafe
def test_what_is_changed_afterwards_is_found(tmp_path):
    export(chain().graph("two.s"), "sanafe", tmp_path / "out", calibration=frames(200))
    path = tmp_path / "out" / sanafe.NETWORK
    whole = json.loads(path.read_text())
    edge = next(e for e in whole["network"]["edges"] if "g0 -> g1" in e)["g0 -> g1"]
    edge["weight"] = [-w for w in edge["weight"]]
    path.write_text(json.dumps(whole))
    reseal(tmp_path / "out")
    said = verify(tmp_path / "out")
    assert not said.ok and said.mismatches and "node two.s, unit" in said.problem
    path.write_text("network: 3\n")
    reseal(tmp_path / "out")
    assert "expected a network that SANA-FE runs" in verify(tmp_path / "out").problem


def test_steps_without_end_are_refused(tmp_path):
    made = export(chain().graph("two.s"), "sanafe", tmp_path / "out", calibration=frames(20))
    groups = {name: [cell, 10**9] for name, (cell, _) in made.manifest["groups"].items()}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(made.manifest | {"groups": groups}))
    reseal(tmp_path / "out")
    assert "manifest.json: expected levels of 2 groups, from 1 on, got others" in verify(tmp_path / "out").problem


def test_what_sanafe_cannot_run_is_refused(tmp_path):
    def said(error, graph, **given):
        with pytest.raises(error) as raised:
            export(graph, "sanafe", tmp_path / "out", **{"calibration": frames(20), **given})
        assert not (tmp_path / "out").exists()
        return str(raised.value)

    never = Builder()
    never.layer("one", CubaLIFCell(reset="next"), "frames.out", INPUTS, FIRST)
    assert "one, which is a cell with other spikes than 1" in said(UnsupportedError, never.graph("one.s"))
    signed = Builder()
    signed.layer("one", TernaryLIFCell(), "frames.out", INPUTS, FIRST)
    assert "one, which is a cell with other spikes than 1" in said(UnsupportedError, signed.graph("one.s"))
    low = Builder()
    low.layer("one", LIFCell(theta=0.1, v_reset=0.2), "frames.out", INPUTS, FIRST)
    assert "a threshold that is not above rest" in said(UnsupportedError, low.graph("one.s"))
    short = chain()
    short.layer("three", LIFCell(), "one.s", FIRST, SECOND)
    short.nodes += [Node("both", Add()), Node("last", LIFCell())]
    short.edges += [Edge(f"{n}.product.out", f"both.{p}", DENSE, (SECOND,)) for n, p in (("two", "a"), ("four", "b"))]
    short.layer("four", LIFCell(), "two.s", SECOND, SECOND)
    short.edges += [Edge("both.out", "last.x", DENSE, (SECOND,))]
    assert "last: expected paths of one length" in said(UnsupportedError, short.graph("last.s"))
    wide = Builder(4200)
    wide.layer("one", LIFCell(), "frames.out", 4200, 1000)
    assert "at most 4,194,304 synapses" in said(UnsupportedError, wide.graph("one.s"), calibration=frames(2, 4200))
    assert "no LIF cell" in said(UnsupportedError, Builder().graph("frames.out"))
    assert "calibration" in said(ConfigError, chain().graph("two.s"), calibration=None)
    assert "expected no options, got 'chips'; leave it out" in said(ConfigError, chain().graph("two.s"), chips=2)
    for empty in (frames(20)[:0], frames(20)[:, :0]):
        assert "expected calibration tokens" in said(ConfigError, chain().graph("two.s"), calibration=empty)
    for wrong in (math.nan, math.inf):
        unsound = chain()
        unsound.arrays["one.w"][0, 0] = wrong
        assert "one.w: expected finite numbers" in said(UnsupportedError, unsound.graph("two.s"))


def test_without_sanafe_an_artefact_is_written_and_verify_says_what_to_install(tmp_path, monkeypatch):
    export(chain().graph("two.s"), "sanafe", tmp_path / "out", calibration=frames(20))
    assert set(open_artifact(tmp_path / "out").manifest["files"]) == {"network.yaml", "trace.safetensors"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match='pip install "sanafe>=2.2.9"'):
        verify(tmp_path / "out")
