"""SpikeGPT's other parts in integers: mixes, norms, neurons, WKV, and what is done unit by unit."""

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv
from rheobase.backends.exporters.spinnaker2.quantise import ops
from rheobase.backends.exporters.spinnaker2.quantise.egru import table_error
from rheobase.backends.exporters.spinnaker2.quantise.writer import Writer
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import GradedLIFCell, Node, TernaryLIFCell

MAX_UNITS = (1 << 14) - 1
MIN_K_FRAC = 7
LARGEST_EXPONENT = 2.0**8


def mix(out: Writer, node: Node) -> Node:
    """A mix of two tokens: its shares in the finest format in which the sum of both products fits int32."""
    share, took = out.values(node, "share"), out.source(node, "x").frac
    if out.source(node, "before").frac != took:
        raise UnsupportedError(f"{node.name}.before", "the signal of x", "another", "mix a signal with its own past")
    parts = {"share": share, "rest": out.values(node, "rest", 1 - share)}
    parts["bias"] = out.values(node, "bias", np.zeros_like(share))
    frac = _factor_frac(node, np.abs(parts["share"]) + np.abs(parts["rest"]), parts["bias"], took)
    arrays = {role: out.store(node, role, parts[role], frac) for role in ("share", "rest")}
    arrays["bias"] = out.store(node, "bias", parts["bias"], took + frac, 32)
    return Node(node.name, ops.IntegerMix(took, frac, _out_frac(out, node)), arrays)


def affine(out: Writer, node: Node) -> Node:
    """A factor and an offset, unit by unit."""
    scale, offset, took = out.values(node, "scale"), out.values(node, "offset"), out.source(node, "x").frac
    frac = _factor_frac(node, np.abs(scale), offset, took)
    arrays = {"scale": out.store(node, "scale", scale, frac)}
    arrays["offset"] = out.store(node, "offset", offset, took + frac, 32)
    return Node(node.name, ops.IntegerAffine(took, frac, _out_frac(out, node)), arrays)


def layer_norm(out: Writer, node: Node) -> Node:
    """LayerNorm of int16 values, or of spikes."""
    weight, bias, took = out.values(node, "weight"), out.values(node, "bias"), out.source(node, "x", (8, 16)).frac
    units = len(weight)
    if units > MAX_UNITS:
        raise UnsupportedError(node.name, f"at most {MAX_UNITS} units", str(units), "norm fewer")
    frac = _factor_frac(node, np.abs(weight), bias, rwkv.FACTOR_FRAC)
    arrays = {"weight": out.store(node, "weight", weight, frac)}
    arrays["bias"] = out.store(node, "bias", bias, rwkv.FACTOR_FRAC + frac, 32)
    unit = 1 / (units**2 * 4.0**took)
    eps = max(int(np.floor(node.op.eps / unit + 0.5)), 1)
    out.note(node, "eps", str(node.op.eps), f"{eps} x {unit:.3g}", abs(eps * unit - node.op.eps))
    out.note(node, "1 / deviation", "exact", "from a root of 16 bits", 2.0**-15)
    return Node(node.name, ops.IntegerLayerNorm(eps, frac, _out_frac(out, node)), arrays)


def sigmoid(out: Writer, node: Node) -> Node:
    """The sigmoid's table, whose argument is rounded to Q11 where it comes finer."""
    frac = out.source(node, "x").frac
    rounding = 2.0 ** -(ints.PRE_FRAC + 3) if frac > ints.PRE_FRAC else 0.0
    out.note(node, "out", "exact", "table", table_error(ints.sigmoid_table(), "sigmoid") + rounding)
    return Node(node.name, ops.IntegerSigmoid(frac))


def squared_relu(out: Writer, node: Node) -> Node:
    """max(x, 0)^2."""
    return Node(node.name, ops.IntegerSquaredRelu(out.source(node, "x").frac, _out_frac(out, node)))


def multiply(out: Writer, node: Node) -> Node:
    """A product, unit by unit."""
    fracs = [out.source(node, port).frac for port in ("a", "b")]
    return Node(node.name, ops.IntegerMultiply(*fracs, _out_frac(out, node)))


def add(out: Writer, node: Node) -> Node:
    """A sum, unit by unit; raises UnsupportedError where no int32 holds both operands in one format."""
    a, b = (out.source(node, port, (8, 16)).frac for port in ("a", "b"))
    if abs(a - b) > 14:
        raise UnsupportedError(node.name, "operands of like size", f"Q{a} and Q{b}", "train it longer")
    return Node(node.name, ops.IntegerAdd(a, b, _out_frac(out, node)))


