"""PTX, as Triton's compiler writes it for a GPU, run in software.

A register is an array with a number for each thread of a launch, and an instruction runs for all of them at once. Where
threads take a branch differently, those that are furthest behind go first, until all are at one place again. What a GPU
approximates is rounded correctly here, and a product is joined with a sum where the code says so alone. There is no
shared memory, and an instruction that is not known raises.
"""

import ctypes
import re
from typing import NamedTuple

import numpy as np

LINE = re.compile(r"(?:@(!?%\w+)\s+)?([\w.]+)\s*(.*);$")
OPERAND = re.compile(r"\{[^}]*\}|\[[^]]*\]|[^\s,]+")
COMPARED = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
COMPARED |= {"ge": np.greater_equal}
OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
LIBM = ctypes.CDLL("libm.so.6")


def _fused(name: str, kind):
    function = getattr(LIBM, name)
    function.argtypes, function.restype = [kind] * 3, kind
    together = np.frompyfunc(function, 3, 1)
    return lambda *values: together(*values).astype(values[0].dtype)


FMA = {4: _fused("fmaf", ctypes.c_float), 8: _fused("fma", ctypes.c_double)}


def _by_float64(function):
    return lambda values: function(values.astype("f8")).astype(values.dtype)


def _greater(function, function_of_numbers):
    return lambda a, b, nan: (function if nan or a.dtype.kind != "f" else function_of_numbers)(a, b)


GREATER = {"max": _greater(np.maximum, np.fmax), "min": _greater(np.minimum, np.fmin)}
SIMPLE = {
    "add": np.add, "sub": np.subtract, "div": np.divide, "neg": np.negative, "abs": np.abs, "not": np.invert,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "ex2": _by_float64(np.exp2),
    "lg2": _by_float64(np.log2), "rsqrt": _by_float64(lambda a: 1 / np.sqrt(a)), "rcp": _by_float64(lambda a: 1 / a),
    "sqrt": _by_float64(np.sqrt),
}  # fmt: skip


def _dtype(kind: str) -> np.dtype:
    """That of numbers of a PTX type; those of bf16 are float32."""
    if kind == "pred":
        return np.dtype(bool)
    return np.dtype("f4" if kind == "bf16" else f"{kind[0].replace('s', 'i').replace('b', 'u')}{int(kind[1:]) // 8}")


