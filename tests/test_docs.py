"""Every code block of the README and of docs/ does what it says: Python is run, configurations are read, commands are
parsed, and run where that takes seconds."""

import itertools
import re
import shutil
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from doc_blocks import KINDS, PAGES, ROOT, blocks, commands, name

from rheobase import cli
from rheobase.backends import simulate
from rheobase.backends.counting import load_target
from rheobase.backends.events import from_edge, write_events
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.models.training.run import SECTIONS, RunConfig
from rheobase.spiking.ops.native import library
from rheobase.sweeping import read_sweep

COMMANDS = next(a for a in cli.parser()._actions if a.dest == "command").choices
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SHORT = {
    "steps": 3,
    "warmup": 1,
    "batch": 8,
    "context": 32,
    "evaluate_every": 3,
    "checkpoint_every": 3,
    "evaluate_batch": 256,
}
ONLY_PARSED = {
    "a data set that is not here": r"train (enwik8|wikitext|sst|nmnist)|tonic:",
    "a file or a choice of the reader's": "FILE|GRAPH|CONFIG|PATH|PART|TRACE|SOURCE|SWEEP"
    r"|\bRUN NAME\b|\bIN\b|\$|\.(csv|h5|toml|png)\b|runs/",
    "minutes: tests/test_quickstart.py, tests/test_bench.py": r"quickstart|bench",
    "an emulator: tests/test_firmware.py": r"--emulate",
    "a machine that is not here": r"--device|--measure",
    "another kind of model: tests of each exporter, of classifiers": r"--to (pyspinnaker2|sanafe|onnx|nir)|--beside",
    "another image: tests/test_routing.py": r"--no-dram",
}
"""Why commands of pages that are no guide are parsed and not run."""


def guide(path) -> bool:
    """Whether a page's commands are run one after the other, as a reader would type them."""
    return name(path) == "docs/tutorial.md" or path.parent.name == "howto"


def given(page: str) -> dict:
    """What the Python of a page takes as at hand: its names, and files in the current folder."""
    if page == "docs/events.md":
        graph = EGRULM(EGRULMConfig(embedding=8, layers=(8,), thr_mean=0.1)).eval().lower()
        trace = simulate(graph, torch.arange(40)[None], record=["layers.*.y"])
        write_events("in.raw", from_edge(trace.events["layers.0.y"]))
        return {"trace": trace}
    if page == "docs/sharing.md":
        pytest.importorskip("transformers")
    if page == "docs/performance.md" and library() is None:
        pytest.skip("no C library: no compiler at install")
    if page == "docs/howto/text.md":
        Path("my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 1000)
        Path("other.txt").write_text("Five boxing wizards jump.\n" * 20)
    if page == "docs/spikegpt.md":
        torch.save(SpikeGPT(SpikeGPTConfig(embedding=16, depth=1)).to_reference(), "SpikeGPT.pth")
    if page == "docs/spinnaker2.md":
        h5py.File("trace.h5", "w").close()
        return {"seconds": np.arange(4.0), "cycles": np.ones((4, 2))}
    return {}


def read_configuration(block, folder) -> None:
    """Hand a block to the reader that it is for; raises what that does, or LookupError where there is none."""
    table = tomllib.loads(block.text)
    if "terms" in table:
        (folder / "target.toml").write_text(block.text)
        load_target(folder / "target.toml")
    elif "base" in table:
        (folder / "sweep.toml").write_text(block.text)
        read_sweep(folder / "sweep.toml")
    elif set(table) <= {"model", *SECTIONS}:
        RunConfig.from_table({"model": {"name": "spikegpt"}} | table)
    else:
        raise LookupError(f"{block.where}: no reader for {sorted(table)}")


@pytest.fixture(scope="module")
def at_hand(small_run, small_image_once, tmp_path_factory):
    """What placeholders of usage lines stand for."""
    run = str(shutil.copytree(small_run.folder, tmp_path_factory.mktemp("docs") / "run"))
    return {"RUN": run, "A": run, "B": run, "DIR": str(small_image_once), "NAME": "spinnaker2"}


@pytest.fixture(scope="module")
def ran():
    """The commands that were run, so that none is twice."""
    return set()


def parse(words, where) -> None:
    """Files, extras and options that a command names exist."""
    if words[0] == "rheobase":
        try:
            cli.parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{where}: {' '.join(words)}")
    for word in words[1:]:
        if words[0] in ("python", "pytest") and ".py" in word:
            assert (ROOT / word.partition("::")[0]).is_file(), f"{where}: {word}"
        for extras in re.findall(r"\.\[([\w,]+)\]", word):
            assert set(extras.split(",")) <= set(EXTRAS), f"{where}: {word}"


def run(words, where) -> None:
    """A command of rheobase, on few tokens and for few updates."""
    argv = words[1:]
    if argv[0] == "train" and "--resume" not in argv:
        argv += [f"--set=train.{key}={value}" for key, value in SHORT.items()]
    if argv[0] in ("count", "simulate") and "--tokens" not in argv and "--prefill" not in argv:
        argv += ["--tokens", "100"]
    assert cli.run(argv) == 0, f"{where}: {' '.join(words)}"


def why_not(words) -> str | None:
    """The reason for which a command is not run."""
    return next((why for why, pattern in ONLY_PARSED.items() if re.search(pattern, " ".join(words))), None)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path)], ids=name)
def test_every_block(path, at_hand, ran, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"} | given(name(path))
    for before, block in itertools.pairwise([None, *blocks(path)]):
        if block.kind == "python":
            capsys.readouterr()
            exec(compile("\n" * block.line + block.text, path, "exec"), names)
        if block.kind == "text" and before and before.kind == "python":
            assert capsys.readouterr().out == block.text, block.where
        if named := re.match(r"# ([\w-]+\.toml)\n", block.text):
            Path(named[1]).write_text(block.text)
        if block.kind == "toml":
            read_configuration(block, tmp_path)
        for words in commands(block) if block.kind == "shell" else ():
            parse(words, block.where)
            if words[0] == "rheobase" and guide(path):
                run(words, block.where)
            elif words[0] == "rheobase" and tuple(words) not in ran and not why_not(words):
                ran.add(tuple(words))
                new = words.index("--out") + 1 if "--out" in words and "--resume" not in words else None
                filled = [f"{len(ran)}-{w}" if i == new else at_hand.get(w, w) for i, w in enumerate(words)]
                run(filled, block.where)
    if path == ROOT / "README.md":
        assert "Report(ok=True" in capsys.readouterr().out


def test_no_block_is_of_an_unknown_kind_and_none_is_overlooked():
    for path in PAGES:
        found = blocks(path)
        fences = re.findall(r"^ *(?:```|~~~)", path.read_text(), re.M)
        assert len(fences) == 2 * len(found), name(path)
        assert {block.kind for block in found} <= set(KINDS), name(path)
        for block in found:
            if block.kind == "text":  # no command hides in what was printed
                assert not re.search(rf"^(\$ )?rheobase ({'|'.join(COMMANDS)})\b", block.text, re.M), block.where
            if block.kind == "shell":
                assert commands(block), block.where


def test_each_reason_not_to_run_a_command_is_needed():
    lines = [
        words for path in PAGES if not guide(path) for b in blocks(path) if b.kind == "shell" for words in commands(b)
    ]
    reasons = [why_not(words) for words in lines if words[0] == "rheobase"]
    assert set(reasons) == {None, *ONLY_PARSED}
