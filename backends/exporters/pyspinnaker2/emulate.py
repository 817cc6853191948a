"""`lif_no_delay` of py-spinnaker2 in NumPy.

    v = alpha v + i_offset + sum of the weights of the spikes sent in the tick before
    s = [v > threshold]        v = 0 where s ("reset_to_v_reset"), or v - threshold ("reset_by_subtraction")

The sum of weights is of integers. Two published traces of py-spinnaker2 (NIR's repository, paper/01_lif, Brian2
backend) are matched to the last bit of double precision where alpha and threshold are rounded to float32 and v is a
double: see tests/test_pyspinnaker2.py. On the chip v is likely a float32 (not published): `dtype` asks for that.
"""

import numpy as np


def run(populations, projections, spikes: dict[str, np.ndarray], ticks: int, dtype=np.float64) -> dict[str, tuple]:
    """Run a network.

    populations  with name, size, threshold, alpha_decay, i_offset [n] and subtract
    projections  with pre, post and weight [pre, post]
    spikes       source -> bool [ticks, n]
    returns      population -> (spikes bool [ticks, n], v after each tick [ticks, n])
    """
    sent = {name: np.asarray(array, bool) for name, array in spikes.items()}
    sent |= {p.name: np.zeros((ticks, p.size), bool) for p in populations}
    kept = {p.name: np.zeros((ticks, p.size), dtype) for p in populations}
    into = {p.name: [(q.pre, q.weight.astype(np.int64)) for q in projections if q.post == p.name] for p in populations}
    constants = {p.name: [np.asarray(a, np.float32).astype(dtype) for a in (p.alpha_decay, p.i_offset, p.threshold)]
                 for p in populations}  # fmt: skip
    for t in range(ticks):
        for p in populations:
            alpha, offset, threshold = constants[p.name]
            v = alpha * kept[p.name][t - 1] if t else np.zeros(p.size, dtype)
            for pre, weight in into[p.name] if t else ():
                v = v + weight[sent[pre][t - 1]].sum(0).astype(dtype)
            v = v + offset
            fired = sent[p.name][t] = v > threshold
            kept[p.name][t] = np.where(fired, v - threshold if p.subtract else 0, v)
    return {p.name: (sent[p.name], kept[p.name]) for p in populations}
