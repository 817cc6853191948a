"""Norse and snnTorch agree with LIF wherever both can say the same; where they differ, they are seen to."""

import warnings

import pytest
import torch

from rheobase.spiking.ops import lif

with warnings.catch_warnings():
    for kind in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.* is deprecated", category=kind)
    norse = pytest.importorskip("norse.torch.functional.lif")
    snntorch = pytest.importorskip("snntorch")

X = 2 * torch.randn(4, 60, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("reset", "v_reset"), [("zero", 0.0), ("subtract", None)])
@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_snntorch_leaky_with_an_immediate_reset(reset, v_reset, beta):
    leaky = snntorch.Leaky(beta=torch.tensor(beta).double(), threshold=0.8, reset_mechanism=reset, reset_delay=False)
    drive = X.abs().clamp(max=0.85) if v_reset is None else X  # keeps v below 2 theta
    mem, spikes, membranes = torch.zeros(4, 7, dtype=torch.float64), [], []
    for x in drive.unbind(1):
        s, mem = leaky(x, mem)
        spikes.append(s)
        membranes.append(mem)
    s, v = lif(drive, tau=1 / (1 - leaky.beta), theta=leaky.threshold, v_reset=v_reset, decay_input=False, fire=">")
    assert torch.equal(torch.stack(spikes, 1), s) and s.sum() > 20
    assert (torch.stack(membranes, 1) - v).abs().max() <= 1e-12


def test_snntorch_subtracts_before_it_fires_beyond_twice_the_threshold():
    leaky = snntorch.Leaky(
        beta=torch.tensor(0.9).double(), threshold=0.8, reset_mechanism="subtract", reset_delay=False
    )
    mem, spikes = torch.zeros(1, 1, dtype=torch.float64), []
    drive = torch.tensor([[[2.5], [0.0], [0.0]]], dtype=torch.float64)
    for x in drive.unbind(1):
        s, mem = leaky(x, mem)
        spikes.append(s)
    s, _ = lif(drive, tau=1 / (1 - leaky.beta), theta=leaky.threshold, v_reset=None, decay_input=False, fire=">")
    assert s.flatten().tolist() == [1, 1, 0] and torch.stack(spikes, 1).flatten().tolist() == [1, 0, 0]


def test_snntorch_by_default_resets_one_step_later():
    leaky = snntorch.Leaky(beta=torch.tensor(0.9).double(), threshold=0.8)
    mem, spikes = torch.zeros(4, 7, dtype=torch.float64), []
    for x in X.unbind(1):
        s, mem = leaky(x, mem)
        spikes.append(s)
    s, _ = lif(X, tau=1 / (1 - leaky.beta), theta=leaky.threshold, v_reset=None, decay_input=False, fire=">")
    assert not torch.equal(torch.stack(spikes, 1), s)


def run_norse(tau, tau_syn_inv):
    p = norse.LIFParameters(
        tau_syn_inv=torch.tensor(tau_syn_inv).double(),
        tau_mem_inv=torch.tensor(1000.0 / tau).double(),
        v_leak=torch.tensor(0.0).double(),
        v_th=torch.tensor(0.3).double(),
        v_reset=torch.tensor(0.0).double(),
    )
    zeros = torch.zeros(4, 7, dtype=torch.float64)
    state, spikes, membranes = norse.LIFFeedForwardState(v=zeros, i=zeros), [], []
    for x in X.unbind(1):
        s, state = norse.lif_feed_forward_step(x, state, p, dt=0.001)
        spikes.append(s)
        membranes.append(state.v)
    return torch.stack(spikes, 1), torch.stack(membranes, 1)


@pytest.mark.parametrize("tau", [2.0, 5.0])
def test_norse_with_an_instant_synapse_is_lif(tau):
    spikes, membranes = run_norse(tau, 1000.0)
    s, v = lif(X, tau=tau, theta=0.3, v_reset=0.0, decay_input=True, fire=">")
    assert torch.equal(spikes, s) and 0.05 < s.mean() < 0.95
    assert (membranes - v).abs().max() <= 1e-12


def test_norse_with_a_slow_synapse_is_another_neuron():
    s, _ = lif(X, tau=2.0, theta=0.3, v_reset=0.0, decay_input=True, fire=">")
    assert not torch.equal(run_norse(2.0, 200.0)[0], s)
