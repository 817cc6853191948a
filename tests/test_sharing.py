"""Models that leave the machine that trained them: packed, shipped, with a card, and by their names on the hub."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

import rheobase
from rheobase import cli
from rheobase.backends import count
from rheobase.models import _packed, _sources
from rheobase.models.training import loop, run
from rheobase.models.training.run import Run, RunConfig
from rheobase.sharing import card
from rheobase.ship import main, ship
from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError

MODELS = {
    "egru": {"name": "egru_lm", "embedding": 24, "layers": [32, 24], "thr_mean": 0.1, "embedding_range": 0.5},
    "spikegpt": {
        **{"name": "spikegpt", "placement": "spike_fed", "embedding": 16, "depth": 2, "dropout": 0.0, "tau": 1.0},
        **{"graded": True, "norm": "static", "norm_until": 0.5, "binary_embedding": False, "learn": ["theta"]},
    },
}
SHORT = {"steps": 6, "batch": 4, "context": 16, "warmup": 1, "evaluate_every": 6, "checkpoint_every": 6}


@pytest.fixture(scope="module", params=MODELS)
def rounded(request, tmp_path_factory):
    """A run of six steps whose weights were rounded in training, evaluated."""
    table = {"model": MODELS[request.param], "train": SHORT, "quantise": {"weights": 8, "start": 0.5}}
    trained = loop.start(tmp_path_factory.mktemp("rounded") / request.param, RunConfig.from_table(table), quiet=True)
    assert cli.run(["eval", str(trained.folder), "--json"]) == 0
    return trained


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of shipped models of the test's own."""
    for module in (_sources, run):
        monkeypatch.setattr(module, "SHIPPED", tmp_path / "shelf")
    return tmp_path / "shelf"


