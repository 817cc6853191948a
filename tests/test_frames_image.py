"""EGRU layers that read frames, as a SpiNNaker 2 image: the host sends each frame's pixels as events."""

import numpy as np
import pytest
import torch
from test_event_task import frames_model, frames_of

from rheobase.backends import export, simulate, verify
from rheobase.backends.artifact import open_artifact
from rheobase.backends.exporters.spinnaker2 import load_images, run_machine
from rheobase.backends.exporters.spinnaker2.frames import as_tokens
from rheobase.backends.exporters.spinnaker2.machine import dram_vectors
from rheobase.backends.exporters.spinnaker2.quantise import formats, quantise
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import Embedding, Tokens
from rheobase.spiking.tally import BINARY, DENSE, GRADED, TERNARY


@pytest.mark.parametrize("kind", [BINARY, TERNARY, GRADED, DENSE])
def test_the_table_of_frames_computes_what_the_frames_do(kind):
    model = frames_model(kind, readout="y")
    frames, more = frames_of(model).numpy(), frames_of(model, 3, 4).numpy()
    graph, (first, second) = as_tokens(model.lower(), frames, more)
    assert first.tolist() == [list(range(10)), list(range(10, 20))] and second.min() == 20 and second.shape == (3, 4)
    assert [type(n.op) for n in graph.nodes[:2]] == [Tokens, Embedding]
    for tokens, given in ((first, frames), (second, more)):
        wanted = simulate(model.lower(), given.astype(np.float32)).outputs["logits"]
        assert np.abs(simulate(graph, tokens).outputs["logits"] - wanted).max() < 1e-5
    assert as_tokens(graph, first)[0] is graph


@pytest.mark.parametrize("kind", [BINARY, GRADED])
@pytest.mark.parametrize("dram", [True, False])
def test_an_image_that_is_verified(tmp_path, kind, dram):
    model = frames_model(kind, readout="y").float()
    frames = frames_of(model, 3).float().numpy()
    artifact = export(model, "spinnaker2", tmp_path / "image", calibration=frames, dram=dram)
    report = verify(artifact.path)
    assert report.ok and report.compared > 30 * (9 + 7)
    graph, (tokens,) = as_tokens(model.lower(), frames)
    integer, _ = quantise(graph, tokens)
    scale = 2.0 ** -formats(integer)["readout.out"].frac
    with torch.no_grad():
        floats = model(torch.from_numpy(frames))[0].numpy()
    for row, wanted in zip(tokens, floats, strict=True):
        logits = run_machine(open_artifact(artifact.path), row)["readout.out"][0]
        assert np.array_equal(logits, simulate(integer, row[None], on="integer").outputs["logits"][0])
        assert np.abs(logits * scale - wanted).mean() < 0.1 * np.abs(wanted).mean()
    if dram:
        sent = dram_vectors(load_images(open_artifact(artifact.path))[0])
        pixels = frames.reshape(30, -1)
        assert sent.shape == pixels.shape and not sent[pixels == 0].any()
        assert np.abs(sent / sent.max() - pixels / pixels.max()).max() < (1e-9 if kind == BINARY else 1 / 64)


def test_what_an_image_refuses(tmp_path):
    model = frames_model(BINARY)
    frames = frames_of(model).numpy()
    with pytest.raises(UnsupportedError, match="readout.x: expected no reader of an EGRU's trace.*read y instead"):
        export(model, "spinnaker2", tmp_path / "image", calibration=frames)
    with pytest.raises(ConfigError, match="expected calibration tokens"):
        export(model, "spinnaker2", tmp_path / "image")
    assert not list(tmp_path.iterdir())
