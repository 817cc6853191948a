"""A classifier of recordings that has nothing but EGRU layers: for lines of units, single pixels and small frames.

B recordings, T frames, C channels, H and W the height and width of an image, N classes.
"""

import math
from dataclasses import dataclass

from torch import nn

from rheobase.models._frames import FrameModel, check_frame_settings
from rheobase.models.egru_lm import EGRULM, egru_lowering
from rheobase.spiking.graph import Edge, EventGraph, Frames, Linear, Node, arrays_of
from rheobase.spiking.neurons import EGRU, EGRUState
from rheobase.spiking.surrogates import Triangle
from rheobase.spiking.tally import DENSE, GRADED, mark


@dataclass(frozen=True, kw_only=True)
class EGRUFramesConfig:
    """Sizes and regularisers; raises ConfigError for a setting out of range."""

    channels: int = 2
    """channels of a frame: 1 for the sum over both polarities, 2 for each of them"""
    size: tuple[int, int] = (34, 34)
    """height and width of a frame"""
    frames: str = GRADED
    """kind of what the pixels hold: GRADED for numbers of events, BINARY for whether there were any, TERNARY, DENSE"""
    layers: tuple[int, ...] = (128,)
    """units of each layer"""
    readout: str = "trace"
    """what the readout reads of the last layer: its "trace", or "y", its events"""
    classes: int = 10
    """number of classes"""
    thr_mean: float = 0.3
    """mean of the thresholds at the start"""
    gamma: float = 0.7
    """height of the triangle surrogate"""
    eps: float = 1.0
    """inverse half-width of the triangle surrogate"""
    zoneout: float = 0.0
    """probability that a unit keeps its cell for a step"""
    dropconnect: float = 0.0
    """probability with which an element of a recurrent kernel is dropped in training"""
    dropout: float = 0.0
    """dropout after each layer"""
    rate_target: float = 0.05
    """mean firing of a layer towards which `rate_weight` pulls it"""
    rate_weight: float = 0.0
    """weight of the squared distance of each layer's mean firing from the target"""

    def __post_init__(self):
        check_frame_settings(
            "egru_frames",
            self,
            ("layers", "at least one size, each at least 1", bool(self.layers) and min(self.layers) >= 1),
            ("readout", "'trace' or 'y'", self.readout in ("trace", "y")),
        )


class EGRUFrames(FrameModel):
    """EGRU layers, the first of which reads a frame's pixels, and a linear readout.

        x_0 = frame    x_l, trace_l = EGRU_l(x_{l-1})    logits = W trace_L + b, or W x_L + b

        logits, state = model(frames, state=None)     frames [B, T, C, H, W] -> logits [B, T, N]

    Source: Subramoney et al., ICLR 2023, on sequential MNIST: one layer of 590 units that reads a pixel a step. There
    the logits are read at the last step, here as the mean over all.

    raises  ConfigError: settings that are none;  ShapeError, in a call: frames of another shape, or a state of another
            batch size or model
    """

    Config = EGRUFramesConfig
    name = "egru_frames"
    citations = EGRULM.citations

    def __init__(self, config: EGRUFramesConfig):
        super().__init__()
        self.config = config
        widths, surrogate = (
            (config.channels * math.prod(config.size), *config.layers),
            Triangle(config.gamma, config.eps),
        )
        self.layers = nn.ModuleList(
            EGRU(below, units, surrogate, config.zoneout, dropconnect=config.dropconnect, thr_mean=config.thr_mean)
            for below, units in zip(widths, config.layers, strict=False)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.readout = nn.Linear(config.layers[-1], config.classes)

    def run(self, frames, state=None):
        self.check(frames, state)
        x, states, trajectories = mark(frames, self.config.frames, sent=False).flatten(2), [], []
        for i, layer in enumerate(self.layers):
            trajectory, after = layer(x, None if state is None else state[i], whole=True)
            trajectories.append(trajectory)
            states.append(after)
            x = self.dropout(trajectory.y)
        if self.config.readout == "trace":
            x = self.dropout(trajectory.trace)
        return self.readout(x), tuple(states), trajectories

    def state_shapes(self, batch):
        return [((batch, units),) * len(EGRUState._fields) for units in self.config.layers]

    @property
    def event_layers(self):
        return tuple(f"layers.{i}" for i in range(len(self.layers)))

    def sent(self, runs):
        return [run.y for run in runs]

    def trajectories(self, runs):
        return runs

    def project_(self):
        for layer in self.layers:
            layer.project_()

    @classmethod
    def least_numbers(cls, config):
        widths = (config.channels * math.prod(config.size), *config.layers)
        return sum(3 * units * (units + below) for below, units in zip(widths, config.layers, strict=False))

    def lower(self) -> EventGraph:
        """The whole model as an EventGraph in evaluation semantics; array names are those of `state_dict()`."""
        c, how = self.config, egru_lowering(self.config.zoneout)
        width = c.channels * math.prod(c.size)
        nodes, edges, below, kind = (
            [Node("frames", Frames((c.channels, *c.size), c.frames))],
            [],
            "frames.out",
            c.frames,
        )
        for i, units in enumerate(c.layers):
            layer_nodes, layer_edges = how.layer(f"layers.{i}", below, kind, width, units)
            nodes += layer_nodes
            edges += layer_edges
            below, kind, width = f"layers.{i}.y", GRADED, units
        if c.readout == "trace":
            below, kind = f"layers.{len(c.layers) - 1}.trace", DENSE
        nodes.append(Node("readout", Linear(transposed=True), {"weight": "readout.weight", "bias": "readout.bias"}))
        edges.append(Edge(below, "readout.x", kind, (width,)))
        arrays = arrays_of(self)
        return EventGraph(tuple(nodes), tuple(edges), arrays, {"logits": "readout.out"})


Config, Model = EGRUFramesConfig, EGRUFrames
