"""The SpiNNaker 2 image: integers that agree everywhere, and damage that is always named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from spikegpts import TEXT as GPT_TEXT
from spikegpts import model_of

from rheobase.backends import export, simulate, verify
from rheobase.backends.artifact import open_artifact, reseal
from rheobase.backends.exporters.spinnaker2 import _narrow, run_machine
from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.image import EGRU, FIELDS, unpack
from rheobase.backends.exporters.spinnaker2.partition import PE_BYTES, build
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.backends.exporters.spinnaker2.quantise.egru import table_error
from rheobase.models import EGRULM, LSTMLM, EGRULMConfig, LSTMLMConfig
from rheobase.models.training.evaluate import bits_per_token
from rheobase.spiking.errors import ConfigError, FormatError, LossyExportError, ShapeError, UnsupportedError
from rheobase.spiking.graph import Add, Edge, Embedding, EventGraph, LIFCell, Linear, Node, Tokens
from rheobase.spiking.tally import BINARY, DENSE

TEXT = np.arange(600).reshape(2, 300) * 7 % 256


def edited(graph, **arrays):
    return EventGraph(graph.nodes, graph.edges, {**graph.arrays, **arrays}, graph.outputs)


def test_the_rounding_rule_by_hand():
    x = np.array([-6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6])
    assert ints.shift_right(x, 2).tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2]
    assert ints.shift_right(x, 0).tolist() == x.tolist()
    assert ints.shift_right(2**31 - 1 - 2**9, 10) == 2**21 - 1


def test_the_tables_are_close_for_every_argument():
    x = np.arange(-32768, 32768)
    for name, table, exact in (
        ("sigmoid", ints.sigmoid_table(), 1 / (1 + np.exp(-x / 2048))),
        ("tanh", ints.tanh_table(), np.tanh(x / 2048)),
    ):
        largest = np.abs(ints.look_up(table, x) / ints.ONE - exact).max()
        assert largest < 1.5e-4 and table_error(table, name) == pytest.approx(largest, rel=1e-9)
        assert (np.diff(ints.look_up(table, x)) >= 0).all()
    assert ints.look_up(ints.tanh_table(), 10**6) == ints.look_up(ints.tanh_table(), 32767)


@pytest.mark.parametrize(("ends", "dtype"), [((-32768, 32767), "int16"), ((0, 32768), "int32"), ((-32769, 0), "int32")])
def test_recorded_signals_keep_their_integers(ends, dtype):
    narrow = _narrow(np.array(ends))
    assert narrow.dtype == dtype and narrow.tolist() == list(ends)


def test_an_egru_tick_by_hand():
    """Gates at 0 give z = r = 1/2, g = 0; c = 0.5 becomes p = 0.25, which fires over 0.2 and resets to 0.05."""
    zero = np.zeros(3, np.int64)
    c = np.array([ints.ONE // 2])
    tables = ints.sigmoid_table(), ints.tanh_table()
    y, after = ints.egru_tick(zero, zero, c, np.array([3277]), 0, *tables)
    assert (y.item(), after.item()) == (4096, 4096 - 3277)
    y, after = ints.egru_tick(zero, zero, c, np.array([4096]), 0, *tables)
    assert (y.item(), after.item()) == (0, 4096)
    _, kept = ints.egru_tick(zero, zero, c, np.array([ints.ONE]), ints.ONE // 2, *tables)
    assert kept.item() == 4096 + 2048


def test_the_packed_image_replays_its_trace(small_image):
    report = verify(small_image)
    manifest = open_artifact(small_image).manifest
    widths = 48 + 2 * 3 * 64 + 2 * 3 * 48 + 2 * 64 + 2 * 48 + 256
    assert report.ok and report.mismatches == 0
    assert report.compared == 128 * widths
    assert manifest["coverage"]["layers.0.kernel"] == "PEs of layers.0"
    assert all(d["bound"] >= 0 for d in manifest["deviations"])
    assert manifest["arithmetic"]["formats"]["layers.0.y"] == [16, 14]
    assert "not run on silicon" in manifest["not_claimed"]


def test_partitioning_changes_no_integer(small_run, monkeypatch, tmp_path):
    """The same model on one PE a layer and on many."""
    from rheobase.backends.exporters.spinnaker2 import partition

    part = small_run.config.splits().valid[: 4 * 64].reshape(4, 64)
    monkeypatch.setattr(partition, "PE_BYTES", 9000)
    many = export(small_run.model(), "spinnaker2", tmp_path / "many", calibration=part)
    assert sum(name.startswith("pe/") for name in many.manifest["files"]) > 6
    assert verify(tmp_path / "many").ok
    monkeypatch.undo()
    few = export(small_run.model(), "spinnaker2", tmp_path / "few", calibration=part)
    got = (run_machine(a, part[0])["decoder.out"] for a in (many, few))
    assert np.array_equal(*got)


def test_the_image_loses_less_than_one_percent(small_run, small_image):
    tokens = small_run.config.splits().test[:3001].astype(np.int64)
    logits = simulate(small_run.model().lower(), tokens[None, :-1]).outputs["logits"][0]
    artifact = open_artifact(small_image)
    integer = run_machine(artifact, tokens[:-1])["decoder.out"][0] / 2.0**ints.LOGIT_FRAC
    assert bits_per_token(integer, tokens[1:]) < 1.01 * bits_per_token(logits, tokens[1:])


def test_any_changed_byte_is_named(small_image):
    files = sorted(p for p in small_image.rglob("*") if p.is_file() and p.parent.name != "csrc")
    generator = np.random.default_rng(0)
    assert len(files) == 10
    places = [(f, int(generator.integers(f.stat().st_size))) for f in files for _ in range(100)]
    places += [(f, int(generator.integers(f.stat().st_size))) for f in (small_image / "csrc").iterdir()]
    for path, at in places:
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[at] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        report = verify(small_image)
        path.write_bytes(whole)
        assert not report.ok and path.name in report.problem, (path, at, report)
    assert verify(small_image).ok


def test_a_flipped_weight_under_fresh_hashes_is_found_by_the_replay(small_image):
    artifact = open_artifact(small_image)
    path = small_image / "pe" / "000.bin"
    image = unpack(path.read_bytes(), "pe/000.bin")
    x = np.flatnonzero(run_machine(artifact, [ord("e")])["embedding.out"][0, 0])[0]
    offset = sum(list(image.sizes().values())[: 1 + list(image.regions).index("weight_a")])
    data = bytearray(path.read_bytes())
    data[offset + x * 3 * 64 + 5] ^= 0x40
    path.write_bytes(data)
    reseal(small_image)
    report = verify(small_image)
    assert not report.ok and report.mismatches > 0
    assert "step 0, node layers.0.kernel.out, unit 5: expected" in report.problem


def test_manifests_that_lie(small_image, tmp_path):
    manifest = json.loads((small_image / "manifest.json").read_text())

    def with_files(files):
        (small_image / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        from rheobase.backends.artifact import SEAL, _seal

        (small_image / SEAL).write_bytes(_seal((small_image / "manifest.json").read_bytes()))
        return verify(small_image).problem

    (tmp_path / "secret").write_bytes(b"x")
    assert "paths inside the directory" in with_files(manifest["files"] | {"../secret": {"bytes": 1, "sha256": ""}})
    assert "paths inside the directory" in with_files(manifest["files"] | {"/etc/passwd": {"bytes": 1, "sha256": ""}})
    files = dict(manifest["files"])
    del files["dram.bin"]
    assert "dram.bin: expected only files that the manifest lists" in with_files(files)
    with_files(manifest["files"])
    (small_image / "dram.bin").unlink()
    assert "dram.bin: expected a listed file, got none" in verify(small_image).problem
    (small_image / "dram.bin").symlink_to(tmp_path / "secret")
    assert "expected a plain file, got a link" in verify(small_image).problem
    with pytest.raises(FormatError, match="expected an exported directory"):
        verify(tmp_path / "nowhere")


def test_what_has_no_integer_form_is_refused_and_leaves_nothing(tmp_path):
    model = EGRULM(EGRULMConfig(embedding=16, layers=(16,)))
    graph = model.lower()
    out = tmp_path / "image"
    huge = np.full_like(graph.arrays["layers.0.bias"], 1e6)
    heavy = np.full_like(graph.arrays["layers.0.recurrent_kernel"], 100.0)
    for calibration in (TEXT, None):
        with pytest.raises(UnsupportedError, match="layers.0: expected an EGRU .*, or a SpikeGPT, got LSTMCell"):
            export(LSTMLM(LSTMLMConfig(embedding=16, layers=(16,))), "spinnaker2", out, calibration=calibration)
    for bias in (huge, -huge):
        with pytest.raises(UnsupportedError, match="an accumulator below 2\\^31"):
            export(edited(graph, **{"layers.0.bias": bias}), "spinnaker2", out, calibration=TEXT)
    late = tuple(replace(e, delay=1) if e.target == "layers.0.kernel.x" else e for e in graph.edges)
    with pytest.raises(UnsupportedError, match="a layer fed by the one before and by itself"):
        export(EventGraph(graph.nodes, late, graph.arrays, graph.outputs), "spinnaker2", out, calibration=TEXT)
    with pytest.raises(UnsupportedError, match="thresholds in \\[0, 1\\]"):
        export(edited(graph, **{"layers.0.thr": np.full(16, 1.5)}), "spinnaker2", out, calibration=TEXT)
    low = np.full(16, 0.01, np.float32)
    lossy = edited(graph, **{"layers.0.recurrent_kernel": heavy, "layers.0.thr": low})
    with pytest.raises(LossyExportError, match="recurrent candidates below 16"):
        export(lossy, "spinnaker2", out, calibration=TEXT)
    assert not list(tmp_path.iterdir())
    made = export(lossy, "spinnaker2", out, calibration=TEXT, allow_lossy=True)
    assert any(d["field"] == "q_g" for d in made.manifest["deviations"]) and verify(out).ok
    heavy[:, 32:] = 0  # gates that saturate lose nothing
    made = export(
        edited(lossy, **{"layers.0.recurrent_kernel": heavy}), "spinnaker2", tmp_path / "gates", calibration=TEXT
    )
    assert not any(d["field"] == "q_g" for d in made.manifest["deviations"])
    with pytest.raises(ConfigError, match="calibration tokens"):
        export(model, "spinnaker2", tmp_path / "other")
    with pytest.raises(FormatError, match="choose another --out"):
        export(model, "spinnaker2", out, calibration=TEXT)
    with pytest.raises(ShapeError, match=r"expected integers \[B, T\], got float64"):
        export(model, "spinnaker2", tmp_path / "other", calibration=TEXT + 0.5)


def test_more_tokens_than_a_key_can_name(tmp_path):
    """WikiText-103 has 267,735 words; a key's unit has 16 bits."""
    model = EGRULM(EGRULMConfig(vocabulary=70_000, embedding=2, layers=(3, 2), thr_mean=0.1))
    export(model, "spinnaker2", tmp_path / "image", calibration=np.arange(69_990, 70_000)[None])
    report = verify(tmp_path / "image")
    assert report.ok and report.compared == 10 * (2 + 2 * 9 + 2 * 6 + 2 * 3 + 2 * 2 + 70_000)
    with pytest.raises(ConfigError, match="chips: expected at least 1, got 0"):
        export(model, "spinnaker2", tmp_path / "none", calibration=TEXT, chips=0)


