"""Faults of the network and of the memory, in the NumPy machine: what late and lost events and flipped bits do.

Only what lies on processing elements has faults: embedding and head in DRAM are the host's.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from rheobase.backends.exporters.spinnaker2.image import Image
from rheobase.backends.exporters.spinnaker2.machine import ELEMENTS, EmbeddingElement, Events, Machine
from rheobase.backends.exporters.spinnaker2.partition import Partition
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.registry import nearest

WEIGHT_BITS = 8


@dataclass(frozen=True)
class Faults:
    """Probabilities.

    late  that a delivery of an event to an element comes after that element's next tick
    drop  that it never comes
    flip  that a bit of a stored weight flips, each token; it stays flipped
    """

    late: float = 0.0
    drop: float = 0.0
    flip: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            rate = getattr(self, field.name)
            if not 0 <= rate <= 1:
                raise ConfigError(f"fault {field.name}", "a probability from 0 to 1", f"{rate:g}", "mend it")
        if self.late + self.drop > 1:
            raise ConfigError("fault", "late + drop of at most 1", f"{self.late + self.drop:g}", "lower one of them")

    @classmethod
    def parse(cls, text: str) -> "Faults":
        """From "late=1e-4,drop=1e-5,flip=1e-9", any of them; raises ConfigError."""
        names, rates = [f.name for f in fields(cls)], {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in names:
                raise ConfigError("fault", f"KIND=RATE of {', '.join(names)}", repr(part), nearest(name, names))
            if name in rates:
                raise ConfigError("fault", f"one rate of {name}", "two", "give one")
            try:
                rates[name] = float(value)
            except ValueError:
                raise ConfigError(f"fault {name}", "a number", repr(value), f"such as {name}=1e-4") from None
        return cls(**rates)

    def alone(self) -> dict[str, "Faults"]:
        """Each kind that has a rate, by itself."""
        return {f.name: Faults(**{f.name: rate}) for f in fields(self) if (rate := getattr(self, f.name))}


@dataclass
class Happened:
    """How many events came late and were lost, of how many deliveries; and how many bits flipped."""

    deliveries: int = 0
    late: int = 0
    drop: int = 0
    flip: int = 0


class _Injector:
    """Draws faults, and counts them."""

    def __init__(self, faults: Faults, seed: int):
        if seed < 0:
            raise ConfigError("faults' seed", "0 or more", str(seed), "give another --seed")
        self.faults, self.happened = faults, Happened()
        self.rng = np.random.default_rng(seed)

    def sort(self, events: Events) -> tuple[Events, Events]:
        """Those that come on time, and those that come late."""
        keys, values = events
        drawn = self.rng.random(len(keys))
        late = drawn < self.faults.late
        drop = ~late & (drawn < self.faults.late + self.faults.drop)
        self.happened.deliveries += len(keys)
        self.happened.late += int(late.sum())
        self.happened.drop += int(drop.sum())
        kept = ~late & ~drop
        return (keys[kept], values[kept]), (keys[late], values[late])

    def flip(self, weight: np.ndarray) -> None:
        """Flip bits of int8 weights that are held in float64, in place."""
        flips = self.rng.binomial(weight.size * WEIGHT_BITS, self.faults.flip)
        if flips:
            at = self.rng.choice(weight.size * WEIGHT_BITS, flips, replace=False)
            stored, flat = weight.astype(np.int8).reshape(-1).view(np.uint8), weight.reshape(-1)
            np.bitwise_xor.at(stored, at // WEIGHT_BITS, (1 << at % WEIGHT_BITS).astype(np.uint8))
            flat[at // WEIGHT_BITS] = stored.view(np.int8)[at // WEIGHT_BITS]
            self.happened.flip += flips


class _Faulty:
    """A processing element with faults: before an element's class among the bases."""

    injector: _Injector | None = None

    def reset(self):
        super().reset()
        self.late: list[Events] = []

    def receive(self, events: Events) -> None:
        on_time, late = self.injector.sort(events)
        super().receive(on_time)
        if len(late[0]):
            self.late.append(late)

    def tick(self):
        done = super().tick()
        late, self.late = self.late, []
        for events in late:
            super().receive(events)
        for product in [self.table] if isinstance(self, EmbeddingElement) else self.products:
            self.injector.flip(product.weight)
        return done


_FAULTY = {kind: type(f"Faulty{element.__name__}", (_Faulty, element), {}) for kind, element in ELEMENTS.items()}


class FaultyMachine(Machine):
    """A machine whose PEs have faults; `happened` counts them.

    raises  FormatError as `Machine`
    """

    def __init__(self, dram: Image | None, pes, faults: Faults, seed: int = 0):
        self._injector = _Injector(faults, seed)
        super().__init__(dram, pes)

    def element(self, where: str, image: Image):
        """An element with faults, or the head in DRAM without."""
        if where == "dram.bin":
            return super().element(where, image)
        made = _FAULTY[image.kind](image, where)
        made.injector = self._injector
        return made

    @property
    def happened(self) -> Happened:
        """What has happened so far."""
        return replace(self._injector.happened)


def compare(partition: Partition, tokens, faults: Faults, seed: int = 0, progress=iter):
    """One stream of tokens [T] without faults, with each kind alone, and with all if there are several.

    progress  wraps the iteration over the tokens, such as tqdm
    yields    (name, the faults, logits [T, V], what happened)
    """
    dram, pes = partition.images
    alone = faults.alone()
    for name, rates in {"none": Faults(), **alone, **({"all": faults} if len(alone) > 1 else {})}.items():
        machine = FaultyMachine(dram, pes, rates, seed)
        logits = np.stack([machine.step(int(token))[0] for token in progress(tokens)])
        yield name, rates, logits, machine.happened
