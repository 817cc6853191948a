"""LIF, WKV and EGRU, forward and backward, beside loops in torch, torch.compile and other libraries.

B batch, T steps, N units. Each case's first run is what a user of the layer gets.
"""

import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from rheobase.bench import Case, Setting, tried
from rheobase.spiking import EGRU, LIF, cuda_graphed
from rheobase.spiking.adapters._library import load
from rheobase.spiking.ops import wkv as wkv_op
from rheobase.spiking.ops.choice import VARIABLE
from rheobase.spiking.ops.wkv.reference import FIRST
from rheobase.spiking.surrogates import FastSigmoid

SIZES = {"cpu": (8, 1024, 512), "cuda": (16, 1024, 768)}
SMALL = (2, 32, 16)
TYPES = {"cpu": [torch.float32], "cuda": [torch.float32, torch.bfloat16]}
PRECISIONS = ("float32", "TF32", "bfloat16 autocast")
KINDS = {
    "that subtracts, FastSigmoid": {"v_reset": None, "decay_input": False, "surrogate": FastSigmoid()},
    "with learnt tau and theta": {"learn": ("tau", "theta")},
    "with ternary spikes": {"ternary": True},
}


def lif(setting: Setting) -> list[Case]:
    """SpikeGPT's LIF (tau 2, theta 1, hard reset to 0, arctangent), then others of its kinds beside their loops."""
    cases = [_lif(setting, dtype) for dtype in TYPES[setting.device]]
    return cases + [_lif_of_a_kind(setting, name, **kind) for name, kind in KINDS.items()]


def _lif(setting: Setting, dtype: torch.dtype) -> Case:
    shape, size = _shape(setting, dtype)
    x, g = torch.randn(2, *shape, device=setting.device, dtype=dtype)
    layer = LIF().to(setting.device)
    ours = {"ours": lambda x: layer(x)[0], "loop over x.unbind(1)": by_reference(lambda x: layer(x)[0])}
    peers = {
        "SpikingJelly, multi-step": _spikingjelly,
        "snnTorch, loop over x[t]": partial(_snntorch, setting.device),
        "Norse, loop over x.unbind(1)": _norse,
    }
    if setting.compile:
        peers |= {"torch.compile, scan": _compiled_scan, "torch.compile, 64 steps unrolled": _compiled_pieces}
    others, absent = tried(peers)
    runs = {name: _both(way, [x], g) for name, way in (ours | others).items()}
    return Case("LIF, forward + backward", size, runs, absent, bytes=5 * x.nbytes)


def _lif_of_a_kind(setting: Setting, name: str, **kind) -> Case:
    shape, size = _shape(setting, torch.float32)
    x, g = torch.randn(2, *shape, device=setting.device)
    layer = LIF(shape[2], **kind).to(setting.device)
    ways = {"ours": lambda x, *_: layer(x)[0], "loop over x.unbind(1)": by_reference(lambda x, *_: layer(x)[0])}
    runs = {way: _both(run, [x, *layer.parameters()], g) for way, run in ways.items()}
    return Case(f"LIF {name}, forward + backward", size, runs, bytes=5 * x.nbytes)


def wkv(setting: Setting) -> list[Case]:
    """The recurrent attention of RWKV-4."""
    return [_wkv(setting, dtype) for dtype in TYPES[setting.device]]


def _wkv(setting: Setting, dtype: torch.dtype) -> Case:
    """Decays are float32 always."""
    shape, size = _shape(setting, dtype)
    k, v, g = torch.randn(3, *shape, device=setting.device, dtype=dtype)
    w, u = torch.randn(2, shape[2], device=setting.device)
    ours = {
        "ours": lambda *x: wkv_op(*x)[0],
        "loop over x.unbind(1)": by_reference(lambda *x: wkv_op(*x)[0]),
    }
    others, absent = tried({"fla, fused_recurrent_rwkv4": _fla} if setting.device == "cuda" else {})
    runs = {name: _both(way, [w, u, k, v], g) for name, way in (ours | others).items()}
    return Case("WKV, forward + backward", size, runs, absent, bytes=10 * k.nbytes)


def egru(setting: Setting) -> list[Case]:
    """A layer of EGRU with its input product, beside nn.GRU and nn.LSTM of the same width; on a GPU at each precision,
    and in a CUDA graph."""
    cuda = setting.device == "cuda"
    sizes = (2, 8, 16) if setting.small else (64, 70, 1350) if cuda else (16, 128, 512)
    return [_egru(setting.device, precision, *sizes) for precision in (PRECISIONS if cuda else PRECISIONS[:1])]