@pytest.mark.parametrize("to", ["spinnaker2", "onnx"])
def test_one_stream_of_calibration_may_be_given_as_such(to, tmp_path):
    model = EGRULM(EGRULMConfig(embedding=16, layers=(16,)))
    one, same = (export(model, to, tmp_path / str(c.ndim), calibration=c) for c in (TEXT[0], TEXT[:1]))
    assert one.manifest == same.manifest


def test_a_layer_that_does_not_fit_says_what_would():
    graph = EGRULM(EGRULMConfig(embedding=2400, layers=(2400,), thr_mean=0.9)).lower()
    integer, _ = quantise(graph, TEXT[:1, :2])
    message = (
        "layers.0: expected at most 148 processing elements in all, got 480 or more, 480 of them for it; prune each "
        r"matrix to the largest 1\d % of its weights, or make embedding and every layer 1430 wide instead of 2400$"
    )
    with pytest.raises(UnsupportedError, match=message):
        build(integer)


def test_one_unit_that_does_not_fit_is_named(monkeypatch):
    from rheobase.backends.exporters.spinnaker2 import partition

    integer, _ = quantise(EGRULM(EGRULMConfig(embedding=48, layers=(16, 48))).lower(), TEXT[:1, :2])
    monkeypatch.setattr(partition, "PE_BYTES", 5000)
    message = "layers.1: expected at most 5000 bytes.*with one unit of 16 . 48 sources; make .* 24, 8, 24 wide"
    with pytest.raises(UnsupportedError, match=message):
        build(integer)


