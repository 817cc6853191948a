"""Convolutions and poolings of a graph: what they give, and what both counters say, by hand and by brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rheobase.backends import count, simulate
from rheobase.backends.stream import Stream
from rheobase.spiking.errors import GraphError, ShapeError, UnsupportedError
from rheobase.spiking.graph import Conv2d, Edge, EventGraph, Frames, MaxPool2d, Node, SumPool2d
from rheobase.spiking.ops.native import library
from rheobase.spiking.tally import BINARY, DENSE, EVENT_KINDS, GRADED, KINDS, TERNARY


class Net(nn.Module):
    """A convolution of frames, after a pooling if there is one; and the same by hand as a graph."""

    def __init__(self, conv, pool=None):
        super().__init__()
        self.conv, self.pool = conv.double(), pool

    def forward(self, frames):
        x = frames.flatten(0, 1)
        return self.conv(x if self.pool is None else self.pool(x)).flatten(1)

    def lower(self, image, kind):
        nodes, edges = [Node("frames", Frames(image, kind))], []
        source, width, size = "frames.out", int(np.prod(image)), image[1:]
        if self.pool is not None:
            kernel, stride, padding = self.pool.kernel_size, self.pool.stride, self.pool.padding
            mean = isinstance(self.pool, nn.AvgPool2d)
            op = SumPool2d(size, kernel, stride, padding, True, kind) if mean else MaxPool2d(size, kernel, stride, kind)
            nodes.append(Node("pool", op))
            edges.append(Edge(source, "pool.x", kind, (width,)))
            kind = op.outputs["out"]
            size = tuple((n + 2 * padding - kernel) // stride + 1 for n in size)
            source, width = "pool.out", image[0] * size[0] * size[1]
        arrays = {name: p.detach().numpy() for name, p in self.named_parameters()}
        op = Conv2d(size, self.conv.stride[0], self.conv.padding[0])
        nodes.append(Node("conv", op, {name.removeprefix("conv."): name for name in arrays}))
        edges.append(Edge(source, "conv.x", kind, (width,)))
        return EventGraph(tuple(nodes), tuple(edges), arrays, {"y": "conv.out"})


def both(net, frames, kind):
    """The tallies of both counters, after a check of what both simulators give."""
    graph, wanted = net.lower(tuple(frames.shape[2:]), kind), net(frames).detach().numpy()
    traces = [simulate(graph, frames.numpy(), on=on) for on in ("event", "torch")]
    for trace in traces:
        assert np.abs(trace.outputs["y"].reshape(wanted.shape) - wanted).max(initial=0) < 1e-12
    assert traces[0].tally == traces[1].tally
    return count(net, frames, kind=kind, strict=True), traces[0].tally


HAND = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).double().expand(1, 2, 1, 4, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_stride_by_hand(kind):
    """4 x 4 pixels, kernel 3, stride 2, padding 1, two output channels, two frames.

    Windows along an axis are at -1, 0, 1 and at 1, 2, 3: of the pixels 0, 1, 2, 3 the second is in two, the others in
    one, 5 of the 6 taps. An image has 5 x 5 products for each output channel, not 6 x 6. Of the events, that at
    (0, 0) reaches 1 x 1 windows, that at (1, 1) 2 x 2, that at (1, 3) 2 x 1: 7 products for each output channel.
    """
    net = Net(nn.Conv2d(1, 2, 3, stride=2, padding=1))
    for tally in both(net, HAND, kind):
        conv = tally.operators["conv"]
        assert conv.dense_macs == 2 * 2 * 25 and conv.adds == 2 * 2 * 4
        wanted = {BINARY: (0, 28), TERNARY: (0, 28), GRADED: (28, 0), DENSE: (100, 0)}[kind]
        assert (conv.macs, conv.acs) == wanted
        assert (conv.rows, conv.deliveries) == ((32, 0) if kind == DENSE else (6, 6))
        assert conv.weight_bytes == (sum(wanted) + 16) * 8
        assert tally.tokens == 2


def test_an_event_that_no_window_holds_is_delivered_and_does_nothing():
    net = Net(nn.Conv2d(1, 3, 1, stride=2, bias=False))
    for tally in both(net, HAND, BINARY):
        conv = tally.operators["conv"]
        assert (conv.acs, conv.deliveries, conv.dense_macs) == (2 * 1 * 3, 2 * 3, 2 * 4 * 3)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.sampled_from(KINDS),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_any_convolution_by_brute_force(seed, kind, stride, padding, bias, pooled):
    generator = torch.Generator().manual_seed(seed)
    frames = (torch.rand(2, 3, 2, 9, 8, generator=generator) > 0.7).double()
    if kind != BINARY:
        frames *= torch.randn(frames.shape, generator=generator).double()
    if kind == TERNARY:
        frames = frames.sign()
    net = Net(nn.Conv2d(2, 5, (3, 2), stride, padding, bias=bias), nn.MaxPool2d(2, 1) if pooled else None)
    x = F.max_pool2d(frames.flatten(0, 1), 2, 1) if pooled else frames.flatten(0, 1)
    height, width = net.conv(x).shape[2:]
    done = dense = 0
    for i in range(height):
        for j in range(width):
            rows = [r for r in range(i * stride - padding, i * stride - padding + 3) if 0 <= r < x.shape[2]]
            columns = [c for c in range(j * stride - padding, j * stride - padding + 2) if 0 <= c < x.shape[3]]
            part = x[:, :, rows][..., columns]
            done, dense = done + int((part != 0).sum()), dense + part.numel()
    by_dispatch, by_graph = both(net, frames, kind)
    assert by_dispatch.without_bytes() == by_graph.without_bytes()
    assert by_dispatch.weight_bytes == by_graph.weight_bytes
    conv = by_graph.operators["conv"]
    assert conv.dense_macs == 5 * dense and conv.macs + conv.acs == 5 * (dense if kind == DENSE else done)
    assert (conv.macs == 0) == (kind in (BINARY, TERNARY)) and (conv.acs == 0) == (kind in (GRADED, DENSE))


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_by_hand(kind):
    """The four windows of 2 x 2 hold two events, one, none and none: two are sent on, 3 comparisons a window."""
    for tally in both(Net(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2)), HAND, kind):
        pool, conv = tally.operators["pool"], tally.operators["conv"]
        assert pool.comparisons == 2 * 4 * 3
        assert pool.events == conv.deliveries == (2 * 2 if kind in EVENT_KINDS else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_means_by_hand(kind):
    """Windows of 2 x 2 at -1, 1 and 3 along an axis hold 1, 2 and 1 pixels: 16 of each image, 9 sums, each divided."""
    for tally in both(Net(nn.Conv2d(1, 1, 1), nn.AvgPool2d(2, padding=1)), HAND, kind):
        pool, conv = tally.operators["pool"], tally.operators["conv"]
        assert (pool.adds, pool.products) == (2 * (16 - 9), 2 * 9)
        assert pool.events == conv.deliveries == (2 * 3 if kind in EVENT_KINDS else 0)
        assert (conv.macs, conv.acs) == ((6, 0) if kind in EVENT_KINDS else (18, 0))


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(KINDS), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_any_mean_is_that_of_torch(seed, kind, kernel, stride, padded):
    generator = torch.Generator().manual_seed(seed)
    frames = (torch.rand(2, 3, 2, 9, 8, generator=generator) > 0.7).double()
    if kind in (GRADED, DENSE):
        frames *= torch.randn(frames.shape, generator=generator).double()
    pool = nn.AvgPool2d(kernel, stride, padded * (kernel // 2))
    by_dispatch, by_graph = both(Net(nn.Conv2d(2, 3, 2), pool), frames, kind)
    assert by_dispatch.without_bytes() == by_graph.without_bytes()


def test_no_frames():
    net = Net(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, 1))
    for frames in (HAND[:, :0], HAND[:0]):
        for tally in both(net, frames, BINARY):
            assert tally.tokens == 0 and tally.dense_macs == tally.acs == 0


def graph(image=(1, 4, 4), weight=(2, 1, 3, 3), size=(4, 4), kinds=(BINARY, BINARY), kernel=2):
    nodes = (
        Node("frames", Frames(image, kinds[0])),
        Node("pool", MaxPool2d(size, kernel, 1, kinds[1])),
        Node("conv", Conv2d((3, 3)), {"weight": "w"}),
    )
    edges = (
        Edge("frames.out", "pool.x", kinds[0], (int(np.prod(image)),)),
        Edge("pool.out", "conv.x", kinds[1], (9,)),
    )
    return EventGraph(nodes, edges, {"w": np.ones(weight)}, {"y": "conv.out"})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kinds": (DENSE, BINARY)}, "frames.out -> pool.x: expected a source of kind BINARY, got DENSE"),
        ({"weight": (2, 9)}, r"conv: weight: expected shape \(O, C, U, V\)"),
        ({"weight": (2, 2, 3, 3)}, r"conv: x: expected shape \(18,\)"),
        ({"weight": (2, 1, 4, 4)}, "conv: expected an image at least as large as the kernel"),
        ({"size": (4, 3)}, r"pool: x: expected shape \(12,\), got \(16,\)"),
        ({"kernel": 5}, "pool: expected an image at least as large as the kernel"),
        ({"kinds": ("SPIKES", BINARY)}, "Frames: expected a kind of BINARY, TERNARY, GRADED, DENSE"),
        ({"image": (16,)}, r"and a size \(C, H, W\)"),
    ],
)
def test_a_graph_refuses_what_is_wrong_with_its_images(wrong, message):
    graph()
    with pytest.raises(GraphError, match=message):
        graph(**wrong)


def test_frames_of_another_size_or_kind_are_refused():
    frames = HAND.numpy()
    for wrong in (frames[0], frames[..., :3], np.argmax(frames, -1)):
        with pytest.raises(ShapeError, match=r"frames: expected frames \[B, T, 1, 4, 4\]"):
            simulate(graph(), wrong)
    with pytest.raises(ShapeError, match=r"frames: expected BINARY pixels, each one of \(0, 1\), got others"):
        simulate(graph(), 2 * frames)
    simulate(graph(kinds=(GRADED, GRADED)), 2 * frames)
    with pytest.raises(ShapeError, match="frames: expected TERNARY pixels"):
        simulate(graph(kinds=(TERNARY, TERNARY)), 2 * frames)
    whole = simulate(graph(), frames.astype(np.uint8))
    assert np.array_equal(whole.outputs["y"], simulate(graph(), frames).outputs["y"])


@pytest.mark.skipif(library() is None, reason="no C library")
@pytest.mark.parametrize("tables", [True, False])
def test_the_token_stream_refuses_frames(tables):
    with pytest.raises(UnsupportedError, match="frames: expected an op that Stream has an instruction for, got Frames"):
        Stream(graph(), tables=tables)
