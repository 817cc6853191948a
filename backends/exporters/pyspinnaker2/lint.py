"""What `s2_nir.from_nir` of py-spinnaker2 accepts, and the limits of its neuron model and of the chip.

Source of the rules: s2_nir's text as published, whose newest form may differ. Of the limits: py-spinnaker2 0.8.0 uses
148 elements of a chip; a synapse has 8 bits for its target (recalled, not read).
"""

import math
from collections.abc import Mapping

import numpy as np

NEURONS, WEIGHTS = ("LIF", "IF", "CubaLIF"), ("Affine", "Linear", "Conv2d")
OTHERS = ("Input", "Output", "SumPool2d", "AvgPool2d", "Flatten")
CHOICES = {"integrator": ("FORWARD", "EXPONENTIAL"), "reset": ("SUBTRACT", "ZERO"), "scale_weights": (True, False)}
FIELDS = ("dt", "output_record", "conn_delay", *CHOICES)
ELEMENTS, UNITS_AN_ELEMENT, LARGEST_WEIGHT = 148, 256, 127


def lint(nodes: Mapping[str, object], edges, config: Mapping) -> list[str]:
    """What is wrong with a network, a line each; none where there is nothing.

    nodes   name -> an object of NIR's, or of `words`: its class's name and its fields are read
    edges   (source, target)
    config  the fields of a ConversionConfig
    """
    kind = {name: type(node).__name__ for name, node in nodes.items()}
    into = {name: [a for a, b in edges if b == name] for name in nodes}
    found = [f"config: {field} is missing, and NIR has no word for it" for field in FIELDS if field not in config]
    for field, choices in CHOICES.items():
        if field in config and config[field] not in choices:
            found.append(f"config: {field} is {config[field]!r}, not one of {choices}")
    for name, node in nodes.items():
        if kind[name] == "NIRGraph":
            found.append(f"{name}: a graph within the graph; recurrence is wired by flat edges")
        elif kind[name] not in NEURONS + WEIGHTS + OTHERS:
            found.append(f"{name}: {kind[name]} is not known to s2_nir")
        if kind[name] in NEURONS and np.any(np.asarray(getattr(node, "v_reset", 0.0))):
            found.append(f"{name}: v_reset is ignored, and here it is not 0")
        if kind[name] in NEURONS and sum(np.any(getattr(nodes[a], "bias", 0.0)) for a in into[name]) > 1:
            found.append(f"{name}: of several biases only the last is taken")
        if kind[name] in WEIGHTS and config.get("scale_weights") is False:
            weight = np.asarray(node.weight)
            if np.abs(weight).max(initial=0) > LARGEST_WEIGHT:
                found.append(f"{name}: weights beyond {LARGEST_WEIGHT}, and none are scaled")
            if (weight != np.round(weight)).any():
                found.append(f"{name}: weights that are not whole, and none are scaled")
        if kind[name] == "Conv2d" and config.get("conn_delay") != 0:
            found.append(f"{name}: a Conv2d takes conn_delay 0")
    for a, b in edges:
        pair = kind[a], kind[b]
        if pair[0] in WEIGHTS and pair[1] in WEIGHTS:
            found.append(f"{a} -> {b}: two products in a row")
        elif pair[0] in WEIGHTS and pair[1] not in NEURONS:
            found.append(f"{a} -> {b}: a product that feeds no neuron")
        elif pair[0] in (*NEURONS, "Input") and pair[1] in NEURONS:
            found.append(f"{a} -> {b}: spikes without a product")
        if pair == ("Conv2d", "CubaLIF"):
            found.append(f"{a} -> {b}: a Conv2d into a CubaLIF")
    sizes = [math.prod(np.shape(node.v_threshold)) for name, node in nodes.items() if kind[name] in NEURONS]
    needed = sum(math.ceil(size / UNITS_AN_ELEMENT) for size in sizes)
    if needed > ELEMENTS:
        found.append(f"network: {needed} elements of {UNITS_AN_ELEMENT} units, of which a chip has {ELEMENTS}")
    return found
