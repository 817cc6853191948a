"""A SpikeGPT whose matrix products all read spikes, trained under a budget of operations a token.

python examples/train_spikegpt.py --steps 300 --budget 20000
"""

import argparse
import math

import torch
import torch.nn.functional as F

from rheobase.backends import count
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training.corpus import load_corpus
from rheobase.models.training.data import Batches, DataConfig
from rheobase.models.training.evaluate import evaluate
from rheobase.models.training.objective import Budget, BudgetConfig

BATCH, CONTEXT = 16, 64


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--steps", type=int, default=300)
    ask.add_argument("--text", default="pydoc", help="a text file; Python's language reference if not given")
    ask.add_argument("--budget", type=float, default=20_000, help="accumulates and multiply-accumulates a token")
    ask = ask.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = load_corpus(DataConfig(text=ask.text), CONTEXT).splits
    batches = Batches(parts.train, BATCH, CONTEXT, "streams", seed=0)
    config = SpikeGPTConfig(embedding=96, depth=2, placement="spike_fed", head="spiking", learn=("theta",), dropout=0.0)
    model = SpikeGPT(config)
    model.wake(batches(0)[0])  # scales the weights until every layer fires
    model.train()

    budget = Budget(BudgetConfig(ops_per_token=ask.budget))
    optimiser = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=8e-3, total_steps=ask.steps + 1)
    state = None
    for step in range(ask.steps):
        tokens, targets, fresh = batches(step)
        logits, state, runs = model.run(tokens, None if fresh else state)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimiser.zero_grad()
        (loss + model.penalty(runs) + budget(model, runs, step / ask.steps)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        model.project_()
        state = tuple(type(layer)(*(part.detach() for part in layer)) for layer in state)
        if step % 50 == 0 or step == ask.steps - 1:
            spent = model.operations(runs).item()
            print(f"step {step:4}  {loss.item() / math.log(2):.3f} bits a byte  {spent:,.0f} operations a token")

    model.eval()
    result = evaluate(model, parts.test, batch=16, context=CONTEXT)
    print(f"test  {result.bits_per_byte:.3f} bits a byte")
    for name, rate in zip(model.event_layers, result.rates, strict=True):
        print(f"      {name:22} {rate:6.1%} of its units a token")
    tally = count(model, torch.tensor(parts.test[:200]).long()[None])
    acs, macs, dense = (n / tally.tokens for n in (tally.acs, tally.macs, tally.dense_macs))
    print(f"count {acs:,.0f} accumulates and {macs:,.0f} multiply-accumulates a token; dense {dense:,.0f}")


if __name__ == "__main__":
    main()
