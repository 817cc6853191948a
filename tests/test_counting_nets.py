"""Whole networks are counted whole, those of other libraries too."""

import threading

import pytest
import torch
from test_counting_operators import X, spikegpt
from torch import nn

from rheobase.backends import count
from rheobase.spiking import LIF
from rheobase.spiking.errors import ShapeError, UnsupportedError
from rheobase.spiking.tally import BINARY


class Compiled(nn.Module):
    """A linear layer, and a compiled region behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.region = nn.Linear(5, 3), torch.compile(lambda x: torch.sigmoid(x @ x.t()))

    def forward(self, x):
        return self.region(self.first(x))


def test_a_compiled_region_is_counted():
    total = count(Compiled(), X, strict=True).total
    assert (total.macs, total.transcendentals) == (60 + 4 * 4 * 3, {"sigmoid": 16})


def test_prefill_and_decode_apart():
    """One call over a prompt, and a call a token from its state, do the same but are told apart."""
    model, tokens = spikegpt(), torch.randint(13, (1, 12))
    prefill = count(model, tokens[:, :8])
    with torch.no_grad():
        _, state = model(tokens[:, :8])
        decode = []
        for t in range(8, 12):
            decode.append(count(model, tokens[:, t : t + 1], state))
            _, state = model(tokens[:, t : t + 1], state)
    assert [part.tokens for part in decode] == [1] * 4 and prefill.tokens == 8
    assert sum(decode, start=prefill) == count(model, tokens)


class SnnTorchNet(nn.Module):
    """snnTorch's usual loop: Linear, Leaky, Linear, Synaptic."""

    def __init__(self):
        super().__init__()
        snntorch = pytest.importorskip("snntorch")
        self.l1, self.n1 = nn.Linear(5, 6), snntorch.Leaky(beta=0.8, threshold=0.1)
        self.l2, self.n2 = nn.Linear(6, 3), snntorch.Synaptic(alpha=0.5, beta=0.8, init_hidden=True)
        self.n2.spike_grad = self.n1.spike_grad
        self.fired = 0

    def forward(self, x):
        mem, out, self.fired = self.n1.reset_mem(), [], 0
        for x_t in x.unbind(1):
            s, mem = self.n1(self.l1(x_t), mem)
            self.fired += int(s.sum())
            out.append(self.n2(self.l2(s)))
        return torch.stack(out, 1)


class NorseNet(nn.Module):
    """Norse's step cells and its sequence module."""

    def __init__(self):
        super().__init__()
        norse = pytest.importorskip("norse.torch")
        p = norse.LIFBoxParameters(v_th=torch.tensor(0.05))
        self.l1, self.n1, self.l2, self.n2 = nn.Linear(5, 6), norse.LIFBoxCell(p), nn.Linear(6, 3), norse.LIF()
        self.fired = 0

    def forward(self, x):
        state, out, self.fired = None, [], 0
        for x_t in x.unbind(1):
            s, state = self.n1(self.l1(x_t), state)
            self.fired += int(s.sum())
            out.append(self.l2(s))
        return self.n2(torch.stack(out))[0]


@pytest.mark.parametrize("make, parts", [(SnnTorchNet, 2), (NorseNet, 2)])
def test_nets_of_other_libraries_are_counted_whole(make, parts):
    torch.manual_seed(0)
    net, x = make(), torch.randn(2, 7, 5)
    tally = count(net, x, strict=True)
    fired = net.fired
    l1, n1, l2, n2 = (tally.operators[name] for name in ("l1", "n1", "l2", "n2"))
    assert 0 < fired < 2 * 7 * 6 and (l1.macs, l1.acs) == (2 * 7 * 5 * 6, 0)
    assert (l2.macs, l2.acs, l2.deliveries) == (0, 3 * fired, fired)
    assert (n1.state_updates, n2.state_updates) == (2 * 7 * 6, parts * 2 * 7 * 3) and n1.events == fired
    assert n1.comparisons >= 2 * 7 * 6 and n1.products >= 2 * 7 * 6


def test_what_is_made_in_the_shape_of_a_parameter_is_not_a_parameter():
    module = nn.Linear(3, 3, bias=False)

    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            w = self.inner.weight
            buffer = torch.zeros_like(w)
            buffer[0] = x[0]
            return torch.sigmoid(buffer) @ w

    total = count(Filled(), torch.randn(1, 3)).total
    assert (total.macs, total.transcendentals) == (27, {"sigmoid": 9})


