"""The laws, for every neuron that there is a file for. 200 examples each; see conftest."""

import copy
import functools

import laws
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheobase.spiking import registry
from rheobase.spiking.errors import ConfigError, ShapeError, UnsupportedError
from rheobase.spiking.neurons import EGRU, LIF, Cell, EGRUState, LIFState
from rheobase.spiking.ops import EGRUTrajectory, egru, lif
from rheobase.spiking.surrogates import ATan

OURS, ADAPTERS = "rheobase.spiking.neurons", "rheobase.spiking.adapters"
NEURONS = [f"{package}.{name}" for package in (OURS, ADAPTERS) for name in registry.names(package)]


def examples(neuron):
    try:
        return registry.get(*neuron.rsplit(".", 1)).examples()
    except UnsupportedError as error:
        pytest.skip(str(error))


@functools.cache
def drawn(neuron, seed):
    """Its examples in float64, with parameters of that seed."""
    torch.manual_seed(seed)
    return [cell.double() for cell in examples(neuron)]


def relaxes(cell):
    """Whether a step function made smooth leaves a true gradient: not where the reset is cut from it for good, and
    not where there is no surrogate to exchange."""
    return hasattr(cell, "surrogate") and (isinstance(cell, LIF) or not getattr(cell, "detach_reset", False))


@pytest.fixture(
    params=[*((name, "auto") for name in NEURONS), *((f"{OURS}.{name}", "reference") for name in ("egru", "lif"))],
    ids="-".join,
)
def neuron(request, monkeypatch):
    """Each neuron by the kernels that it takes of itself, and EGRU and LIF by their references too."""
    name, kernels = request.param
    monkeypatch.setenv("RHEOBASE_KERNELS", kernels)
    return name


@st.composite
def cases(draw, neuron, least=1, keep=lambda cell: True):
    """A small instance in float64, an input [B, T, D] and an initial state."""
    seed = draw(st.integers(0, 2**31 - 1))
    batch, steps = draw(st.integers(1, 3)), draw(st.integers(least, 7))
    cells = [cell for cell in drawn(neuron, seed % 16) if keep(cell)]
    cell = copy.deepcopy(cells[draw(st.integers(0, len(cells) - 1))])
    # `torch.manual_seed` but for the devices that are not there, for each of which that writes down a traceback
    torch.default_generator.manual_seed(seed)
    scale = draw(st.sampled_from([0.1, 1.0, 3.0]))
    x = scale * torch.randn(batch, steps, cell.input_size, dtype=torch.float64)
    if draw(st.booleans()):
        x = x.abs()
    rest = cell.initial_state(batch, dtype=torch.float64)
    state = type(rest)(*(s + 0.5 * torch.randn_like(s) if s.is_floating_point() else s for s in rest))
    return cell, x, state


def test_there_are_neurons_with_examples():
    assert {f"{OURS}.egru", f"{OURS}.lif", f"{ADAPTERS}.norse", f"{ADAPTERS}.snntorch"} <= set(NEURONS)
    assert all(registry.get(OURS, name).examples() for name in registry.names(OURS))
    assert settings.default.max_examples >= 200


def test_the_examples_fire_and_stay_silent(neuron):
    """Laws over neurons that never fire, or always do, would say nothing."""
    fired = []

    @given(cases(neuron))
    def collect(case):
        cell, x, state = case
        fired.append((cell(x, state)[0] != 0).double().mean().item())

    collect()
    assert len(fired) >= 200 and 0.05 < sum(fired) / len(fired) < 0.95


def test_sequence_is_the_fold_of_step(neuron):
    @given(cases(neuron))
    def law(case):
        laws.sequence_is_the_fold_of_step(*case)

    law()


def test_any_cut_changes_nothing(neuron):
    @given(cases(neuron), st.integers(0, 7))
    def law(case, cut):
        laws.any_cut_changes_nothing(*case, min(cut, case[1].shape[1]))

    law()


