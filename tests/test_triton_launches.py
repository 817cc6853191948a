"""Triton's own way from a call to a launch: what it makes of the arguments, compiled for sm_90 at the size that a
kernel has, on a driver that launches nothing."""

import gc
from types import SimpleNamespace

import pytest
import torch

from rheobase.spiking import ATan, EGRUState, Triangle
from rheobase.spiking.ops import WKVState

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device launches them itself")
F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


class Launcher:
    """What Triton calls with a compiled kernel's arguments, every one in order."""

    launched = []

    def __init__(self, source, metadata):
        self.signature = list(source.signature.values())

    def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        for argument, kind in zip(arguments, self.signature, strict=True):
            if kind.startswith("*"):
                assert argument is None or isinstance(argument, int | torch.Tensor)
            elif kind != "constexpr":
                assert kind.startswith("i") and isinstance(argument, int)
        self.launched.append(function)


@pytest.fixture(autouse=True)
def driver(tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from rheobase.spiking.ops.egru import triton as egru
    from rheobase.spiking.ops.lif import triton as lif
    from rheobase.spiking.ops.wkv import triton as wkv

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232_448, "multiprocessor_count": 132, "warpSize": 32},
        load_binary=lambda name, *_: (1, name, 32, 0, 1024),
        unload_module=lambda module: None,
    )
    driver.set_active(
        SimpleNamespace(
            utils=utils,
            launcher_cls=Launcher,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    yield
    Launcher.launched.clear()
    for kernels in (lif, wkv, egru):
        for kernel in (kernels._forward, kernels._backward):
            kernel.device_caches.clear()
    gc.collect()  # what was compiled is unloaded, by this driver
    driver.set_active(None)


def backward(outputs) -> None:
    sum(part.float().sum() for part in outputs if part is not None).backward()


@pytest.mark.parametrize(("kind", "steps", "learns"), [(F32, 1, False), (BF16, 64, False), (F64, 39, True)], ids=str)
def test_lif(kind, steps, learns):
    from rheobase.spiking.ops.lif import triton as lif

    wide = torch.float64 if kind == torch.float64 else torch.float32
    x, v = torch.zeros(2, steps, 33, dtype=kind, requires_grad=True), torch.zeros(2, 33, dtype=wide)
    tau, theta = (torch.ones(33, dtype=wide, requires_grad=True) if learns else n for n in (2.0, 1.0))
    numbers = {"tau": tau, "theta": theta, "v_reset": None if learns else 0.0, "surrogate": ATan(2.0)}
    rules = {"decay_input": True, "fire": ">=", "detach_reset": not learns, "ternary": learns}
    backward(lif.lif(x, v, **numbers, **rules, with_h=learns, whole=learns))
    assert Launcher.launched == ["_forward", "_backward"]


@pytest.mark.parametrize(("kind", "steps", "more"), [(F32, 1, False), (BF16, 64, False), (F64, 39, True)], ids=str)
def test_wkv(kind, steps, more):
    from rheobase.spiking.ops.wkv import triton as wkv

    wide = torch.float64 if kind == torch.float64 else torch.float32
    k, v, gate = torch.zeros(3, 2, steps, 33, dtype=kind).unbind()
    state = WKVState(*torch.zeros(3, 2, 33, dtype=wide)) if more else None
    decay, first = torch.zeros(2, 33, dtype=wide)
    y, last = wkv.wkv(decay.requires_grad_(), first, k, v, state, gate if more else None)
    backward((y, *last))
    assert Launcher.launched == ["_forward", "_backward"]


@pytest.mark.parametrize(
    ("kind", "steps", "zoneout", "training"),
    [(F32, 1, 0.0, False), (BF16, 3, 0.3, False), (F64, 3, 0.3, True)],
    ids=str,
)
def test_egru(kind, steps, zoneout, training):
    """Steps after the first are launched with addresses."""
    from rheobase.spiking.ops.egru import triton as egru

    shapes = (2, steps, 7), (7, 15), (5, 15), (15,), (15,), (5,), (2, 5), (2, 5), (2, 5)
    tensors = [torch.zeros(shape, dtype=kind, requires_grad=True) for shape in shapes]
    kept = torch.ones(2, steps, 5, dtype=torch.bool) if training else None
    state = EGRUState(*tensors[6:])
    run, last = egru.egru(*tensors[:6], state, surrogate=Triangle(), zoneout=zoneout, kept=kept)
    backward((*run, *last))
    assert Launcher.launched == ["_forward"] * steps + ["_backward"] * steps
