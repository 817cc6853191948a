"""Steps of cells that are the same in every array library."""

from rheobase.spiking.graph import CubaLIFCell


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
