"""Runs an image: packed processing elements that exchange events, read from the image's bytes and nothing else.

Stages run one after the other: the embedding, each layer, the head. The processing elements of a stage hear the events
of the stage before it and, in a layer, their own of the token before.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import products
from rheobase.backends.exporters.spinnaker2.image import (
    DRAM,
    EGRU,
    EMBEDDING,
    HEAD,
    KEY_MASK,
    LOGITS,
    TOKEN,
    Image,
    key,
)
from rheobase.backends.exporters.spinnaker2.partition import head_image
from rheobase.backends.exporters.spinnaker2.quantise import embed
from rheobase.spiking.errors import FormatError, ShapeError

Events = tuple[np.ndarray, np.ndarray]
"""keys and payloads"""
HASH_FACTOR = 16_777_619


def fold(values: np.ndarray) -> int:
    """h = h 16777619 + value modulo 2^32 over some integers, from 0: the hash of a processing element's tick."""
    words = np.asarray(values, np.int64).reshape(-1).astype(np.uint32)
    powers = np.full(len(words), HASH_FACTOR, np.uint32)
    powers[:1] = 1
    return int((words * np.multiply.accumulate(powers, dtype=np.uint32)[::-1]).sum(dtype=np.uint32))


class Element:
    """A processing element that adds weight rows to sums as events come: base of layers and heads.

    ports  (port, the field with its sources), a product each
    """

    ports: tuple[tuple[str, str], ...] = ()

    def __init__(self, image: Image, where: str, width: int):
        f, r = image.fields, image.regions
        self.where, self.layer, self.slice, self.lo, self.units = (
            where,
            f["layer"],
            f["slice"],
            f["unit_lo"],
            f["units"],
        )
        self.keys = _shaped(where, r["keys"], (f["listens"], 4)).astype(np.int64)
        self.weight, self.bias, self.shift = [], [], []
        for port, rows in self.ports:
            end = port and f"_{port}"
            own = {name: r[f"{name}{end}"] for name in ("rows", "gaps", "weight")}
            self.weight.append(products.unpack(where, own, f[rows], width).astype(np.float64))
            self.bias.append(_shaped(where, r[f"bias{end}"], (width,)).astype(np.int64))
            self.shift.append(_shaped(where, r[f"shift{end}"], (width,)).astype(np.int64))
        if max(s.max(initial=0) for s in self.shift) > 31:
            raise FormatError(where, "shifts below 32", "a larger one", "export it anew")
        for _, first, count, product in self.keys:
            if product >= len(self.weight) or first + count > len(self.weight[product]):
                raise FormatError(where, "keys of rows that there are", "others", "export it anew")
        self.reset()

    def reset(self) -> None:
        """Begin a new stream of tokens."""
        self.sum = [bias.copy() for bias in self.bias]

    def receive(self, events: Events) -> None:
        """Add value x weight row to the sums of what listens to each event's key."""
        keys, values = events
        for base, first, count, product in self.keys:
            unit = keys - base
            mine = ((keys & KEY_MASK) == base) & (unit < count)
            if mine.any():
                # float64 holds these integers exactly: each sum is proven to stay below 2^31.
                added = values[mine].astype(np.float64) @ self.weight[product][first + unit[mine]]
                self.sum[product] = self.sum[product] + added.astype(np.int64)

    def pre_activations(self) -> list[np.ndarray]:
        """The sums, shifted; new ones begin."""
        done = [ints.shift_right(total, shift) for total, shift in zip(self.sum, self.shift, strict=True)]
        self.sum = [bias.copy() for bias in self.bias]
        return done


