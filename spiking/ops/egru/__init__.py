"""EGRU over a sequence: `reference.py` in plain torch is the truth, `native.py` the same with its cell in C,
`triton.py` with its cell in Triton, for GPUs.

B batch, T steps, I inputs, H units; the three gates lie side by side in the order z (update), r (reset),
g (candidate).
"""

import torch
from torch import Tensor

from rheobase.spiking.errors import ShapeError
from rheobase.spiking.ops.choice import BY_DEVICE, OTHER, takes
from rheobase.spiking.ops.egru import native, reference
from rheobase.spiking.ops.egru.reference import EGRUState, EGRUTrajectory
from rheobase.spiking.surrogates import Surrogate, Triangle
from rheobase.spiking.tally import GRADED, announce, listens, mark, product, unseen, work


def egru(
    x: Tensor,
    kernel: Tensor | None,
    recurrent_kernel: Tensor,
    bias: Tensor | None,
    recurrent_bias: Tensor,
    thr: Tensor,
    state: EGRUState | None = None,
    *,
    surrogate: Surrogate,
    zoneout: float = 0.0,
    training: bool = False,
    zoneout_mask: Tensor | None = None,
    kernels: str = "auto",
) -> tuple[EGRUTrajectory, EGRUState]:
    """Event-based gated recurrent units along the time axis of x.

        a = x_t kernel + bias                     q = y_{t-1} recurrent_kernel + recurrent_bias
        z = sigmoid(a_z + q_z)    r = sigmoid(a_r + q_r)    g = tanh(a_g + r q_g)
        p = z c_{t-1} + (1 - z) g
        zoneout ζ: in training p stays c_{t-1} with probability ζ; in evaluation p = ζ c_{t-1} + (1 - ζ) p
        o = [p > thr]     y = o p     c = p - o thr     trace = 0.9 trace + 0.1 y

    Only y is communicated, and it is 0 where a unit is silent.

    x                 input                                                              [B, T, I]
    kernel            [I, 3H]      recurrent_kernel [H, 3H]      bias, recurrent_bias [3H]
                      kernel and bias None: x is a itself [B, T, 3H]
    thr               threshold of each unit, in [0, 1]                                  [H]
    state             what an earlier call returned, zeros if not given                  each [B, H]
    zoneout_mask      1 where the update is kept, drawn if not given (training only)     [B, T, H]
                      from one seed all forms draw the same on a CPU; on a GPU the reference draws others
    kernels           which form runs (`ops/choice.py`): "auto", "reference", "native" (C) or "triton"; the
                      environment variable RHEOBASE_KERNELS goes before it
    returns           (EGRUTrajectory, each [B, T, H]; EGRUState after the last step, each [B, H])
    raises            ShapeError: sizes that do not fit each other;  ConfigError: no such kernels;
                      UnsupportedError: the form named cannot run this call

    Source: Subramoney, Nazeer, Schöne, Mayr, Kappel, "Efficient recurrent architectures through activity
    sparsity and sparse back-propagation through time", ICLR 2023, in the form that its published runs use: the
    update gate is the paper's 1 - u, the reset gate acts after the product, and a spike subtracts thr.
    """
    if x.dim() != 3:
        raise ShapeError("egru", "x of shape [B, T, I]", f"{tuple(x.shape)}", "add the missing axis")
    batch, steps, inputs = x.shape
    units = thr.shape[0]
    if (kernel is None) != (bias is None) or (kernel is None and inputs != 3 * units):
        expected = f"kernel and bias, or neither and x of shape [B, T, {3 * units}]"
        raise ShapeError("egru", expected, f"x of shape {tuple(x.shape)}", "give both, or a")
    wanted = {
        "kernel": (kernel, (inputs, 3 * units)),
        "recurrent_kernel": (recurrent_kernel, (units, 3 * units)),
        "bias": (bias, (3 * units,)),
        "recurrent_bias": (recurrent_bias, (3 * units,)),
        "zoneout_mask": (zoneout_mask, (batch, steps, units)),
    }
    if state is None:
        state = EGRUState(*(x.new_zeros(batch, units) for _ in EGRUState._fields))  # y alone is marked
    elif not isinstance(state, EGRUState):
        if isinstance(state, Tensor) or len(state) != len(EGRUState._fields):
            raise ShapeError("egru state", "y, c and trace", type(state).__name__, "give what an earlier call returned")
        state = EGRUState(*state)
    wanted |= {f"state.{name}": (part, (batch, units)) for name, part in state._asdict().items()}
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(f"egru {name}", f"shape {shape}", f"{tuple(tensor.shape)}", "give a matching one")
    if zoneout_mask is not None and zoneout_mask.device != x.device:
        raise ShapeError("egru zoneout_mask", f"a mask on {x.device}", f"one on {zoneout_mask.device}", "move it there")

    mark(state.y, GRADED, sent=False)
    tensors = (x, kernel, recurrent_kernel, bias, recurrent_bias, thr, state)
    given = [t for t in (*tensors[:-1], *state) if t is not None]
    form = takes("egru", kernels, given, _obstacles(surrogate, given))
    if form == "reference":
        multiplied = (None if kernel is None else x, kernel, recurrent_kernel, bias, recurrent_bias, state.y)
        types = {t.dtype for t in multiplied if t is not None}
        if len(types) > 1 and x.device.type in BY_DEVICE and not _autocast(x):
            got = ", ".join(sorted(map(str, types)))
            raise ShapeError("egru", "x, weights and events of one type, or autocast", got, "convert them to x's")
        settings = {"zoneout": zoneout, "training": training, "zoneout_mask": zoneout_mask}
        return reference.egru(*tensors, surrogate=surrogate, **settings)
    with unseen():
        settings = {"zoneout": zoneout, "kept": _kept(state.c, steps, zoneout, training, zoneout_mask)}
        if form == "triton":
            from rheobase.spiking.ops.egru import triton

            run, last = triton.egru(*tensors, surrogate=surrogate, **settings)
        else:
            run, last = native.egru(*tensors, surrogate=surrogate, **settings)
    if listens():
        _tell(tensors, run, zoneout)
    return run, last


