"""An EGRU language model trained by a loop of your own, judged, counted and saved.

python examples/train_egru.py --steps 800 --out egru        two minutes on a core, 1.9 bits a byte or so
"""

import argparse
import math

import torch
import torch.nn.functional as F

from rheobase.backends import count, price
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.models.training.corpus import load_corpus
from rheobase.models.training.data import Batches, DataConfig
from rheobase.models.training.evaluate import evaluate

BATCH, CONTEXT, WARMUP, RATE = 32, 64, 40, 1e-2


def learning_rate(step: int, steps: int) -> float:
    """A linear rise, then a cosine to 0."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    return RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def train(model, text, steps: int) -> None:
    batches = Batches(text, BATCH, CONTEXT, "streams", seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    state = None
    model.train()
    for step in range(steps):
        tokens, targets, fresh = batches(step)  # [B, T] both; fresh where the streams begin anew
        logits, state, runs = model.run(tokens, None if fresh else state)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())

        optimiser.param_groups[0]["lr"] = learning_rate(step, steps)
        optimiser.zero_grad()
        (loss + model.penalty(runs)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.project_()  # thresholds stay within [0, 1]

        # truncated back-propagation: the state goes on, its history does not
        state = tuple(type(layer)(*(part.detach() for part in layer)) for layer in state)
        if step % 50 == 0 or step == steps - 1:
            active = torch.stack([rate.mean() for rate in model.rates(runs)]).mean()
            print(f"step {step:4}  {loss.item() / math.log(2):.3f} bits a byte  {active:.1%} active")


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--steps", type=int, default=800)
    ask.add_argument("--text", default="pydoc", help="a text file; Python's language reference if not given")
    ask.add_argument("--out", default="egru", help="folder for the model")
    ask = ask.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = load_corpus(DataConfig(text=ask.text), CONTEXT).splits
    model = EGRULM(EGRULMConfig(embedding=224, layers=(224,), embedding_range=0.5, gamma=1.5, eps=1.5))
    train(model, parts.train, ask.steps)

    model.eval()
    result = evaluate(model, parts.test, batch=32, context=CONTEXT)
    print(f"test  {result.bits_per_byte:.3f} bits a byte, {result.rate:.1%} of the units active")
    tally = count(model, torch.tensor(parts.test[:500]).long()[None])
    print(f"count {tally.macs / tally.tokens:,.0f} of {tally.dense_macs / tally.tokens:,.0f} dense MACs a token")
    print(price(tally, "horowitz-45nm"))
    model.save_pretrained(ask.out)
    print(f"saved {ask.out}; rheobase.load({ask.out!r}) reads it")


if __name__ == "__main__":
    main()
