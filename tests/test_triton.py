"""Triton's kernels: in its interpreter, in a process of its own, and compiled for GPUs that need not be here.

Each op's tests are `tests/laws/triton_*.py`; TRITON_INTERPRET counts when a kernel is defined. Slow ones:
`TRITON_INTERPRET=1 pytest -m slow tests/laws/triton_*.py`, or with SOFTWARE_GPU=90 in its place, compiled for such a
GPU, which `software_gpu.py` is.
"""

import contextlib
import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

triton = pytest.importorskip("triton")

LAWS = sorted((Path(__file__).parent / "laws").glob("triton_*.py"))


def test_there_are_laws():
    assert {"triton_egru", "triton_lif", "triton_wkv"} <= {law.stem for law in LAWS}


@pytest.fixture(scope="module", autouse=True)
def interpreted():
    """Law -> its tests' process; all run side by side, and beside the tests before the last of this file."""
    env = {k: v for k, v in os.environ.items() if k != "RHEOBASE_KERNELS"} | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with contextlib.ExitStack() as stack:
        running = {}
        for law in LAWS:
            running[law] = stack.enter_context(subprocess.Popen([*command, str(law)], env=env, **pipes))
            stack.callback(running[law].kill)
        yield running


def compile_for(kernel, capability: int, types: dict[str, str], constants: dict, **options):
    """The kernel's forms for an NVIDIA GPU, by name. types: of the arguments, "*fp32" where they are not named."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    options = {"num_warps": 1, "enable_fp_fusion": True} | options
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm


@pytest.mark.parametrize("op", ["lif", "wkv"])
def test_a_pass_that_is_left_out_changes_nothing(op, tmp_path, monkeypatch):
    from rheobase.spiking.ops import rows

    kernels = importlib.import_module(f"rheobase.spiking.ops.{op}.triton")
    passes = triton._C.libtriton.passes.ttgpuir
    add = passes.add_coalesce
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    types = {"T": "i32", "kept": "*fp32"}
    constants = {"D": 700, "STEPS": 2, "BLOCK": kernels.BLOCK, "WHOLE": False, "KEEP": True}
    if op == "lif":
        constants |= {"REST": 0.1, "HARD": True, "DECAY": True, "STRICT": False, "TERNARY": True, "WITH_H": True}
        constants |= {"ALL_V": True, "TAU": None, "THETA": None, "INVERSE": None, "SURROGATE": "ATan", "FIRST": 2.0}
        constants |= {"SECOND": 0.0, "THROUGH": True, "LEARNS": True}
    else:
        constants |= {"FIRST": -1e38, "GATED": True}
    passed = []
    monkeypatch.setattr(passes, "add_coalesce", lambda manager: passed.append(1) or add(manager))
    rows._skip_where_told(passes)
    for kernel in (kernels._forward, kernels._backward):
        own = {name: value for name, value in constants.items() if name in kernel.arg_names}
        codes = []
        for way in (contextlib.nullcontext, rows.one_layout):
            with way():
                ptx = compile_for(kernel, 90, types, own, **rows.OPTIONS)["ptx"]
            codes.append([line for line in ptx.splitlines() if not line.lstrip().startswith((".file", ".loc"))])
        assert codes[0] == codes[1] and len(codes[0]) > 100
        assert "_do_compile" in vars(kernel), "its launches compile so too"
    assert len(passed) == 2, "once for each kernel"


def test_the_pass_is_left_out_for_the_time_of_a_compilation():
    from rheobase.spiking.ops import rows

    seen, kernel = [], SimpleNamespace(_do_compile=lambda: seen.append(rows._thread.one_layout))
    rows.quick(kernel)._do_compile()
    assert seen == [True] and not rows._thread.one_layout


FORMS = list(itertools.product((80, 90), ("*bf16", "*fp32"), (False, True)))
FORMS = [form if form in FORMS[0::7] else pytest.param(*form, marks=pytest.mark.slow) for form in FORMS]
"""Compute capability, the type of what is read and written, and which kind of kernel; all but two are slow"""


@pytest.mark.parametrize(("capability", "io", "gated"), FORMS)
def test_wkv_compiles(capability, io, gated, tmp_path, monkeypatch):
    from rheobase.spiking.ops.rows import OPTIONS, one_layout
    from rheobase.spiking.ops.wkv import triton as wkv

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"T": "i32", **dict.fromkeys(("k", "v", "gate", "y", "g_y", "g_k", "g_v", "g_gate"), io)}
    constants = {"D": 768, "FIRST": -1e38, "GATED": gated, "WHOLE": gated, "STEPS": wkv.STEPS, "BLOCK": wkv.BLOCK}
    constants |= {"state": None} if gated else {}
    for kernel, more in ((wkv._forward, {"KEEP": True}), (wkv._backward, {})):
        with one_layout():
            asm = compile_for(kernel, capability, types, constants | more, **OPTIONS)
        assert asm["cubin"] and ".maxnreg 255" in asm["ptx"]
        assert "div" not in asm["ptx"] and asm["ptx"].count("ex2.approx.f32") == 1, "e^time_decay, once"


@pytest.mark.parametrize(("capability", "io", "learnt"), FORMS)
def test_lif_compiles_without_fused_products(capability, io, learnt, tmp_path, monkeypatch):
    """A spike must not hang on how a product rounds."""
    from rheobase.spiking.ops.lif import triton as lif
    from rheobase.spiking.ops.rows import OPTIONS, one_layout

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"T": "i32", **dict.fromkeys(("x", "s", "h", "g_s", "g_h", "g_x"), io)}
    kind = {"REST": 0.1, "HARD": True, "DECAY": True, "STRICT": False, "TERNARY": True, "WITH_H": True, "ALL_V": True}
    slope = {"SURROGATE": "ATan", "FIRST": 2.0, "SECOND": 0.0, "THROUGH": True, "LEARNS": True}
    steps = lif.STEPS
    if learnt:
        steps //= 4  # of divisions, which take long to compile
        parameters = {"TAU": None, "THETA": None, "INVERSE": None, "WHOLE": False}
    else:
        parameters = {"tau": None, "theta": None, "TAU": 2.0, "THETA": 1.0, "INVERSE": 0.5, "WHOLE": True}
    constants = {"D": 768, "STEPS": steps, "BLOCK": lif.BLOCK, **kind, **parameters}
    for kernel, more in ((lif._forward, {"KEEP": True}), (lif._backward, slope)):
        with one_layout():
            asm = compile_for(kernel, capability, types, constants | more, enable_fp_fusion=False, **OPTIONS)
        resets = steps - (kernel is lif._backward)  # nothing reads the last one that backward goes through
        assert asm["cubin"] and asm["ptx"].count("fma.rn.f32") == resets, "whose product is exact, and no other"
        divides = "div.rn.f32" in asm["ptx"]
        assert divides == learnt, "rounded as torch rounds it; by a power of two a product does"


@pytest.mark.parametrize(("products", "others"), [("*fp32", "*fp32"), ("*bf16", "*bf16"), ("*bf16", "*fp32")])
@pytest.mark.parametrize("zoneout", ["none", "evaluation", "training"])
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_egru_compiles(capability, zoneout, products, others, tmp_path, monkeypatch):
    import triton.language as tl

    from rheobase.spiking.ops.egru import triton as egru

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys({*egru._forward.arg_names, *egru._backward.arg_names}, others)
    types |= dict.fromkeys(("gates", "q", "bias", "q_g", "events", "of_a", "of_q", "of_y"), products)
    types |= dict.fromkeys(("of_c", "of_trace", "of_thr"), "*fp32") | dict.fromkeys(("t", "T", "H"), "i32")
    types |= {"kept": "*i1"}
    constants = {"ZEROS": 2, "ZONEOUT": 0.0 if zoneout == "none" else 0.2, "DECAY": 0.9}
    constants |= {"TYPE": tl.float32, "BLOCK": egru.BLOCK}
    if zoneout != "training":
        constants["kept"] = None
    assert compile_for(egru._forward, capability, types, constants)["cubin"]
    constants |= {"GAMMA": 0.7, "EPS": 1.0, "g_c": None}
    for of_trace in ({}, {"g_trace": None, "of_trace": None}):
        assert compile_for(egru._backward, capability, types, constants | of_trace)["cubin"]


@pytest.mark.parametrize("op", ["lif", "wkv"])
def test_operators_have_names_of_their_own(op):
    """Of two under one name the later would be called, with the other's arguments."""
    native, kernels = (importlib.import_module(f"rheobase.spiking.ops.{op}.{form}") for form in ("native", "triton"))
    assert getattr(native, f"{op}_backward").operator._qualname != getattr(kernels, f"_{op}_backward")._qualname