def test_regions_fit_and_headers_read_back(small_run):
    part = small_run.config.splits().valid[:64].reshape(1, 64)
    integer, _ = quantise(small_run.model().lower(), part)
    made = build(integer)
    dram = made.dram
    for image in (p.image for p in made.placed):
        data = image.pack()
        again = unpack(data, "pe")
        assert len(data) == sum(image.sizes().values()) <= PE_BYTES
        assert all(again.fields[f] == image.fields[f] for f in FIELDS[EGRU] if f != "regions")
        assert all(np.array_equal(again.regions[r], a.reshape(-1)) for r, a in image.regions.items())
    assert unpack(dram.pack(), "dram").pack() == dram.pack()
    for damaged in (data[:-20], b"XXXX" + data[4:], data[:30]):
        with pytest.raises(FormatError):
            unpack(damaged, "pe")


def test_a_sealed_artefact_of_a_stranger_is_not_trusted(small_image):
    """The hashes fit, the content does not: a report, no crash, and nothing large allocated."""
    manifest = json.loads((small_image / "manifest.json").read_text())
    whole = (small_image / "pe" / "000.bin").read_bytes()
    for change in ({"probes": None}, {"order": ["x"]}, {"probes": {}, "logits": 3}, {"exporter": "none"}):
        (small_image / "manifest.json").write_text(json.dumps({**manifest, **change}))
        reseal(small_image)
        assert not verify(small_image).ok and verify(small_image).problem
    (small_image / "manifest.json").write_text(json.dumps(manifest))
    image = unpack(whole, "pe/000.bin")
    for field, value in (("units", 2**31), ("layer", 7), ("listens", 0)):
        changed = type(image)(image.kind, {**image.fields, field: value}, image.regions)
        (small_image / "pe" / "000.bin").write_bytes(changed.pack())
        reseal(small_image)
        assert not verify(small_image).ok and "expected" in verify(small_image).problem
    (small_image / "pe" / "000.bin").write_bytes(whole)
    (small_image / "csrc" / "main.c").write_text("int main(void) { return 1; }")
    reseal(small_image)
    assert verify(small_image).notes[-1] == "not this version's, read before you run: csrc/main.c"


