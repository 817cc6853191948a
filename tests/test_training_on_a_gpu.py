"""Training on a CUDA device, where there is one: every model in each precision, and what it leaves."""

import math

import pytest
import torch
from test_distributed import stopped
from test_training import TABLE

from rheobase.models.gru_lm import GRU
from rheobase.models.lstm_lm import LSTM
from rheobase.models.training import loop
from rheobase.models.training.run import RunConfig
from rheobase.spiking.quantisation import scaled

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
MODELS = {  # without dropout, of which each device draws its own
    "egru": {"name": "egru_lm", "embedding": 32, "layers": [32]},
    "lstm": {"name": "lstm_lm", "embedding": 32, "layers": [32]},
    "gru": {"name": "gru_lm", "embedding": 32, "layers": [32]},
    "spikegpt": {"name": "spikegpt", "embedding": 32, "depth": 2, "dropout": 0.0},
    "rwkv4": {"name": "rwkv4", "embedding": 32, "depth": 2, "dropout": 0.0},
}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_it_learns_as_on_a_cpu(name, precision, tmp_path):
    train = TABLE["train"] | {"steps": 40, "context": 32, "learning_rate": 3e-3, "precision": precision}
    found = {}
    for device in ("cpu", "cuda"):
        config = RunConfig.from_table({"model": MODELS[name], "train": train | {"device": device}})
        run = loop.start(tmp_path / device, config, quiet=True)
        found[device] = [record["valid"] for record in run.log() if "valid" in record][-1]
    assert math.isclose(found["cuda"], found["cpu"], rel_tol=0.02)


@pytest.mark.parametrize("name", ["egru", "spikegpt"])
def test_compiled_pruned_and_rounded_it_goes_on_where_it_was(name, tmp_path):
    train = TABLE["train"] | {"steps": 20, "evaluate_every": 20, "checkpoint_every": 10}
    train |= {"device": "cuda", "precision": "bf16", "compile": True}
    config = RunConfig.from_table(TABLE | {"model": MODELS[name], "train": train})
    whole = loop.start(tmp_path / "run", config, quiet=True)
    again = loop.resume(stopped(whole.folder, tmp_path / "again"), quiet=True)
    (*_, first), (*_, second) = ([r["valid"] for r in run.log() if "valid" in r] for run in (whole, again))
    assert math.isclose(first, second, rel_tol=0.01)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_under_autocast_an_lstm_or_gru_is_what_it_is_without(kind):
    layer, x = kind(8, 8).cuda(), torch.randn(2, 5, 8, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y, _ = layer(x)
    assert y.dtype == torch.float32 and torch.equal(y, layer(x)[0])


def test_weights_are_scaled_exactly():
    exponent = torch.arange(-126, 128)
    ones = torch.ones(1, len(exponent))
    assert torch.equal(scaled(ones.cuda(), exponent.cuda()).cpu(), scaled(ones, exponent))
