"""Kernels in C and models where they meet other parts of torch: devices, checkpoints, hooks, modes, pruning, nan."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking import EGRU, LIF, StraightThrough
from rheobase.spiking.ops import egru, lif, wkv


def numbers(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def weights_of_wkv(units, **options):
    return numbers(units, seed=3, **options), numbers(units, seed=4, **options)


@pytest.mark.parametrize("shape", [(2, 5, 6), (8, 500, 300)])
def test_the_default_device_is_not_that_of_the_results(kernels, shape):
    """C wrote to the address of a tensor on "meta", which is 0."""
    x = numbers(*shape, requires_grad=True)
    layer, tokens = EGRU(shape[2], 4), torch.randint(256, (2, 7))
    model = SpikeGPT(SpikeGPTConfig(embedding=8, depth=1))
    with torch.device("meta"):
        for y in LIF(tau=3.0)(x)[0], wkv(*weights_of_wkv(shape[2], device="cpu"), x, x)[0], layer(x)[0]:
            y.sum().backward()
            assert y.device.type == "cpu"
        assert model(tokens)[0].device.type == "cpu"


def test_a_checkpoint_that_saves_products_changes_no_gradient():
    """C wrote its gates over the product that the checkpoint had kept."""
    torch.manual_seed(0)
    layer, x = EGRU(32, 32), numbers(4, 20, 32, requires_grad=True)

    def choose(_, op, *args, **options):
        saves = op in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return CheckpointPolicy.MUST_SAVE if saves else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, choose)
    plain = torch.autograd.grad(layer(x)[0].square().sum(), (x, layer.bias))
    kept = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False, context_fn=contexts)
    for got, wanted in zip(torch.autograd.grad(kept.square().sum(), (x, layer.bias)), plain, strict=True):
        torch.testing.assert_close(got, wanted)


def test_modes_that_watch_operators_see_them():
    """C's products were counted by half, and what is traced read memory that only C had written."""
    layer, x = EGRU(8, 12), numbers(3, 10, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 3 * 10 * (8 + 12) * 36
    traced = make_fx(lambda x: LIF(tau=3.0)(x)[0])(x)
    assert torch.equal(traced(2 * x), LIF(tau=3.0)(2 * x)[0])
    with forward_ad.dual_level():
        assert wkv(*weights_of_wkv(8), x, x)[0].shape == x.shape


def test_hooks_may_bring_kept_tensors_back_in_other_strides(kernels):
    layer, x = EGRU(6, 6), numbers(2, 20, 6, requires_grad=True)
    weights = weights_of_wkv(6, requires_grad=True)

    def gradients():
        outputs = layer(x)[0], LIF(6, learn=("tau",))(x)[0], wkv(*weights, x, x)[0]
        return [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]

    def transposed(t):
        return t.mT.contiguous() if t.dim() > 1 else t

    plain = gradients()
    with torch.autograd.graph.saved_tensors_hooks(transposed, lambda t: t.mT if t.dim() > 1 else t):
        hooked = gradients()
    for got, wanted in zip(hooked, plain, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_hook_on_an_output_sees_its_own_gradient_alone(kernels):
    """It also got what had come through the state."""
    layer, x = EGRU(3, 4, thr_mean=0.1), numbers(2, 9, 3)
    (y, state), seen = layer(x), []
    y.register_hook(seen.append)
    (y.sum() + 5 * state.y.sum()).backward()
    assert torch.equal(seen[0], torch.ones_like(y))


@pytest.mark.parametrize(
    "use", [lambda p: p.zero_(), lambda p: p.detach_(), lambda p: p.view(-1), lambda p: p.detach().zero_()]
)
def test_a_state_is_nobody_elses_view(kernels, use):
    x, weights = numbers(2, 20, 6), weights_of_wkv(6, requires_grad=True)
    for y, state in (LIF(6, learn=("tau",))(x), EGRU(6, 6)(x), wkv(*weights, x, x)):
        for part in state:
            use(part)
        y.sum().backward()


def test_what_is_to_be_negated_when_it_is_read():
    """C read the numbers below it."""
    x = torch.complex(torch.ones(1, 2, 1), numbers(1, 2, 1)).conj().imag
    assert x.is_neg() and torch.equal(lif(x, with_h=True)[2], lif(x.resolve_neg(), with_h=True)[2])


@pytest.mark.parametrize("library", [prune.identity, lambda cell, name: parametrize.register_parametrization(
    cell, name, nn.Identity())])  # fmt: skip
def test_a_threshold_that_is_pruned_stays_within_its_range(library):
    """What was clamped was the product with the mask."""
    for cell, name, least in ((EGRU(3, 4), "thr", 0.0), (LIF(4, learn=("theta", "tau")), "theta", 1e-3)):
        library(cell, name)
        stored = [p for p in cell.parameters() if p.shape == (4,)]
        with torch.no_grad():
            for parameter in stored:
                parameter.fill_(-5.0)
        cell.project_()
        cell(numbers(1, 1, cell.input_size))
        pruned = library is prune.identity
        assert torch.equal(getattr(cell, name), torch.full((4,), least if pruned else -5.0))
        if isinstance(cell, LIF):
            assert cell.lower().theta == 1.0  # the number whose place an array takes


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_threshold_that_is_no_number_is_seen(kernels, value):
    """C trained on as if the unit were silent."""
    torch.manual_seed(0)
    layer, x = EGRU(5, 8), numbers(2, 6, 5)
    with torch.no_grad():
        layer.thr[3] = value
    (layer(x)[0].sum() + layer(x)[1].c.sum()).backward()
    assert layer(x, whole=True)[0].c[..., 3].isnan().all() and layer.kernel.grad.isnan().any()


def test_what_zoneout_keeps_is_kept_beside_what_is_no_number(kernels):
    layer = EGRU(3, 4)
    settings = {"surrogate": layer.surrogate, "zoneout": 0.5, "training": True}
    kept = torch.tensor([True, False, True, False]).expand(1, 1, 4)
    x = torch.full((1, 1, 3), torch.nan)
    run, _ = egru(x, *layer.parameters(), zoneout_mask=kept, **settings)
    assert torch.equal(run.c.isnan(), kept)


def test_a_detached_reset_passes_no_infinity_on(kernels):
    x = torch.tensor([0.3, torch.inf, 0.2, -torch.inf, 0.4]).reshape(1, 5, 1).requires_grad_()
    for v_reset in (0.0, None):
        settings = {"v_reset": v_reset, "detach_reset": True, "surrogate": StraightThrough(), "ternary": True}
        (g,) = torch.autograd.grad(lif(x, **settings)[0][:, :2].sum(), x)
        assert g[:, :2].isfinite().all()


@pytest.mark.parametrize("norm", ["layer", "static"])
@pytest.mark.parametrize("path", ["blocks.0.att.time_decay", "blocks.0.ffn.time_mix_k", "blocks.0.ln1.weight"])
def test_what_torch_puts_before_a_forward_is_run(norm, path):
    """Blocks reached into layers without calling them: a pruned parameter stayed what it was before the last step."""
    model = SpikeGPT(SpikeGPTConfig(embedding=16, depth=1, placement="spike_fed", norm=norm, init="original")).eval()
    layer, _, name = path.rpartition(".")
    tokens, seen = torch.arange(40)[None] % 7, []
    prune.identity(model.get_submodule(layer), name)
    model.get_submodule(layer).register_forward_hook(lambda *_: seen.append(layer))
    model(tokens)
    with torch.no_grad():
        model.get_parameter(f"{path}_orig").mul_(-3.0)
    model(tokens)
    now = model.get_submodule(layer)
    assert seen == [layer] * 2 and torch.equal(getattr(now, name), now.get_parameter(f"{name}_orig"))
