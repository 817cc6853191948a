"""Runs an image: packed processing elements that exchange events, read from the image's bytes and nothing else.

Stages run one after the other: the embedding, each layer or section, the head.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import products, program
from rheobase.backends.exporters.spinnaker2.image import (
    DRAM,
    EGRU,
    EMBEDDING,
    HEAD,
    KEY_MASK,
    LOGITS,
    PROGRAM,
    TOKEN,
    Image,
    key,
)
from rheobase.backends.exporters.spinnaker2.partition import head_image
from rheobase.spiking.errors import FormatError, ShapeError

Events = tuple[np.ndarray, np.ndarray]
"""keys and payloads"""
HASH_FACTOR = 16_777_619
MOST_LAYER, MOST_UNITS = 251, 65_536


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
    lowest_shift = -15

    def __init__(self, image: Image, where: str, width: int):
        f, r = image.fields, image.regions
        parts, bias, shift = [], [], []
        for port, rows in self.ports:
            end = port and f"_{port}"
            own = {name: r[f"{name}{end}"] for name in ("rows", "gaps", "weight")}
            bias.append(_shaped(where, r[f"bias{end}"], (width,)).astype(np.int64))
            shift.append(_shaped(where, r[f"shift{end}"], (width,)).astype(np.int64))
            parts.append(products.unpack(where, own, f[rows], width))
        _shaped(where, r["accumulators"], (len(self.ports), width))
        self._set(image, where, parts, bias, shift)

    def _set(self, image: Image, where: str, parts: list[products.Product], bias, shift) -> None:
        f = image.fields
        self.where, (self.layer, self.slice, self.lo, self.units) = where, _place(where, f)
        self.keys = _shaped(where, image.regions["keys"], (f["listens"], 4)).astype(np.int64)
        self.products, self.bias, self.shift = parts, bias, shift
        for s in shift:
            _within(where, "shifts", s, self.lowest_shift, 31)
        rows = self._ports()
        for _, first, count, port in self.keys:
            if port >= len(rows) or first + count > rows[port]:
                raise FormatError(where, "keys of rows that there are", "others", "export it anew")
        bases = self.keys[:, 0]
        if np.any(bases & ~KEY_MASK) or (np.diff(bases) <= 0).any():
            raise FormatError(where, "first keys of slices, ascending", "others", "export it anew")
        self.reset()

    def _ports(self) -> list[int]:
        """How many sources each port has."""
        return [p.rows for p in self.products]

    def bases(self) -> list[int]:
        """The first keys of the slices that it listens to."""
        return self.keys[:, 0].tolist()

    def reset(self) -> None:
        """Begin a new stream of tokens."""
        self.sum = [bias.copy() for bias in self.bias]
        self.heard: list[Events | None] = []

    def receive(self, events: Events) -> None:
        """Add value x weight row to the sums of what listens to each event's key."""
        keys, values = events
        for base, first, count, port in self.keys:
            unit = keys - base
            mine = ((keys & KEY_MASK) == base) & (unit < count)
            if mine.any():
                self._gather(port, first + unit[mine], values[mine])

    def _gather(self, port: int, rows: np.ndarray, values: np.ndarray) -> None:
        self.sum[port] = self.sum[port] + self.products[port].add(rows, values)

    def pre_activations(self) -> list[np.ndarray]:
        """The sums, shifted; new ones begin."""
        done = [ints.rescale(total, shift) for total, shift in zip(self.sum, self.shift, strict=True)]
        self.sum = [bias.copy() for bias in self.bias]
        return done


