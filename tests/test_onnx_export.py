"""ONNX fragments: bit for bit in onnxruntime, whole, in an order in which they run, and within float32's integers."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from spikegpts import FORMS, model_of
from spikegpts import TEXT as WHOLE_TEXT

from rheobase.backends import export, simulate, verify
from rheobase.backends.artifact import reseal
from rheobase.backends.exporters.onnx.fragments import fragments
from rheobase.backends.exporters.onnx.steps import SIGMOID_READS, Maker, requantise
from rheobase.backends.simulators.event import EventKernels
from rheobase.cli import run
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.models.gesture import Gesture, GestureConfig
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import Add, Edge, EventGraph, Frames, LIFCell, Linear, Node
from rheobase.spiking.tally import DENSE

TEXT = WHOLE_TEXT[:, :48]
SMALL = {"size": (20, 20), "convolutions": ((8, 5, 2, 2), (6, 3, 1, 1)), "pooled": 1, "features": 16, "units": 12}


def egru():
    torch.manual_seed(0)
    return EGRULM(
        EGRULMConfig(embedding=24, layers=(32, 24), projection=True, thr_mean=0.05, embedding_range=1.0)
    ).eval()


def gesture(neurons):
    torch.manual_seed(0)
    return Gesture(GestureConfig(**SMALL, neurons=neurons, theta=0.2)).eval()


RECORDING = np.random.default_rng(1).poisson(0.5, (2, 12, 1, 20, 20)).astype(np.float32)
MODELS = {name: (lambda form=form: model_of(**form), TEXT) for name, form in FORMS.items()}
MODELS |= {"egru": (egru, TEXT), "gesture": (lambda: gesture("relu"), RECORDING)}
MODELS |= {"spiking gesture": (lambda: gesture("lif"), RECORDING)}


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_gives_the_reference_s_integers(name, tmp_path):
    make, data = MODELS[name]
    made = export(make(), "onnx", tmp_path / "dense", calibration=data)
    report = verify(tmp_path / "dense")
    assert report.ok and report.mismatches == 0 and report.compared > 900, report
    assert set(made.manifest["coverage"]) == {n.name for n in make().lower().nodes}
    for node in make().lower().nodes:
        held = made.manifest["coverage"][node.name].endswith(".onnx")
        assert held == isinstance(node.op, Linear) or not isinstance(node.op, Linear | LIFCell)
    assert max(made.manifest["relative_error"].values()) < 0.1


def test_every_scale_is_a_power_of_two_and_every_weight_an_int8(tmp_path):
    export(model_of(), "onnx", tmp_path / "dense", calibration=TEXT)
    products = 0
    for path in (tmp_path / "dense").glob("*.onnx"):
        graph = onnx.load(path).graph
        constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                exponent = np.log2(constants[node.input[1]])
                assert (exponent == np.round(exponent)).all()
                if exponent.size > 1 and constants[node.input[0]].dtype == np.int8:  # older runtimes want them all said
                    assert np.array_equal(constants[node.input[2]], np.zeros(exponent.shape, np.int8))
            products += node.op_type == "MatMul"
        kinds = {str(a.dtype) for name, a in constants.items() if not name.endswith(("scale", "shape", "zero"))}
        assert kinds <= {"int8", "int32", "float32"} and all(
            i.type.tensor_type.elem_type in (3, 7) for i in graph.input
        )
    assert products == 2 * 7 + 1


def test_basic_optimisation_keeps_the_integers(tmp_path):
    export(egru(), "onnx", tmp_path / "dense", calibration=TEXT)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "dense" / "fragments.safetensors")
    for row in json.loads((tmp_path / "dense" / "fragments.json").read_text()):
        name = row["file"]
        session = onnxruntime.InferenceSession(tmp_path / "dense" / name, options, providers=["CPUExecutionProvider"])
        got = session.run(row["outputs"], {n: stored[f"{name}/in/{n}"] for n in row["inputs"]})
        for source, values in zip(row["outputs"], got, strict=True):
            wanted = stored[f"{name}/out/{source}"] * 2.0 ** -stored[f"{name}/frac/{source}"].astype(float)
            assert (values == wanted).all()


def test_a_fragment_by_hand():
    """Two sources in Q2, weights 1.0 and 0.25 a target: round half to even, held within int8."""
    nodes = (Node("f", Frames((1, 1, 2), DENSE)), Node("w", Linear(), {"weight": "w", "bias": "b"}))
    edges = (Edge("f.out", "w.x", DENSE, (2,)),)
    arrays = {"w": np.array([[1.0, 0.25], [0.5, -0.25]]), "b": np.array([0.125, 8.0])}
    graph = EventGraph(nodes, edges, arrays, {"out": "w.out"})
    step = Maker(graph, {"f.out": 2}, {"f.out": np.ones(2)}).step("w", (("f.out", 2),))
    assert step.arrays["weight"].tolist() == [[64, 64], [32, -64]] and step.frac.tolist() == [8, 10]
    out = step.run(np.array([[3, -5], [127, 127]]))
    assert out.tolist() == [[64 * 3 - 32 * 5 + 32, 64 * 3 + 64 * 5 + 8192], [127 * 96 + 32, 8192]]
    assert requantise(out, step.frac, 2).tolist() == [[1, 34], [127, 32]], "1, 34; 12224/64 = 191 is held"
    halves = np.array([-3, -1, 1, 3, 5, 6])
    assert requantise(halves, 1, 0).tolist() == [-2, 0, 0, 2, 2, 3] and requantise(halves, 0, 1).tolist()[0] == -6


def test_a_product_that_nothing_reads_is_no_file(tmp_path):
    graph = one(np.eye(2), [0, 0])
    nodes, arrays = (*graph.nodes, Node("dead", Linear(), {"weight": "d"})), {**graph.arrays, "d": np.eye(2)}
    graph = EventGraph(nodes, (*graph.edges, Edge("f.out", "dead.x", DENSE, (2,))), arrays, graph.outputs)
    made = export(graph, "onnx", tmp_path / "x", calibration=np.ones((1, 4, 1, 1, 2)))
    assert made.manifest["coverage"]["dead"] == "outside: Linear" and verify(tmp_path / "x").ok


def test_no_int8_sigmoid_is_near_a_half_in_the_formats_that_it_reads():
    def margin(frac):
        exact = 128 / (1 + np.exp(-np.arange(-128, 128) * 2.0**-frac))
        return np.abs(exact - np.floor(exact) - 0.5).min() / 128

    with np.errstate(over="ignore"):
        assert min(map(margin, range(-20, SIGMOID_READS + 1))) > 1e-5 > 1e-7 > margin(SIGMOID_READS + 1)


@pytest.mark.parametrize("name", MODELS)
def test_no_path_leads_out_of_a_fragment_and_in_again(name):
    graph = MODELS[name][0]().lower()
    parts = fragments(graph)
    place = {node: i for i, part in enumerate(parts) for node in part.nodes}
    inside = {source for part in parts for source in part.inputs}
    assert len(place) == sum(len(part.nodes) for part in parts)
    before: dict[str, set[int]] = {}
    for node in (n for group in graph.order() for n in group):
        edges = [e for e in graph.inputs_of(node).values() if not e.delay]
        before[node] = set().union(*(before[e.source_node] for e in edges)) | (
            {place[node]} if node in place else set()
        )
        for edge in edges:
            own = place.get(node)
            if own is not None and place.get(edge.source_node) != own:
                assert own not in before[edge.source_node] and edge.source in inside
                assert max(before[edge.source_node], default=-1) < own, "files run in the order of their numbers"


@pytest.mark.parametrize("name", ["egru", "plain"])
def test_the_files_and_the_cells_outside_are_the_model(name, tmp_path):
    """Token by token: fragments in onnxruntime, cells by the event simulator's own steps, nothing else."""
    graph, folder, text = MODELS[name][0]().lower(), tmp_path / "dense", TEXT[:1, :24]
    export(graph, "onnx", folder, calibration=TEXT)
    rows = json.loads((folder / "fragments.json").read_text())
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # else sums saturate without VNNI
    sessions = {r["file"]: onnxruntime.InferenceSession(folder / r["file"], options, providers=["CPUExecutionProvider"])
                for r in rows}  # fmt: skip
    fracs = {i["source"]: int(i["values"].rpartition("Q")[2]) for r in rows for i in r["inputs"].values()
             if "int8" in i["values"]}  # fmt: skip
    kernels = EventKernels()
    kernels.begin(graph)
    state = {n: np.full((1, *shape), graph.state_fill()[n], np.float32) for n, shape in graph.state_shapes().items()}
    outside = [n for g in graph.order() for n in g if not any(n in r["nodes"] for r in rows)]
    logits = []
    for token in text[0]:
        now, waiting, cells = {"tokens.out": np.array([[token]])}, list(rows), [n for n in outside if n != "tokens"]
        while waiting or cells:
            ready = [r for r in waiting if all(i["delay"] or i["source"] in now for i in r["inputs"].values())]
            for row in ready:
                feeds = {}
                for n, i in row["inputs"].items():
                    x = state[i["source"]] if i["delay"] else now[i["source"]]
                    int8 = i["source"] in fracs
                    feeds[n] = np.clip(np.rint(x * 2.0 ** fracs[i["source"]]), -128, 127).astype(np.int8) if int8 else x
                now |= dict(zip(row["outputs"], sessions[row["file"]].run(row["outputs"], feeds), strict=True))
                waiting.remove(row)
            for cell in [c for c in cells if all(e.source in now for e in graph.inputs_of(c).values())]:
                node = graph.node(cell)
                own = ({s: state[f"{cell}.{s}"] for s in node.op.state},) if node.op.state else ()
                inputs = {port: now[e.source] for port, e in graph.inputs_of(cell).items()}
                made = getattr(kernels, type(node.op).__name__.lower())(node, inputs, *own)
                now |= {f"{cell}.{port}": value for port, value in made.items()}
                cells.remove(cell)
        state = {n: now[n] for n in state}
        logits.append(now["head.out" if name == "plain" else "decoder.out"][0])
    wanted = simulate(graph, text).outputs["logits"][0]
    error = np.sqrt(np.square(np.array(logits) - wanted).mean() / np.square(wanted).mean())
    assert error < (0.03 if name == "egru" else 0.25), error