def test_a_neuron_of_another_library_alone_and_one_derived_from_it():
    snntorch = pytest.importorskip("snntorch")

    class Mine(snntorch.Leaky):
        """A neuron of one's own."""

    x = torch.ones(2, 4)
    for net in (snntorch.Leaky(beta=0.5, init_hidden=True), nn.Sequential(Mine(beta=0.5, init_hidden=True))):
        tally = count(net, x)
        assert tally.state_updates == 8
    lstm = count(nn.LSTM(4, 3, batch_first=True), torch.randn(2, 5, 4))
    assert lstm.state_updates == 2 * 5 * 3


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_torchs_own_cells_keep_a_value_a_unit_and_step(kind):
    cell = kind(4, 3)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            state = None
            for x_B4 in x.unbind(1):
                state = self.cell(x_B4, state)
            return state

    net = Loop() if kind.__name__.endswith("Cell") else cell
    assert count(net, torch.randn(2, 5, 4), strict=True).state_updates == 2 * 5 * 3


def test_several_inputs_are_refused_in_one_line():
    with pytest.raises(ShapeError, match="count tokens: expected one tensor, got tuple; wrap a module of several"):
        count(nn.Bilinear(5, 5, 3), (X, X))


def test_what_another_thread_runs_meanwhile_is_not_counted():
    model, tokens, done = spikegpt(), torch.arange(12)[None], threading.Event()

    def run():
        while not done.is_set():
            with torch.no_grad():
                model(tokens)

    alone, other = count(model, tokens), threading.Thread(target=run)
    other.start()
    try:
        assert all(count(model, tokens) == alone for _ in range(20))
    finally:
        done.set()
        other.join()


def test_a_graph_is_refused_in_one_line():
    with pytest.raises(UnsupportedError, match="count: expected a torch module, got EventGraph; .*simulate"):
        count(spikegpt().lower(), X)


def test_counting_leaves_the_modes_of_modules_as_they_were():
    net = nn.Sequential(nn.BatchNorm1d(5).eval(), nn.Dropout())
    net.train()
    net[0].eval()
    count(net, X)
    assert net.training and not net[0].training and net[1].training


class Gestures(nn.Module):
    """A spiking CNN: convolution, LIF, pooling, convolution, LIF, linear."""

    def __init__(self):
        super().__init__()
        self.c1, self.n1, self.pool = nn.Conv2d(2, 4, 3, padding=1), LIF(4 * 8 * 8, theta=0.1), nn.MaxPool2d(2)
        self.c2, self.n2, self.out = nn.Conv2d(4, 4, 3), LIF(4 * 2 * 2, theta=0.1), nn.Linear(16, 10)

    def forward(self, x):
        batch, steps = x.shape[:2]
        s = self.n1(self.c1(x.flatten(0, 1)).view(batch, steps, -1))[0]
        pooled = self.pool(s.view(-1, 4, 8, 8))
        s = self.n2(self.c2(pooled).view(batch, steps, -1))[0]
        return self.out(s)


def test_a_spiking_cnn_is_counted_whole():
    torch.manual_seed(0)
    net, x = Gestures(), (torch.rand(2, 5, 2, 8, 8) > 0.8).float()
    tally = count(net, x, kind=BINARY, strict=True)
    assert all(tally.operators[name].macs == 0 < tally.operators[name].acs for name in ("c1", "c2", "out"))
    assert tally.operators["out"].acs == 10 * tally.operators["n2"].events


@pytest.mark.parametrize(
    ("name", "parts"), [("IFNode", 1), ("LIFNode", 1), ("CUBALIFNode", 2), ("IzhikevichNode", 2), ("RAFNode", 2)]
)
def test_spikingjellys_neurons_keep_all_their_states(name, parts):
    """A current beside the membrane, a recovery, the other half of a resonator; what they store for study is none."""
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    neuron = getattr(neurons, name)()
    neuron.step_mode, neuron.store_v_seq = "m", True
    assert count(neuron, torch.randn(3, 2, 6)).state_updates == parts * 36


def test_the_state_of_spikingjellys_readouts_is_named():
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron")
    for decode in (None, "last_mem"):
        tally = count(neurons.NonSpikingLIFNode(decode=decode), torch.randn(3, 2, 6))
        assert tally.uncounted == ("state of NonSpikingLIFNode",)