def test_no_steps_change_nothing(neuron):
    @given(cases(neuron))
    def law(case):
        laws.no_steps_change_nothing(*case)

    law()


def test_a_row_of_a_batch_is_the_same_alone(neuron):
    @given(cases(neuron))
    def law(case):
        laws.a_row_of_a_batch_is_the_same_alone(*case)

    law()


def test_a_state_is_of_the_type_that_is_asked_for(neuron):
    for cell in examples(neuron):
        laws.a_state_is_of_the_type_that_is_asked_for(cell)


def test_gradients_reach_the_initial_state(neuron):
    @given(cases(neuron))
    def law(case):
        cell, x, state = case
        y, end = cell(x, state)
        weights = [torch.randn(part.shape, dtype=x.dtype) for part in (y, *end)]
        laws.gradients_reach_the_initial_state(cell, x, state, weights)

    law()


@pytest.mark.parametrize("neuron", NEURONS)
def test_the_relaxed_form_has_the_gradients_it_claims(neuron):
    """By the references: no other form runs a relaxed surrogate."""
    if not any(map(relaxes, examples(neuron))):
        pytest.skip(f"{neuron}: its surrogates are the library's own, chosen inside its step")

    @settings(max_examples=40)  # each is a hundred calls
    @given(cases(neuron, keep=relaxes))
    def law(case):
        cell, x, state = case
        if isinstance(cell, LIF):
            cell.detach_reset = False  # a detached reset is not a true gradient, by design
        laws.the_relaxed_form_has_the_gradients_it_claims(cell, x[:1, :3], type(state)(*(s[:1] for s in state)))

    law()


def test_from_rest_is_the_same_as_from_the_initial_state(neuron):
    @given(cases(neuron, least=0))
    def law(case):
        laws.from_rest_is_from_the_initial_state(*case[:2])

    law()


def lif_by_hand(x, v, tau, theta, v_reset, decay_input, fire, ternary):
    """The equations of `lif`, one number at a time."""
    spikes, rest = [], 0.0 if v_reset is None else v_reset
    v = rest if v is None else v
    for current in x:
        h = v + (current - (v - rest)) / tau if decay_input else v - (v - rest) / tau + current
        sign = -1 if ternary and h < 0 else 1
        s = sign if sign * h > theta or (fire == ">=" and sign * h == theta) else 0
        v = h if not s else h - s * theta if v_reset is None else v_reset
        spikes.append((float(s), v))
    return spikes


@given(
    st.lists(st.integers(-16, 16), max_size=8),
    st.none() | st.integers(-4, 4),
    st.sampled_from([2.0, 4.0]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([None, 0.0, -0.25]),
    st.booleans(),
    st.sampled_from([">", ">="]),
    st.booleans(),
)
def test_lif_computes_its_equations(quarters, start, tau, theta, v_reset, decay_input, fire, ternary):
    """On multiples of a quarter: exact in binary, so the membrane often lies right on the threshold."""
    x, v = [q / 4 for q in quarters], None if start is None else start / 4
    options = {"tau": tau, "theta": theta, "v_reset": v_reset, "decay_input": decay_input, "fire": fire}
    options["ternary"] = ternary
    x_BTD = torch.tensor(x, dtype=torch.float64).view(1, -1, 1)
    s, membrane = lif(x_BTD, None if v is None else torch.full((1, 1), v).double(), **options)
    wanted = lif_by_hand(x, v, **options)
    assert torch.cat([s, membrane], 2)[0].tolist() == [list(row) for row in wanted]
    if v is None and x:
        y, end = LIF(1, **options)(x_BTD)
        assert torch.equal(y, s) and torch.equal(end.v, membrane[:, -1])


def test_lif_fires_at_its_threshold_unless_told_otherwise():
    at_threshold = torch.full((1, 1, 1), 2.0)  # tau 2 halves it
    assert LIF()(at_threshold)[0].item() == lif(at_threshold)[0].item() == 1
    assert LIF(fire=">")(at_threshold)[0].item() == lif(at_threshold, fire=">")[0].item() == 0
    assert lif(-at_threshold, ternary=True)[0].item() == -1 and lif(-at_threshold)[0].item() == 0
    assert lif(-at_threshold, fire=">", ternary=True)[0].item() == 0


def test_egru_is_silent_at_its_threshold():
    x, weights = torch.zeros(1, 1, 1), [torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(3), torch.zeros(3)]
    state = EGRUState(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1))  # p = 1/2 at rest of all gates
    for thr, fires in ((0.5, 0), (0.4375, 1)):
        out, _ = egru(x, *weights, torch.tensor([thr]), state, surrogate=EGRU(1, 1).surrogate)
        assert out.o.item() == fires and out.y.item() == fires * 0.5


