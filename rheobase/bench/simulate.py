"""The dense simulator beside the model whose graph it runs: a forward pass of each, in batch."""

from functools import partial

import torch

from rheobase.backends import simulate
from rheobase.bench import Case, Setting
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig

SIZES = {"cpu": (256, 4, 16, 256), "cuda": (512, 12, 32, 1024)}
"""width, depth, batch, tokens"""
SMALL = 16, 1, 2, 16


def graphs(setting: Setting) -> list[Case]:
    """SpikeGPT in both placements, and an EGRU of three layers."""
    width, depth, batch, steps = SMALL if setting.small else SIZES[setting.device]
    shape = {"embedding": width, "depth": depth}
    models = {
        "SpikeGPT, reference form": lambda: SpikeGPT(SpikeGPTConfig(**shape)),
        "SpikeGPT, spike-fed": lambda: SpikeGPT(SpikeGPTConfig(**shape, placement="spike_fed")),
        "EGRU": lambda: EGRULM(EGRULMConfig(embedding=width, layers=(width,) * 3)),
    }
    size = f"B{batch} T{steps}, {width} wide"
    return [_case(f"simulate, {name}", size, make, batch, steps, setting) for name, make in models.items()]


def _case(name: str, size: str, make, batch: int, steps: int, setting: Setting) -> Case:
    """Both are given tokens that are on the host, and leave the logits where they made them; the simulator has counted
    every event by then."""
    torch.manual_seed(0)
    model, tokens = make().eval(), torch.randint(256, (batch, steps))
    model.wake(tokens[:1, :256])
    run = partial(simulate, model.lower(), tokens, on="torch", device=setting.device)
    model = model.to(setting.device)

    @torch.no_grad()
    def forward():
        return model(tokens.to(setting.device))

    return Case(name, size, {"simulator": run, "model": forward}, tokens=batch * steps)
