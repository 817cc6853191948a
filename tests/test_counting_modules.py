"""Whole modules of torch's that a counter gets wrong, against counts by hand; and what is said to be unknown."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rheobase.backends import count, simulate
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.lstm_lm import LSTMLM, LSTMLMConfig
from rheobase.spiking import LIF
from rheobase.spiking.errors import ConfigError, ShapeError, UnsupportedError
from rheobase.spiking.tally import BINARY, DENSE, GRADED, TERNARY, mark

B, T = 2, 7
X, SEQUENCE = torch.randn(4, 5), torch.randn(B, T, 5)


class Call(nn.Module):
    """A function as a module, with modules of its own."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrence_without_biases_adds_none(kind, dtype):
    """In float32 torch's LSTM is one operator, which says itself whether it has biases."""
    n, size, gates = B * T * 6, torch.empty(0, dtype=dtype).element_size(), 4 if kind is nn.LSTM else 3
    total = count(kind(5, 6, bias=False, batch_first=True).to(dtype), SEQUENCE.to(dtype), strict=True).total
    assert total.adds == 5 * n and total.macs == gates * n * 11
    assert total.weight_bytes == gates * n * 11 * size


def test_the_state_of_every_recurrent_module_of_torch():
    """One value a unit, step, layer and direction: the cell of an LSTM, the hidden value of the others."""
    lengths = torch.tensor([T, 4])

    def packed(x, lstm):
        return lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[0].data

    def cell(x, step):
        return step(x[:, 0])

    for values, module in (
        (B * T * 6, nn.RNN(5, 6, batch_first=True)),
        (B * T * 6 * 4, nn.GRU(5, 6, num_layers=2, bidirectional=True, batch_first=True)),
        (B * T * 6, nn.LSTM(5, 6, proj_size=2, batch_first=True).double()),
        ((T + 4) * 6, Call(packed, nn.LSTM(5, 6, batch_first=True))),
        (B * 6, Call(cell, nn.LSTMCell(5, 6))),
        (B * 6, Call(cell, nn.GRUCell(5, 6))),
        (B * 6, Call(cell, nn.RNNCell(5, 6))),
    ):
        x = SEQUENCE.to(next(module.parameters()).dtype)
        total = count(module, x, strict=True).total
        assert total.state_updates == total.event_updates == values, module
        assert total.state_bytes == 2 * x.element_size() * values


def test_states_within_states_of_other_libraries():
    """snnTorch's SLSTM has an LSTMCell inside, whose state is its own; Norse's refractory LIF a state in its state."""
    snntorch, norse = pytest.importorskip("snntorch"), pytest.importorskip("norse.torch")
    neuron = snntorch.SLSTM(5, 6)
    lstm = Call(lambda x, n: n(x[:, 0], *n.reset_mem())[0], neuron)
    assert count(lstm, SEQUENCE).state_updates == 2 * B * 6
    assert count(Call(lambda x, n: n(x[:, 0])[0], norse.LIFRefracCell()), SEQUENCE).state_updates == 3 * B * 5


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_counted_and_not_named_as_one_operator(need_weights):
    net = Call(lambda x, a: a(x, x, x, need_weights=need_weights)[0], nn.MultiheadAttention(8, 2, batch_first=True))
    before = torch.backends.mha.get_fastpath_enabled()
    total = count(net, torch.randn(B, T, 8), strict=True).total
    assert total.macs == B * T * 4 * 8 * 8 + 2 * B * T * T * 8
    assert total.transcendentals == {"exp": 2 * B * T * T, "division": 2 * B * T * T}
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_under_inference_mode_the_same_is_counted():
    net = nn.Sequential(nn.Conv1d(T, 3, 2), nn.Linear(4, 3), nn.LayerNorm(3), nn.Softmax(-1))

    def inferred(x, part):
        with torch.inference_mode():
            return part(x)

    plain = count(net, SEQUENCE, strict=True)
    assert count(Call(inferred, net), SEQUENCE, strict=True).total == plain.total
    with torch.inference_mode():
        assert count(net, SEQUENCE.clone(), strict=True) == plain