def _egru(device: str, precision: str, batch: int, steps: int, units: int) -> Case:
    """torch's layers are bfloat16 throughout where ours is under autocast, which would run cuDNN's in float16."""
    narrow = precision == "bfloat16 autocast"
    dtype, cast = torch.bfloat16 if narrow else torch.float32, partial(torch.autocast, device, torch.bfloat16, narrow)

    def ours(way=lambda layer, x: layer, units=units):
        layer, x = EGRU(units, units).to(device), torch.randn(batch, steps, units, device=device, requires_grad=True)
        with cast():
            way = way(layer, x)

        def forward(x, *_):
            with cast():
                return way(x)[0]

        return _both(forward, [x, *layer.parameters()], torch.randn_like(x))

    def peer(kind):
        layer = kind(units, units, batch_first=True).to(device, dtype)
        x, g = torch.randn(2, batch, steps, units, device=device, dtype=dtype)
        return _both(lambda x, *_: layer(x)[0], [x, *layer.parameters()], g)

    ways = {"ours": ours}
    if device == "cuda":
        wide = -(-units // 8) * 8
        ways |= {
            "ours, in a CUDA graph": lambda: ours(cuda_graphed),
            f"ours, I=H={wide}, rows of whole 16 bytes": lambda: ours(units=wide),
        }
    ways["loop over its steps"] = lambda: ours(lambda layer, x: by_reference(layer))
    ways |= {f"nn.{kind.__name__}": partial(peer, kind) for kind in (nn.GRU, nn.LSTM)}
    with tf32(precision == "TF32"):
        runs, absent = tried(ways)
        with torch.no_grad(), cast():
            x = torch.randn(batch, steps, units, device=device)
            active = (EGRU(units, units).to(device)(x)[0] != 0).double().mean().item()
    runs = {name: tf32(precision == "TF32")(run) for name, run in runs.items()}
    notes = {"ours": f"{100 * active:.1f} % of the units fire at a step"}
    size = f"B{batch} T{steps} I=H={units} {precision}"
    return Case("EGRU, forward + backward", size, runs, absent, notes)


@contextmanager
def tf32(allowed: bool):
    """Inside the block, products of float32 on a GPU may round what they multiply to TF32, or may not; torch's own
    choice is not for products, and for cuDNN's layers."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.allow_tf32 = was


def _shape(setting: Setting, dtype: torch.dtype) -> tuple[tuple[int, int, int], str]:
    shape = SMALL if setting.small else SIZES[setting.device]
    return shape, "B{} T{} N{} {}".format(*shape, str(dtype).removeprefix("torch."))


def _both(way: Callable[..., Tensor], inputs: list[Tensor], g: Tensor) -> Callable[[], object]:
    """A forward pass and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() if not isinstance(x, nn.Parameter) else x for x in inputs]
    return lambda: torch.autograd.grad(way(*leaves), leaves, g)


def by_reference(way):
    """The same, but every op takes its reference."""

    def run(*inputs):
        with _referring():
            return way(*inputs)

    return run


@contextmanager
def _referring():
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _spikingjelly():
    from spikingjelly.activation_based import functional, neuron, surrogate

    layer = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(2.0), step_mode="m")

    def run(x):
        functional.reset_net(layer)
        return layer(x.transpose(0, 1)).transpose(0, 1)

    return run


def _snntorch(device="cpu"):
    layer = load("snntorch", "snntorch>=1.0").Leaky(beta=0.5, reset_mechanism="zero", reset_delay=False).to(device)

    def run(x):
        v, spikes = layer.init_leaky(), []
        for t in range(x.shape[1]):
            s, v = layer(x[:, t] / 2, v)
            spikes.append(s)
        return torch.stack(spikes, 1)

    return run


def _norse():
    norse = load("norse.torch", "norse>=1.1")
    cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0)))

    def run(x):
        state, spikes = None, []
        for now in x.unbind(1):
            s, state = cell(now, state)
            spikes.append(s)
        return torch.stack(spikes, 1)

    return run


def _fla():
    from fla.ops.rwkv4 import fused_recurrent_rwkv4

    def run(w, u, k, v):
        """w is taken raw, as by us; the state before, [B, 3, 1, N], holds p, q and the largest exponent so far."""
        state = k.new_zeros(len(k), 3, 1, k.shape[2])
        state[:, 2] = FIRST
        return fused_recurrent_rwkv4(w, u, k, v, state)[0]

    return run


def _compiled_scan():
    """LIF by torch's scan, which compiles one step; its counter is a number that the compiler has to be allowed."""
    return torch._dynamo.config.patch(capture_scalar_outputs=True)(torch.compile(_scan))


def _compiled_pieces():
    """LIF by a compiled piece of 64 steps, called until the sequence ends."""
    piece = torch.compile(_piece)
    return lambda x: _in_pieces(piece, x)


def _scan(x: Tensor) -> Tensor:
    from torch._higher_order_ops.scan import scan

    # torch 2.11 gives results along the first axis, whichever it scans, and from a state without a gradient it passes
    # none from step to step
    first = torch.zeros_like(x[:, 0], requires_grad=True)
    return scan(_step, first, x.transpose(0, 1))[1].transpose(0, 1)


def _in_pieces(piece, x: Tensor) -> Tensor:
    v, spikes = torch.zeros_like(x[:, 0], requires_grad=True), []  # as later ones: else the first is compiled apart
    for now in x.split(64, 1):
        v, s = piece(v, now)
        spikes.append(s)
    return torch.cat(spikes, 1)


def _piece(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    spikes = []
    for now in x.unbind(1):
        v, s = _step(v, now)
        spikes.append(s)
    return v, torch.stack(spikes, 1)


def _step(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = v + (x - v) / 2
    s = _spike(h - 1)
    return h - s * h, s.clone()  # scan refuses a result that is also kept for the backward pass


def _spike(h: Tensor) -> Tensor:
    """The step with the arctangent's slope, in operators that a compiler knows."""
    soft = torch.atan(torch.pi * h) / torch.pi
    return (h >= 0).to(h) + (soft - soft.detach())
