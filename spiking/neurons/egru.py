"""The event-based gated recurrent unit as a layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rheobase.spiking.errors import ConfigError
from rheobase.spiking.neurons._cell import Cell, stored
from rheobase.spiking.ops.egru import EGRUState, EGRUTrajectory, egru
from rheobase.spiking.surrogates import Surrogate, Triangle


def restart_cell(state: EGRUState) -> EGRUState:
    """The state, of parts [B, H], with c set to zero: what the reference does at every cut between segments, in
    training and evaluation. A device that streams carries c; the two differ, so loops apply it only where asked to."""
    return state._replace(c=torch.zeros_like(state.c))


class EGRU(Cell):
    """Event-based gated recurrent units; equations and source: `rheobase.spiking.ops.egru`.

    input_size, hidden_size   I and H
    surrogate     the gradient of the event; the published language models use Triangle(3.6, 3.6)
    zoneout       probability that a unit keeps its cell for a step
    dropconnect   probability with which an element of recurrent_kernel is dropped, once a forward call, in
                  training; the kept ones are scaled by 1/(1 - p)
    thr_mean      thresholds start as Beta(a, 3) with a = 3 thr_mean / (1 - thr_mean), so this is their mean

    Parameters: kernel [I, 3H], recurrent_kernel [H, 3H], bias [3H], recurrent_bias [3H], thr [H]; gates z, r, g.
    `project_` clamps thr to [0, 1].

    kernels  an attribute: the form that a call runs in, as of `ops.egru`; "auto" unless set
    call     layer(x [B, T, I], state=None) -> (y [B, T, H], state), y being 0 or what a unit sends
    raises   ConfigError: no Surrogate, thr_mean outside of (0, 1), a probability of 1 or more;
             ShapeError, in a call: x of another width, or a state of another shape
    """

    elementwise = False
    kernels = "auto"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        surrogate: Surrogate = Triangle(),
        zoneout: float = 0.0,
        *,
        dropconnect: float = 0.0,
        thr_mean: float = 0.3,
    ):
        super().__init__()
        if not isinstance(surrogate, Surrogate):
            raise ConfigError("EGRU surrogate", "a Surrogate, such as Triangle()", repr(surrogate), "make one")
        if not 0 < thr_mean < 1:
            raise ConfigError("EGRU thr_mean", "a number between 0 and 1", str(thr_mean), "choose for instance 0.3")
        for name, p in (("zoneout", zoneout), ("dropconnect", dropconnect)):
            if not 0 <= p < 1:
                raise ConfigError(f"EGRU {name}", "a probability from 0 to below 1", str(p), "mend it")
        self.input_size, self.hidden_size, self.surrogate = input_size, hidden_size, surrogate
        self.zoneout, self.dropconnect = zoneout, dropconnect
        self.kernel = nn.Parameter(nn.init.xavier_normal_(torch.empty(input_size, 3 * hidden_size)))
        self.recurrent_kernel = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden_size, 3 * hidden_size)))
        self.bias = nn.Parameter(torch.zeros(3 * hidden_size))
        self.recurrent_bias = nn.Parameter(torch.zeros(3 * hidden_size))
        thr = torch.empty(hidden_size)
        if not thr.is_meta:  # which nothing can be drawn on
            thr = torch.distributions.Beta(3 * thr_mean / (1 - thr_mean), 3.0).sample((hidden_size,))
        self.thr = nn.Parameter(thr)

    def initial_state(self, batch, *, dtype=None, device=None):
        like = {"dtype": dtype or self.thr.dtype, "device": device or self.thr.device}
        return EGRUState(*(torch.zeros(batch, self.hidden_size, **like) for _ in EGRUState._fields))

    def forward(self, x_BTI: Tensor, state: EGRUState | None = None, *, whole: bool = False):
        """(y [B, T, H], state); with `whole`, (EGRUTrajectory, state)."""
        kernel = F.dropout(self.recurrent_kernel, self.dropconnect) if self._drops() else self.recurrent_kernel
        trajectory, state = self._run(x_BTI, kernel, state)
        return trajectory if whole else trajectory.y, state

    def step(self, x_BI, state):
        """One step; with dropconnect in training it would need one mask a sequence, so it refuses."""
        if self._drops():
            raise ConfigError("EGRU.step", "dropconnect 0 in training", str(self.dropconnect), "use forward or eval()")
        trajectory, state = self._run(x_BI[:, None], self.recurrent_kernel, state)
        return trajectory.y[:, 0], state

    def _drops(self) -> bool:
        return self.training and self.dropconnect > 0

    def _run(self, x_BTI, recurrent_kernel, state) -> tuple[EGRUTrajectory, EGRUState]:
        return egru(
            x_BTI,
            self.kernel,
            recurrent_kernel,
            self.bias,
            self.recurrent_bias,
            self.thr,
            state,
            surrogate=self.surrogate,
            zoneout=self.zoneout,
            training=self.training,
            kernels=self.kernels,
        )

    @torch.no_grad()
    def project_(self):
        if (thr := stored(self, "thr")) is not None:
            thr.clamp_(0, 1)


def examples() -> list[Cell]:
    """Small instances for the laws: both published surrogates, and zoneout."""
    cells = [EGRU(3, 4), EGRU(2, 5, Triangle(3.6, 3.6), thr_mean=0.1), EGRU(4, 3, zoneout=0.25)]
    for cell in cells:
        nn.init.normal_(cell.bias, std=0.5)
        cell.eval()
    return cells
