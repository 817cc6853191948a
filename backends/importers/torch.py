"""A network of snnTorch or Norse, one step of it, to an EventGraph; nirtorch finds what follows what.

nirtorch traces the module to a NIR graph. Its neurons travel in it as the graph ops that the adapters lower them to,
so that what NIR itself cannot say, such as snnTorch's reset by subtraction one step late, comes through.
"""

import contextlib
import importlib.util
import inspect
import operator
import sys
from pathlib import Path

import numpy as np
from torch import nn

from rheobase.backends.importers.nir import graph_of_nir
from rheobase.backends.nir_file import load_nir
from rheobase.spiking import registry
from rheobase.spiking.adapters._library import load
from rheobase.spiking.errors import ConfigError, FormatError, RheobaseError, UnsupportedError
from rheobase.spiking.graph import EventGraph, array_of
from rheobase.spiking.neurons import Cell

NEURONS = {"snntorch": "", "norse.torch": "Cell"}
"""library -> how the names of its neurons of one step end; the adapters refuse most of them, and say why"""


def import_named(source: str, **options) -> EventGraph:
    """The graph of `module.py:name`: a module, or a function of no arguments that makes one. The file is run; what it
    prints goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        return import_module(_named(source), source, **options)


def _named(source: str) -> nn.Module:
    path, _, name = source.rpartition(":")
    if not Path(path).is_file():
        raise FormatError(path, "a Python file", "none", "check the path")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)  # as Python does for a script: it may import what lies beside it
    sys.modules.setdefault(spec.name, module)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ConfigError(path, "imports that are there", str(error), "install what it needs") from None
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise ConfigError(path, "a Python file that runs", got, "mend it") from error
    finally:
        sys.path.remove(folder)
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(source, "a name in that file", repr(name), registry.nearest(name, public))
    net = getattr(module, name)
    if callable(net) and not isinstance(net, nn.Module):
        try:
            net = net()
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise ConfigError(source, "a function of no arguments that makes a network", got, "mend it") from error
    if not isinstance(net, nn.Module):
        raise ConfigError(source, "a torch module", type(net).__name__, "name the network, or what makes it")
    return net


def import_module(
    net: nn.Module, where: object = "network", *, input_kind: str | None = None, shape: tuple[int, ...] | None = None
) -> EventGraph:
    """The graph of a network whose `forward` is one step: layers, neurons and sums.

    input_kind  BINARY, TERNARY, GRADED or DENSE (the default): values never decide
    shape       (C, H, W) of a step's image, where the network begins with a convolution
    raises      UnsupportedError: a layer, a neuron or an operation that no graph op computes, and which
    """
    for name, cell in net.named_modules():
        place = f" at {name}" if name else ""
        if cell._forward_hooks or cell._forward_pre_hooks:
            remedy = "take them off: prune.remove and remove_weight_norm write what theirs compute into the weights"
            raise UnsupportedError(where, "modules without hooks", f"{type(cell).__name__} with some{place}", remedy)
        if "forward" in vars(cell):
            got = f"{type(cell).__name__} with one of its own{place}"
            raise UnsupportedError(where, "modules with the forward of their class", got, "make it a class")
        if isinstance(cell, Cell):
            got = f"rheobase's {type(cell).__name__}{place}"
            remedy = "a model's own lower() is its graph; else build it of rheobase.spiking.graph's nodes and edges"
            raise UnsupportedError(where, "neurons of snnTorch or Norse", got, remedy)
    for name, parameter in net.named_parameters():
        array_of(parameter.new_empty(0), f"{where}: {name}")  # raises where NumPy lacks the type
    nir, nirtorch = load_nir(), load("nirtorch", "nirtorch>=2.6")
    neurons = {kind: _neuron_map(library) for library in NEURONS for kind in _kinds(library)}
    layers = {
        nn.Conv2d: _conv2d,
        nn.AvgPool2d: _avgpool2d,
        nn.Flatten: _flatten,
        nn.Dropout: _nothing,
        nn.Identity: _nothing,
    }
    given = {"state": None} if "state" in inspect.signature(net.forward).parameters else None
    try:
        _refuse_what_is_dropped(nirtorch, net, tuple(neurons), (*neurons, *layers), given)
        stateful = {"stateful_modules": set(neurons), "concrete_args": given, "type_check": False}
        traced = nirtorch.torch_to_nir(net, neurons | layers, **stateful)
    except RheobaseError:
        raise
    except KeyError as error:
        kind = getattr(error.args[0], "__name__", str(error))
        raise UnsupportedError(where, "layers and neurons that lower to a graph", kind, "replace it") from None
    except Exception as error:  # whatever torch.fx meets in somebody's forward
        got = f"{type(error).__name__}: {error}"
        raise UnsupportedError(where, "a forward of one step, layers and sums", got, "give one step of it") from None
    if shape is not None:
        for node in traced.nodes.values():
            if isinstance(node, nir.Input):
                node.input_type = {"input": np.array(shape)}
    return graph_of_nir(traced, where, input_kind=input_kind)


def _kinds(library: str) -> list[type]:
    """The neurons of a library, if the program that is imported has loaded it at all."""
    loaded = sys.modules.get(library)
    named = [value for name, value in vars(loaded).items() if name.endswith(NEURONS[library])] if loaded else []
    return [value for value in named if isinstance(value, type) and issubclass(value, nn.Module)]


def _neuron_map(library: str):
    adapter = registry.get("rheobase.spiking.adapters", library.partition(".")[0])

    def placeholder(neuron):
        """A NIR node that holds the op; with the recurrent layer, if it has one, a sub-graph."""
        import nir

        made = nir.Threshold(np.ones(1), metadata={"op": adapter.op_of(neuron), "arrays": {}})
        if not hasattr(neuron, "recurrent"):
            return made
        w = _recurrent(neuron)
        ends = {"input": nir.Input(np.array([len(w.weight)])), "output": nir.Output(np.array([len(w.weight)]))}
        edges = [("input", "lif"), ("w_rec", "lif"), ("lif", "w_rec"), ("lif", "output")]
        return nir.NIRGraph({**ends, "lif": made, "w_rec": w}, edges, type_check=False)

    return placeholder


def _recurrent(neuron):
    import nir

    layer = neuron.recurrent
    if isinstance(layer, nn.Linear):
        weight = layer.weight.detach().numpy()
        return nir.Linear(weight) if layer.bias is None else nir.Affine(weight, layer.bias.detach().numpy())
    v = getattr(layer, "V", None)
    if v is None or v.ndim != 1:
        name = type(neuron).__name__
        raise UnsupportedError(name, "a linear recurrent layer, or one weight a unit", str(layer), "give it so")
    return nir.Linear(np.diag(v.detach().numpy()))


def _conv2d(module):
    import nir

    weight = module.weight.detach().numpy()
    if module.padding_mode != "zeros":
        raise UnsupportedError("Conv2d", "padding with zeros", module.padding_mode, "set padding_mode")
    bias = np.zeros(len(weight), weight.dtype) if module.bias is None else module.bias.detach().numpy()
    return nir.Conv2d(None, weight, module.stride, module.padding, module.dilation, module.groups, bias)


def _avgpool2d(module):
    import nir

    if module.ceil_mode or module.divisor_override or (module.padding and not module.count_include_pad):
        raise UnsupportedError("AvgPool2d", "a mean over the whole kernel, padding included", f"{module}", "set it so")
    pair = [
        np.array(n if isinstance(n, tuple) else (n, n)) for n in (module.kernel_size, module.stride, module.padding)
    ]
    return nir.AvgPool2d(*pair)


def _flatten(module):
    import nir

    if (module.start_dim, module.end_dim) != (1, -1):
        raise UnsupportedError("Flatten", "all axes but the batch", f"{module}", "write nn.Flatten()")
    return nir.Flatten(None, 0, -1)


def _nothing(module):
    import nir

    return nir.Flatten(None, 0, 0)


def _refuse_what_is_dropped(nirtorch, net, neurons, leaves, given) -> None:
    """Refuse what nirtorch drops or misreads without a word."""
    fired, states, handed = {}, set(), set()  # what neurons gave, by their names; their states after this step, before
    first = True
    for node in nirtorch.torch_tracer.NIRTorchTracer(leaves).trace(net, concrete_args=given).nodes:
        read, added = node.all_input_nodes, node.target in (operator.add, "add")
        fires = node.op == "call_module" and isinstance(net.get_submodule(node.target), neurons)
        owner = net.get_submodule(node.target.rpartition(".")[0]) if node.op == "get_attr" else None
        if isinstance(owner, neurons):
            remedy = "let forward take it, None at first, as in forward(x, mem=None), or set init_hidden=True"
            raise UnsupportedError("forward", "a state that comes in from the step before", node.target, remedy)
        if owner is not None or (added and (len(set(read)) != 2 or node.kwargs)):
            got = f"{node.format_node()}"
            raise UnsupportedError("forward", "sums of two layers' outputs", got, "put it into a layer's bias")
        if node.op == "output":
            if not read or read[0] in states or not (states | handed).issuperset(read[1:]):
                got = ", ".join(f"{n}{' (a state)' if n in states else ''}" for n in read) or "none"
                remedy = "return the last layer's output, and after it nothing but states"
                raise UnsupportedError("forward", "one output", got, remedy)
        elif node.op == "placeholder":
            handed |= set() if first else {node}
            first = False
        elif node.target is operator.getitem and read[0] in (*fired.values(), *states, *handed):
            if read[0] in handed:
                handed.add(node)
            elif read[0] in states or node.args[1] != 0:
                states.add(node)
        elif node.users and (wrong := (states if fires else states | handed).intersection(read)):
            wanted = "layers that read spikes or the first argument, neurons their own state of the step before"
            raise UnsupportedError("forward", wanted, f"{node} of {min(map(str, wrong))}", "rewire it")
        elif fires:
            if node.target in fired:
                raise UnsupportedError("forward", "each neuron once a step", f"{node.target} twice", "use two neurons")
            fired[node.target] = node
