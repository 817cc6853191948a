import os
import shutil

import pytest
import torch
from hypothesis import settings

from rheobase.models.training import loop
from rheobase.models.training.run import RunConfig
from rheobase.spiking.ops.native import library

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
settings.register_profile("laws", max_examples=200, deadline=None, derandomize=True, database=None)
settings.load_profile("laws")

LONG = {"test_distributed", "test_docs", "test_notebooks", "test_training", "test_triton"}
SMALL = {
    "model": {"name": "egru_lm", "embedding": 48, "layers": [64, 48], "thr_mean": 0.1, "embedding_range": 0.5},
    "train": {"steps": 60, "batch": 16, "context": 32, "warmup": 5, "evaluate_every": 60, "checkpoint_every": 60},
}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite runs in a process a core, each file within one of them; `-n 0` is all in this one."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.option.markexpr == "not slow"
    chosen = getattr(config.option, "numprocesses", 0) is not None  # pytest-xdist may be missing
    if whole and not chosen and not hasattr(config, "workerinput"):
        config.option.numprocesses, config.option.dist = min(os.cpu_count() or 1, 4), "loadfile"
        config.option.loadscopereorder = False  # files in the order below, not those of many tests first


def pytest_collection_modifyitems(items):
    """Files that take minutes go first, so that no process is left with one of them when the others have ended."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(params=["reference", "native"])
def kernels(request, monkeypatch):
    """The test once by the reference in torch, once by the kernels in C."""
    if request.param == "native" and library() is None:
        pytest.skip("no C library: no compiler at install")
    monkeypatch.setenv("RHEOBASE_KERNELS", request.param)
    return request.param


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A run of a few seconds on the built-in text: two EGRU layers that have learnt a little."""
    return loop.start(tmp_path_factory.mktemp("runs") / "small", RunConfig.from_table(SMALL), quiet=True)


@pytest.fixture(scope="session")
def small_image_once(small_run, tmp_path_factory):
    from rheobase.backends import export

    part = small_run.config.splits().valid[: 8 * 128].reshape(8, 128)
    return export(small_run.model(), "spinnaker2", tmp_path_factory.mktemp("images") / "image", calibration=part).path


@pytest.fixture
def small_image(small_image_once, tmp_path):
    """A copy of the small run's SpiNNaker 2 image, to be damaged at will."""
    return shutil.copytree(small_image_once, tmp_path / "image")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """The user's cache and data folders are neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RHEOBASE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("RHEOBASE_DATA", raising=False)
        yield
