"""The formats that a manifest states, bits and binary point of each signal, against what the images compute with.

A format is bits and frac: an integer i stands for i 2^-frac. Tables and shifts of the images fix many of them. Weights
and biases may be scaled by any power of two without another byte, so that what only they scale is in no image.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv
from rheobase.backends.exporters.spinnaker2.image import EGRU, EMBEDDING, PROGRAM, Image
from rheobase.backends.exporters.spinnaker2.program import GRADED, OPS, Instruction
from rheobase.backends.exporters.spinnaker2.routing import program_of
from rheobase.spiking.errors import FormatError

ROUNDING = "add half, shift right arithmetically"
Equation = tuple[dict[str, int], int]
"""Factors of the fracs of some signals, and what these add up to."""


@dataclass
class _Held:
    """What the images say, by probe: bits, and equations of fracs."""

    bits: dict[str, int] = field(default_factory=dict)
    equations: list[Equation] = field(default_factory=list)

    def add(self, out: str, bits: int | None = None, frac: int | None = None) -> None:
        if bits is not None:
            self.bits[out] = bits
        if frac is not None:
            self.equations.append(({out: 1}, frac))


def check_order(where: object, manifest: Mapping) -> list[str]:
    """The signals in the order of evaluation; raises FormatError where `order` is not of the image's signals."""
    names, order = [*dict.fromkeys(manifest["probes"].values()), manifest["logits"]], [*manifest["order"]]
    lacking, odd = Counter(names) - Counter(order), Counter(order) - Counter(names)
    if lacking or odd:
        got = [f"without {name}" for name in lacking][:1] + [f"with {name!r} beyond that" for name in odd][:1]
        raise FormatError(f"{where}: order", "each signal of the image once", " and ".join(got), "export it anew")
    return order


def check_formats(where: object, manifest: Mapping, pes: Iterable[tuple[str, Image]]) -> str:
    """A line on what was checked; raises FormatError where `arithmetic` is not that of the images."""
    said, probes, logits = manifest["arithmetic"], manifest["probes"], manifest["logits"]
    formats, where = said["formats"], f"{where}: arithmetic"
    sound = all(type(form) is list and [*map(type, form)] == [int, int] for form in formats.values())
    if not sound or set(formats) != {*probes.values(), logits}:
        raise FormatError(where, "bits and point of each signal", "others", "export it anew")
    held = _held(image for _, image in pes)
    names = {**probes, "logits": logits}
    held.add("logits", 32, ints.LOGIT_FRAC)
    for probe, bits in held.bits.items():
        if probe in names:
            _require(where, f"{names[probe]} in {bits} bits", formats[names[probe]][0], bits)
    equations = []
    for terms, total in held.equations:
        if all(probe in names for probe in terms):
            factors: Counter = Counter()
            for probe, factor in terms.items():
                factors[names[probe]] += factor
            equations.append((dict(factors), total))
    known = _solved(equations)
    for name, frac in known.items():
        _require(where, f"{name} with {frac} bits behind the point", formats[name][1], frac)
    for terms, total in equations:
        got = sum(factor * formats[name][1] for name, factor in terms.items())
        _require(where, f"points of {', '.join(terms)} that come to {total}", got, total)
    _require(where, f"logit_frac {ints.LOGIT_FRAC}", said["logit_frac"], ints.LOGIT_FRAC)
    _require(where, f"rounding {ROUNDING!r}", said["rounding"], ROUNDING)
    free = [name for name in formats if name not in known]
    line = f"formats: {len(formats):,} signals as the images have them"
    if free:
        rest = f" and {len(free) - 3:,} more" if len(free) > 3 else ""
        line += f", but for binary points that no image fixes, of {', '.join(free[:3])}{rest}"
    return line


def _require(where: str, expected: str, got, wanted) -> None:
    if type(got) is not type(wanted) or got != wanted:
        raise FormatError(where, expected, repr(got)[:80], "export it anew")


def _held(images: Iterable[Image]) -> _Held:
    held = _Held()
    held.add("embedding", 16)
    for image in images:
        stage = image.fields.get("layer")
        if image.kind == EGRU:
            for ports, form in (("aq", (32, ints.PRE_FRAC)), ("yc", (16, ints.EVENT_FRAC))):
                for port in ports:
                    held.add(f"{stage}.{port}", *form)
        elif image.kind == EMBEDDING:
            held.add("embedding", 16, image.fields["x_frac"])
        elif image.kind == PROGRAM and image.fields["slice"] == 0:  # the others run the same program
            for instruction in program_of(image):
                _of_instruction(held, stage, instruction)
    return held


def _of_instruction(held: _Held, stage: int, i: Instruction) -> None:
    op, (out, a, b, c, d) = OPS[i.op], (f"{stage}.{number}" for number in (i.out, i.a, i.b, i.c, i.d))

    def equal(total: int, **factors: int) -> None:
        registers, terms = {"out": out, "a": a, "b": b, "c": c, "d": d}, Counter()
        for name, factor in factors.items():
            terms[registers[name]] += factor
        held.equations.append((dict(terms), total))

    if op in ("norm", "mix", "sigmoid", "squared_relu", "multiply", "add", "wkv"):
        held.add(out, 16)
    if op == "product":
        held.add(out, 16 if i.s0 else 32)
    elif op == "sigmoid":
        held.add(out, frac=ints.EVENT_FRAC)
        held.add(a, frac=i.s0 + ints.PRE_FRAC)
    elif op == "squared_relu":
        equal(i.s0, a=2, out=-1)
    elif op == "multiply":
        equal(i.s0, a=1, b=1, out=-1)
    elif op == "add":
        for register, frac in ((a, i.s0), (b, i.s1), (out, i.s2)):
            held.add(register, frac=frac)
    elif op == "lif":
        held.add(b, 16)
        equal(0, a=1, b=-1)
        if i.s1 & GRADED:
            held.add(out, 16)
            equal(0, out=1, b=-1)
        else:
            held.add(out, 8, 0)
    elif op == "wkv":
        held.add(a, frac=i.s0)
        equal(0, out=1, b=-1)
        equal(rwkv.FACTOR_FRAC, c=1, b=-1)
        for register, frac in ((d, rwkv.WEIGHT_FRAC), (f"{stage}.{i.s1}", rwkv.EXPONENT_FRAC)):
            held.add(register, 32, frac)
        held.add(c, 32)
    elif op == "spike":
        held.add(out, 8, 0)


def _solved(equations: list[Equation]) -> dict[str, int]:
    """The fracs that follow from the equations one after the other."""
    known: dict[str, int] = {}
    found = True
    while found:
        found = False
        for terms, total in equations:
            open_ = [name for name, factor in terms.items() if name not in known and factor]
            if len(open_) == 1:
                rest = total - sum(factor * known.get(name, 0) for name, factor in terms.items())
                known[open_[0]] = rest // terms[open_[0]]
                found = True
    return known
