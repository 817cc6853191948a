"""The rule that chooses between kernels: what "auto" takes, what a name refuses, and what is said."""

import sys

import pytest
import torch
from test_kernels import Watched
from torch._subclasses.fake_tensor import FakeTensorMode

from rheobase.backends import count
from rheobase.models import EGRULM, LSTMLM, EGRULMConfig, LSTMLMConfig, SpikeGPT, SpikeGPTConfig, export_program
from rheobase.spiking import LIF, ATan
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.ops import choice, lif, wkv
from rheobase.spiking.ops.choice import _say_once, explain, taken, takes
from rheobase.spiking.ops.lif import native as lif_in_c
from rheobase.spiking.ops.native import library
from rheobase.spiking.surrogates import Relaxed

needs_c = pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")


@pytest.fixture
def lif_calls(monkeypatch):
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    watched = Watched(lif_in_c.lif)
    monkeypatch.setattr(lif_in_c, "lif", watched)
    return watched


@needs_c
def test_auto_takes_c_wherever_it_can(lif_calls, monkeypatch):
    x = torch.randn(2, 4, 3)
    lif(x)
    lif(x.double(), torch.zeros(2, 3), tau=torch.full((3,), 2.0).double())
    assert lif_calls.calls == 2 and taken("lif") == "native"
    lif(x, kernels="reference")
    lif(x.bfloat16())
    lif(x, tau=torch.full((3,), 2.0).double())
    lif(x, torch.zeros(2, 3).double())
    lif(x, surrogate=Relaxed(ATan()))
    lif(x, tau=torch.full((2, 3), 2.0))
    count(LIF(3), x, kernels="reference")
    assert lif_calls.calls == 2
    monkeypatch.setenv("RHEOBASE_KERNELS", "reference")
    lif(x, kernels="native")
    assert lif_calls.calls == 2 and taken("lif") == "reference"
    monkeypatch.setenv("RHEOBASE_KERNELS", "native")
    lif(x, kernels="reference")
    assert lif_calls.calls == 3
    assert count(LIF(3), x).comparisons == x.numel() and lif_calls.calls == 4, "a counter is told what C does"


@pytest.fixture
def forms(monkeypatch):
    """The forms that the ops of a block of code ran in."""
    seen = []

    def spy(op, kernels, *rest):
        seen.append((op, form := takes(op, kernels, *rest)))
        return form

    for op in ("lif", "wkv", "egru"):
        monkeypatch.setattr(sys.modules[f"rheobase.spiking.ops.{op}"], "takes", spy)
    return seen


@needs_c
def test_a_model_has_its_choice_of_kernels(forms, monkeypatch):
    tokens = torch.arange(6)[None]
    spiking = SpikeGPT(SpikeGPTConfig(vocabulary=9, embedding=4, depth=1)).eval()
    fed = SpikeGPT(SpikeGPTConfig(vocabulary=9, embedding=4, depth=1, placement="spike_fed")).eval()
    recurrent = EGRULM(EGRULMConfig(vocabulary=9, embedding=4, layers=(5, 4))).eval()
    for model, ops in ((spiking, {"lif", "wkv"}), (fed, {"lif", "wkv"}), (recurrent, {"egru"})):
        assert model.kernels == "auto"
        for form in ("reference", "native", "auto"):
            model.kernels = form
            forms.clear()
            model(tokens)
            wanted = "reference" if form == "reference" else "native"
            assert set(forms) == {(op, wanted) for op in ops} and model.kernels == form
        model.kernels = "native"
        export_program(model)
        forms.clear()
        monkeypatch.setenv("RHEOBASE_KERNELS", "reference")
        model(tokens)
        assert {form for _, form in forms} == {"reference"}, "the variable goes before"
        monkeypatch.delenv("RHEOBASE_KERNELS")
        model.kernels = "triton"
        with pytest.raises(UnsupportedError, match=r"kernels: expected .*; use kernels="):
            model(tokens)
        with pytest.raises(ConfigError, match=f"{model.name} kernels: expected auto or reference or .*, got 'C'"):
            model.kernels = "C"
    recurrent.layers[0].kernels = "native"
    assert recurrent.kernels == "native, triton"
    plain = LSTMLM(LSTMLMConfig(vocabulary=9, embedding=4, layers=(4,)))
    with pytest.raises(ConfigError, match="lstm_lm kernels: expected auto: its layers are torch's alone, got 'native'"):
        plain.kernels = "native"


