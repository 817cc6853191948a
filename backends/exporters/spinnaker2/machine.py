"""Runs an image: packed processing elements that exchange events, read from the image's bytes and nothing else."""

from collections.abc import Iterable

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.image import DRAM, KEY_MASK, PE, Image, key
from rheobase.backends.exporters.spinnaker2.quantise import embed
from rheobase.spiking.errors import FormatError, ShapeError

Event = tuple[np.ndarray, np.ndarray]


class ProcessingElement:
    """One PE: its memory, an event handler and a tick."""

    def __init__(self, image: Image, where: str):
        self.where, f, r = where, image.fields, image.regions
        self.layer, self.slice, self.lo, self.units = f["layer"], f["slice"], f["unit_lo"], f["units"]
        self.zoneout, width = f["zoneout"], 3 * f["units"]
        self.keys = _shaped(where, r["keys"], (f["streams_in"], 3)).astype(np.int64)
        self.weight, self.bias, self.shift = [], [], []
        for port, rows in (("a", f["inputs"]), ("q", f["layer_units"])):
            self.weight.append(_shaped(where, r[f"weight_{port}"], (rows, width)).astype(np.float64))
            self.bias.append(_shaped(where, r[f"bias_{port}"], (width,)).astype(np.int64))
            self.shift.append(_shaped(where, r[f"shift_{port}"], (width,)).astype(np.int64))
        if max(s.max(initial=0) for s in self.shift) > 31:
            raise FormatError(where, "shifts below 32", "a larger one", "export it anew")
        self.thr = _shaped(where, r["thr"], (self.units,)).astype(np.int64)
        self.cell = _shaped(where, r["cell"], (self.units,)).astype(np.int64)
        self.sigmoid = _shaped(where, r["sigmoid"], (ints.TABLE_SIZE,))
        self.tanh = _shaped(where, r["tanh"], (ints.TABLE_SIZE,))
        self.sum = [self.bias[0].copy(), self.bias[1].copy()]

    def receive(self, events: Event) -> None:
        """Add value x weight row to an accumulator for every event whose key is in the table."""
        keys, values = events
        for base, first, port in self.keys:
            mine = (keys & KEY_MASK) == base
            if mine.any():
                rows = first + (keys[mine] & ~KEY_MASK)
                # float64 holds these integers exactly: each sum is proven to stay below 2^31.
                self.sum[port] = self.sum[port] + (values[mine].astype(np.float64) @ self.weight[port][rows]).astype(
                    np.int64
                )

    def tick(self) -> tuple[Event, dict[str, np.ndarray]]:
        """Update all units: the events they send, and what a probe would see."""
        a, q = (ints.shift_right(total, shift) for total, shift in zip(self.sum, self.shift, strict=True))
        y, self.cell = ints.egru_tick(a, q, self.cell, self.thr, self.zoneout, self.sigmoid, self.tanh)
        self.sum = [self.bias[0].copy(), self.bias[1].copy()]
        fired = np.flatnonzero(y)
        return (key(self.layer + 1, self.slice) + fired, y[fired]), {"a": a, "q": q, "y": y, "c": self.cell}


class Machine:
    """All PEs of an image, with embedding and head from its dram; one stream of tokens.

    raises  FormatError: images that do not belong together
    """

    def __init__(self, dram: Image, pes: Iterable[tuple[str, Image]]):
        if dram.kind != DRAM:
            raise FormatError("dram.bin", "embedding and head", "a PE", "export it anew")
        f, r = dram.fields, dram.regions
        table = _shaped("dram.bin", r["table"], (f["vocabulary"], f["embedding"]))
        exponent = _shaped("dram.bin", r["exponent"], (f["vocabulary"],))
        self.vocabulary = f["vocabulary"]
        self.embedding = embed(table, exponent, f["x_frac"], np.arange(f["vocabulary"]))
        self.head = table.astype(np.float64)
        self.head_bias = _shaped("dram.bin", r["bias"], (f["vocabulary"],)).astype(np.int64)
        self.head_shift = _shaped("dram.bin", r["head_shift"], (f["vocabulary"],)).astype(np.int64)
        self.head_keys = _shaped("dram.bin", r["slices"], (f["slices"], 2)).astype(np.int64)
        self.logit_frac = f["logit_frac"]
        self.layers: list[list[ProcessingElement]] = []
        for where, image in pes:
            if image.kind != PE or not len(self.layers) - 1 <= image.fields["layer"] <= len(self.layers):
                raise FormatError(where, "the PEs of one layer after the other", "another order", "export it anew")
            if image.fields["layer"] == len(self.layers):
                self.layers.append([])
            self.layers[-1].append(ProcessingElement(image, where))

    def step(self, token: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One token: (logits, Q logit_frac; what probes see, by "layer.port" and "embedding")."""
        if not 0 <= token < self.vocabulary:
            raise ShapeError("machine", f"token ids from 0 to {self.vocabulary - 1}", str(token), "check the tokenizer")
        x = self.embedding[token]
        active = np.flatnonzero(x)
        events = (key(0, 0) + active, x[active])
        seen = {"embedding": x}
        for index, pes in enumerate(self.layers):
            sent, parts = [], []
            for pe in pes:
                pe.receive(events)
                out, probes = pe.tick()
                sent.append(out)
                parts.append(probes)
            events = tuple(np.concatenate(column) for column in zip(*sent, strict=True))
            for pe in pes:
                pe.receive(events)
            for port in ("y", "c"):
                seen[f"{index}.{port}"] = np.concatenate([p[port] for p in parts])
            for port in ("a", "q"):
                gates = [p[port].reshape(3, -1) for p in parts]
                seen[f"{index}.{port}"] = np.concatenate(gates, 1).reshape(-1)
        total = self.head_bias.copy()
        keys, values = events
        for base, first in self.head_keys:
            mine = (keys & KEY_MASK) == base
            columns = first + (keys[mine] & ~KEY_MASK)
            total += (self.head[:, columns] @ values[mine].astype(np.float64)).astype(np.int64)
        return ints.shift_right(total, self.head_shift), seen


def _shaped(where: str, region: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if region.size != int(np.prod(shape)):
        raise FormatError(where, f"a region of {int(np.prod(shape))} numbers", f"{region.size}", "export it anew")
    return region.reshape(shape)
