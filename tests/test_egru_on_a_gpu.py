"""EGRU on a CUDA device, where there is one: Triton against the reference, and both in a CUDA graph."""

import pytest
import torch
from test_egru_kernels import assert_same, case, run

from rheobase.spiking import EGRU, EGRUState, Triangle, cuda_graphed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TRIANGLE = Triangle(3.6, 3.6)


@pytest.mark.parametrize("settings", [{}, {"zoneout": 0.3}, {"zoneout": 0.3, "training": True}], ids=str)
@pytest.mark.parametrize("size", [(3, 7, 5), (64, 9, 1350)], ids=str)
def test_triton_is_its_reference(size, settings):
    tensors, weights = case(size)
    if settings.get("training"):
        settings = settings | {"zoneout_mask": (torch.rand(size) < 0.7).cuda()}
    tensors, weights = [t.cuda() for t in tensors], [w.cuda() for w in weights]
    wanted, got = (run(tensors, weights, k, surrogate=TRIANGLE, **settings) for k in ("reference", "triton"))
    assert_same(got, wanted, 1e-10)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("cast", [False, True], ids=["float32", "autocast"])
def test_a_graph_is_the_layer(kernels, cast, monkeypatch):
    monkeypatch.setenv("RHEOBASE_KERNELS", kernels)
    torch.manual_seed(0)
    layer, results = EGRU(40, 50, TRIANGLE, zoneout=0.2, dropconnect=0.1).cuda(), []
    xs = torch.randn(3, 8, 12, 40, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=cast):
        graphed = cuda_graphed(layer, xs[0])
    for way in (graphed, layer):
        layer.zero_grad()
        torch.manual_seed(1)
        state, seen = layer.initial_state(8), []
        for x in xs:
            # a graph does without autocast's cache, with which a leaf's gradient adds up in bfloat16 over the steps
            with torch.autocast("cuda", torch.bfloat16, enabled=cast, cache_enabled=False):
                y, state = way(x, state)
            (y.square().sum() + state.c.sum()).backward()
            state = EGRUState(*(part.detach() for part in state))
            seen += [y.detach(), *state]
        results.append([*seen, *(p.grad.clone() for p in layer.parameters())])
    assert results[0][0].count_nonzero()
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * b.abs().max().item(), rtol=0)
