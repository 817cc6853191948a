"""An EGRU layer over a whole sequence in one call of the C library, its recurrent product gathered.

T steps, B streams, H units, G = 3H gates in the order z, r, g.
"""

from typing import NamedTuple

import numpy as np

from rheobase.spiking.ops.native import SUFFIXES, Gather, library


class EGRUSequence(NamedTuple):
    """What a layer did: q [T, B, G]; y, c and trace [T + 1, B, H], from the state before the first step on."""

    q: np.ndarray
    y: np.ndarray
    c: np.ndarray
    trace: np.ndarray
    rows: int
    """rows of the recurrent weight that were read"""
    events: int
    """units that fired, over all steps and streams"""


def egru_sequence(
    a_TBG: np.ndarray, recurrent: Gather, thr_H: np.ndarray, state: tuple, *, zoneout: float, decay: float
) -> EGRUSequence:
    """The evaluation form of `ops.egru`, which gives the equations, from the input pre-activation a on.

    recurrent   the product of the layer's own events, native; its type is that of every array
    state       y, c and trace before the first step, each [B, H]
    zoneout     share of c that stays;  decay: that of the trace
    """
    dtype, (steps, streams, gates) = recurrent.dtype, a_TBG.shape
    a, thr = np.ascontiguousarray(a_TBG, dtype), np.ascontiguousarray(thr_H, dtype)
    q = np.empty((steps, streams, gates), dtype)
    histories = [np.empty((steps + 1, streams, thr.size), dtype) for _ in state]
    for history, before in zip(histories, state, strict=True):
        history[0] = before
    counts = np.empty(2, np.int64)
    function = getattr(library(), f"egru_{SUFFIXES[dtype]}")
    pointers = (array.ctypes.data for array in (thr, q, *histories, counts))
    function(a.ctypes.data, *recurrent.pointers, *pointers, zoneout, decay, steps, streams, thr.size)
    return EGRUSequence(q, *histories, *counts.tolist())
