"""Programs of torch.export: the model's own results, to the bit, from torch's operators alone."""

import subprocess
import sys

import pytest
import torch

from rheobase import models
from rheobase.models import export_program, flat_state
from rheobase.spiking.errors import ConfigError

SMALL = {
    "egru": (models.EGRULM, {"embedding": 8, "layers": (10, 8), "thr_mean": 0.1, "embedding_range": 0.5}),
    "lstm": (models.LSTMLM, {"embedding": 8, "layers": (8,)}),
    "gru": (models.GRULM, {"embedding": 8, "layers": (8,)}),
    "rwkv4": (models.RWKV4, {"embedding": 8, "depth": 1}),
    "spikegpt": (models.SpikeGPT, {"embedding": 8, "depth": 1}),
    "spike-fed, static norms": (
        models.SpikeGPT,
        {"embedding": 8, "depth": 1, "placement": "spike_fed", "graded": True, "norm": "static", "head": "spiking"},
    ),
}


def small(name):
    torch.manual_seed(0)
    kind, settings = SMALL[name]
    model = kind(kind.Config(**settings)).eval()
    model.wake(torch.arange(120).reshape(2, 60))
    model.advance(1.0)
    return model


@pytest.mark.parametrize(
    ("name", "steps"),
    [pytest.param(name, 1, marks=[pytest.mark.slow] if "fed" in name else []) for name in SMALL]
    + [("egru", 5), ("gru", 5), ("lstm", 5)],
)
def test_a_program_computes_what_the_model_does_step_after_step(name, steps, monkeypatch):
    monkeypatch.setenv("RHEOBASE_KERNELS", "reference")
    model = small(name)
    program = export_program(model, steps)
    assert not any("rheobase" in str(node.target) for node in program.graph.nodes)
    program = program.module()
    for batch in (1, 3):
        flat, state = flat_state(model, batch), None
        for seed in range(4):
            tokens = torch.randint(0, 256, (batch, steps), generator=torch.Generator().manual_seed(seed))
            logits, *flat = program(tokens, *flat)
            wanted, state = model(tokens, state)
            assert torch.equal(logits, wanted)
            assert all(torch.equal(a, b) for a, b in zip(flat, (p for layer in state for p in layer), strict=True))


def test_a_saved_program_runs_without_rheobase_and_at_its_own_number_of_steps(tmp_path):
    model, tokens = small("egru"), torch.tensor([[1, 2], [3, 4]])
    program = export_program(model, 2)
    torch.export.save(program, tmp_path / "p.pt2")
    torch.save((tokens, *flat_state(model, 2)), tmp_path / "in.pt")
    code = (
        "import sys, torch; out = torch.export.load('p.pt2').module()(*torch.load('in.pt')); "
        "torch.save(out, 'out.pt'); "
        "assert not any(name.partition('.')[0] == 'rheobase' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    again = program.module()
    for a, b in zip(torch.load(tmp_path / "out.pt"), again(tokens, *flat_state(model, 2)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(Exception, match="Guard failed|Expected input"):
        again(torch.tensor([[1, 2, 3]]), *flat_state(model, 1))


def test_what_cannot_be_exported_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="export_program steps: expected at least 1, got 0"):
        export_program(small("gru"), 0)
    monkeypatch.setenv("RHEOBASE_KERNELS", "native")
    with pytest.raises(
        ConfigError, match="expected auto or reference, which alone is of torch's operators, got native"
    ):
        export_program(small("egru"))
