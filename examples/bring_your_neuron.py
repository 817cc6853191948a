"""A neuron of your own, or of another library, in a SpikeGPT: trained and counted beside the LIF that it replaces.

python examples/bring_your_neuron.py --steps 200        add --library snntorch:Leaky for another library's neuron
"""

import argparse
import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rheobase.backends import count
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training.corpus import load_corpus
from rheobase.models.training.data import Batches, DataConfig
from rheobase.spiking import ATan, Cell
from rheobase.spiking.tally import BINARY, announce, mark


class AdaptiveState(NamedTuple):
    v: Tensor  # membrane [B, D]
    a: Tensor  # how far the threshold has risen [B, D]


class Adaptive(Cell):
    """v' = v / 2 + x    s = [v' > 1 + a]    v'' = v' - s    a' = 0.9 a + 0.2 s: who fires much fires less."""

    def __init__(self, units: int):
        super().__init__()
        self.input_size = units

    def initial_state(self, batch, *, dtype=None, device=None):
        return AdaptiveState(*(torch.zeros(batch, self.input_size, dtype=dtype, device=device) for _ in range(2)))

    def step(self, x_BD, state):
        v = 0.5 * state.v + x_BD
        s = mark(ATan().spike(v - 1 - state.a, ">"), BINARY)  # a counter never guesses what is a spike
        state = AdaptiveState(v - s, 0.9 * state.a + 0.2 * s)
        announce(state_updates=state.v, cause=x_BD, parts=2)
        return s, state


def build(neuron: str) -> SpikeGPT:
    """A SpikeGPT with LIF, with a library's neuron, or with the one above in each place of a LIF."""
    torch.manual_seed(0)
    config = SpikeGPTConfig(embedding=64, depth=1, placement="spike_fed", neuron=neuron.replace("Adaptive", "lif"))
    if neuron == "snntorch:Leaky":
        config = replace(config, neuron_settings=("beta=0.5",))
    model = SpikeGPT(config)
    if neuron == "Adaptive":
        for path in model.event_layers:
            model.set_submodule(path, Adaptive(model.get_submodule(path).units))
    return model


def train(model: SpikeGPT, batches: Batches, steps: int) -> float:
    model.wake(batches(0)[0])  # scales the weights until every layer fires
    optimiser = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for step in range(steps):
        tokens, targets, _ = batches(step)
        loss = F.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item() / math.log(2)


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--steps", type=int, default=200)
    ask.add_argument("--library", help="such as snntorch:Leaky or norse:LIFBox, in place of the neuron above")
    ask = ask.parse_args()
    torch.set_num_threads(1)
    batches = Batches(load_corpus(DataConfig(), 32).splits.train, 16, 32, "crops", seed=0)
    for neuron in ("lif", ask.library or "Adaptive"):
        model = build(neuron)
        bits = train(model, batches, ask.steps)
        t = count(model, batches(0)[0], strict=True)
        spikes, acs, macs, dense = (n / t.tokens for n in (t.events, t.acs, t.macs, t.dense_macs))
        print(f"{neuron:14} {bits:.3f} bits a byte; a token: {spikes:,.0f} spikes, {acs:,.0f} accumulates and")
        print(f"{'':14} {macs:,.0f} multiply-accumulates, of {dense:,.0f} products if all were dense")


if __name__ == "__main__":
    main()