class LayerElement(Element):
    """Some units of an EGRU layer."""

    ports = (("a", "inputs"), ("q", "layer_units"))
    lowest_shift = 0

    def __init__(self, image: Image, where: str):
        f, r = image.fields, image.regions
        self.zoneout = f["zoneout"]
        super().__init__(image, where, 3 * f["units"])
        _shaped(where, r["cell"], (self.units,))
        self.thr = _shaped(where, r["thr"], (self.units,)).astype(np.int64)
        self.sigmoid = _shaped(where, r["sigmoid"], (ints.TABLE_SIZE,))
        self.tanh = _shaped(where, r["tanh"], (ints.TABLE_SIZE,))
        # then |c| and |y| never pass 1: no later step can overflow
        for name, values, low in (("thr", self.thr, 0), ("sigmoid", self.sigmoid, 0), ("tanh", self.tanh, -ints.ONE)):
            _within(where, name, values, low, ints.ONE)
        _within(where, "zoneout", np.array([self.zoneout]), 0, ints.ONE)

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
        self.where, (self.layer, self.slice, self.lo, self.units) = where, _place(where, f)
        self.width, exponent = f["width"], _shaped(where, r["exponent"], (f["units"],))
        self.down = _down(where, exponent, f["x_frac"])
        _within(where, "width", np.array([self.width]), 0, MOST_UNITS)
        self.table = products.unpack(where, r, self.units, self.width)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream of tokens."""
        self.token = -1
        self.heard: list[Events | None] = []

    def bases(self) -> list[int]:
        """The key of tokens."""
        return [key(TOKEN, 0)]

    def receive(self, events: Events) -> None:
        """Take the id of a token."""
        for key_, value in zip(*events, strict=True):
            mine = key_ == key(TOKEN, 0) and self.lo <= value < self.lo + self.units
            self.token = int(value) - self.lo if mine else -1

    def tick(self) -> tuple[Events, dict[str, np.ndarray]]:
        """The token's vector, if it is one of ours."""
        x, stored = np.zeros(self.width, np.int64), np.zeros(0, np.int64)
        if self.token >= 0:
            stored, weight = self.table.row(self.token)
            x[stored] = ints.rescale(weight.astype(np.int64), self.down[self.token])
        self.hash = fold(np.stack([stored, x[stored]], 1))
        self.token = -1
        active = np.flatnonzero(x)
        return (key(0, self.slice) + active, x[active]), {"out": x}


class ProgramElement(Element):
    """Some units of a section of a SpikeGPT: see `program`."""

    def __init__(self, image: Image, where: str):
        f, r = image.fields, image.regions
        n, products_, vectors = f["units"], f["products"], f["vectors"]
        self.lengths = _shaped(where, r["vectors"], (vectors, 2)).astype(np.int64)
        table = _shaped(where, r["products"], (products_, 5)).astype(np.int64)
        bias, shift = (_shaped(where, r[name], (products_, n)).astype(np.int64) for name in ("bias", "shift"))
        weights = [self._product(where, r, row, n) for row in table]
        self.program = [
            program.Instruction(*row)
            for row in _shaped(where, r["program"], (f["instructions"], len(program.COLUMNS))).tolist()
        ]
        self.initial = _shaped(where, r["initial"], (f["registers"],)).astype(np.int64)
        self.factors = _shaped(where, r["factors"], (f["factors"], n)).astype(np.int64)
        _shaped(where, r["registers"], (f["registers"], n))
        _shaped(where, r["accumulators"], (products_, n))
        self.sigmoid, self.power = r["sigmoid"], r["power"]
        for name, size in (("sigmoid", ints.TABLE_SIZE), ("power", program.POWER_SIZE)):
            if len(r[name]):
                _shaped(where, r[name], (size,))
        if (self.lengths.sum(1) > len(r["gathered"])).any():
            raise FormatError(where, "vectors inside their region", "others", "export it anew")
        last, tables = f["unit_lo"] + n, (len(self.sigmoid) > 0, len(self.power) > 0)
        sizes = program.Sizes(f["registers"], f["factors"], products_, self.lengths[:, 0].tolist(), last, *tables)
        problem = program.check(self.program, sizes)
        if problem or not f["registers"] or products_ > program.MOST_PRODUCTS or vectors > program.MOST_VECTORS:
            raise FormatError(where, "a program of what there is", problem or "too many ports", "export it anew")
        self._set(image, where, weights, list(bias), list(shift))

    @staticmethod
    def _product(where: str, regions, row: np.ndarray, width: int) -> products.Product:
        rows, at_rows, at_gaps, at_weight, kept = row.tolist()
        parts = {"rows": (at_rows, rows + 1), "gaps": (at_gaps, kept), "weight": (at_weight, kept)}
        if kept == products.DENSE:
            parts = {"rows": (0, 0), "gaps": (0, 0), "weight": (at_weight, rows * width)}
        if any(at + size > len(regions[name]) for name, (at, size) in parts.items()):
            raise FormatError(where, "products inside their regions", "others", "export it anew")
        own = {name: regions[name][at : at + size] for name, (at, size) in parts.items()}
        return products.unpack(where, own, rows, width)

    def _ports(self) -> list[int]:
        return [p.rows for p in self.products] + self.lengths[:, 0].tolist()

    def reset(self):
        super().reset()
        self.registers = np.repeat(self.initial[:, None], self.units, 1)
        self.vectors = [np.zeros(length, np.int64) for length in self.lengths[:, 0]]

    def _gather(self, port: int, rows: np.ndarray, values: np.ndarray) -> None:
        if port < len(self.products):
            super()._gather(port, rows, values)
        else:
            self.vectors[port - len(self.products)][rows] = values.astype(np.int16)

    def tick(self) -> tuple[Events, dict[str, np.ndarray]]:
        """Run the program: the events it sends, and its registers by number."""
        sent = [(np.zeros(0, np.int64),) * 2]
        ports = [*zip(self.sum, self.shift, strict=True), *self.vectors]
        for i in self.program:
            if program.OPS[i.op] == "send":
                fired = np.flatnonzero(self.registers[i.a])
                sent.append((key(i.s0, self.slice) + fired, self.registers[i.a][fired]))
            else:
                args = self.registers, self.factors, ports, self.lo, self.sigmoid, self.power
                program.execute(i, *args)
        self.hash = fold(self.registers)
        self.sum = [bias.copy() for bias in self.bias]
        self.vectors = [np.zeros_like(v) for v in self.vectors]
        seen = {str(number): row.copy() for number, row in enumerate(self.registers)}
        return tuple(np.concatenate(column) for column in zip(*sent, strict=True)), seen


