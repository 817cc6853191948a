"""Small SpikeGPTs of every form that has integers, and a text for them."""

import numpy as np
import torch

from rheobase.models import SpikeGPT, SpikeGPTConfig

TEXT = np.arange(240).reshape(2, 120) * 7 % 256
FORMS = {
    "plain": {},
    "graded, no memory": {"graded": True, "tau": 1.0, "head": "spiking", "binary_embedding": False},
    "ternary, static norms": {"ternary": True, "norm": "static", "learn": ("tau", "theta")},
    "spiking head, static norms": {"norm": "static", "head": "spiking", "learn": ("theta",)},
    "reference": {"placement": "reference", "ffn_pre": True},
}


def model_of(**settings) -> SpikeGPT:
    """Two spike-fed blocks of width 24 unless told otherwise, untrained but firing, norms removed where static."""
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(**{"embedding": 24, "depth": 2, "placement": "spike_fed", **settings})).eval()
    model.wake(torch.as_tensor(TEXT) % model.config.vocabulary)
    model.advance(1.0)
    return model
