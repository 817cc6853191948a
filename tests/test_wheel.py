"""The wheel, installed elsewhere and run beside a user's own `models.py` and `backends/`."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from rheobase.backends.exporters.spinnaker2.host import library as host
from rheobase.spiking.ops.native import compiled
from rheobase.spiking.ops.native import library as here

ROOT = Path(__file__).parent.parent


def run(*argv, **options):
    done = subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_runs_quickstart_in_a_folder_of_anothers(tmp_path):
    tree, site, work = tmp_path / "tree", tmp_path / "site", tmp_path / "work"
    skip = shutil.ignore_patterns(
        ".git", "build", "*.egg-info", "*.so", "__pycache__", ".*_cache", "runs", "quickstart"
    )
    shutil.copytree(ROOT, tree, ignore=skip)
    hasty = tmp_path / "cc"  # what is tried here is the wheel, and -O3 takes a minute
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC")
    hasty.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
    hasty.chmod(0o755)
    for_any_python = "--config-settings=--build-option=--py-limited-api=cp311"  # as releases are built
    wheel = ("wheel", "-q", "--no-deps", "--no-build-isolation", for_any_python, "-w", tmp_path, tree)
    run("-m", "pip", *wheel, env={**os.environ, "CC": str(hasty)})
    (wheel,) = tmp_path.glob("rheobase-*-cp311-abi3-*.whl")
    run("-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel)
    (work / "backends").mkdir(parents=True)
    (work / "models.py").write_text("raise RuntimeError('not yours')\n")
    (work / "backends" / "__init__.py").write_text("raise RuntimeError('not yours')\n")
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "error::ImportWarning"}
    where = run("-c", "import rheobase; print(rheobase.__file__)", cwd=work, env=environment)
    assert Path(where.strip()).is_relative_to(site)
    assert (site / "rheobase" / "backends" / "counting" / "tally.schema.json").is_file()
    shown = run("-m", "rheobase", "quickstart", "--small", cwd=work, env=environment)
    assert "integers compared, 0 mismatches" in shown
    table = json.loads(run("-m", "rheobase", "verify", "quickstart/spinnaker2", "--json", cwd=work, env=environment))
    assert table["ok"] and table["mismatches"] == 0 and table["compared"] > 10_000
    assert (work / "quickstart" / "report.html").stat().st_size > 10_000
    sources = {p.name for p in (work / "quickstart" / "spinnaker2" / "csrc").iterdir()}
    assert {"pe.c", "pe.h", "pe.ld", "main.c", "board.c", "selftest.c", "selftest_data.h"} <= sources
    library = run(
        "-c", "from rheobase.spiking.ops.native import library; print(library() is not None)", cwd=work, env=environment
    )
    assert here() is None or library.strip() == "True"


def test_without_a_compiler_the_build_goes_on_and_says_so_in_one_line(tmp_path):
    environment = {**os.environ, "CC": "/nonexistent/cc"}
    argv = ["setup.py", "build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"]
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, env=environment, capture_output=True, text=True)
    notices = [line for line in (done.stdout + done.stderr).splitlines() if "rheobase: no C library" in line]
    assert done.returncode == 0 and len(notices) == 1 and "rheobase doctor" in notices[0]
    assert not list(tmp_path.rglob("*.so"))


def test_a_library_of_another_machine_is_said_and_not_used(tmp_path, monkeypatch, caplog):
    (tmp_path / "built_elsewhere.abi3.so").write_bytes(b"\x7fELF of another machine")
    monkeypatch.syspath_prepend(tmp_path)
    assert compiled("built_elsewhere") is None
    assert "cannot load its C library" in caplog.text and "built_elsewhere.abi3.so" in caplog.text


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="symbols are read by nm, of ELF")
@pytest.mark.parametrize("library", [here(), host()])
def test_the_c_needs_no_library_but_libc(library):
    if library is None:
        pytest.skip("no C library: no compiler at install")
    done = subprocess.run(["nm", "-D", "--undefined-only", library._name], capture_output=True, text=True, check=True)
    needed = {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines() if line.split()[0] == "U"}
    assert needed <= {"memcpy", "memmove", "memset", "__stack_chk_fail"}


def test_numpy_and_c_gather_the_same_rows():
    import numpy as np

    from rheobase.spiking.ops import native

    generator = np.random.default_rng(0)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-4)):
        x = (generator.standard_normal((5, 40)) * (generator.random((5, 40)) < 0.3)).astype(dtype)
        weight, bias = generator.standard_normal((40, 33)).astype(dtype), generator.standard_normal(33).astype(dtype)
        for b in (bias, None):
            out, rows = native.Gather(weight, b)(x)
            again, counted = native.Gather(weight.T.copy().T, b, native=False)(x)
            exact = x @ weight + (0 if b is None else b)
            assert rows == counted == np.count_nonzero(x)
            assert np.abs(out - exact).max() < tolerance and np.abs(again - exact).max() < tolerance
    assert native.Gather(np.ones((4, 2)))(np.zeros((0, 4)))[0].shape == (0, 2)


@pytest.mark.parametrize("library", [True, False], ids=["C", "NumPy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n_in", "n_out"), [(40, 168), (56, 31), (33, 1), (1, 70)])
def test_a_dense_product_of_an_item_is_the_same_beside_any_others(library, dtype, n_in, n_out):
    import numpy as np

    from rheobase.spiking.ops import native

    generator = np.random.default_rng(0)
    x, weight, bias = (generator.standard_normal(shape).astype(dtype) for shape in ((61, n_in), (n_in, n_out), n_out))
    product = native.Gather(weight, bias, native=library)
    out = product.dense(x)
    assert out.dtype == dtype and np.allclose(out, x.astype(float) @ weight + bias, atol=1e-4, rtol=0)
    for cut in (0, 1, 2, 5, 6, 7, 30, 60):
        assert np.array_equal(np.concatenate([product.dense(x[:cut]), product.dense(x[cut:])]), out)
    if product.function is not None:  # and as of events, zeros and all
        x[generator.random(x.shape) < 0.5] = 0
        assert np.array_equal(product.dense(x), product(x)[0])