def changed(path, change):
    """What verify says of a manifest that was edited and sealed again."""
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(json.dumps(change(json.loads(text))))
    reseal(path)
    found = verify(path).problem
    (path / "manifest.json").write_text(text)
    reseal(path)
    return found


def test_an_order_of_other_signals_is_refused_by_its_name(small_image):
    for order, got in (
        (lambda o: o[1:], "got without embedding.out;"),
        (lambda o: [*o, o[0]], "got with 'embedding.out' beyond that;"),
        (lambda o: [*o[1:], "x"], "got without embedding.out and with 'x' beyond that;"),
    ):
        found = changed(small_image, lambda m, order=order: m | {"order": order(m["order"])})
        assert f"order: expected each signal of the image once, {got}" in found


@pytest.mark.parametrize("dram", [True, False])
def test_formats_that_the_images_do_not_have_are_refused(tmp_path, dram):
    graph = EGRULM(EGRULMConfig(embedding=16, layers=(16,), thr_mean=0.1)).lower()
    path = export(graph, "spinnaker2", tmp_path / "x", calibration=TEXT, dram=dram).path
    text = "formats: 6 signals as the images have them"
    text += ", but for binary points that no image fixes, of embedding.out" if dram else ""
    assert text in verify(path).notes
    for name in open_artifact(path).manifest["order"]:
        for i in range(2):

            def other(manifest, name=name, i=i):
                manifest["arithmetic"]["formats"][name][i] += 1
                return manifest

            found = changed(path, other)
            free = dram and (name, i) == ("embedding.out", 1)
            assert found is None if free else f"manifest.json: arithmetic: expected {name} " in found

    def stated(**change):
        return changed(path, lambda m: m | {"arithmetic": m["arithmetic"] | change})

    assert "arithmetic: expected logit_frac 12, got 13; export it anew" in stated(logit_frac=13)
    assert "arithmetic: expected rounding" in stated(rounding="down")
    assert "bits and point of each signal" in stated(formats={})
    assert verify(path).ok


