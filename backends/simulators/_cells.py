"""What every array library has in common about cells: their steps, and how they lie in a graph."""

from rheobase.spiking.graph import CubaLIFCell, Edge, EGRUCell, Linear, Node


def cuba_lif_step(op: CubaLIFCell, x, i, v, *, step) -> dict:
    """One step of `graph.CubaLIFCell`: x, i and v of one shape -> its outputs s, v and i.

    step  u -> 1 where u > 0, else 0, in the type of u
    """

    def reset(h, fired):
        return h - fired * op.theta if op.v_reset is None else h - fired * (h - op.v_reset)

    i = op.alpha * i + x
    h = op.beta * v + op.gain * i
    if op.reset == "next":
        h = reset(h, step(v - op.theta))
    s = step(h - op.theta)
    return {"s": s, "v": reset(h, s) if op.reset == "now" else h, "i": i}


def egru_layer(nodes: list[Node], edges: dict[str, dict[str, Edge]], kind=EGRUCell, port="y"):
    """(An EGRU cell, the product of its own last events), or another cell's and its output's, or None: other nodes."""
    by_op = {type(n.op): n for n in nodes}
    if len(nodes) != 2 or by_op.keys() != {Linear, kind}:
        return None
    cell, linear = by_op[kind], by_op[Linear]
    a, q, x = edges[cell.name]["a"], edges[cell.name]["q"], edges[linear.name]["x"]
    inside = (x.source, x.delay, q.source, q.delay) == (f"{cell.name}.{port}", 1, f"{linear.name}.out", 0)
    return (cell, linear) if inside and not a.delay and a.source != q.source else None
