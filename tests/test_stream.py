"""A graph run a token at a time in C gives what the simulators give, and reads the rows that they read."""

import copy
import pickle
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch

from rheobase.backends import simulate
from rheobase.backends import stream as module
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.backends.stream import Stream
from rheobase.models import EGRULM, RWKV4, EGRULMConfig, LSTMLMConfig, RWKV4Config, SpikeGPT, SpikeGPTConfig
from rheobase.models.lstm_lm import LSTMLM
from rheobase.spiking.errors import ConfigError, ShapeError, UnsupportedError
from rheobase.spiking.graph import EventGraph
from rheobase.spiking.ops.native import library

TEXT = np.frombuffer("\n".join(topics[k] for k in sorted(topics)).encode(), np.uint8).astype(np.int64)
needs_c = pytest.mark.skipif(library() is None, reason="no C library")


def egru(**options):
    torch.manual_seed(1)
    model = EGRULM(EGRULMConfig(embedding=24, layers=(33, 24), thr_mean=0.1, **options)).double().eval()
    for layer in model.layers:
        torch.nn.init.normal_(layer.recurrent_kernel, std=0.4)
        torch.nn.init.normal_(layer.bias, std=0.5)
    return model


def spikegpt(**options):
    torch.manual_seed(1)
    settings = {"embedding": 24, "depth": 2, "binary_embedding": False, **options}
    model = SpikeGPT(SpikeGPTConfig(**settings)).double()
    model.wake(torch.from_numpy(TEXT[None, :256]))
    model.advance(1.0)
    return model.eval()


MODELS = {
    "egru": egru,
    "egru zoneout": lambda: egru(zoneout=0.2),
    "egru projection": lambda: egru(projection=True),
    "rwkv4": lambda: RWKV4(RWKV4Config(embedding=24, depth=2)).double().eval(),
    "spikegpt": spikegpt,
    "spikegpt binary embedding": lambda: spikegpt(binary_embedding=True),
    "spikegpt first ffn": lambda: spikegpt(ffn_pre=True),
    **{
        f"spike-fed {name}": lambda options=options: spikegpt(placement="spike_fed", **options)
        for name, options in {
            "": {},
            "ternary": {"ternary": True},
            "graded": {"graded": True, "tau": 1.0},
            "learnt thresholds": {"learn": ("tau", "theta")},
            "static norms": {"norm": "static"},
            "spiking head": {"head": "spiking"},
        }.items()
    },
}


@needs_c
@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_stream_is_the_simulators_fold(name, tables):
    graph, tokens = MODELS[name]().lower(), TEXT[5000:5300]
    trace, stream = simulate(graph, tokens[None]), Stream(graph, tables=tables)
    logits = np.concatenate([stream(tokens[:7]), stream(tokens[7])[None], stream(tokens[8:8]), stream(tokens[8:])])
    assert np.abs(logits - trace.outputs["logits"][0]).max() < 1e-9
    assert all(np.abs(array - trace.state[name]).max() < 1e-9 for name, array in stream.state.items())
    assert sum(len(events) for events in trace.events.values()) > 0
    for node, rows in stream.rows.items():
        assert rows == trace.tally.operators[node].rows


@needs_c
def test_a_token_alone_may_be_any_integer_and_its_output_stays():
    wanted, stream = Stream(egru().lower())(TEXT[:5]), Stream(egru().lower())
    tokens = int(TEXT[0]), np.int16(TEXT[1]), np.array(TEXT[2]), torch.tensor(int(TEXT[3])), np.uint64(TEXT[4])
    assert np.array_equal([stream(token) for token in tokens], wanted)


@needs_c
def test_states_go_from_a_simulation_to_a_stream_and_back():
    graph, tokens = egru().lower(), TEXT[:90]
    whole, first = simulate(graph, tokens[None]), simulate(graph, tokens[None, :30])
    stream = Stream(graph)
    stream(TEXT[500:520])
    stream.state = first.state
    middle = stream(tokens[30:60])
    rest = simulate(graph, tokens[None, 60:], stream.state)
    assert np.abs(middle - whole.outputs["logits"][0, 30:60]).max() < 1e-9
    assert np.abs(rest.outputs["logits"] - whole.outputs["logits"][:, 60:]).max() < 1e-9
    stream.state = None
    assert np.abs(stream(tokens) - whole.outputs["logits"][0]).max() < 1e-9
    with pytest.raises(ShapeError, match="simulate state"):
        stream.state = {}


@needs_c
@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("options", [{}, {"zoneout": 0.2}])
def test_a_quantised_stream_gives_the_specifications_integers(tables, options):
    integer, _ = quantise(egru(**options).lower(), TEXT[None, :400], allow_lossy=True)
    tokens = TEXT[3000:5000]
    trace, stream = simulate(integer, tokens[None], on="integer"), Stream(integer, tables=tables)
    assert np.array_equal(stream(tokens), trace.outputs["logits"][0])
    assert all(np.array_equal(array, trace.state[name]) for name, array in stream.state.items())
    for node, rows in stream.rows.items():
        source = integer.inputs_of(node)["x"].source
        if source in trace.events:
            assert rows == len(trace.events[source]) - delayed_last(integer, node, trace)
        else:
            assert rows == tokens.size * integer.shape_of(source)[0]