def test_formats_of_a_spikegpt_are_those_of_its_program(tmp_path):
    path = export(model_of(), "spinnaker2", tmp_path / "x", calibration=GPT_TEXT).path
    (note,) = [line for line in verify(path).notes if line.startswith("formats: ")]
    assert "binary points that no image fixes, of blocks.0.ln0.out" in note
    for name, i in (("att.gate.out", 1), ("att.wkv.p", 1), ("ffn.product.out", 1), ("ln1.out", 0), ("att.lif_k.v", 1)):

        def other(manifest, name=f"blocks.1.{name}", i=i):
            manifest["arithmetic"]["formats"][name][i] -= 1
            return manifest

        assert f"blocks.1.{name}" in changed(path, other)


def test_the_exporter_goes_by_what_nodes_are_and_not_by_their_names(tmp_path):
    graph = EGRULM(EGRULMConfig(embedding=16, layers=(16,), thr_mean=0.1)).lower()
    bad = graph.arrays["layers.0.thr"].copy()
    bad[3] = np.nan
    with pytest.raises(UnsupportedError, match="layers.0.thr: expected finite numbers, got NaN or infinity"):
        export(edited(graph, **{"layers.0.thr": bad}), "spinnaker2", tmp_path / "x", calibration=TEXT)

    def renamed(name):
        return {"tokens": "in", "embedding": "table"}.get(name, name)

    def port(source):
        node, _, name = source.rpartition(".")
        return f"{renamed(node)}.{name}"

    nodes = tuple(type(n)(renamed(n.name), n.op, n.arrays) for n in graph.nodes)
    edges = tuple(type(e)(port(e.source), port(e.target), e.kind, e.shape, e.delay) for e in graph.edges)
    other = EventGraph(nodes, edges, graph.arrays, graph.outputs)
    export(other, "spinnaker2", tmp_path / "other", calibration=TEXT)
    assert verify(tmp_path / "other").ok
    integer, again = quantise(graph, TEXT)[0], quantise(other, TEXT)[0]
    assert all(np.array_equal(a, again.arrays[n]) for n, a in integer.arrays.items())


