"""The paths of a GPU, on a GPU that is not there (`fake_cuda`): no tensor is on another device than it should be, and
nothing in a training step makes the host wait."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_cuda import fake_cuda

from rheobase.backends import simulate
from rheobase.models import (
    EGRULM,
    LSTMLM,
    RWKV4,
    EGRULMConfig,
    LSTMLMConfig,
    RWKV4Config,
    SpikeGPT,
    SpikeGPTConfig,
)

KNOWN = {"() from cpu to cuda"}
"""numbers of `ops.lif` on their way to its kernel"""
WIDTHS = {"vocabulary": 64, "embedding": 16}
FED = {"placement": "spike_fed", "ternary": True, "graded": True, "learn": ("tau", "theta")}
DROPS = {"dropconnect": 0.1, "dropout_words": 0.1, "dropout_forward": 0.1}
MODELS = {
    "spikegpt": lambda: SpikeGPT(SpikeGPTConfig(**WIDTHS, depth=2, ffn_pre=True)),
    "spikegpt spike-fed": lambda: SpikeGPT(SpikeGPTConfig(**WIDTHS, depth=1, placement="spike_fed")),
    "spikegpt without norms": lambda: SpikeGPT(SpikeGPTConfig(**WIDTHS, depth=1, **FED, norm="static", head="spiking")),
    "rwkv4": lambda: RWKV4(RWKV4Config(**WIDTHS, depth=2)),
    "egru": lambda: EGRULM(EGRULMConfig(**WIDTHS, **DROPS, layers=(24, 16), zoneout=0.1, rate_weight=1.0)),
    "lstm": lambda: LSTMLM(LSTMLMConfig(**WIDTHS, **DROPS, layers=(24, 16))),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_does_not_wait_for_the_gpu(name, autocast):
    model, state = MODELS[name](), None
    with fake_cuda() as gpu:
        model = model.to("cuda").train()
        model.advance(0.0)
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        tokens = torch.randint(0, 64, (4, 20), device="cuda")
        for _ in range(2):  # the first may read numbers that are then known
            gpu.waits.clear()
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                logits, state, runs = model.run(tokens[:, :-1], state)
                loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()) + model.penalty(runs)
            loss.backward()
            assert all(p.grad is not None and p.grad.is_cuda for p in model.parameters())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            model.project_()
            model.advance(0.5)
            state = tuple(type(s)(*(part.detach().float() for part in s)) for s in state)
            assert all(rate.is_cuda for rate in model.rates(runs))
    assert set(gpu.waits) <= KNOWN


@pytest.mark.parametrize("name", MODELS)
def test_the_simulator_asks_little_more_of_a_gpu_than_the_model(name):
    """Of kernels and bytes; it hands over the tokens, fetches the sums of the tally, and waits for the rest."""
    model, x = MODELS[name]().eval(), np.random.default_rng(0).integers(0, 64, (16, 256))
    model.advance(1.0)
    graph = model.lower()
    with fake_cuda() as gpu, torch.no_grad():
        simulate(graph, x, on="torch", device="cuda")  # which takes the weights there
        gpu.forget()
        trace = simulate(graph, x, on="torch", device="cuda")
        simulated, moved, waits = _launches(gpu), gpu.bytes, [wait for wait in gpu.waits if wait not in KNOWN]
        assert waits[0] == "(256, 16, 1) from cpu to cuda"
        assert waits[-1] == "synchronize"
        assert name == "lstm" or (len(waits) == 3 and waits[1].endswith("from cuda to cpu"))
        gpu.forget()
        assert trace.outputs["logits"].shape == (16, 256, 64) and len(gpu.waits) == 1
        model, tokens = model.to("cuda"), torch.randint(0, 64, x.shape, device="cuda")
        model.run(tokens)
        gpu.forget()
        model.run(tokens)
        assert simulated < 1.3 * _launches(gpu)
        assert moved < (1.6 if name == "egru" else 1.3) * gpu.bytes  # a step's product is inside the op


def _launches(gpu) -> int:
    """Two kernels a step are in one call of the EGRU's op."""
    return gpu.launches + 2 * 256 * gpu.kernels["egru_triton"]


def test_the_gpu_that_is_not_there_tells_what_waits():
    with fake_cuda() as gpu:
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="at least two devices"):
            x + torch.ones(3)
        assert not gpu.waits
        for wait in (
            lambda: x.sum().item(),
            lambda: bool(x.any()),
            lambda: x.tolist(),
            lambda: torch.tensor(1.0).to(x),
        ):
            wait()
        assert len(gpu.waits) == 4