class LayerElement(Element):
    """Some units of an EGRU layer."""

    ports = (("a", "inputs"), ("q", "layer_units"))

    def __init__(self, image: Image, where: str):
        f, r = image.fields, image.regions
        self.zoneout = f["zoneout"]
        super().__init__(image, where, 3 * f["units"])
        self.thr = _shaped(where, r["thr"], (self.units,)).astype(np.int64)
        self.sigmoid = _shaped(where, r["sigmoid"], (ints.TABLE_SIZE,))
        self.tanh = _shaped(where, r["tanh"], (ints.TABLE_SIZE,))

    def reset(self):
        super().reset()
        self.cell = np.zeros(self.units, np.int64)

    def tick(self) -> tuple[Events, dict[str, np.ndarray]]:
        """Update all units: the events they send, and what a probe would see."""
        a, q = self.pre_activations()
        y, self.cell = ints.egru_tick(a, q, self.cell, self.thr, self.zoneout, self.sigmoid, self.tanh)
        gates = np.stack([a.reshape(3, -1), q.reshape(3, -1)], 1).reshape(6, -1)
        self.hash = fold(np.concatenate([gates, [y], [self.cell]]).T)
        fired = np.flatnonzero(y)
        return (key(self.layer + 1, self.slice) + fired, y[fired]), {"a": a, "q": q, "y": y, "c": self.cell}


class HeadElement(Element):
    """The logits of some tokens."""

    ports = (("", "inputs"),)

    def __init__(self, image: Image, where: str):
        super().__init__(image, where, image.fields["units"])

    def tick(self) -> tuple[Events, dict[str, np.ndarray]]:
        """The logits, to the host."""
        (logits,) = self.pre_activations()
        self.hash = fold(logits)
        return (key(LOGITS, self.slice) + np.arange(self.units), logits), {"out": logits}


class EmbeddingElement:
    """The vectors of some tokens."""

    def __init__(self, image: Image, where: str):
        f, r = image.fields, image.regions
        self.where, self.layer, self.slice, self.lo, self.units = (
            where,
            f["layer"],
            f["slice"],
            f["unit_lo"],
            f["units"],
        )
        table = products.unpack(where, r, f["units"], f["width"])
        exponent = _shaped(where, r["exponent"], (f["units"],))
        if max(abs(f["x_frac"] - int(e)) for e in (exponent.min(initial=0), exponent.max(initial=0))) > 31:
            raise FormatError(where, "shifts below 32", "a larger one", "export it anew")
        self.vectors = embed(table, exponent, f["x_frac"], np.arange(f["units"]))
        self.sparse = len(r["rows"]) > 0
        self.stored = [np.flatnonzero(row) if self.sparse else np.arange(f["width"]) for row in table]
        self.reset()

    def reset(self) -> None:
        """Begin a new stream of tokens."""
        self.token = -1

    def receive(self, events: Events) -> None:
        """Take the id of a token."""
        for key_, value in zip(*events, strict=True):
            mine = key_ == key(TOKEN, 0) and self.lo <= value < self.lo + self.units
            self.token = int(value) - self.lo if mine else -1

    def tick(self) -> tuple[Events, dict[str, np.ndarray]]:
        """The token's vector, if it is one of ours."""
        x = self.vectors[self.token] if self.token >= 0 else np.zeros_like(self.vectors[0])
        stored = self.stored[self.token] if self.token >= 0 else np.zeros(0, np.int64)
        self.hash = fold(np.stack([stored, x[stored]], 1))
        self.token = -1
        active = np.flatnonzero(x)
        return (key(0, self.slice) + active, x[active]), {"out": x}


ELEMENTS = {EGRU: LayerElement, HEAD: HeadElement, EMBEDDING: EmbeddingElement}


class DramEmbedding:
    """The embedding where it lies in DRAM: the host looks vectors up."""

    def __init__(self, dram: Image):
        f, r = dram.fields, dram.regions
        table = _shaped("dram.bin", r["table"], (f["vocabulary"], f["embedding"]))
        exponent = _shaped("dram.bin", r["exponent"], (f["vocabulary"],))
        self.vectors = embed(table, exponent, f["x_frac"], np.arange(f["vocabulary"]))

    def __call__(self, token: int) -> np.ndarray:
        return self.vectors[token]


def dram_head(dram: Image) -> Image:
    """The head in DRAM as the image of one large head."""
    f, r = dram.fields, dram.regions
    table = _shaped("dram.bin", r["table"], (f["vocabulary"], f["embedding"]))
    slices = _shaped("dram.bin", r["slices"], (f["slices"], 3)).astype(np.int64)
    keys = np.concatenate([slices, np.zeros_like(slices[:, :1])], 1)
    bias, shift = (_shaped("dram.bin", r[name], (f["vocabulary"],)) for name in ("bias", "head_shift"))
    return head_image({"layer": f["stream_in"], "slice": 0, "unit_lo": 0}, table.T, bias, shift, keys)