@pytest.mark.parametrize("largest", [torch.max, torch.min])
def test_under_inference_mode_a_name_with_several_forms_is_the_same(largest):
    net = Call(lambda x: largest(x, -x))
    plain = count(net, X, strict=True)
    with torch.inference_mode():
        assert count(net, X.clone(), strict=True) == plain and plain.comparisons


def test_what_cannot_be_put_to_eval_is_named():
    exported = torch.export.export(nn.Linear(5, 3), (X,)).module()
    with pytest.raises(UnsupportedError, match="modules that can be put to eval.*, got one of torch.export"):
        count(exported, X)


class Marked(nn.Module):
    """A layer that reads what it says is of a kind."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.inside = kind, nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.inside(mark(F.relu(x), self.kind))


def test_a_cell_cannot_pass_values_off_as_spikes():
    n = int((X > 0).sum())
    graded, dense = (count(Marked(kind), X, strict=True) for kind in (GRADED, DENSE))
    assert (graded.events, graded.macs, dense.events, dense.macs) == (n, 3 * n, 0, 3 * X.numel())
    for kind in (BINARY, TERNARY):
        with pytest.raises(ShapeError, match=f"mark: expected {kind} values, 0 and one number"):
            count(Marked(kind), X)
        assert count(Marked(kind), X.sign(), strict=True).acs == 3 * n
    with pytest.raises(ConfigError, match="mark: expected one of BINARY, TERNARY, GRADED, DENSE, got 'Graded'"):
        count(Marked("Graded"), X)


NORMS = {
    "InstanceNorm": (nn.InstanceNorm1d(3), torch.randn(2, 3, 7), 6),
    "BatchNorm without running statistics": (nn.BatchNorm1d(5, affine=False, track_running_stats=False), X, 5),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_by_the_batch_s_own_statistics_computes_them(name):
    net, x, rows = NORMS[name]
    n, total = x.numel(), count(net, x, strict=True).total
    assert (total.products, total.adds) == (2 * n + 2 * rows, 3 * n - rows)
    assert total.transcendentals == {"rsqrt": rows}


def test_factors_of_activations():
    for net, products in ((nn.ELU(), 0), (nn.ELU(2.0), 20), (nn.SELU(), 40), (nn.Softplus(beta=2), 20)):
        total = count(net, X, strict=True).total
        assert total.products == products and total.transcendentals["exp"] == 20, net
    assert count(nn.Softplus(beta=2), X).transcendentals == {"exp": 20, "log": 20, "division": 20}
    assert "division" not in count(nn.Softplus(), X).transcendentals


def test_a_parameter_beside_spikes_is_no_spike():
    """A learnt class token before spikes, and a parameter copied over them: what is read is dense."""
    token, layer = nn.Parameter(torch.randn(1, 5)), nn.Linear(5, 3, bias=False)
    net = Call(lambda x, layer: layer(torch.cat([net.token, (x > 0).float()])), layer)
    net.token = token
    assert (count(net, X).macs, count(net, X).acs) == (5 * 5 * 3, 0)
    net.function = lambda x, layer: layer((x[:1] > 0).float().copy_(net.token))
    assert (count(net, X).macs, count(net, X).acs) == (5 * 3, 0)


def test_attention_reads_no_weights():
    """q k^T: both follow from the input; the bytes are those of q, k and their product, read and written once."""
    keys = nn.Linear(5, 5, bias=False)
    total = count(Call(lambda x, keys: x @ keys(x).t(), keys), X, strict=True).operators
    assert total["parts.0"].weight_bytes == 4 * 5 * 5 * 4
    assert (total["(module)"].weight_bytes, total["(module)"].activation_bytes) == (0, (20 + 20 + 16) * 4)

    def cached(x):
        cache = torch.zeros(6, 5)
        cache[:4] = x
        return x @ cache.t()

    assert count(Call(cached), X).weight_bytes == 0
    stored = torch.ones(3, 5, dtype=torch.int8)
    assert count(Call(lambda x: x @ (0.1 * stored.float()).t()), X).weight_bytes == 4 * 5 * 3 * 4, "weights in int8"


def test_events_on_either_side_of_an_attention_are_delivered():
    """Spiking attention: q k^T reads the spikes of both, and (q k^T) v those of v, whatever the other operand is."""
    q, k, v = (torch.rand(B, T, 5) > 0.6 for _ in range(3))

    def attend(x):
        q, k, v = (x > 0.5).float().chunk(3, -1)
        return (q @ k.mT) * 0.125 @ v

    total = count(Call(attend), torch.cat([q, k, v], -1).float()).total
    assert total.deliveries == int(q.sum() + k.sum() + v.sum())
    assert total.acs == int((q.double() @ k.double().mT).sum()) + T * int(v.sum()) and total.macs == 0


def test_a_square_reads_its_operand_once_however_it_is_written():
    assert count(Call(lambda x: x * x), X) == count(Call(lambda x: x**2), X) == count(Call(torch.square), X)


UNKNOWN = {
    "aten.mm of complex numbers": lambda x: x.cfloat() @ x.t().cfloat(),
    "aten.mul of complex numbers": lambda x: x.cfloat() * 2,
    "aten.bmm of torch.sparse_coo": lambda x: torch.bmm(x.view(2, 2, 5).to_sparse(), x.view(2, 5, 2)),
    "aten.mv of torch.sparse_coo": lambda x: x.to_sparse() @ x[0],
    "aten.mul of torch.sparse_coo": lambda x: x.to_sparse() * x,
    "aten._trilinear": nn.Bilinear(5, 5, 3),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_no_rule_counts_is_named_and_nothing_is_counted_for_it(name):
    act = UNKNOWN[name]
    net = Call(lambda x, part: part(x, x), act) if isinstance(act, nn.Module) else Call(act)
    tally = count(net, X)
    assert name in tally.uncounted and (tally.macs, tally.products) == (0, 0)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_scripted_or_traced_module_is_refused_in_a_line():
    """A traced LIF would have no events and no state."""
    for module in (torch.jit.script(nn.Linear(5, 3)), torch.jit.trace(LIF(5), (X[None],))):
        with pytest.raises(UnsupportedError, match="count parts.0: expected modules that run in Python"):
            count(Call(lambda x, part: part(x[None]), module), X)


def test_sparse_weights_and_empty_batches():
    weight = nn.Parameter(torch.eye(5).to_sparse(), requires_grad=False)
    net = Call(lambda x: x @ net.weight.t())
    net.weight = weight
    assert count(net, X).macs == 4 * 5
    assert count(nn.GroupNorm(1, 5), torch.randn(0, 5, 2)).products == 0


def test_integers_of_64_bits_that_meet_weights_are_counted():
    x = (9 * X).long()
    weight = torch.ones(2, 1, 3, dtype=torch.int64)
    assert count(Call(lambda x: F.conv1d(x[:, None], weight)), x).macs == 4 * 3 * 3 * 2
    total = count(Call(lambda x: torch.sparse.mm(x.to_sparse(), weight.view(2, 3)[[0] * 5])), x).total
    assert total.macs == int((x != 0).sum()) * 3


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.complex64])
def test_tokens_of_frames_are_steps_whatever_their_type(dtype):
    frames = torch.ones(B, T, 2, 4, 4, dtype=dtype)
    assert count(nn.Identity(), frames).tokens == B * T
    assert count(nn.Identity(), frames[:, :, 0, 0]).tokens == B * T
    assert count(nn.Identity(), torch.ones(B, T, dtype=torch.uint8)).tokens == B * T


def test_a_fused_recurrence_moves_what_its_graph_moves():
    """In float32, where torch's LSTM is one operator, every byte is that of the graph's products and cell."""
    model, tokens = LSTMLM(LSTMLMConfig(vocabulary=11, embedding=6, layers=(6,))).eval(), torch.randint(11, (B, T))
    seen, simulated = count(model, tokens).operators, simulate(model.lower(), tokens).tally.operators
    layer = [name for name in simulated if name.startswith("layers.0")]
    assert len(layer) == 3 and all(seen[name] == simulated[name] for name in layer)


def test_a_mix_reads_its_share_and_the_rest_whoever_counts():
    """x s + before (1 - s), with 1 - s made ahead of time as torch's count takes it: two numbers a channel."""
    model = SpikeGPT(SpikeGPTConfig(vocabulary=11, embedding=6, depth=2, placement="continuous")).eval()
    tokens = torch.randint(11, (B, T))
    assert simulate(model.lower(), tokens).tally.weight_bytes == count(model, tokens).weight_bytes