ELEMENTS = {EGRU: LayerElement, HEAD: HeadElement, EMBEDDING: EmbeddingElement, PROGRAM: ProgramElement}


def dram_vectors(dram: Image) -> np.ndarray:
    """What the embedding in DRAM gives for each token, [V, E]."""
    f = dram.fields
    return _shaped("dram.bin", dram.regions["vectors"], (f["vocabulary"], f["embedding"])).astype(np.int64)


def dram_heads(dram: Image) -> list[Image]:
    """The head in DRAM as images of large heads, each of as many tokens as keys can name."""
    f, r = dram.fields, dram.regions
    units = r["bias"].size
    weight = _shaped("dram.bin", r["weight"], (units, f["head_inputs"]))
    slices = _shaped("dram.bin", r["slices"], (f["slices"], 3)).astype(np.int64)
    keys = np.concatenate([slices, np.zeros_like(slices[:, :1])], 1)
    bias, shift = (_shaped("dram.bin", r[name], (units,)) for name in ("bias", "shift"))
    cuts = [(lo, min(lo + MOST_UNITS, units)) for lo in range(0, max(units, 1), MOST_UNITS)]
    return [
        head_image({"layer": f["stage"], "slice": n, "unit_lo": lo}, weight[lo:hi].T, bias[lo:hi], shift[lo:hi], keys)
        for n, (lo, hi) in enumerate(cuts)
    ]