@pytest.mark.parametrize("v_reset", [0.25, None])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_a_detached_reset_has_no_gradient(detach_reset, v_reset):
    """dv/dx of one step that fires: v = h - s (h - v_reset) or h - s theta, with h = (x + v_reset) / 2."""
    cell = LIF(1, v_reset=v_reset, detach_reset=detach_reset).double()
    x = torch.full((1, 1, 1), 3.0, dtype=torch.float64, requires_grad=True)
    s, end = cell(x, LIFState(torch.zeros(1, 1, dtype=torch.float64)))
    h = 1.5 + (v_reset or 0.0) / 2
    assert s.item() == 1
    slope = 0.0 if detach_reset else cell.surrogate.slope(torch.tensor(h - 1.0, dtype=torch.float64)).item()
    wanted = 1 - slope if v_reset is None else 1 - 1 - slope * (h - v_reset)
    (gradient,) = torch.autograd.grad(end.v.sum(), x)
    assert abs(gradient.item() - wanted / 2) <= 1e-12


@pytest.mark.parametrize("v_reset", [0.25, None])
@pytest.mark.parametrize("drive", [3.0, -4.0, 0.5])
def test_the_gradient_of_a_ternary_spike_is_that_of_its_two_thresholds(drive, v_reset):
    """ds/dx = (a + b) / 2 with the slopes a at h - theta and b at -h - theta; dv/dx through the reset as well."""
    cell = LIF(1, v_reset=v_reset, ternary=True).double()
    x = torch.full((1, 1, 1), drive, dtype=torch.float64, requires_grad=True)
    s, end = cell(x, LIFState(torch.zeros(1, 1, dtype=torch.float64)))
    h = drive / 2 + (v_reset or 0.0) / 2
    a, b = (cell.surrogate.slope(torch.tensor(u, dtype=torch.float64)).item() for u in (h - 1, -h - 1))
    fired = abs(s.item())
    assert s.item() == (h >= 1) - (h <= -1)
    wanted = 1 - (a + b) if v_reset is None else 1 - fired - (a - b) * (h - v_reset)
    (of_s,), (of_v,) = (torch.autograd.grad(part.sum(), x, retain_graph=True) for part in (s, end.v))
    assert abs(of_s.item() - (a + b) / 2) <= 1e-12 and abs(of_v.item() - wanted / 2) <= 1e-12


@pytest.mark.parametrize("training", [False, True])
def test_the_egru_layer_is_the_op_with_its_own_settings(training):
    torch.manual_seed(0)
    cell = EGRU(3, 4, zoneout=0.3).double().train(training)
    x, parameters = torch.randn(2, 5, 3).double(), list(cell.parameters())
    options = {"surrogate": cell.surrogate, "zoneout": 0.3, "training": training}
    torch.manual_seed(1)
    y, end = cell(x)
    torch.manual_seed(1)
    wanted, last = egru(x, *parameters, **options)
    assert torch.equal(y, wanted.y) and all(torch.equal(a, b) for a, b in zip(end, last, strict=True))
    whole = cell.eval()(x, whole=True)[0]
    assert torch.equal(whole.y, cell(x)[0]) and torch.equal(whole.y != 0, whole.o > 0)