def test_a_changed_weight_is_found(tmp_path, capsys):
    folder = export(egru(), "onnx", tmp_path / "dense", calibration=TEXT).path
    shutil.copytree(folder, tmp_path / "copy")
    path = sorted(folder.glob("*.onnx"))[-1]
    model = onnx.load(path)
    (weight,) = [c for c in model.graph.initializer if c.name == "decoder.weight"]
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[:, 3] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(model, path)
    assert "sha256" in verify(folder).problem
    reseal(folder)
    report = verify(folder)
    assert (
        not report.ok
        and 0 < report.mismatches <= 32
        and "decoder.out differs first in step 0, unit 3" in report.problem
    )
    (tmp_path / "copy" / path.name).write_bytes(path.read_bytes().replace(b"MatMul", b"Mat\xffMu"))
    reseal(tmp_path / "copy")
    problem = verify(tmp_path / "copy").problem  # the runtime's own error, or that its text is not UTF-8
    assert ("UnicodeDecodeError" in problem or "InvalidGraph" in problem) and not capsys.readouterr().out
    (tmp_path / "copy" / path.name).write_bytes(b"no model")
    reseal(tmp_path / "copy")
    assert "expected a file in ONNX" in verify(tmp_path / "copy").problem
    (tmp_path / "copy" / "fragments.json").write_bytes(b"[]")
    reseal(tmp_path / "copy")
    assert "expected something that can be compared, got nothing" in verify(tmp_path / "copy").problem


