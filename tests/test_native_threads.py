"""The C library among threads, forks and interrupts."""

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest
import torch

from rheobase.spiking.ops import lif, wkv
from rheobase.spiking.ops.lif import native as lif_in_c
from rheobase.spiking.ops.native import function, library, threads
from rheobase.spiking.ops.wkv import native as wkv_in_c

pytestmark = pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")

AFTER_THE_MAIN_THREAD = """
import threading, time, torch
from rheobase.spiking.ops import lif

torch.set_num_threads(2)
x = torch.randn(4, 100, 512)

def work():
    threading.main_thread().join()
    time.sleep(0.2)
    print(lif(x)[0].equal(lif(x, kernels="reference")[0]))

threading.Thread(target=work).start()
"""
A_FORK_WHILE_MEMORY_IS_HANDED_OUT = """
import os, signal, threading, torch
from rheobase.spiking.ops.native import memory

held, done = threading.Event(), threading.Event()

def hold():
    with memory._lock:
        held.set()
        done.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    signal.alarm(10)
    memory.empty((memory.PAGE,), torch.float32)
    os._exit(0)
status = os.waitpid(child, 0)[1]
done.set()
print(status == 0)
"""


@pytest.mark.parametrize("script", [AFTER_THE_MAIN_THREAD, A_FORK_WHILE_MEMORY_IS_HANDED_OUT])
def test_a_process(script):
    if "fork" in script and not hasattr(os, "fork"):
        pytest.skip("no fork")
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert run.stdout == "True\n", run.stderr


def test_who_asks_for_a_function_changes_nothing_for_others():
    """Else addresses become C's ints, which are half as wide, after an operator was called before any op."""
    types = [ctypes.c_void_p] * 10 + [ctypes.c_int64] * 4
    typed = function("lif_forward_f32", *types)
    function.cache_clear()
    assert function("lif_forward_f32") is not None and list(typed.argtypes) == types
    assert function("lif_sideways_f32") is None


@pytest.mark.parametrize("op, module", [(lif, lif_in_c), (wkv, wkv_in_c)])
def test_memory_outlives_an_interrupt_until_no_thread_writes_it(op, module, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    made, gate, empty = [], threading.Event(), module.empty

    def recorded(*args, **options):
        tensor = empty(*args, **options)
        made.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    monkeypatch.setattr(module, "empty", recorded)
    pool = threads._pool(1)
    pool.submit(gate.wait)  # the part that the pool is given waits
    x, zeros = torch.randn(4, 100, 512), torch.zeros(512)
    stop = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with contextlib.suppress(KeyboardInterrupt):
            stop.start()
            op(x) if op is lif else op(zeros, zeros, x, x)
            raise AssertionError("not interrupted")
        gc.collect()
        assert made and all(storage() is not None for storage in made)
    finally:
        gate.set()
        signal.signal(signal.SIGINT, before)
    pool.submit(int).result()
    pool.submit(int).result()