def test_products_may_be_stored_either_way_round(tmp_path):
    graph = EGRULM(EGRULMConfig(embedding=16, layers=(16,), thr_mean=0.1)).lower()
    head = {"weight": "head", "bias": "decoder.bias"}
    nodes = [replace(n, arrays=head) if n.name == "decoder" else n for n in graph.nodes]  # else it is the embedding's
    untied = replace(graph, nodes=tuple(nodes), arrays={**graph.arrays, "head": graph.arrays["embedding.weight"]})
    weights = {n.arrays["weight"] for n in nodes if isinstance(n.op, Linear)}
    nodes = [replace(n, op=Linear(not n.op.transposed)) if isinstance(n.op, Linear) else n for n in nodes]
    arrays = {name: array.T if name in weights else array for name, array in untied.arrays.items()}
    turned = replace(untied, nodes=tuple(nodes), arrays=arrays)
    for dram in (True, False):
        made = {}
        for name, graph in (("untied", untied), ("turned", turned)):
            out = tmp_path / f"{name}{dram}"
            export(graph, "spinnaker2", out, calibration=TEXT[:, :200], dram=dram)
            assert verify(out).ok
            made[name] = [path.read_bytes() for path in sorted(out.rglob("*.bin"))]
        assert made["untied"] == made["turned"] and made["untied"]


def test_integers_that_are_read_a_step_late_begin_as_integers():
    """A recurrence whose product is late: what it gives before the first step was a float, which cannot be shifted."""
    rng = np.random.default_rng(0)
    arrays = {name: 3 * rng.standard_normal(shape) for name, shape in (("e", (5, 6)), ("w", (6, 6)), ("h", (6, 5)))}
    weights = {"embedding": {"table": "e"}, "back": {"weight": "w"}, "head": {"weight": "h"}}
    ops = {"tokens": Tokens(5), "embedding": Embedding(), "back": Linear(), "sum": Add(), "n": LIFCell()}
    nodes = tuple(Node(name, op, weights.get(name, {})) for name, op in {**ops, "head": Linear()}.items())
    edges = Edge("tokens.out", "embedding.token", BINARY, (5,)), Edge("embedding.out", "sum.a", DENSE, (6,))
    edges += Edge("back.out", "sum.b", DENSE, (6,), 1), Edge("sum.out", "n.x", DENSE, (6,))
    edges += Edge("n.s", "back.x", BINARY, (6,)), Edge("n.s", "head.x", BINARY, (6,))
    graph = EventGraph(nodes, edges, arrays, {"logits": "head.out"})
    tokens = rng.integers(0, 5, (1, 30))
    got = simulate(quantise(graph, tokens)[0], tokens, on="integer", record=["n.s"]).recorded["n.s"]
    wanted = simulate(graph, tokens, record=["n.s"]).recorded["n.s"]
    assert got.dtype == np.int64 and (got != wanted).mean() < 0.1 < wanted.mean()


def test_a_bias_shared_by_two_products_keeps_its_value():
    graph = EGRULM(EGRULMConfig(embedding=16, layers=(16,), thr_mean=0.1)).lower()
    arrays = dict(graph.arrays)
    arrays["layers.0.recurrent_kernel"] = arrays["layers.0.recurrent_kernel"] * 0.05
    arrays["layers.0.bias"] = np.full(48, 0.5, np.float32)
    own = {"weight": "layers.0.recurrent_kernel", "bias": "layers.0.bias"}
    nodes = tuple(type(n)(n.name, n.op, own if n.name.endswith("recurrent_kernel") else n.arrays) for n in graph.nodes)
    shared = EventGraph(nodes, graph.edges, arrays, graph.outputs)
    names = ["layers.0.kernel.out", "layers.0.recurrent_kernel.out"]
    floats = simulate(shared, TEXT, record=names).recorded
    integers = simulate(quantise(shared, TEXT)[0], TEXT, on="integer", record=names).recorded
    for name in names:
        assert np.abs(integers[name] / 2.0**ints.PRE_FRAC - floats[name]).max() < 0.1
