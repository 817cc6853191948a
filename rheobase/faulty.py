"""What faults of a SpiNNaker 2 cost a run's model: bits a token without them, with each kind alone, and with all."""

import dataclasses

import numpy as np

from rheobase.backends.exporters.spinnaker2.faults import Faults, compare
from rheobase.backends.exporters.spinnaker2.partition import build
from rheobase.backends.exporters.spinnaker2.quantise import formats, quantise
from rheobase.backends.simulators.firmware import CHIPS
from rheobase.models.training.evaluate import bits_per_token
from rheobase.models.training.run import Run
from rheobase.quickstart import calibration
from rheobase.spiking.errors import ConfigError

WORDS = {"late": "came late", "drop": "were lost", "flip": "bits flipped"}


def with_faults(run: Run, tokens: np.ndarray, rates: str, seed: int, progress=iter) -> tuple[dict, str]:
    """A table and its text; the model is placed, and run in integers on tokens [n].

    rates     such as "late=1e-4,drop=1e-5,flip=1e-9"
    progress  wraps each iteration over the tokens
    raises    ConfigError: no rate above 0, or fewer than two tokens
    """
    faults = Faults.parse(rates)
    if not faults.alone():
        raise ConfigError("simulate --fault", "a rate above 0", rates, "such as late=1e-4")
    if len(tokens) < 2:
        raise ConfigError("simulate --fault", "--tokens of 2 or more", str(len(tokens)), "the first is not predicted")
    graph, _ = quantise(run.model().lower(), calibration(run))
    scale = 2.0 ** formats(graph)[next(iter(graph.outputs.values()))].frac
    placed = build(graph, chips=CHIPS)
    table, lines, unit = {}, [], run.tokenizer().unit
    for name, _, logits, happened in compare(placed, tokens[:-1], faults, seed, progress):
        bits = bits_per_token(logits / scale, tokens[1:])
        counts = dataclasses.asdict(happened)
        table[name] = {"bits_per_token": bits, **counts}
        kinds = {"none": [], "all": list(faults.alone())}.get(name, [name])
        said = ", ".join(f"{counts[kind]:,} {WORDS[kind]}" for kind in kinds)
        if kinds and not any(counts[kind] for kind in kinds):
            said = "none happened: this says nothing; raise --tokens or the rate"
        lines.append(f"{name:<5}{bits:.4f} bits a {unit}" + (f"  {said}" if kinds else ""))
    size = f"{len(tokens) - 1:,} predictions, {len(placed.placed)} processing elements"
    lines.append(f"{size}, {table['none']['deliveries']:,} deliveries without faults, seed {seed}")
    return {"fault": dataclasses.asdict(faults), "seed": seed, "runs": table}, "\n".join(lines)