def lif(out: Writer, node: Node) -> Node:
    """Leaky integrate-and-fire units, whose threshold is exact for the integers that reach it."""
    op, frac = node.op, out.source(node, "x").frac
    units = out.graph.shape_of(f"{node.name}.v")
    tau, theta = (np.broadcast_to(out.values(node, role, getattr(op, role)), units) for role in ("tau", "theta"))
    if theta.min() <= 0:
        raise UnsupportedError(f"{node.name} theta", "thresholds above 0", f"{theta.min()}", "raise them")
    if not tau.min() >= 1:
        raise UnsupportedError(f"{node.name} tau", "time constants of at least 1 step", f"{tau.min()}", "raise them")
    scaled, rate = theta * 2.0**frac, np.floor(ints.ONE / tau + 0.5)
    reset = op.v_reset or 0.0
    values = {
        "leak": ints.ONE - rate,
        "gain": rate if op.decay_input else np.full(units, ints.ONE),
        "threshold": ints.saturate16(np.ceil(scaled) - 1 if op.fire == ">=" else np.floor(scaled)),
        "step": ints.saturate16(np.floor(scaled + 0.5)),
    }
    arrays = {role: f"{node.name}.{role}" for role in values}
    out.arrays |= {arrays[role]: value.astype(np.int16) for role, value in values.items()}
    arrays["offset"] = out.store(node, "offset", reset / tau, frac + rwkv.FACTOR_FRAC, 32)
    out.note(node, "tau", "1 / tau", "int16 Q14", np.abs(rate / ints.ONE - 1 / tau).max())
    out.note(node, "v", "float", f"int16 Q{frac}", 2.0 ** -(frac + 1))
    if op.v_reset is None:
        out.note(node, "theta", "float", f"int16 Q{frac}, where it is subtracted", 2.0 ** -(frac + 1))
    whole = None if op.v_reset is None else int(np.floor(reset * 2.0**frac + 0.5))
    if isinstance(op, GradedLIFCell):
        return Node(node.name, ops.IntegerGradedLIFCell(frac, whole, op.ternary), arrays)
    kind = ops.IntegerTernaryLIFCell if isinstance(op, TernaryLIFCell) else ops.IntegerLIFCell
    return Node(node.name, kind(frac, whole), arrays)


def wkv(out: Writer, node: Node) -> Node:
    """WKV with exponents to the base 2; raises UnsupportedError: k of 128 or more, or time_first above 177."""
    k_frac, v_frac = (out.source(node, port).frac for port in ("k", "v"))
    if k_frac < MIN_K_FRAC:
        raise UnsupportedError(f"{node.name} k", "values below 128 on the calibration data", f"Q{k_frac}", "shrink W_k")
    first = out.values(node, "time_first") * np.log2(np.e)
    if (largest := np.abs(first).max()) >= LARGEST_EXPONENT:
        raise UnsupportedError(f"{node.name} time_first", "values within 177", f"{largest:.0f} log(2)", "shrink it")
    decay = np.exp(out.values(node, "time_decay")) * np.log2(np.e)
    held = np.minimum(decay, LARGEST_EXPONENT - 2.0**-rwkv.EXPONENT_FRAC)
    arrays = {"first": out.store(node, "first", first, rwkv.EXPONENT_FRAC, 32)}
    arrays["decay"] = out.store(node, "decay", held, rwkv.EXPONENT_FRAC, 32)
    if decay.max() > held.max():
        out.note(node, "decay", f"up to {decay.max():.4g}", "held below 256", 2.0**-LARGEST_EXPONENT)
    out.note(node, "exp", "exact", "table of 2^-x", 2.0**-19)
    return Node(node.name, ops.IntegerWKVCell(k_frac, v_frac), arrays)


def _out_frac(out: Writer, node: Node) -> int:
    return out.formats[f"{node.name}.out"].frac


def _factor_frac(node: Node, factor: np.ndarray, offset: np.ndarray, in_frac: int) -> int:
    """The finest format up to Q14 in which factors fit int16 and offsets, in that of the product, stay below 2^29."""
    with np.errstate(divide="ignore"):
        fits = np.floor(np.log2(32767 / factor.max())), np.floor(29 - np.log2(np.abs(offset).max())) - in_frac
    frac = min(*fits, rwkv.FACTOR_FRAC)
    if frac < 0:
        got = f"{factor.max():.3g} and {np.abs(offset).max():.3g}"
        raise UnsupportedError(node.name, "factors and offsets that fit int16 and int32", got, "shrink them")
    return int(frac)