class Machine:
    """All PEs of an image, with embedding and head from its dram if they lie there; one stream of tokens.

    A stage's PEs tick, and what they send reaches every PE that listens before the next stage ticks.

    record  keep in each element's `heard` what reached it, and when it ticked, for an emulator
    raises  FormatError: images that do not belong together
    """

    def __init__(self, dram: Image | None, pes: Iterable[tuple[str, Image]], *, record: bool = False):
        if dram is not None and dram.kind != DRAM:
            raise FormatError("dram.bin", "embedding and head", "a PE", "export it anew")
        self.vectors = None if dram is None else dram_vectors(dram)
        self.stages = stages(dram, pes)
        self.elements = [[self.element(where, image) for where, image in stage] for stage in self.stages]
        self.tokens = sum(pe.units for pe in self.elements[0]) if self.vectors is None else len(self.vectors)
        self.record = record
        self.listeners: dict[int, list[Element | EmbeddingElement]] = {}
        for pe in (pe for stage in self.elements for pe in stage):
            for base in dict.fromkeys(pe.bases()):
                self.listeners.setdefault(base, []).append(pe)

    def element(self, where: str, image: Image) -> Element | EmbeddingElement:
        """What runs one image."""
        return ELEMENTS[image.kind](image, where)

    def first_events(self, token: int) -> Events:
        """What the host sends for a token: its vector from DRAM, or its id."""
        if not 0 <= token < self.tokens:
            raise ShapeError("machine", f"token ids from 0 to {self.tokens - 1}", str(token), "check the tokenizer")
        if self.vectors is None:
            return np.array([key(TOKEN, 0)]), np.array([token])
        active = np.flatnonzero(self.vectors[token])
        return key(0, 0) + active, self.vectors[token][active]

    def deliver(self, events: Events) -> None:
        """Hand events to the PEs that listen to their keys."""
        keys, values = events
        bases = keys & KEY_MASK
        for base in np.unique(bases):
            mine = bases == base
            own = keys[mine], values[mine]
            for pe in self.listeners.get(int(base), ()):
                pe.receive(own)
                if self.record:
                    pe.heard.append(own)

    def step(self, token: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One token: (logits; what probes see, by "stage.port" and "embedding")."""
        self.deliver(self.first_events(token))
        seen = {} if self.vectors is None else {"embedding": self.vectors[token]}
        for pes in self.elements:
            parts = []
            for pe in pes:
                pe.sent, probes = pe.tick()
                parts.append(probes)
                if self.record:
                    pe.heard.append(None)
            for pe in pes:
                self.deliver(pe.sent)
            stage = pes[0].layer
            if isinstance(pes[0], EmbeddingElement):
                seen["embedding"] = sum(p["out"] for p in parts)
            elif isinstance(pes[0], LayerElement):
                for port in ("y", "c"):
                    seen[f"{stage}.{port}"] = np.concatenate([p[port] for p in parts])
                for port in ("a", "q"):
                    gates = [p[port].reshape(3, -1) for p in parts]
                    seen[f"{stage}.{port}"] = np.concatenate(gates, 1).reshape(-1)
            elif isinstance(pes[0], ProgramElement):
                seen |= {f"{stage}.{port}": np.concatenate([p[port] for p in parts]) for port in parts[0]}
        return np.concatenate([p["out"] for p in parts]), seen

    def hashes(self) -> list[int]:
        """The hash of each PE's last tick, stage by stage."""
        return [pe.hash for pes in self.elements for pe in pes]

    def sent(self) -> list[Events]:
        """What each PE sent at its last tick, stage by stage."""
        return [pe.sent for pes in self.elements for pe in pes]


def stages(dram: Image | None, pes: Iterable[tuple[str, Image]]) -> list[list[tuple[str, Image]]]:
    """PEs in groups that run one after the other: embedding, layers or sections, head.

    raises  FormatError: another order
    """
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
        found.append([("dram.bin", head) for head in dram_heads(dram)])
    kinds = [stage[0][1].kind for stage in found]
    middle = [(kind, stage[0][1].fields["layer"]) for kind, stage in zip(kinds, found, strict=True)]
    middle = [pair for pair in middle if pair[0] in (EGRU, PROGRAM)]
    wanted = [(middle[0][0], number) for number in range(len(middle))] if middle else None
    ends = [EMBEDDING] * (dram is None), [HEAD]
    if middle != wanted or kinds != [*ends[0], *(kind for kind, _ in middle), *ends[1]]:
        raise FormatError("pe", "the PEs of one layer after the other", "another order", "export it anew")
    return found


def _place(where: str, fields: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Layer, slice, first unit and units, as far as keys can name them."""
    place = fields["layer"], fields["slice"], fields["unit_lo"], fields["units"]
    for name, most in (("layer", MOST_LAYER), ("slice", 255), ("units", MOST_UNITS)):
        _within(where, name, np.array([fields[name]]), 0, most)
    return place


def _down(where: str, exponent: np.ndarray, x_frac: int) -> np.ndarray:
    """How far each token's int8 vector is shifted to the right."""
    down = exponent.astype(np.int64) - x_frac
    _within(where, "x_frac", np.array([x_frac]), 0, 15)
    _within(where, "shifts", down, -31, 31)
    return down


def _within(where: str, what: str, values: np.ndarray, low: int, high: int) -> None:
    least, most = int(values.min(initial=low)), int(values.max(initial=low))
    if least < low or most > high:
        raise FormatError(where, f"{what} from {low} to {high}", f"{least} to {most}", "export it anew")


def _shaped(where: str, region: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if region.size != math.prod(shape):
        raise FormatError(where, f"a region of {math.prod(shape)} numbers", f"{region.size}", "export it anew")
    return region.reshape(shape)
