"""A neuron, a model and an exporter, each one new file: what it takes, and what is said of half a one."""

import json
import sys
import textwrap

import pytest
import torch

import rheobase.backends.exporters
import rheobase.models
import rheobase.spiking.neurons
from rheobase.cli import run as command
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training.run import RunConfig
from rheobase.spiking.adapters import make_neuron
from rheobase.spiking.errors import ConfigError, UnsupportedError


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Puts a file of that text into a package, as if it lay there."""

    def put(package, name, text):
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)

    return put


NEURON = """
    from rheobase.spiking import LIF
    class Own(LIF):
        def __init__(self, units, tau=3.0):
            super().__init__(units, tau=tau)
"""


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (NEURON, {"units": 3}, "own: expected a known key, got 'units'"),
        (NEURON, {"tua": 3.0}, "own: expected a known key, got 'tua'; did you mean 'tau'"),
        (
            NEURON.replace("units, tau=3.0", "size, tau=3.0").replace("(units,", "(size,"),
            {},
            "units first, got size, tau",
        ),
        (NEURON + "    class Two(Own): pass\n", {}, "one Cell that is defined there, got Own, Two"),
        ("x = 1", {}, "one Cell that is defined there, got none"),
    ],
)
def test_half_a_neuron_is_refused_in_one_line(add, text, settings, message):
    add(rheobase.spiking.neurons, "own", text)
    with pytest.raises(ConfigError, match=message):
        make_neuron("own", 4, **settings)


def test_a_neuron_whose_constructor_has_no_annotations_takes_settings(add):
    add(rheobase.spiking.neurons, "own", NEURON)
    assert make_neuron("own", 4, tau=5.0).tau == 5.0
    with pytest.raises(ConfigError, match="snntorch:Leaky: expected a known key, got 'units'"):
        make_neuron("snntorch:Leaky", 3, beta=0.5, units=4)


SETTINGS = """
    from typing import Literal, Optional, Union
    from rheobase.spiking import LIF
    class Own(LIF):
        def __init__(self, units: int, tau: Optional[float] = None, theta: Union[str, float] = 1.0,
                     fire: Literal[">", ">="] = ">="):
            super().__init__(units, tau=tau or 2.0, theta=float(theta), fire=fire)
"""


def test_settings_of_a_neuron_may_be_of_several_types(add):
    add(rheobase.spiking.neurons, "own", SETTINGS)
    neuron = make_neuron("own", 4, tau=3, theta=0.5, fire=">")
    assert (neuron.tau, neuron.theta, neuron.fire) == (3.0, 0.5, ">")
    assert (make_neuron("own", 4, tau=None).tau, make_neuron("own", 4, theta="0.25").theta) == (2.0, 0.25)
    for settings, message in [
        ({"fire": "<"}, "own.fire: expected one of '>', '>=', got '<'; choose one"),
        ({"tau": "long"}, "own.tau: expected float, got 'long'"),
        ({"theta": []}, "own.theta: expected str, got"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make_neuron("own", 4, **settings)


WRAPPED = """
    from rheobase.spiking import Cell, LIF
    class Own(Cell):
        def __init__(self, units: int, tau: float = 6.0):
            super().__init__()
            self.input_size, self.inner = units, LIF(units, tau=tau, theta=0.4, learn=("tau", "theta"))
        def initial_state(self, batch, *, dtype=None, device=None):
            return self.inner.initial_state(batch, dtype=dtype, device=device)
        def step(self, x, state):
            return self.inner.step(x, state)
        def lower(self):
            return self.inner.lower()
"""


@pytest.mark.parametrize("part", ["batch, 1", "batch, self.input_size, 3", "batch, self.input_size, dtype=int"])
def test_a_state_that_a_spikegpt_cannot_carry_is_refused(add, part):
    begin = "return self.inner.initial_state(batch, dtype=dtype, device=device)"
    text = WRAPPED.replace(begin, f"import torch; return (torch.zeros({part}),)")
    assert text != WRAPPED
    add(rheobase.spiking.neurons, "own", text)
    with pytest.raises(ConfigError, match="neuron own: expected a state of floating-point parts"):
        SpikeGPT(SpikeGPTConfig(embedding=8, depth=1, placement="spike_fed", neuron="own"))


GRADED_LIF = """
    from rheobase.spiking import LIF
    class Own(LIF):
        def forward(self, x, state=None):
            s, state = super().forward(x, state)
            return 0.25 * s, state