def _autocast(x: Tensor) -> bool:
    return x.device.type in BY_DEVICE and torch.is_autocast_enabled(x.device.type)


def _obstacles(surrogate: Surrogate, tensors: list[Tensor]) -> dict[str, tuple[str, str, str]]:
    """What keeps a call from a form: as of `choice.takes`."""
    name, found = type(surrogate).__name__, {}
    types, autocast = sorted({str(t.dtype) for t in tensors}), _autocast(tensors[0])
    if type(surrogate).spike is not Surrogate.spike:
        found["native"] = "a surrogate whose spike is the step", name, OTHER
    elif autocast:
        found["native"] = "products of the tensors' own type", "autocast", OTHER
    if type(surrogate) is not Triangle:
        found["triton"] = "the surrogate Triangle", name, OTHER
    elif not surrogate.of_numbers():
        found["triton"] = "a surrogate of numbers", f"{name} of tensors", OTHER
    elif len(types) > 1 and not autocast:
        found["triton"] = "tensors of one type, or autocast", ", ".join(types), OTHER
    return found


def _kept(c: Tensor, steps: int, zoneout: float, training: bool, mask: Tensor | None) -> Tensor | None:
    """Zoneout in training: True where the update is kept [B, T, H]; on a CPU drawn step by step as the reference draws
    it, on a GPU at once, to spare it T kernels."""
    if not (zoneout and training and steps):
        return None
    if mask is None:
        like = {"dtype": c.dtype, "device": c.device}
        if c.device.type == "cpu":
            drawn = torch.stack([torch.rand(c.shape, **like) for _ in range(steps)], 1)
        else:
            drawn = torch.rand(c.shape[0], steps, c.shape[1], **like)
        mask = drawn >= zoneout
    return mask.bool().contiguous()


def _tell(tensors: tuple, run: EGRUTrajectory, zoneout: float) -> None:
    """What the reference's operators do in evaluation, for a counter that does not see them."""
    x, kernel, recurrent_kernel, bias, recurrent_bias, thr, state = tensors
    n, size = run.y.numel(), run.y.element_size()
    mark(run.y, GRADED)
    if kernel is not None:
        product(x, kernel, bias)
    product(torch.cat([state.y[:, None], run.y], 1)[:, :-1], recurrent_kernel, recurrent_bias)
    work(
        products=(9 if zoneout else 7) * n,
        adds=(9 if zoneout else 8) * n,
        comparisons=n,
        transcendentals={"sigmoid": 2 * n, "tanh": n},
        weight_bytes=n * size,
        activation_bytes=7 * n * size,
    )
    announce(state_updates=run.c, parts=2)
