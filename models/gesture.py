"""A classifier of event-camera recordings: convolutions that read frames of events, and an EGRU that reads them.

B recordings, T frames, C channels, H and W the height and width of an image, F features, N classes.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rheobase.models._frames import FrameModel, check_frame_settings
from rheobase.models._recurrent import GradedRelu
from rheobase.models.egru_lm import EGRULM, egru_lowering
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.graph import (
    Conv2d,
    Edge,
    EventGraph,
    Frames,
    Linear,
    MaxPool2d,
    Node,
    Op,
    Relu,
    Shape,
    arrays_of,
    places,
)
from rheobase.spiking.neurons import EGRU, LIF, EGRUState
from rheobase.spiking.ops.egru.reference import EGRUTrajectory
from rheobase.spiking.surrogates import Triangle
from rheobase.spiking.tally import DENSE, GRADED, mark


class Stage(NamedTuple):
    """A convolution: how it reads, and the images [C, H, W] before it, after it, and after the pooling if any."""

    kernel: int
    stride: int
    padding: int
    before: Shape
    after: Shape
    pooled: Shape | None


@dataclass(frozen=True, kw_only=True)
class GestureConfig:
    """Sizes and regularisers; the defaults are those of the published runs, but for the thresholds' distribution.

    raises  ConfigError: a setting out of range, or an image that is smaller than the kernel that is to read it
    """

    channels: int = 1
    """channels of a frame: 1 for the sum over both polarities (their mean over 19, as published, is the sum over an
    `events.scale` of 38), 2 for each of them"""
    size: tuple[int, int] = (128, 128)
    """height and width of a frame"""
    frames: str = GRADED
    """kind of what the pixels hold: GRADED for numbers of events, BINARY for whether there were any, TERNARY, DENSE"""
    convolutions: tuple[tuple[int, ...], ...] = (
        (64, 11, 4, 2),
        (192, 5, 1, 2),
        (384, 3, 1, 1),
        (256, 3, 1, 1),
        (256, 3, 1, 1),
    )
    """channels, kernel, stride and padding of each convolution"""
    pooled: int = 4
    """number of convolutions, from the first on, that a max pooling follows"""
    pool: tuple[int, int] = (3, 2)
    """kernel and stride of a pooling"""
    neurons: str = "relu"
    """what follows a convolution: "relu", graded events without memory; "lif", spikes, also after the features"""
    tau: float = 2.0
    """time constant of LIF units, in frames"""
    theta: float = 1.0
    """threshold of LIF units"""
    features: int = 512
    """width of the linear layer between convolutions and EGRU"""
    units: int = 795
    """units of the EGRU"""
    classes: int = 11
    """number of gestures"""
    thr_mean: float = 0.44
    """mean of the EGRU's thresholds at the start"""
    gamma: float = 0.7
    """height of the EGRU's triangle surrogate"""
    eps: float = 1.7
    """inverse half-width of the EGRU's triangle surrogate"""
    zoneout: float = 0.2319
    """probability that an EGRU unit keeps its cell for a step"""
    dropconnect: float = 0.08134
    """probability with which an element of the EGRU's recurrent kernel is dropped in training"""
    dropout: float = 0.6321
    """dropout before and after the EGRU"""
    rate_target: float = 0.05
    """mean firing of the EGRU towards which `rate_weight` pulls it"""
    rate_weight: float = 0.0
    """weight of the squared distance of the EGRU's mean firing from the target"""

    def __post_init__(self):
        whole = all(len(c) == 4 and min(c[:3]) >= 1 and c[3] >= 0 for c in self.convolutions)
        check_frame_settings(
            "gesture",
            self,
            ("convolutions", "(channels, kernel, stride, padding) of one or more", self.convolutions and whole),
            ("pool", "a kernel and a stride, at least 1", len(self.pool) == 2 and min(self.pool) >= 1),
            ("neurons", "'relu' or 'lif'", self.neurons in ("relu", "lif")),
        )
        for i, stage in enumerate(self.stages()):
            if min(stage.pooled or stage.after) < 1:
                got = f"{stage.before} before convolution {i}"
                raise ConfigError("gesture convolutions", "an image as large as its kernel", got, "pool or stride less")

    @property
    def image(self) -> Shape:
        """[C, H, W] of a frame."""
        return self.channels, *self.size

    def stages(self) -> Iterator[Stage]:
        """The convolutions, first to last."""
        image = self.image
        for i, (channels, kernel, stride, padding) in enumerate(self.convolutions):
            after = (channels, *(places(n, kernel, stride, padding) for n in image[1:]))
            pooled = (channels, *(places(n, *self.pool) for n in after[1:])) if i < self.pooled else None
            yield Stage(kernel, stride, padding, image, after, pooled)
            image = pooled or after