def delayed_last(graph, node, trace):
    """Events of the last step, which a delayed edge has not delivered."""
    edge = graph.inputs_of(node)["x"]
    return np.count_nonzero(trace.state[edge.source]) if edge.delay else 0


@needs_c
@pytest.mark.parametrize(("vocabulary", "layers"), [(63, (5, 7)), (65, (1, 130)), (4097, (700, 64))])
def test_integer_rows_of_any_width_are_read_whole(vocabulary, layers):
    torch.manual_seed(1)
    config = EGRULMConfig(vocabulary=vocabulary, embedding=layers[-1], layers=layers, thr_mean=0.1)
    tokens = np.arange(16)
    integer, _ = quantise(EGRULM(config).eval().lower(), tokens[None], allow_lossy=True)
    want = simulate(integer, tokens[None], on="integer").outputs["logits"][0]
    assert want.std() > 0
    for dense in (False, True):
        assert np.array_equal(Stream(integer, dense=dense)(tokens), want)


@needs_c
def test_float32_streams_stay_near_and_more_activity_reads_more_rows():
    graph = egru().float().lower()
    tokens = TEXT[:200]
    logits = Stream(graph)(tokens)
    assert logits.dtype == np.float32
    assert np.abs(logits - simulate(graph, tokens[None]).outputs["logits"][0]).max() < 1e-3
    silent = EventGraph(
        graph.nodes, graph.edges, {k: v + 9 if k.endswith("thr") else v for k, v in graph.arrays.items()}, graph.outputs
    )
    stream = Stream(silent)
    stream(tokens)
    assert set(stream.rows.values()) == {0}


@needs_c
def test_what_a_stream_cannot_do_is_said():
    graph = egru().lower()
    with pytest.raises(UnsupportedError, match="layers.0: expected an op that Stream has an instruction for, got LSTM"):
        Stream(LSTMLM(LSTMLMConfig(embedding=8, layers=(8,))).lower())
    with pytest.raises(ConfigError, match="one output"):
        Stream(EventGraph(graph.nodes, graph.edges, graph.arrays, {}))
    stream = Stream(graph)
    for wrong in ([256], [-1], [0.5], [[1, 2]], 256, -1, 0.5, True, np.timedelta64(3, "s")):
        with pytest.raises(ShapeError):
            stream(np.array(wrong))
        with pytest.raises(ShapeError):
            stream(wrong)
    half = {name: array.astype(np.float16) for name, array in graph.arrays.items()}
    with pytest.raises(UnsupportedError, match="float16"):
        Stream(EventGraph(graph.nodes, graph.edges, half, graph.outputs))


@needs_c
def test_arrays_of_any_type_give_what_the_simulators_give():
    """C is told of no types: whatever is not brought to its own would be read as something else."""
    graph, tokens = egru().lower(), TEXT[:20]
    integer, _ = quantise(graph, TEXT[None, :400], allow_lossy=True)
    for on, whole, types in (("event", graph, [np.int8, np.float32]), ("integer", integer, [np.int8, np.int64])):
        for name, array in whole.arrays.items():
            for other in (array.clip(-100, 100).astype(to) for to in types):
                changed = EventGraph(whole.nodes, whole.edges, {**whole.arrays, name: other}, whole.outputs)
                wanted = simulate(changed, tokens[None], on=on).outputs["logits"][0]
                assert np.abs(Stream(changed)(tokens) - wanted).max() < 1e-9, (on, name, other.dtype)
    wide = {name: array.astype(np.int32) for name, array in graph.arrays.items()}
    with pytest.raises(UnsupportedError, match="int32"):
        Stream(EventGraph(graph.nodes, graph.edges, wide, graph.outputs))
    name = "layers.1.kernel"
    wide = {**integer.arrays, name: integer.arrays[name].astype(np.int16) + 300}
    with pytest.raises(UnsupportedError, match="int8"):
        Stream(EventGraph(integer.nodes, integer.edges, wide, integer.outputs))


def test_without_a_c_library_the_remedy_is_given(monkeypatch):
    monkeypatch.setattr(module, "function", lambda *_: None)
    with pytest.raises(UnsupportedError, match="C library's stream, got none"):
        Stream(egru().lower())


@needs_c
@pytest.mark.parametrize("again", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_goes_on_alone(again):
    stream = Stream(egru().lower(), dense=True)
    stream(TEXT[:20])
    other = again(stream)
    assert other.rows == stream.rows and sum(stream.rows.values())
    stream(TEXT[40:60])
    wanted = Stream(egru().lower(), dense=True)(TEXT[:40])[20:]
    assert np.array_equal(other(TEXT[20:40]), wanted)