@needs_c
def test_native_runs_c_or_says_why_not(lif_calls, monkeypatch):
    x = torch.randn(2, 4, 3)
    cases = [
        (x.half(), {}, "expected all float32 or all float64, got torch.float16"),
        (x.to("meta"), {}, "expected tensors on a CPU, got tensors on meta"),
        (x, {"surrogate": Relaxed(ATan())}, "expected a surrogate whose spike is the step, got Relaxed"),
        (x, {"theta": torch.ones(2, 3)}, r"expected tau and theta of shape \(3,\)"),
    ]
    for tensor, settings, message in cases:
        with pytest.raises(UnsupportedError, match=f'lif kernels: {message}.*; use kernels="auto"'):
            lif(tensor, kernels="native", **settings)
    monkeypatch.setenv("RHEOBASE_KERNELS", "native")
    with pytest.raises(UnsupportedError, match="got torch.float16.*; unset RHEOBASE_KERNELS"):
        lif(x.half(), kernels="auto")
    assert lif_calls.calls == 0


def test_without_the_library(lif_calls, monkeypatch, caplog):
    monkeypatch.setattr("rheobase.spiking.ops.choice.function", lambda *_: None)
    _say_once.cache_clear()
    x = torch.randn(2, 4, 3)
    lif(x, kernels="reference")
    assert not caplog.messages
    lif(x)
    lif(x)
    (said,) = caplog.messages
    assert said.startswith('rheobase: "auto" takes the slower reference: native needs the C library, got none')
    assert lif_calls.calls == 0 and taken("lif") == "reference"
    _say_once.cache_clear()
    torch.func.vmap(lif)(torch.stack([x]))  # which C could not do, if there were it
    assert caplog.messages == [said, said]
    with pytest.raises(UnsupportedError, match="expected the C library, got none; install a C compiler"):
        lif(x, kernels="native")


def test_unknown_kernels_are_refused(monkeypatch):
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    x = torch.randn(2, 4, 3)
    with pytest.raises(ConfigError, match="kernels: expected auto or reference or native or triton, got cuda"):
        lif(x, kernels="cuda")
    monkeypatch.setenv("RHEOBASE_KERNELS", "c")
    with pytest.raises(ConfigError, match="RHEOBASE_KERNELS: expected auto or reference or native or triton, got c"):
        lif(x)


@pytest.fixture
def no_triton(monkeypatch):
    """A machine on which Triton does not import."""
    monkeypatch.setitem(sys.modules, "triton", None)
    choice.lacking_triton.cache_clear()
    yield
    choice.lacking_triton.cache_clear()


def on_cuda(dtype=torch.float32):
    """k, and a state of float32, on a GPU that need not be here."""
    with FakeTensorMode():
        return torch.empty(2, 5, 3, dtype=dtype, device="cuda"), torch.empty(2, 3, device="cuda")


def test_auto_takes_triton_on_cuda_wherever_it_can(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert takes("wkv", "auto", [*on_cuda(dtype)]) == "triton"
    k, state = on_cuda(torch.int64)
    assert takes("wkv", "auto", [k, state]) == "reference"
    assert takes("wkv", "auto", [state, torch.zeros(2, 3)]) == "reference"
    assert taken("wkv", "cuda") == explain("wkv", "cuda") == "triton"
    with pytest.raises(UnsupportedError, match="wkv kernels: expected floating-point tensors, got torch.*int64"):
        takes("wkv", "triton", [k, state])
    with pytest.raises(UnsupportedError, match="expected tensors on one device, got cpu, cuda:0; move them to one"):
        takes("wkv", "triton", [state, torch.zeros(2, 3)])
    lacking = "tensors on a CPU, got tensors on cuda" if library() else "the C library, got none"
    with pytest.raises(UnsupportedError, match=f"expected {lacking}"):
        takes("wkv", "native", [state])


def test_triton_runs_or_says_why_not(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = torch.zeros(3), torch.zeros(3), *torch.randn(2, 2, 4, 3)
    said = r"wkv kernels: expected tensors on a CUDA device, got tensors on cpu; .* TRITON_INTERPRET=1"
    with pytest.raises(UnsupportedError, match=said):
        wkv(*inputs, kernels="triton")
    monkeypatch.setenv("RHEOBASE_KERNELS", "triton")
    with pytest.raises(UnsupportedError, match=said):
        taken("wkv")


def test_without_triton(no_triton, monkeypatch):
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    assert takes("wkv", "auto", [*on_cuda()]) == taken("wkv", "cuda") == "reference"
    assert explain("wkv", "cuda").startswith("reference: triton needs Triton, got none (import of triton halted")
    with pytest.raises(UnsupportedError, match=r"wkv kernels: expected Triton, got none .*; pip install triton"):
        takes("wkv", "triton", [*on_cuda()])


def test_an_op_without_a_form_in_triton(monkeypatch):
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert takes("new", "auto", [*on_cuda()]) == "reference"
    with pytest.raises(UnsupportedError, match='new kernels: expected a form in Triton, got none; use kernels="auto"'):
        takes("new", "triton", [*on_cuda()])
