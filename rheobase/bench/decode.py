"""Generation, a token at a time: a stack of EGRU layers by its events beside nn.GRU of the same widths.

V vocabulary, E embedding, R share of the units that fire.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from rheobase.backends import simulate
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.backends.stream import Stream
from rheobase.bench import Case, Setting
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking.graph import EGRUCell, EventGraph

PAPER = {"vocabulary": 10_000, "embedding": 750, "layers": (1350, 1350, 750)}
SMALL = {"vocabulary": 200, "embedding": 24, "layers": (32, 24)}
ACTIVITIES = (0.2, 0.1, 0.05, 0.02)
TOKENS = 8
"""tokens of a run: other ones each time, so that weights come from where they lie when a text goes on"""


def stacks(setting: Setting) -> Iterator[Case]:
    """The EGRU language model of the SpiNNaker 2 paper, weights at random, at several activities, one after the other:
    each has large tables."""
    torch.manual_seed(0)
    model = EGRULM(EGRULMConfig(**(SMALL if setting.small else PAPER))).eval()
    graph = model.lower()
    tokens = np.random.default_rng(0).integers(0, model.config.vocabulary, (1, 120))
    for share in ACTIVITIES:
        yield decode(at_activity(graph, tokens, share), model.config, tokens)


def trained(model, tokens: np.ndarray) -> list[Case]:
    """A trained EGRU language model at its own activity; tokens [1, T] of real text."""
    return [decode(model.lower(), model.config, tokens)]


def decode(graph: EventGraph, config, tokens: np.ndarray) -> Case:
    """A token of a graph in float32 and in int8, by events and in full, beside nn.GRU with a dense head."""
    integer, _ = quantise(graph, tokens[:, :120], allow_lossy=True)
    ours = {
        "events, float32": Stream(graph),
        "events, int8": Stream(integer),
        "every row, float32": Stream(graph, dense=True),
        "every row, int8": Stream(integer, dense=True),
    }
    runs = {name: _reader(stream, tokens[0]) for name, stream in ours.items()}
    peer = GRU(config)
    runs["nn.GRU and a dense head, float32"] = lambda: [peer(int(token)) for token in tokens[0, :TOKENS]]
    events = simulate(graph, tokens).events
    active = sum(map(len, events.values())) / tokens.size / sum(config.layers)
    widths = "-".join(map(str, (config.embedding, *config.layers)))
    size = f"{widths}, vocabulary {config.vocabulary:,}, tied head, batch 1, {TOKENS} tokens"
    return Case(f"decode at {100 * active:.0f} %", size, runs, tokens=TOKENS, extra={"active": active})


def _reader(stream: Stream, tokens: np.ndarray):
    """A run that reads the next tokens, one call each as in generation, and begins again at the text's end."""
    at = 0

    def run():
        nonlocal at
        for token in tokens[at : at + TOKENS]:
            stream(token)
        at = (at + TOKENS) % (len(tokens) - TOKENS)

    return run


class GRU:
    """Layers of nn.GRU and a dense head tied to the embedding, a token at a time."""

    def __init__(self, config):
        widths = (config.embedding, *config.layers)
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        self.layers = [nn.GRU(*pair, batch_first=True) for pair in zip(widths[:-1], widths[1:], strict=True)]
        self.states = [None] * len(self.layers)

    @torch.no_grad()
    def __call__(self, token: int):
        x = self.embedding(torch.tensor([[token]]))
        for i, layer in enumerate(self.layers):
            x, self.states[i] = layer(x, self.states[i])
        return nn.functional.linear(x[0], self.embedding.weight)


def at_activity(graph: EventGraph, tokens: np.ndarray, share: float) -> EventGraph:
    """The graph with thresholds at which each EGRU unit fires at that share of the tokens, or nearly.

    Layer by layer a unit's threshold becomes the quantile of its own cells before the reset; twice, since a layer's
    events change its cells.
    """
    for _ in range(2):
        for node in (n for n in graph.nodes if isinstance(n.op, EGRUCell)):
            seen = simulate(graph, tokens, record=[f"{node.name}.{{c,y}}"]).recorded
            y, c = seen[f"{node.name}.y"][0], seen[f"{node.name}.c"][0]
            p = np.where(y != 0, y, c)[len(y) // 6 :]
            thr = np.clip(np.quantile(p, 1 - share, axis=0), 0, 1).astype(c.dtype)
            graph = dataclasses.replace(graph, arrays={**graph.arrays, node.arrays["thr"]: thr})
    return graph
