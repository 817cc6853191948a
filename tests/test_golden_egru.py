"""The fixture of an independent implementation, in float64: events identical, values within 1e-12, gradients 1e-10."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rheobase.backends import count, simulate
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking import EGRUState, Triangle
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.ops import egru

FILE = np.load(Path(__file__).parent / "golden" / "egru_reference.npz")
CASES = sorted({name.split("/")[0] for name in FILE.files})
LAYERS = [case for case in CASES if case[0] in "ABCDE"]
PARAMETERS = ("kernel", "recurrent_kernel", "bias", "recurrent_bias", "thr")


def case_of(name):
    return {key.split("/")[1]: torch.from_numpy(FILE[key]) for key in FILE.files if key.startswith(f"{name}/")}


def run(g, dtype):
    """The layer of a case, batch first; its leaves, and its outputs time first under the fixture's names."""
    *_, gamma, eps, zoneout, training = g["meta"].tolist()
    leaves = {n: g[n].to(dtype).requires_grad_() for n in ("x", *PARAMETERS, "y0", "c0") if n in g}
    state = EGRUState(leaves["y0"], leaves["c0"], torch.zeros_like(leaves["c0"])) if "y0" in g else None
    mask = g["zoneout_mask"].transpose(0, 1) if "zoneout_mask" in g and training else None
    out, _ = egru(
        leaves["x"].transpose(0, 1),
        *(leaves[n] for n in PARAMETERS),
        state,
        surrogate=Triangle(gamma, eps),
        zoneout=zoneout,
        training=bool(training),
        zoneout_mask=mask,
    )
    return leaves, {n: t.transpose(0, 1) for n, t in zip(("y", "c", "o", "tr"), out, strict=True)}


def close(got, wanted):
    assert (got - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def test_all_six_cases_are_there():
    assert [case[0] for case in CASES] == list("ABCDEF")


def test_every_case_but_the_evaluation_has_gradients():
    assert [case[0] for case in LAYERS if "loss" in case_of(case)] == list("ABCE")


@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_float64(name, kernels):
    g = case_of(name)
    leaves, out = run(g, torch.float64)
    assert torch.equal(out["o"], g["o"]) and torch.equal(out["o"] > 0, g["v_pre"] > 0)
    for n in ("y", "c", "tr"):
        assert (out[n] - g[n]).abs().max() <= 1e-12
    if "loss" in g:
        loss = sum((g[f"cot_{n}"] * t).sum() for n, t in out.items())
        loss.backward()
        assert abs(loss.item() - g["loss"].item()) <= 1e-10 * abs(g["loss"].item())
        for n, leaf in leaves.items():
            close(leaf.grad, g[f"grad_{n}"])


@pytest.mark.parametrize("name", LAYERS)
def test_events_in_float32(name, kernels):
    g = case_of(name)
    _, out = run(g, torch.float32)
    assert torch.equal(out["o"].double(), g["o"])


def language_model():
    g = case_of("F_tiny_lm")
    vocabulary, width, h0, h1, _, _, gamma, eps = g["meta"].tolist()
    sizes = {"vocabulary": int(vocabulary), "embedding": int(width), "layers": (int(h0), int(h1))}
    model = EGRULM(EGRULMConfig(**sizes, gamma=gamma, eps=eps)).double()
    names = {"embedding.weight": "emb", "decoder.bias": "dec_b"}
    names |= {f"layers.{i}.{n}": f"l{i}_{n}" for i in (0, 1) for n in PARAMETERS}
    model.load_state_dict({ours: g[theirs] for ours, theirs in names.items()})
    return model, g, names


def test_tiny_language_model(kernels):
    model, g, names = language_model()
    tokens = g["tokens"].T
    logits, _, layers = model.run(tokens[:, :-1])
    assert (logits.transpose(0, 1) - g["logits"]).abs().max() <= 1e-12
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - g["loss"].item()) <= 1e-12
    loss.backward()
    for i, layer in enumerate(layers):
        assert torch.equal(layer.o.transpose(0, 1), g[f"l{i}_o"])
        for n in ("y", "c"):
            assert (getattr(layer, n).transpose(0, 1) - g[f"l{i}_{n}"]).abs().max() <= 1e-12
    parameters = dict(model.named_parameters())
    for ours, theirs in names.items():
        close(parameters[ours].grad, g[f"grad_{theirs}"])


def test_tiny_language_model_in_float32_has_the_same_events(kernels):
    model, g, _ = language_model()
    _, _, layers = model.float().run(g["tokens"].T[:, :-1])
    assert all(torch.equal(run.o.transpose(0, 1).double(), g[f"l{i}_o"]) for i, run in enumerate(layers))