def _bits(values: np.ndarray, kind: str) -> np.ndarray:
    """What a register holds of numbers of a PTX type."""
    values = np.asarray(values, _dtype(kind))
    if kind == "bf16":  # the nearest, of two the even one
        wide = values.view("u4")
        nearest = wide + np.uint32(0x7FFF) + (wide >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
        return np.where(np.isnan(values), np.uint32(0x7FFF), nearest).astype("u2")
    return values if kind == "pred" else values.view(f"u{values.itemsize}")


def _numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (bits.astype("u4") << np.uint32(16)).view("f4")
    if bits.itemsize > _dtype(kind).itemsize:  # a register may be wider than what is stored of it
        bits = bits.astype(f"u{_dtype(kind).itemsize}")
    return bits.view(_dtype(kind))


def _compared(how: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    neither = ~(np.isnan(a) | np.isnan(b))
    if how in ("num", "nan"):
        return neither == (how == "num")
    if how.endswith("u"):  # true of what is no number, too
        return ~_compared(OPPOSITE[how[:2]], a, b)
    return COMPARED[how](a, b) & neither


def _shifted(name: str, a: np.ndarray, by: np.ndarray) -> np.ndarray:
    most = 8 * a.itemsize - 1
    some = np.minimum(by, most).astype(a.dtype)
    if name == "shl":
        return np.where(by <= most, a << some, 0)
    return np.where((by <= most) | (a.dtype.kind == "i"), a >> some, 0)


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(f"{values.dtype.kind}{2 * values.itemsize}")


def _flushed(values: np.ndarray) -> np.ndarray:
    """Numbers too small to be normal are zeros."""
    small = np.abs(values) < np.finfo(values.dtype).tiny
    return np.where(small, np.copysign(np.zeros_like(values), values), values)


class Instruction(NamedTuple):
    """`@guard name.modifiers.kind operands;`"""

    guard: str | None
    name: str
    modifiers: list[str]
    kind: str
    operands: list[str]


class Kernel:
    """The entry of a text in PTX, to be called as it is launched."""

    def __init__(self, ptx: str):
        head, body = re.search(r"\.entry\s+\w+\((.*?)\)(.*?)\n\}", re.sub(r"//.*", "", ptx), re.DOTALL).groups()
        self.parameters = re.findall(r"(\w+)\s*(?:,|$)", head)
        self.threads = int(re.search(r"\.reqntid (\d+)", body)[1])
        self.widths = {name: int(bits) // 8 for bits, name in re.findall(r"\.reg \.[bfus](\d+)\s+(%\w+)<", body)}
        self.code, self.labels = [], {}
        for line in body[body.index("{") + 1 :].splitlines():
            line = re.sub(r"^\{ \.reg \S+ tmp; (.*) \}$", r"\1", line.strip())
            if line.endswith(":"):
                self.labels[line[:-1]] = len(self.code)
            elif line and line[0] != ".":
                guard, name, operands = LINE.match(line).groups()
                name, *modifiers = name.split(".")
                kind = modifiers.pop() if modifiers else ""
                self.code.append(Instruction(guard, name, modifiers, kind, OPERAND.findall(operands)))

    def __call__(self, grid: tuple[int, int, int], arguments: list[int], memory) -> None:
        """
        arguments  numbers and addresses, in the order of the parameters, of which the last may be left out
        memory     `load(addresses, size)` gives bits, `store(addresses, bits)` takes them
        """
        threads, code = Threads(self, grid, arguments, memory), self.code
        waiting = {0: np.ones(threads.count, bool)}  # instruction -> the threads that it is next for
        with np.errstate(all="ignore"):
            while waiting:
                at = min(waiting)
                active = waiting.pop(at)
                taken = active
                if guard := code[at].guard:
                    asked = threads.registers[guard.lstrip("!")]
                    taken = active & (~asked if guard[0] == "!" else asked)
                name, on = code[at].name, active
                if name in ("bra", "ret"):
                    on = active & ~taken
                    if name == "bra" and taken.any():
                        to = self.labels[code[at].operands[0]]
                        waiting[to] = waiting.get(to, False) | taken
                elif taken.any():
                    threads.run(code[at], taken)
                if on.any():
                    waiting[at + 1] = waiting.get(at + 1, False) | on


class Threads:
    """Those of one launch, and their registers."""

    def __init__(self, kernel: Kernel, grid, arguments, memory):
        self.widths, self.memory = kernel.widths, memory
        self.parameters = dict(zip(kernel.parameters, arguments, strict=False))
        ids = np.indices((*reversed(grid), kernel.threads), "u4").reshape(4, -1)
        self.registers = dict(zip(("%ctaid.z", "%ctaid.y", "%ctaid.x", "%tid.x"), ids, strict=True))
        self.count = ids.shape[1]

    def read(self, operand: str, kind: str) -> np.ndarray:
        if operand[0] == "%":
            return _numbers(self.registers[operand], kind)
        if operand[:2] in ("0f", "0d"):
            bits = np.uint64(int(operand[2:], 16))
        else:
            bits = np.uint64(int(operand, 0) & 2**64 - 1)
        size = 2 if kind == "bf16" else _dtype(kind).itemsize
        return _numbers(np.full(self.count, bits.astype(f"u{size}")), kind)

    def write(self, register: str, values: np.ndarray, kind: str, taken: np.ndarray) -> None:
        bits = _bits(values, kind)
        if not taken.all():
            bits = np.where(taken, bits, self.registers.get(register, np.zeros((), bits.dtype)))
        self.registers[register] = bits

    def run(self, instruction: Instruction, taken: np.ndarray) -> None:
        _, name, modifiers, kind, (to, *operands) = instruction
        if name in ("ld", "st"):
            return self.transfer(instruction, taken)
        if name == "mov" and "{" in to + operands[0]:
            return self.pack(kind, to, operands[0], taken)
        of = {"selp": [kind, kind, "pred"], "shl": [kind, "u32"], "shr": [kind, "u32"]}.get(name, [kind] * 3)
        result = kind
        if "wide" in modifiers:
            result = f"{kind[0]}{2 * int(kind[1:])}"
            of = [kind, kind, result]
        values = [self.read(operand, one) for operand, one in zip(operands, of, strict=False)]
        if "ftz" in modifiers:
            values = [_flushed(v) for v in values]
        if name == "mov":
            (made,) = values
        elif name == "cvt":
            (made,), result = values, modifiers[-1]
            if made.dtype.kind == "f" and result[0] in "su":
                raise NotImplementedError(instruction)
        elif name == "selp":
            made = np.where(values[2], *values[:2])
        elif name == "setp":
            made, result = _compared(modifiers[0], *values), "pred"
        elif name in ("shl", "shr"):
            made = _shifted(name, *values)
        elif name in ("mul", "mad"):
            if "wide" in modifiers:
                values[:2] = map(_wide, values[:2])
            if "hi" in modifiers:
                made = _wide(values[0]) * _wide(values[1]) >> 8 * values[0].itemsize
            else:
                made = values[0] * values[1]
            made = made + values[2] if name == "mad" else made
        elif name == "fma":
            made = np.zeros_like(values[0])
            made[taken] = FMA[made.itemsize](*(v[taken] for v in values))
        elif name in GREATER:
            made = GREATER[name](*values, "NaN" in modifiers)
        elif name in SIMPLE:
            made = SIMPLE[name](*values)
        else:
            raise NotImplementedError(instruction)
        if "ftz" in modifiers and made.dtype.kind == "f":
            made = _flushed(made)
        self.write(to, made.astype(_dtype(result)), result, taken)

    def pack(self, kind: str, to: str, of: str, taken: np.ndarray) -> None:
        """A register into its halves, or back."""
        half = f"b{int(kind[1:]) // 2}"
        if to[0] == "{":
            halves = np.ascontiguousarray(self.read(of, kind))[:, None].view(_dtype(half)).T
            for register, part in zip(re.findall(r"[^\s,{}]+", to), halves, strict=True):
                self.write(register, np.ascontiguousarray(part), half, taken)
        else:
            halves = [self.read(register, half) for register in re.findall(r"[^\s,{}]+", of)]
            self.write(to, np.stack(halves, 1).view(_dtype(kind))[:, 0], kind, taken)

    def transfer(self, instruction: Instruction, taken: np.ndarray) -> None:
        _, name, modifiers, kind, operands = instruction
        size = int(kind[1:]) // 8
        if modifiers[0] == "param":
            given = self.parameters[operands[1].strip("[]")] & (1 << 8 * size) - 1
            return self.receive(operands[0], np.full(self.count, given, f"u{size}"), kind, taken)
        if modifiers[0] != "global":
            raise NotImplementedError(instruction)
        place, registers = operands if name == "st" else operands[::-1]
        base, *offset = re.findall(r"[^\s+\[\]]+", place)
        at = self.registers[base][taken] + np.uint64(int(*offset or [0]) & 2**64 - 1)
        for i, register in enumerate(re.findall(r"[^\s,{}]+", registers)):
            if name == "st":
                self.memory.store(at + np.uint64(i * size), self.read(register, f"u{8 * size}")[taken])
            else:
                found = np.zeros(self.count, f"u{size}")
                found[taken] = self.memory.load(at + np.uint64(i * size), size)
                self.receive(register, found, kind, taken)

    def receive(self, register: str, bits: np.ndarray, kind: str, taken: np.ndarray) -> None:
        """A wider register is filled, with the sign if there is one."""
        width = max(bits.itemsize, self.widths[register.rstrip("0123456789")])
        wide = bits.view(_dtype(kind)).astype(f"{_dtype(kind).kind}{width}") if width > bits.itemsize else bits
        self.write(register, wide.view(f"u{width}"), f"u{8 * width}", taken)