@pytest.mark.parametrize("op", ["lif", "wkv", "egru"])
def test_a_batch_of_any_size_fits_on_a_gpu(op):
    """Which takes 2^31 - 1 programs on its first axis, and 65,535 on another."""
    import torch

    module, grids = importlib.import_module(f"rheobase.spiking.ops.{op}.triton"), []

    class Kernel:
        arg_names = ()

        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **options: None

    x = torch.zeros(70_000, 1, 1)
    if op == "lif":
        module._launch(Kernel(), [x], (2.0, 1.0, 0.0), True)
    elif op == "wkv":
        module._launch(Kernel(), [], x)
    else:
        module._launcher(Kernel(), [], x)(0)
    assert grids[0][0] == 70_000 and max((*grids[0][1:], 1)) == 1


@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_egru_s_later_launches_have_the_first_one_s_arguments(name):
    """What Triton compiled is called with every argument of the kernel in order, constants too, and addresses."""
    import torch

    from rheobase.spiking.ops.egru import triton as egru

    names, calls, grids = getattr(egru, name).arg_names, [], []

    class Kernel:
        arg_names = names

        def __getitem__(self, grid):
            grids.append(grid)

            def launch(*args, num_warps, enable_fp_fusion, **options):
                calls.append(dict(zip(names, args, strict=False)) | options)
                return {grid: lambda *args: calls.append(dict(zip(names, args, strict=True)))}

            return launch

    tensors = [torch.zeros(2) if i % 5 else None for i in range(names.index("t"))]
    more = {"GAMMA": 0.7, "EPS": 1.0} if name == "_backward" else {}
    launch = egru._launcher(Kernel(), tensors, torch.zeros(2, 3, 130), ZEROS=2, ZONEOUT=0.1, **more)
    for t in (2, 1, 0):
        launch(t)
    first, *others = calls
    assert grids == [(2, 2, 1)] and first.keys() == set(names) and [call["t"] for call in calls] == [2, 1, 0]
    wanted = {n: a.data_ptr() if isinstance(a, torch.Tensor) else a for n, a in first.items()}
    assert len(others) == 2 and all(call == wanted | {"t": call["t"]} for call in others)