def test_tiny_language_model_macs(kernels):
    """The fixture's [input, recurrent, dense] a layer, totals over steps and batch."""
    model, g, _ = language_model()
    tokens = g["tokens"].T[:, :-1].contiguous()
    for tally in (count(model, tokens), simulate(model.lower(), tokens.numpy()).tally):
        for i in (0, 1):
            into, back = (tally.operators[f"layers.{i}.{n}"] for n in ("kernel", "recurrent_kernel"))
            assert [into.macs, back.macs, into.dense_macs + back.dense_macs] == g[f"l{i}_macs"].tolist()


def evnn_state_dict(logit=False):
    _, g, _ = language_model()
    out = {"embeddings.weight": g["emb"], "decoder.decoder.weight": g["emb"], "decoder.decoder.bias": g["dec_b"]}
    for i in (0, 1):
        out |= {f"rnns.{i}.{n}": g[f"l{i}_{n}"] for n in PARAMETERS}
        out |= {f"rnns.{i}.dampening_factor": g["meta"][6], f"rnns.{i}.pseudo_derivative_support": g["meta"][7]}
        out[f"rnns.{i}._max_norm"] = torch.tensor(1.0)
        if logit:
            out[f"rnns.{i}.thr"] = torch.logit(g[f"l{i}_thr"])
    return out


@pytest.mark.parametrize("logit", [False, True])
def test_reference_checkpoints_are_read_with_either_threshold(logit, tmp_path):
    torch.save(evnn_state_dict(logit), tmp_path / "EGRU_best_model.cpt")
    model, g, _ = language_model()
    read = EGRULM.from_reference(tmp_path / "EGRU_best_model.cpt")
    assert read.config == model.config
    logits, _ = read(g["tokens"].T[:, :-1])
    assert (logits.transpose(0, 1) - g["logits"]).abs().max() <= 1e-12


@pytest.mark.parametrize("thresholds", ["logit", "projected"])
def test_the_threshold_can_be_named(thresholds):
    _, g, _ = language_model()
    read = EGRULM.from_reference(evnn_state_dict(thresholds == "logit"), thresholds=thresholds)
    assert (read.layers[0].thr - g["l0_thr"]).abs().max() <= 1e-12
    assert (read.layers[1].thr - g["l1_thr"]).abs().max() <= 1e-12


def test_a_reference_checkpoint_with_a_projection():
    state = evnn_state_dict()
    state["decoder.projection.weight"], state["decoder.projection.bias"] = (
        torch.eye(5).double(),
        torch.zeros(5).double(),
    )
    model, g, _ = language_model()
    logits, _ = EGRULM.from_reference(state)(g["tokens"].T[:, :-1])
    assert (logits.transpose(0, 1) - g["logits"]).abs().max() <= 1e-12  # events are never negative: relu(I y) = y


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": torch.zeros(1)}, r"expected no other keys, got \['extra'\]"),
        ({"rnns.1.bias": None}, "expected the key 'rnns.1.bias', got none"),
        ({"decoder.decoder.weight": torch.zeros(11, 5)}, "a decoder tied to the embedding"),
        ({"rnns.0.bias": torch.zeros(4)}, r"layers.0.bias: expected shape \(21,\), got \(4,\)"),
        ({"rnns.0.thr": torch.tensor(0.3)}, r"rnns.0.thr: expected 1 dimensions, got shape \(\)"),
        ({"embeddings.weight": torch.zeros(11)}, "embeddings.weight: expected 2 dimensions"),
        ({"rnns.0.thr": torch.full((7,), float("nan"))}, "rnns.0.thr: expected finite numbers"),
        ({"decoder.decoder.bias": torch.full((11,), float("inf"))}, "decoder.decoder.bias: expected finite numbers"),
        ({"rnns.1.dampening_factor": torch.tensor(float("nan"))}, "rnns.1.dampening_factor: expected finite numbers"),
        ({"rnns.1.dampening_factor": torch.tensor(0.5)}, "one surrogate for all layers"),
        ({"rnns.1.dampening_factor": torch.ones(2)}, "dampening_factor: expected one number, got 2"),
    ],
)
def test_reference_checkpoints_that_do_not_fit(change, message):
    state = {k: v for k, v in {**evnn_state_dict(), **change}.items() if v is not None}
    with pytest.raises(FormatError, match=message):
        EGRULM.from_reference(state)
    with pytest.raises(FormatError, match='try thresholds="logit"'):
        EGRULM.from_reference(evnn_state_dict(logit=True), thresholds="projected")


def test_one_layer_outside_makes_all_thresholds_logits():
    state = evnn_state_dict(logit=True)
    state["rnns.0.thr"] = torch.full((7,), 0.2).double()
    assert torch.allclose(EGRULM.from_reference(state).layers[0].thr, torch.sigmoid(torch.tensor(0.2).double()))
    with pytest.raises(ConfigError, match="thresholds: expected 'projected', 'logit' or None, got 'logits'"):
        EGRULM.from_reference(state, thresholds="logits")
    no_layers = {k: v for k, v in state.items() if not k.startswith("rnns")}
    with pytest.raises(FormatError, match="expected the key 'rnns.0.kernel', got none"):
        EGRULM.from_reference(no_layers)
