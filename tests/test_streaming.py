"""A token at a time: the same events as the parallel form, for ever, in constant memory and constant time.

`pytest -m slow tests/test_streaming.py -s` streams 100,000 tokens through each placement and prints the figures.
"""

import resource
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training.data import DataConfig, read_texts

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
PLACEMENTS = ("reference", "spike_fed")


def live_model(placement, tokens):
    """A small model in float64 whose every neuron layer fires on these tokens."""
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(embedding=16, depth=2, placement=placement)).double().eval()
    model.wake(tokens[:, :512].view(8, 64))
    return model


@torch.no_grad()
def stream(placement, length, tenth):
    """Hold `length` tokens of real text, one at a time, against the parallel form in chunks with its own state.

    returns  for each tenth: median processor seconds a token, and the resident memory in KiB (Linux); and
             over all tokens the largest difference of logits and the mean firing of each layer
    """
    text = read_texts(DataConfig())[0][:length]
    tokens = torch.from_numpy(text.astype(np.int64))[None]
    model = live_model(placement, tokens)
    seconds, memory, drift, rates = [], [], 0.0, []
    step_state = chunk_state = None
    for chunk in tokens.split(tenth, 1):
        times = []
        for part in chunk.split(min(tenth, 500), 1):
            wanted, chunk_state, (_, spikes) = model.run(part, chunk_state)
            for t in range(part.shape[1]):
                began = time.thread_time()
                logits, step_state, (_, fired) = model.run(part[:, t : t + 1], step_state)
                times.append(time.thread_time() - began)
                drift = max(drift, (logits[:, 0] - wanted[:, t]).abs().max().item())
                assert all(torch.equal(a[:, 0], b[:, t]) for a, b in zip(fired, spikes, strict=True))
            rates.append([s.mean().item() for s in spikes])
        seconds.append(statistics.median(times))
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024)
    for a, b in zip(step_state, chunk_state, strict=True):
        assert all(x.shape == y.shape and torch.allclose(x, y, atol=1e-9, rtol=1e-9) for x, y in zip(a, b, strict=True))
    return seconds, memory, drift, np.mean(rates, 0)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_thousand_tokens_one_at_a_time(placement):
    _, _, drift, rates = stream(placement, 1_000, 200)
    assert drift <= 1e-9 and (rates > 0.02).all() and (rates < 0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_hundred_thousand_tokens_one_at_a_time(placement):
    """`pytest -m slow tests/test_streaming.py -s`; a few minutes."""
    seconds, memory, drift, rates = stream(placement, 100_000, 10_000)
    ratio, growth = seconds[-1] / seconds[1], max(memory[2:]) - memory[1]
    print(f"\n{placement}: {1e6 * seconds[1]:.0f} us a token in the second tenth, {1e6 * seconds[-1]:.0f} in the last")
    print(f"ratio {ratio:.3f}; memory {memory[1] / 1024:.1f} MiB, later {growth:+} KiB at most; drift {drift:.1e}")
    print("firing " + " ".join(f"{rate:.3f}" for rate in rates))
    assert drift <= 1e-9 and (rates > 0.02).all() and (rates < 0.5).all()
    assert ratio < 1.5 and growth < 4096