"""


def test_the_rate_of_a_graded_neuron_is_that_of_its_events(add):
    """It was the mean of what they carry, a quarter of it here."""
    add(rheobase.spiking.neurons, "own", GRADED_LIF)
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(embedding=24, depth=1, placement="spike_fed", init_rate=0.3, neuron="own"))
    tokens = torch.randint(256, (2, 40))
    model.wake(tokens)
    runs = model.run(tokens)[2]
    rates = model.rates(runs)
    assert 0.25 < torch.cat(rates[:3]).mean() < 0.35
    assert all(torch.equal(rate, s.ne(0).float().mean((0, 1))) for rate, s in zip(rates, runs.spikes, strict=True))
    model.operations(runs).backward()
    assert model.blocks[0].ffn.key.weight.grad.abs().sum() > 0


def test_a_graph_leaves_no_parameter_of_a_neuron_out(add):
    add(rheobase.spiking.neurons, "own", WRAPPED)
    model = SpikeGPT(SpikeGPTConfig(embedding=8, depth=1, placement="spike_fed", neuron="own")).eval()
    message = "att.lif_k: expected parameters that LIFCell has: tau, theta, got inner.tau, inner.theta"
    with pytest.raises(UnsupportedError, match=message):
        model.lower()


MODEL = """
    import dataclasses
    from torch import nn
    from rheobase.models import LanguageModel
    from rheobase.spiking.neurons import LIF, LIFState

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        vocabulary: int = 256
        embedding: int = 16

    class Model(LanguageModel):
        Config, name, state_type = Config, "own", LIFState

        def __init__(self, config):
            super().__init__()
            self.config = config
            self.embedding, self.neuron = nn.Embedding(config.vocabulary, config.embedding), LIF(config.embedding)
            self.head = nn.Linear(config.embedding, config.vocabulary)

        def hidden(self, tokens, state=None):
            self.check(tokens, state)
            s, state = self.neuron(2 * self.embedding(tokens), None if state is None else state[0])
            return s, (state,), s

        def decode(self, h):
            return self.head(h)

        def state_shapes(self, batch):
            return [((batch, self.config.embedding),)]

        @classmethod
        def least_numbers(cls, config):
            return 2 * config.vocabulary * config.embedding

        event_layers = ("neuron",)

        def rates(self, runs):
            return [runs.mean((0, 1))]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('Config, name, state_type = Config, "own", LIFState', "pass", "got one without Config, name; define"),
        ("def least_numbers", "def most_numbers", "models/own.py Model: .* got one without least_numbers"),
        ("def state_shapes", "def shapes", "got one without state_shapes"),
        ('"own"', '"other"', "models/own.py Model.name: expected 'own', got 'other'"),
    ],
)
def test_half_a_model_is_refused_before_it_trains(add, old, new, message):
    assert old in MODEL
    add(rheobase.models, "own", MODEL.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_table({"model": {"name": "own"}})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("event_layers = (", "layers = (", "models/own.py Model.rates: expected as many as its 0 event_layers, got 1"),
        ("return 2 * config", "return 3 * config", "Model.least_numbers: expected at most the model's own 8,448, got"),
        (
            'Config, name, state_type = Config, "own", LIFState',
            'Config, name = Config, "own"',
            "models/own.py Model.state_type: expected the type of a layer's state, got none",
        ),
        ("[((batch, self.config.embedding),)]", "[((batch, 3),)]", "own state: expected"),
    ],
)
def test_a_model_that_is_not_what_it_says_leaves_no_run(add, tmp_path, capsys, old, new, message):
    """Each was found only after the training: by --resume, eval, or the second step."""
    assert old in MODEL
    add(rheobase.models, "own", MODEL.replace(old, new))
    (tmp_path / "own.toml").write_text('[model]\nname = "own"\n[train]\nsteps = 2\nbatch = 2\ncontext = 8\n')
    assert command(["train", str(tmp_path / "own.toml"), "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_model_that_is_no_class(add):
    add(rheobase.models, "own", "Model = 3")
    with pytest.raises(ConfigError, match="expected a language model, got 'own'"):
        RunConfig.from_table({"model": {"name": "own"}})


def test_a_model_without_a_graph_is_trained_judged_counted_and_reported(add, tmp_path, capsys):
    add(rheobase.models, "own", MODEL)
    (tmp_path / "own.toml").write_text('[model]\nname = "own"\n[train]\nsteps = 2\nbatch = 2\ncontext = 8\n')
    run = str(tmp_path / "run")
    assert command(["train", str(tmp_path / "own.toml"), "--out", run]) == 0
    assert command(["eval", run]) == command(["sample", run, "--length", "5"]) == command(["count", run]) == 0
    capsys.readouterr()
    assert command(["report", run]) == 0
    said = capsys.readouterr().out
    assert "no raster of events: own: expected a model that lowers to a graph" in said
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    assert command(["simulate", run]) == 1


COUNTING = {
    "import dataclasses": "import dataclasses, typing, torch",
    "class Model(": "class State(typing.NamedTuple):\n        v: object\n        seen: object\n\n    class Model(",
    "LIFState\n\n        def": "State\n\n        def",
    "self.check(tokens, state)": "seen = torch.zeros(len(tokens), 1).long() if state is None else state[0].seen",
    "None if state is None else state[0])": "None if state is None else LIFState(state[0].v))",
    "(state,), s": "(State(state.v, seen.bitwise_or(tokens.shape[1])),), s",
    "[((batch, self.config.embedding),)]": "[((batch, self.config.embedding), (batch, 1))]",
}


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
def test_integers_in_a_state_stay_integers_in_training(add, tmp_path, precision):
    """They were carried as float32; of that type there is no bitwise_or."""
    text = MODEL
    for old, new in COUNTING.items():
        assert old in text
        text = text.replace(old, new)
    add(rheobase.models, "own", text)
    settings = f'steps = 4\nbatch = 2\ncontext = 8\nprecision = "{precision}"\n'
    (tmp_path / "own.toml").write_text('[model]\nname = "own"\n[train]\n' + settings)
    assert command(["train", str(tmp_path / "own.toml"), "--out", str(tmp_path / "run")]) == 0


EXPORTER = """
    import json
    import numpy as np
    from rheobase.backends.artifact import Report, write_artifact

    def export(graph, out, *, calibration=None, allow_lossy=False, version=""):
        text = json.dumps({name: np.asarray(a, float).sum() for name, a in graph.arrays.items()})
        manifest = {"format": "sums/1", "exporter": "own", "version": version, "graph": graph.hash(), "deviations": [],
                    "coverage": {n.name: "sums.json" for n in graph.nodes}, "not_claimed": "that it runs"}
        return write_artifact(out, {"sums.json": text.encode()}, manifest)

    def verify(artifact):
        sums = json.loads(artifact.read("sums.json"))
        return Report(True, len(sums), 0)
"""


def test_an_exporter_is_one_file(add, tmp_path, capsys):
    add(rheobase.backends.exporters, "own", EXPORTER)
    out = str(tmp_path / "out")
    assert command(["export", "egru-enwik8", "--to", "own", "--out", out]) == command(["verify", out]) == 0
    assert "changed: nothing" in capsys.readouterr().out
    assert command(["inspect", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["format"] == "sums/1"


@pytest.mark.parametrize("name", ["../sums.json", "a b", ".sums", "manifest.json", "/sums", 201 * "a"])
def test_an_exporter_writes_no_file_that_verify_refuses(add, tmp_path, capsys, name):
    add(rheobase.backends.exporters, "own", EXPORTER.replace('{"sums.json": text', f'{{"{name}": text'))
    assert command(["export", "egru-enwik8", "--to", "own", "--out", str(tmp_path / "out" / "in")]) == 1
    assert "files: expected paths inside the directory, got" in capsys.readouterr().err
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts]


@pytest.mark.parametrize("field", ["graph", "coverage", "deviations"])
def test_an_exporter_whose_manifest_lacks_a_field_writes_nothing(add, tmp_path, capsys, field):
    add(rheobase.backends.exporters, "own", EXPORTER.replace(f'"{field}":', f'"{field}s":'))
    assert command(["export", "egru-enwik8", "--to", "own", "--out", str(tmp_path / "out")]) == 1
    assert f"manifest: expected {field}, as " in capsys.readouterr().err and not (tmp_path / "out").exists()