def one(weight, bias, *extra):
    """A product of two values, and nodes that take it and the values themselves."""
    nodes = (Node("f", Frames((1, 1, 2), DENSE)), Node("w", Linear(), {"weight": "w", "bias": "b"}), *extra)
    edges = [Edge("f.out", "w.x", DENSE, (2,))]
    for node in extra:
        edges += [Edge("w.out", f"{node.name}.a", DENSE, (2,)), Edge("f.out", f"{node.name}.b", DENSE, (2,))]
    arrays = {"w": np.asarray(weight, float), "b": np.asarray(bias, float)}
    return EventGraph(nodes, tuple(edges), arrays, {"out": "w.out"})


def test_what_float32_does_not_hold_is_refused(tmp_path):
    data = np.ones((1, 4, 1, 1, 2))
    rows = [1e-9, 1e-9], [1e-9, -1e-9]
    with pytest.raises(UnsupportedError, match="sums below 2"):
        export(one(rows, [1e12, 0]), "onnx", tmp_path / "x", calibration=data)
    with pytest.raises(UnsupportedError, match="operands of like size"):
        export(one(rows, [0, 0], Node("s", Add())), "onnx", tmp_path / "x", calibration=1e6 * data)
    with pytest.raises(UnsupportedError, match="finite"):
        export(one([[np.nan, 0], [0, 0]], [0, 0]), "onnx", tmp_path / "x", calibration=data)
    with pytest.raises(ConfigError, match="calibration"):
        export(one(np.eye(2), [0, 0]), "onnx", tmp_path / "x")
    nodes = Node("f", Frames((1, 1, 2), DENSE)), Node("n", LIFCell())
    with pytest.raises(UnsupportedError, match="products or an embedding"):
        export(EventGraph(nodes, (Edge("f.out", "n.x", DENSE, (2,)),), {}, {"s": "n.s"}), "onnx", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_wide_layer_s_exponents_are_lowered_until_its_sums_are_exact(tmp_path):
    rng = np.random.default_rng(0)
    nodes = Node("f", Frames((1, 1, 4000), DENSE)), Node("w", Linear(), {"weight": "w"})
    arrays = {"w": rng.choice([-1.0, 1.0], (4000, 3)) * rng.uniform(0.9, 1, (4000, 3))}
    graph = EventGraph(nodes, (Edge("f.out", "w.x", DENSE, (4000,)),), arrays, {"out": "w.out"})
    step = Maker(graph, {"f.out": 0}, {"f.out": np.ones(4000)}).step("w", (("f.out", 0),))
    reach = np.abs(step.arrays["weight"].astype(int)).sum(0) * 128
    assert (reach < 2**24).all() and (reach * 2 >= 2**24).all()
    data = np.sign(arrays["w"][:, 0]).reshape(1, 1, 1, 1, 4000)
    export(graph, "onnx", tmp_path / "x", calibration=data)
    assert verify(tmp_path / "x").ok


def test_the_command_line_exports_and_verifies(small_run, tmp_path, capsys):
    out = str(tmp_path / "dense")
    assert run(["export", str(small_run.folder), "--to", "onnx", "--out", out]) == 0
    assert run(["verify", out]) == 0
    said = capsys.readouterr().out
    assert (
        "\noutside: tokens, layers.*\n" in said
        and ", 0 mismatches" in said
        and "graph optimisation off" in said
        and "% of weights in ONNX" in said
    )