@pytest.mark.parametrize("cast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("training", [False, True])
def test_egru_waits_for_no_gpu(cast, training, monkeypatch):
    """On tensors that pretend to be on a GPU, what runs on the host mixes no devices and asks for no value, so that a
    CUDA graph can hold it: the operators' bodies but for the launches, and what autograd does around them."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from rheobase.spiking import EGRU
    from rheobase.spiking.ops.egru import triton as egru

    called = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(egru, "_launcher", lambda kernel, tensors, y, **_: called.append(tensors) or (lambda t: None))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: cast)  # torch turns it off without a GPU
    layer = EGRU(6, 5, zoneout=0.2, dropconnect=0.1).train(training)
    taken = egru._egru
    monkeypatch.setattr(egru, "_egru", lambda *args: called.append(args) or taken(*args))
    with FakeTensorMode():
        parameters = {n: torch.empty(p.shape, device="cuda", requires_grad=True) for n, p in layer.named_parameters()}
        x = torch.randn(2, 4, 6, device="cuda", requires_grad=True)
        y, _ = torch.func.functional_call(layer, parameters, (x,))
        (inputs,) = called
        assert y.is_cuda and y.dtype == torch.float32 and (inputs[9] is not None) == training
        with torch.no_grad():
            outputs = taken._init_fn(*inputs)
            ctx = SimpleNamespace(
                save_for_backward=lambda *tensors: setattr(ctx, "saved_tensors", tensors),
                set_materialize_grads=lambda _: None,
                needs_input_grad=[True] * 6,
            )
            egru._keep(ctx, inputs, outputs)
            incoming = [torch.ones_like(part) for part in outputs[:7]]
            monkeypatch.setattr(egru, "_egru_backward", egru._egru_backward._init_fn)
            for given in (incoming, [incoming[0], *[None] * 6]):
                gradients = egru._differentiate(ctx, *given)
                for gradient, tensor in zip(gradients[:9], inputs, strict=False):
                    assert gradient.shape == tensor.shape and gradient.dtype == tensor.dtype and gradient.is_cuda
    assert len(called) == 4 and all(t is None or t.is_cuda for tensors in called[1:] for t in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.stem)
def test_compiled_in_software(law, capability):
    env = {k: v for k, v in os.environ.items() if k != "RHEOBASE_KERNELS"} | {"SOFTWARE_GPU": capability}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(law)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.stem)
def test_in_the_interpreter(law, interpreted):
    said, _ = interpreted[law].communicate()
    assert interpreted[law].returncode == 0, said
