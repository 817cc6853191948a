"""EventGraph: the one intermediate form between models and every simulator, counter and exporter.

Nodes are operations; edges carry one vector a token, or a frame, and declare what kind of values it holds. Weight
products are nodes of their own; cells hold no matrices. A delay-1 edge delivers the value of the token before, and its
first value is state. Names are module paths, and arrays live in one table under their parameter names, so that a tied
weight is there once. The semantics are those of evaluation: no dropout.
"""

from rheobase.spiking.graph.arrays import array_of, arrays_of
from rheobase.spiking.graph.cells import (
    CubaLIFCell,
    EGRUCell,
    GradedLIFCell,
    GRUCell,
    LIFCell,
    LSTMCell,
    TernaryLIFCell,
    WKVCell,
)
from rheobase.spiking.graph.event_graph import Edge, EventGraph, Node
from rheobase.spiking.graph.images import Conv2d, Frames, MaxPool2d, SumPool2d, places
from rheobase.spiking.graph.layers import (
    Add,
    Affine,
    Embedding,
    LayerNorm,
    Linear,
    Mix,
    Multiply,
    Relu,
    Sigmoid,
    Spike,
    SquaredRelu,
    Tokens,
)
from rheobase.spiking.graph.op import Input, Op, Shape, require
from rheobase.spiking.graph.thresholds import move_thresholds

__all__ = [
    "Add",
    "Affine",
    "Conv2d",
    "CubaLIFCell",
    "EGRUCell",
    "Edge",
    "Embedding",
    "EventGraph",
    "Frames",
    "GRUCell",
    "GradedLIFCell",
    "Input",
    "LIFCell",
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Mix",
    "Multiply",
    "Node",
    "Op",
    "Relu",
    "Shape",
    "Sigmoid",
    "Spike",
    "SquaredRelu",
    "SumPool2d",
    "TernaryLIFCell",
    "Tokens",
    "WKVCell",
    "array_of",
    "arrays_of",
    "move_thresholds",
    "places",
    "require",
]
