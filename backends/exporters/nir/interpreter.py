"""An independent reader of NIR: its equations in NumPy, by Euler's step, in the type of the file's numbers.

    LIF      v' = v + dt / tau (v_leak - v + r I)         CubaLIF   i' = i + dt / tau_syn (w_in x - i)
    IF       v' = v + dt r I                                        v' = v + dt / tau_mem (v_leak - v + r i')
    z = v' > v_threshold,   v = v_reset where z;          at rest v = v_leak (IF: v_reset), i = 0

In a cycle the spikes of the step before are taken where the cycle closes.
"""

import numpy as np
import torch

from rheobase.backends.nir_file import step_order
from rheobase.spiking.errors import UnsupportedError


def run_nir(graph, inputs: dict[str, np.ndarray], *, dt_s: float) -> dict[str, np.ndarray]:
    """What the neurons and outputs of a flat NIR graph give.

    inputs   name of an Input -> values [T, B, ...]
    returns  name of a node -> values [T, B, ...], for neurons and outputs
    """
    order, late = step_order(graph.nodes, sorted(set(graph.edges)))
    before, states, kept = {}, {}, {}
    for t in range(len(next(iter(inputs.values())))):
        now = {}
        for name in order:
            node, kind = graph.nodes[name], type(graph.nodes[name]).__name__
            if kind == "Input":
                now[name] = inputs[name][t]
                continue
            terms = [now[a] for a, b in graph.edges if b == name and (a, b) not in late]
            terms += [before[a] for a, b in graph.edges if b == name and (a, b) in late and a in before]
            x = sum(terms[1:], terms[0])
            if kind in _STEPS:
                now[name], states[name] = _STEPS[kind](node, x, states.get(name), dt_s)
            else:
                now[name] = _product(name, node, kind, x)
            if kind in (*_STEPS, "Output"):
                kept.setdefault(name, []).append(now[name])
        before = now
    return {name: np.stack(steps) for name, steps in kept.items()}


def _fire(node, v):
    z = v > node.v_threshold
    return z.astype(v.dtype), np.where(z, node.v_reset, v).astype(v.dtype)


def _lif(node, x, v, dt_s):
    v = np.zeros_like(x) + node.v_leak if v is None else v
    return _fire(node, v + dt_s / node.tau * (node.v_leak - v + node.r * x))


def _if(node, x, v, dt_s):
    v = np.zeros_like(x) + node.v_reset if v is None else v
    return _fire(node, v + dt_s * node.r * x)


def _cuba_lif(node, x, state, dt_s):
    i, v = (np.zeros_like(x), np.zeros_like(x) + node.v_leak) if state is None else state
    i = i + dt_s / node.tau_syn * (node.w_in * x - i)
    z, v = _fire(node, v + dt_s / node.tau_mem * (node.v_leak - v + node.r * i))
    return z, (i, v)


_STEPS = {"LIF": _lif, "IF": _if, "CubaLIF": _cuba_lif}


def _product(name, node, kind, x):
    if kind in ("Linear", "Affine"):
        weight = node.weight.astype(x.dtype)
        return x @ weight.T + (node.bias.astype(x.dtype) if kind == "Affine" else 0)
    if kind == "Conv2d":
        weight, bias, image = (torch.tensor(np.asarray(a, x.dtype)) for a in (node.weight, node.bias, x))
        stride, padding = tuple(map(int, node.stride)), tuple(map(int, node.padding))
        return torch.nn.functional.conv2d(image, weight, bias, stride, padding).numpy()
    if kind in ("SumPool2d", "AvgPool2d"):
        kernel, stride, padding = (tuple(map(int, n)) for n in (node.kernel_size, node.stride, node.padding))
        over = kernel[0] * kernel[1] if kind == "AvgPool2d" else 1
        pool = torch.nn.functional.avg_pool2d
        return pool(torch.tensor(x), kernel, stride, padding, divisor_override=over).numpy()
    if kind == "Flatten":
        return x.reshape(len(x), -1)
    if kind == "Output":
        return x
    raise UnsupportedError(name, "a node that Rheobase writes", kind, "export it anew")
