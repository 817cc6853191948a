"""SpikeGPT of any size and variant against its equations written out a second time, gradients included.

The equations are those of the original's code, in their shortest form: WKV as its two sums, the neuron one number at a
time in the order of tokens, L2Wrap as the gradient it adds. Only torch's autograd is shared with the model.
"""

import pytest
import torch
import torch.nn.functional as F
from test_golden_spikegpt import small, tokens_for


class Step(torch.autograd.Function):
    """1 where u >= 0; its gradient is that of atan(pi u) / pi, the arctangent surrogate of steepness 2."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        return gradient / (1 + (torch.pi * u) ** 2)


class MaxPenalty(torch.autograd.Function):
    """Nothing to see forwards; backwards each position's largest logit gets 1e-4 / (B T) of itself more."""

    @staticmethod
    def forward(ctx, loss, logits):
        ctx.save_for_backward(logits)
        return loss

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        most, where = y.max(-1, keepdim=True)
        return gradient, torch.zeros_like(y).scatter(-1, where, most * 1e-4 / (y.shape[0] * y.shape[1]))


def neuron(x):
    v, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = (v + x[:, t]) / 2
        s = Step.apply(h - 1)
        v = (1 - s) * h
        out.append(s)
    return torch.stack(out, 1)


def shift(a):
    return F.pad(a, (0, 0, 1, -1))


def two_sums(decay, first, k, v):
    w, out = -decay.exp(), []
    for t in range(k.shape[1]):
        terms = [((t - 1 - i) * w + k[:, i], v[:, i]) for i in range(t)] + [(first + k[:, t], v[:, t])]
        most = torch.stack([e for e, _ in terms]).amax(0).detach()
        over = sum((e - most).exp() * value for e, value in terms)
        out.append(over / sum((e - most).exp() for e, _ in terms))
    return torch.stack(out, 1)


def by_the_book(p, tokens, depth, binary, spikes):
    """Logits of the parameters p by name; every neuron layer's spikes are appended to `spikes`."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred**2).mean(-1, keepdim=True).add(1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def times(x, name):
        return x @ p[f"{name}.weight"].T

    def channels(a, name):
        k, r = (a * m + shift(a) * (1 - m) for m in (p[f"{name}.time_mix_k"], p[f"{name}.time_mix_r"]))
        hidden = times(k, f"{name}.key").clamp(min=0) ** 2
        return torch.sigmoid(times(r, f"{name}.receptance")) * times(hidden, f"{name}.value")

    def tokens_mixed(a, name):
        k, v, r = (a * m + shift(a) * (1 - m) for m in (p[f"{name}.time_mix_{c}"] for c in "kvr"))
        k, v = times(k, f"{name}.key"), times(v, f"{name}.value")
        y = two_sums(p[f"{name}.time_decay"], p[f"{name}.time_first"], k, v)
        return times(torch.sigmoid(times(r, f"{name}.receptance")) * y, f"{name}.output")

    x = p["emb.weight"][tokens]
    x = norm(Step.apply(x) if binary else x, "blocks.0.ln0")
    for i in range(depth):
        a = norm(x, f"blocks.{i}.ln1")
        pre = f"blocks.{i}.ffnPre"
        mixed = channels(a, pre) if f"{pre}.key.weight" in p else tokens_mixed(a, f"blocks.{i}.att")
        spikes.append(neuron(mixed))
        x = x + spikes[-1]
        spikes.append(neuron(channels(norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.ffn")))
        x = x + spikes[-1]
    return times(norm(x, "ln_out"), "head")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 7, "embedding": 9, "vocabulary": 78},
        {"depth": 1, "vocabulary": 2},
        {"ffn_pre": True, "embedding": 11},
        {"ffn_pre": True, "depth": 8, "binary_embedding": False},
    ],
)
def test_any_size_computes_the_equations(options):
    model = small(**options)
    tokens, targets = tokens_for(model, steps=13), tokens_for(model, steps=14)[:, 1:]
    logits, _, runs = model.run(tokens)
    p = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}
    spikes = []
    wanted = by_the_book(p, tokens, model.config.depth, model.config.binary_embedding, spikes)
    assert all(torch.equal(a, b) for a, b in zip(runs.spikes, spikes, strict=True))
    assert 0 < sum(s.mean().item() for s in spikes) < 0.9 * len(spikes)
    assert (logits - wanted).abs().max() <= 1e-12
    loss, other = (F.cross_entropy(y.flatten(0, 1), targets.flatten()) for y in (logits, wanted))
    assert abs(loss.item() - other.item()) <= 1e-12
    (loss + model.penalty(runs)).backward()
    MaxPenalty.apply(other, wanted).backward()
    for name, parameter in model.named_parameters():
        gradient = p[name].grad
        assert (parameter.grad - gradient).abs().max() <= 1e-10 * gradient.abs().max(), name
    single, _, runs = model.float().run(tokens)
    assert all(torch.equal(a.double(), b) for a, b in zip(runs.spikes, spikes, strict=True))
    assert (single - wanted).abs().max() <= 1e-5