@pytest.fixture
def say(capsys):
    """Run a command with --json: (status, table)."""

    def run(*argv) -> tuple[int, dict]:
        capsys.readouterr()
        status = cli.run([*map(str, argv), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def bits(model) -> dict:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_packed_weights_are_int8_over_powers_of_two_and_come_back_to_the_bit(rounded, tmp_path):
    model = rounded.model()
    model.save_packed(tmp_path)
    assert bits(rheobase.load(tmp_path)) == bits(model)
    assert bits(type(model).from_pretrained(tmp_path)) == bits(model)
    stored, state = load_file(tmp_path / "model.safetensors"), model.state_dict()
    for name, stored_out_in in model.products().items():
        whole, exponent = stored[name], stored[name + ".exponent"]
        assert whole.dtype == exponent.dtype == np.int8
        assert exponent.shape == ((len(whole), 1) if stored_out_in else (1, whole.shape[1]))
        assert np.array_equal(np.ldexp(whole.astype(np.float64), -exponent.astype(int)), state[name].numpy())
    for name in state.keys() - model.products().keys():
        fits = np.array_equal(state[name].numpy().astype(np.float16).astype(np.float32), state[name].numpy())
        assert stored[name].dtype == (np.float16 if fits else np.float32)


def test_other_weights_are_refused(small_run, rounded, tmp_path):
    with pytest.raises(FormatError, match=r"expected int8 with a power of two a target, got other .* \[quantise\]"):
        small_run.model().save_packed(tmp_path / "no")
    model, name = rounded.model(), next(iter(rounded.model().products()))
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = -0.0  # int8 too, but not its bits
    with pytest.raises(FormatError, match=f"{name}: expected int8"):
        model.save_packed(tmp_path / "no")
    with pytest.raises(FormatError, match="expected float32, got torch.float64"):
        rounded.model().double().save_packed(tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "harm",
    [
        lambda t: t.pop("w.exponent"),
        lambda t: t.update(w=t["w"].float()),
        lambda t: t.update({"w.exponent": t["w.exponent"].T}),
        lambda t: t.update({"w.exponent": torch.full((4, 1), -128, dtype=torch.int8)}),
        lambda t: t.update({"w.exponent": t["w.exponent"].short()}),
        lambda t: t.update(w=t["w"][None]),
    ],
)
def test_damaged_packing_is_refused(harm):
    tensors = _packed.pack({"w": torch.arange(12.0).reshape(4, 3)}, {"w": True})
    assert torch.equal(_packed.unpack(tensors, "f")["w"], torch.arange(12.0).reshape(4, 3))
    harm(tensors)
    with pytest.raises(FormatError, match="f: w: expected"):
        _packed.unpack(tensors, "f")


def test_a_shipped_model_is_found_by_name_and_needs_no_text(rounded, shelf, say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ship(rounded, "small", folder=shelf)
    assert _sources.shipped_names() == ["small"] and bits(rheobase.load("small")) == bits(rounded.model())
    for argv in (("sample", "--length", 20), ("count", "--tokens", 200), ("cite",)):
        own, shipped = (say(argv[0], name, *argv[1:]) for name in (rounded.folder, "small"))
        assert own == shipped and own[0] == 0
    written = (shelf / "small" / "config.toml").read_text()
    (shelf / "small" / "config.toml").write_text(written.replace('"pydoc"', '"not/here.txt"'))
    before = {p.name: p.read_bytes() for p in (shelf / "small").iterdir()}
    packed = {"weights_sha256": Run(shelf / "small").weights()}
    assert say("count", "small")[0] == 0 and say("inspect", "small")[1]["metrics"] == rounded.metrics() | packed
    assert say("export", "small", "--to", "spinnaker2", "--out", "image")[0] == 0
    assert say("verify", "image")[1]["mismatches"] == 0
    for command in ("eval", "report"):
        status, table = say(command, "small")
        assert status == 1 and table["error"].startswith("small: not/here.txt: ")
        assert table["error"].endswith("the package has an excerpt alone; test figures: rheobase card small")
    status, table = say("count", "small", "--tokens", 1001)
    assert status == 1 and "expected 1001 tokens, got 1000; lower --tokens to 1000" in table["error"]
    status, table = say("sample", "smal")
    assert status == 1 and table["error"].startswith("smal: expected a run folder with config.toml, got none")
    assert table["error"].endswith("or a shipped model: small")
    assert {p.name: p.read_bytes() for p in (shelf / "small").iterdir()} == before


def test_eval_writes_nothing_into_the_package(rounded, shelf, say):
    ship(rounded, "small", folder=shelf)
    before = {p.name: p.read_bytes() for p in (shelf / "small").iterdir()}
    assert say("eval", "small")[1]["bits_per_byte"] == rounded.metrics()["test"]["bits_per_byte"]
    assert {p.name: p.read_bytes() for p in (shelf / "small").iterdir()} == before


def test_what_is_not_rounded_or_not_tested_is_not_shipped(small_run, shelf, tmp_path, capsys):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    (folder / "metrics.json").write_text("{}")
    assert main([str(folder), "no"]) == 1
    assert "expected a test figure, got none; run rheobase eval" in capsys.readouterr().err
    Run(folder).add_metrics(test=small_run.metrics()["valid"])
    assert main([str(folder), "no"]) == 1
    assert "train with [quantise] weights = 8" in capsys.readouterr().err
    assert not shelf.exists() or not list(shelf.iterdir())


def test_a_card_says_what_the_run_says_and_what_nobody_knows(small_run, tmp_path):
    run = Run(shutil.copytree(small_run.folder, tmp_path / "run"))
    m, model = run.metrics(), run.model()
    m.pop("test", None)
    page = ModelCard(str(card(run, licence="cc0-1.0")))
    data, text = page.data, page.text
    assert (data.library_name, data.license, data.pipeline_tag) == ("rheobase", "cc0-1.0", "text-generation")
    assert "egru_lm" in data.tags and "datasets" not in data.to_dict()
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert found["validation", "bits_per_byte"] == m["valid"]["bits_per_byte"]
    assert m["text_sha256"] in text and "seed 0" in text and "machine: not recorded" in text
    assert f"{m['parameters']:,} parameters" in text and f"{m['valid']['bits_per_byte']:.4f}" in text
    tally = count(model, torch.from_numpy(run.tokens("test")[:1000].astype("int64")[None]))
    assert f"{tally.macs / 1000:,.0f} multiply-accumulates" in text and f"{tally.dense_macs / 1000:,.0f}" in text
    assert "Horowitz" in text and "ISSCC 2014" in text
    (run.folder / "metrics.json").write_text("{}")
    bare = ModelCard(str(card(run)))
    assert "| test | not measured" in bare.text and bare.data.eval_results is None and bare.data.license == "unknown"
    config = run.config_path.read_text()
    run.config_path.write_text(config.replace('text = "pydoc"', 'text = "/gone/away.txt"'))
    page = card(run, notes=("machine: an abacus",))
    assert "Not counted: /gone/away.txt" in page.text and "machine: an abacus" in page.text
    assert 'text = "away.txt"' in page.text


def test_a_shared_folder_is_a_run_and_what_the_hub_would_hold(small_run, say, tmp_path):
    status, table = say("card", small_run.folder, "--out", tmp_path / "shared", "--license", "cc0-1.0")
    assert status == 0 and table["metadata"]["license"] == "cc0-1.0"
    names = {"README.md", "config.json", "config.toml", "metrics.json", "model.safetensors"}
    assert {p.name for p in (tmp_path / "shared").iterdir()} == names
    assert bits(rheobase.load(tmp_path / "shared")) == bits(small_run.model())
    assert say("sample", tmp_path / "shared", "--length", 9) == say("sample", small_run.folder, "--length", 9)
    assert ModelCard.load(tmp_path / "shared" / "README.md").data.library_name == "rheobase"
    assert (
        "expected a folder that does not exist"
        in say("card", small_run.folder, "--out", tmp_path / "shared")[1]["error"]
    )


def test_what_push_to_hub_uploads_is_read_back_to_the_bit(rounded, tmp_path):
    """The mixin's push is a `save_pretrained` with these arguments, and an upload of what that wrote."""
    model = rounded.model()
    model.save_pretrained(tmp_path / "user" / "name", config=None, model_card_kwargs=None)
    assert bits(type(model).from_pretrained(tmp_path / "user" / "name")) == bits(model)


def test_what_is_saved_is_pushed_only_where_that_is_asked_for(rounded, tmp_path, monkeypatch):
    model, pushed = rounded.model(), []
    monkeypatch.setattr(type(model), "push_to_hub", lambda self, name, **options: pushed.append((name, options)))
    with pytest.raises(ConfigError, match="options only with push_to_hub=True, got repo_id, push_to_hubb"):
        model.save_pretrained(tmp_path / "m", push_to_hubb=True, repo_id="user/name")
    assert not (tmp_path / "m").exists()
    model.save_pretrained(tmp_path / "m", push_to_hub=True, repo_id="user/name", private=True)
    model.save_pretrained(tmp_path / "m", push_to_hub=True)
    assert pushed == [("user/name", {"private": True}), ("m", {})]


def test_a_name_on_the_hub_is_found_in_its_cache_and_only_two_files_are_asked_for(rounded, tmp_path, monkeypatch):
    """Read in another process, offline, from a cache laid out as the hub's own: another revision has other weights."""
    commit, refs = "0" * 40, tmp_path / "hub" / "models--user--name" / "refs"
    snapshot = refs.parent / "snapshots" / commit
    refs.mkdir(parents=True)
    (refs / "v1").write_text(commit)
    rounded.model().save_pretrained(snapshot)
    code = "import rheobase, sys; print(len(rheobase.load('user/name', revision=sys.argv[1]).state_dict()))"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    def ask(revision):
        argv = [sys.executable, "-c", code, revision]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=tmp_path)

    assert int(ask("v1").stdout) == len(rounded.model().state_dict())
    assert (
        "FormatError: user/name: expected a model's folder, a shipped model or user/name on the hub" in ask("v2").stderr
    )
    assert _sources.FILES == ("config.json", "model.safetensors")


def test_a_classifier_has_no_card(tmp_path):
    table = {"model": {"name": "gesture"}, "events": {"set": "nmnist"}}
    (tmp_path / "config.toml").write_text('[model]\nname = "gesture"\n[events]\nset = "nmnist"\n')
    assert RunConfig.from_table(table).sees
    with pytest.raises(UnsupportedError, match="expected a language model's run, got a classifier's"):
        card(Run.open(tmp_path))


def test_a_shipped_models_card_and_excerpts_go_along(say, tmp_path):
    """From the package itself: its licence stays, and the folder is a RUN that needs no text."""
    status, _ = say("card", "egru-enwik8", "--out", str(tmp_path / "x"))
    assert status == 0 and "cc-by-sa-3.0" in (tmp_path / "x" / "README.md").read_text()
    assert say("count", str(tmp_path / "x"), "--tokens", "50")[0] == 0
    assert say("card", "egru-enwik8", "--license", "mit")[0] == 1


def test_a_shipped_model_is_not_trained_on():
    with pytest.raises(ConfigError, match="expected a run of your own, got a model of the package"):
        loop.resume("egru-enwik8")


def test_strange_figures_have_no_card(small_run, tmp_path):
    copy = Run(shutil.copytree(small_run.folder, tmp_path / "run"))
    whole = copy.metrics()["valid"]
    for figures, said in (
        ({"test": 3}, "metrics.json.test: expected a table, got 3"),
        ({"valid": {}}, "metrics.json.valid: expected the key 'bits_per_byte'"),
        ({"valid": whole | {"perplexity": "3"}}, "metrics.json.valid.perplexity: expected float, got '3'"),
        ({"valid": whole | {"tokens": 10**400}}, "metrics.json.valid.tokens: expected a whole number from -2"),
        ({"sparsity": {"zeros": 1, "weights": 2, "layers": {"a": "b"}}}, "sparsity.layers.a: expected float, got 'b'"),
        ({"valid": whole | {"rates": [0.5]}}, "expected figures in metrics.json"),
        ({"valid": whole | {"bits_per_byte": None}}, "expected figures in metrics.json"),
    ):
        (copy.folder / "metrics.json").write_text(json.dumps(figures))
        with pytest.raises((ConfigError, FormatError), match=said):
            card(copy)