class Gesture(FrameModel):
    """Convolutions, a linear layer, an EGRU, and a linear readout of its trace.

        h_0 = frame    h_l = pool(f(conv(h_{l-1})))    x = W_x h_L    y, trace = EGRU(x)    logits = W trace + b
        neurons "relu":  f = max(., 0), sent as graded events; every convolution and W_x have a bias
        neurons "lif":   f = LIF units, and x = LIF(W_x h_L) too; no biases before them, so that a layer that no
                         event reaches has nothing to add

        logits, state = model(frames, state=None)     frames [B, T, C, H, W] -> logits [B, T, N]

    Source: Subramoney et al., ICLR 2023, on DVS gesture: 1.7 s of a recording in 68 frames of 25 ms, the mean over
    polarities divided by 19. There the thresholds start as the logistic function of normal numbers; here they are of
    a Beta distribution (`neurons.egru`). The form with LIF units is not published.

    raises  ConfigError: settings that are none;  ShapeError, in a call: frames of another shape, or a state of another
            batch size or model
    """

    Config = GestureConfig
    name = "gesture"
    citations = EGRULM.citations

    def __init__(self, config: GestureConfig):
        super().__init__()
        self.config, self.stages = config, list(config.stages())
        self.spikes = config.neurons == "lif"
        self.convolutions = nn.ModuleList(
            nn.Conv2d(s.before[0], s.after[0], s.kernel, s.stride, s.padding, bias=not self.spikes) for s in self.stages
        )
        n_neurons = len(self.stages) + self.spikes
        self.neurons = nn.ModuleList(
            LIF(tau=config.tau, theta=config.theta) if self.spikes else GradedRelu() for _ in range(n_neurons)
        )
        self.pools = nn.ModuleList(nn.MaxPool2d(*config.pool) for s in self.stages if s.pooled)
        last = self.stages[-1]
        self.features = nn.Linear(math.prod(last.pooled or last.after), config.features, bias=not self.spikes)
        self.dropout = nn.Dropout(config.dropout)
        self.egru = EGRU(
            config.features,
            config.units,
            Triangle(config.gamma, config.eps),
            config.zoneout,
            dropconnect=config.dropconnect,
            thr_mean=config.thr_mean,
        )
        self.readout = nn.Linear(config.units, config.classes)

    def run(self, frames: Tensor, state=None) -> tuple[Tensor, tuple, tuple[list[Tensor], EGRUTrajectory]]:
        """As `forward`, with (what each layer of neurons sent [B, T, n], what the EGRU did) as a third result."""
        self.check(frames, state)
        steps, sent, states = frames.shape[:2], [], []
        before = itertools.repeat(None) if state is None else iter(state)

        def fire(x_BTI: Tensor) -> Tensor:
            """The next layer of neurons."""
            neurons = self.neurons[len(sent)]
            if self.spikes:
                out, after = neurons(x_BTI, next(before))
                states.append(after)
            else:
                out = neurons(x_BTI)
            sent.append(out)
            return out

        x = mark(frames, self.config.frames, sent=False).flatten(0, 1)
        for i, stage in enumerate(self.stages):
            x = fire(self.convolutions[i](x).flatten(1).unflatten(0, steps)).flatten(0, 1).unflatten(1, stage.after)
            if stage.pooled:
                x = self.pools[i](x)
        x = self.features(x.flatten(1)).unflatten(0, steps)
        x = self.dropout(fire(x) if self.spikes else x)
        trajectory, after = self.egru(x, next(before), whole=True)
        return self.readout(self.dropout(trajectory.trace)), (*states, after), (sent, trajectory)

    def state_shapes(self, batch: int) -> list[tuple[tuple[int, ...], ...]]:
        """The shapes of each layer's state: the LIF units', where there are any, and the EGRU's."""
        spiking = [*(math.prod(s.after) for s in self.stages), self.config.features] if self.spikes else []
        return [((batch, n),) for n in spiking] + [((batch, self.config.units),) * len(EGRUState._fields)]

    @property
    def event_layers(self):
        return (*(f"neurons.{i}" for i in range(len(self.neurons))), "egru")

    def sent(self, runs):
        return [*runs[0], runs[1].y]

    def trajectories(self, runs):
        return [runs[1]]

    @torch.no_grad()
    def wake(self, frames):
        """Scale the weights before each layer of LIF units until what they add up, over all units, frames and
        recordings, has a standard deviation of the threshold: a few units in a hundred fire then."""
        if not self.spikes:
            return
        training = self.training
        self.eval()
        for i, layer in enumerate([*self.convolutions, self.features]):
            added = []
            hook = layer.register_forward_hook(lambda _, __, out, added=added: added.append(out))
            self.run(frames)
            hook.remove()
            if not added[0].any():
                raise ConfigError(self.event_layers[i], "events before it on the first batch", "none", "lower theta")
            layer.weight *= self.config.theta / added[0].std()
        self.train(training)

    def project_(self):
        self.egru.project_()

    @classmethod
    def least_numbers(cls, config):
        weights = sum(s.before[0] * s.after[0] * s.kernel**2 for s in config.stages())
        return weights + 3 * config.units * (config.units + config.features)

    def lower(self) -> EventGraph:
        """The whole model as an EventGraph in evaluation semantics; array names are those of `state_dict()`."""
        c = self.config
        arrays = arrays_of(self)
        nodes, edges = [Node("frames", Frames(c.image, c.frames))], []
        last = "frames.out", c.frames, (math.prod(c.image),)

        def add(name: str, op: Op) -> None:
            """A node that reads what the last one gives."""
            nonlocal last
            source, kind, shape = last
            own = {role: f"{name}.{role}" for role in ("weight", "bias") if f"{name}.{role}" in arrays}
            nodes.append(Node(name, op, own))
            edges.append(Edge(source, f"{name}.x", kind, shape))
            port, kind = next(iter(op.outputs.items()))
            shapes = op.shapes(name, {"x": shape}, {role: arrays[array] for role, array in own.items()})
            last = f"{name}.{port}", kind, shapes[port]

        def neurons(i: int) -> None:
            add(f"neurons.{i}", self.neurons[i].lower() if self.spikes else Relu())

        for i, stage in enumerate(self.stages):
            add(f"convolutions.{i}", Conv2d(stage.before[1:], stage.stride, stage.padding))
            neurons(i)
            if stage.pooled:
                add(f"pools.{i}", MaxPool2d(stage.after[1:], *c.pool, last[1]))
        add("features", Linear(transposed=True))
        if self.spikes:
            neurons(len(self.stages))
        source, kind, (width,) = last
        egru_nodes, egru_edges = egru_lowering(c.zoneout).layer("egru", source, kind, width, c.units)
        nodes += egru_nodes
        edges += egru_edges
        last = "egru.trace", DENSE, (c.units,)
        add("readout", Linear(transposed=True))
        return EventGraph(tuple(nodes), tuple(edges), arrays, {"logits": "readout.out"})


Config, Model = GestureConfig, Gesture