class Machine:
    """All PEs of an image, with embedding and head from its dram if they lie there; one stream of tokens.

    heard   of the last token, a stage: what its PEs heard before their tick, and of their own after it
    raises  FormatError: images that do not belong together
    """

    def __init__(self, dram: Image | None, pes: Iterable[tuple[str, Image]]):
        if dram is not None and dram.kind != DRAM:
            raise FormatError("dram.bin", "embedding and head", "a PE", "export it anew")
        self.embedding = DramEmbedding(dram) if dram else None
        self.stages = stages(dram, pes)
        self.elements = [[ELEMENTS[image.kind](image, where) for where, image in stage] for stage in self.stages]
        self.vocabulary = sum(pe.units for pe in self.elements[-1])

    def step(self, token: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One token: (logits; what probes see, by "layer.port" and "embedding")."""
        if not 0 <= token < self.vocabulary:
            raise ShapeError("machine", f"token ids from 0 to {self.vocabulary - 1}", str(token), "check the tokenizer")
        if self.embedding:
            x = self.embedding(token)
            active = np.flatnonzero(x)
            events, seen = (key(0, 0) + active, x[active]), {"embedding": x}
        else:
            events, seen = (np.array([key(TOKEN, 0)]), np.array([token])), {}
        self.heard = []
        for pes in self.elements:
            heard, sent, parts = events, [], []
            for pe in pes:
                pe.receive(events)
                out, probes = pe.tick()
                pe.sent = out
                sent.append(out)
                parts.append(probes)
            events = tuple(np.concatenate(column) for column in zip(*sent, strict=True))
            if isinstance(pes[0], LayerElement):
                for pe in pes:
                    pe.receive(events)
                for port in ("y", "c"):
                    seen[f"{pes[0].layer}.{port}"] = np.concatenate([p[port] for p in parts])
                for port in ("a", "q"):
                    gates = [p[port].reshape(3, -1) for p in parts]
                    seen[f"{pes[0].layer}.{port}"] = np.concatenate(gates, 1).reshape(-1)
            elif isinstance(pes[0], EmbeddingElement):
                seen["embedding"] = sum(p["out"] for p in parts)
            self.heard.append((heard, events if isinstance(pes[0], LayerElement) else (events[0][:0], events[1][:0])))
        return np.concatenate([p["out"] for p in parts]), seen

    def hashes(self) -> list[int]:
        """The hash of each PE's last tick, stage by stage."""
        return [pe.hash for pes in self.elements for pe in pes]

    def sent(self) -> list[Events]:
        """What each PE sent at its last tick, stage by stage."""
        return [pe.sent for pes in self.elements for pe in pes]


def stages(dram: Image | None, pes: Iterable[tuple[str, Image]]) -> list[list[tuple[str, Image]]]:
    """PEs in groups that run one after the other: embedding, layers, head; raises FormatError for another order."""
    found: list[list[tuple[str, Image]]] = []
    for where, image in pes:
        if image.kind not in ELEMENTS:
            raise FormatError(where, "a processing element", "a dram image", "export it anew")
        last = found[-1][0][1] if found else None
        if last is None or (last.kind, last.fields["layer"]) != (image.kind, image.fields["layer"]):
            found.append([])
        if image.fields["slice"] != len(found[-1]):
            raise FormatError(where, f"slice {len(found[-1])}", str(image.fields["slice"]), "export it anew")
        found[-1].append((where, image))
    if dram is not None:
        found.append([("dram.bin", dram_head(dram))])
    kinds = [stage[0][1].kind for stage in found]
    layers = [stage[0][1].fields["layer"] for stage in found if stage[0][1].kind == EGRU]
    wanted = [EMBEDDING] * (dram is None) + [EGRU] * len(layers) + [HEAD]
    if kinds != wanted or not layers or layers != list(range(len(layers))):
        raise FormatError("pe", "the PEs of one layer after the other", "another order", "export it anew")
    return found


def _shaped(where: str, region: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if region.size != int(np.prod(shape)):
        raise FormatError(where, f"a region of {int(np.prod(shape))} numbers", f"{region.size}", "export it anew")
    return region.reshape(shape)