def test_parameters_are_brought_back_into_their_range():
    cell, unit = EGRU(1, 3), LIF(2, learn=("tau", "theta"))
    with torch.no_grad():
        cell.thr.copy_(torch.tensor([-0.5, 0.5, 1.5]))
        unit.tau.copy_(torch.tensor([0.5, 3.0]))
        unit.theta.copy_(torch.tensor([-1.0, 2.0]))
    cell.project_()
    unit.project_()
    assert cell.thr.tolist() == [0, 0.5, 1]
    assert unit.tau.tolist() == [1, 3] and unit.theta.tolist() == [pytest.approx(1e-3), 2]


def test_lif_takes_whole_numbers_and_refuses_what_is_no_number():
    assert LIF(2, tau=2, theta=1, learn=("tau", "theta")).tau.tolist() == [2.0, 2.0]
    for name in ("tau", "theta"):
        with pytest.raises(ConfigError, match=f"LIF {name}: expected at least"):
            LIF(**{name: float("nan")})
        with pytest.raises(
            ConfigError, match=f'LIF {name}: expected one number, got 2 of them; name it in learn=."{name}"'
        ):
            LIF(2, **{name: torch.tensor([2.0, 3.0])})


@pytest.mark.parametrize("make", [lambda s: LIF(2, surrogate=s), lambda s: EGRU(2, 2, s)])
def test_a_surrogate_that_is_none_is_refused_at_once(make):
    for wrong in ("atan", ATan):
        with pytest.raises(ConfigError, match="surrogate: expected a Surrogate, such as"):
            make(wrong)


def test_a_state_may_be_a_plain_tuple_and_a_membrane_itself():
    x, v = torch.randn(2, 5, 3), torch.randn(2, 3)
    cell = LIF(3)
    for state in ((v,), v):
        assert torch.equal(cell(x, state)[0], cell(x, LIFState(v))[0])
        assert torch.equal(cell.step(x[:, 0], state)[0], cell.step(x[:, 0], LIFState(v))[0])
    cell, state = EGRU(3, 3), EGRUState(v, v.tanh(), v)
    assert torch.equal(cell(x, tuple(state), whole=True)[0].y, cell(x, state)[0])
    assert type(cell(x, state, whole=True)[0]) is EGRUTrajectory
    for wrong in (v, (v, v)):
        with pytest.raises(ShapeError, match="egru state: expected y, c and trace, got"):
            cell(x, wrong)


class StepOnly(Cell):
    """A neuron as a stranger would add it: `initial_state` and `step`, the rest inherited."""

    input_size = 2

    def __init__(self):
        super().__init__()
        self.inner = LIF(2, tau=3.0, v_reset=-0.2)

    @property
    def surrogate(self):
        return self.inner.surrogate

    @surrogate.setter
    def surrogate(self, surrogate):
        self.inner.surrogate = surrogate

    def initial_state(self, batch, *, dtype=None, device=None):
        return self.inner.initial_state(batch, dtype=dtype, device=device)

    def step(self, x_BD, state):
        return self.inner.step(x_BD, state)


@given(st.integers(0, 2**31 - 1), st.integers(1, 3), st.integers(1, 5))
def test_a_neuron_of_a_step_alone_keeps_the_laws(seed, batch, steps):
    torch.manual_seed(seed)
    cell, x = StepOnly(), 2 * torch.randn(batch, steps, 2, dtype=torch.float64)
    state = LIFState(0.5 * torch.randn(batch, 2, dtype=torch.float64))
    laws.sequence_is_the_fold_of_step(cell, x, state)
    laws.any_cut_changes_nothing(cell, x, state, steps // 2)
    laws.no_steps_change_nothing(cell, x, state)
    laws.from_rest_is_from_the_initial_state(cell, x)
    laws.gradients_reach_the_initial_state(cell, x, state, [torch.randn_like(x), torch.randn_like(state.v)])
    laws.the_relaxed_form_has_the_gradients_it_claims(cell, x[:1, :2], LIFState(state.v[:1]))
