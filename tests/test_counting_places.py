"""What is counted of values put at places, of what is added to products, and of operands that are seldom events."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rheobase.backends import count
from rheobase.backends.counting import break_even
from rheobase.spiking.errors import ShapeError

X, PLACES = torch.randn(4, 5), torch.tensor([0, 1, 1, 0])
COLUMNS = torch.zeros(4, 2, dtype=torch.int64)


class With(nn.Module):
    """A function of a weight and an input."""

    def __init__(self, function, *shape):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.randn(shape)), function

    def forward(self, x):
        return self.function(self.weight, x)


def counted(function, x, *shape):
    return count(With(function, *shape), x, strict=True).total


def test_one_value_added_at_many_places():
    total = counted(lambda _, x: torch.zeros(4).index_put((PLACES,), x, accumulate=True), torch.tensor(2.0))
    assert total.adds == 4 and total.activation_bytes == 2 * 4 * 4
    total = counted(lambda _, x: torch.ops.aten.index_put(x, [None, PLACES], x.new_ones(()), True), X)
    assert total.adds == 4 * 4


def test_a_scatter_writes_as_many_values_as_places():
    for value in (X, 1, True):
        total = counted(lambda _, x, value=value: x.scatter(1, COLUMNS, value), X)
        assert (total.adds, total.activation_bytes) == (0, 2 * 8 * 4)
    total = counted(lambda _, x: x.scatter_add(1, COLUMNS, x), X)
    assert (total.adds, total.activation_bytes) == (8, 2 * 8 * 4)


def test_a_factor_multiplies_what_is_added_and_no_places():
    total = counted(lambda _, x: x.new_zeros(2, 5).index_add(0, PLACES, x, alpha=0.5), X)
    assert (total.adds, total.products) == (20, 20)
    assert counted(lambda _, x: torch.add(x, x, alpha=2), torch.arange(4)).products == 0


def test_weights_of_a_test_are_read_in_their_own_type():
    assert counted(lambda weight, x: x > weight, X, 5).weight_bytes == 20 * 4


def test_rows_by_a_mask_and_of_a_table_without_any():
    assert counted(lambda weight, x: weight[x], torch.tensor([True, False, True]), 3, 4).rows == 2
    assert counted(lambda weight, x: weight[x], torch.eye(3).bool(), 3, 3, 4).rows == 0, "parts of rows"
    assert counted(lambda weight, x: weight[x], torch.zeros(0, dtype=torch.int64), 0, 4).rows == 0


def test_a_variance_of_nothing_takes_nothing_away():
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert counted(lambda _, x: x.var(1), torch.zeros(3, 0)).adds == 0


ADDED = {
    "addmm": lambda weight, x: torch.addmm(weight[0], x, weight),
    "addmv": lambda weight, x: torch.addmv(weight[0], weight.t(), x[0]),
    "baddbmm": lambda weight, x: torch.baddbmm(weight[0], x[None], weight[None]),
}


@pytest.mark.parametrize("name", ADDED)
def test_a_bias_is_weights(name):
    total = counted(ADDED[name], X, 5, 3)
    assert total.weight_bytes == 4 * (total.macs + total.adds)


def test_what_follows_from_the_input_is_no_bias():
    total = counted(lambda weight, x: torch.addmm(x, x, weight), X, 5, 5)
    assert total.weight_bytes == 4 * total.macs and total.activation_bytes == 4 * (20 + 20 + 20)


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_blocks_of_a_sparse_matrix_hold_several_values():
    values, rows, columns = torch.ones(2, 2, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    blocks = torch.sparse_bsr_tensor(rows, columns, values, (4, 4))
    assert counted(lambda _, x: blocks @ x, torch.randn(4, 3)).macs == 8 * 3


def test_the_magnitude_of_complex_numbers_is_no_move():
    assert count(With(lambda _, x: x.abs()), torch.complex(X, X)).uncounted == ("aten.abs of complex numbers",)
    assert count(With(lambda _, x: -x), torch.complex(X, X)).uncounted == ()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("convolve", [F.conv1d, F.conv_transpose1d])
def test_events_as_kernels(convolve, groups):
    x, kernels = torch.randn(3, 4, 6), torch.randn(4, 4 // groups, 3)

    def products(of_x, of_kernels):
        return int(convolve(of_x.double(), of_kernels.double(), padding=1, groups=groups).sum())

    total = counted(lambda _, x: convolve(x, (kernels + 0 * x.sum() > 0).float(), padding=1, groups=groups), x)
    assert (total.macs, total.acs) == (0, products(torch.ones_like(x), kernels > 0))
    assert total.deliveries == int((kernels > 0).sum())
    both = counted(
        lambda _, x: convolve((x > 0).float(), (kernels + 0 * x.sum() > 0).float(), padding=1, groups=groups), x
    )
    assert both.acs == products(x > 0, kernels > 0)
    assert both.dense_macs == total.dense_macs == products(torch.ones_like(x), torch.ones_like(kernels))


@pytest.mark.parametrize("events", ["q", "k", "v", "qk", "qkv"])
def test_attention_of_events_is_counted_as_its_products_are(events):
    def attend(_, x, **how):
        return F.scaled_dot_product_attention(*((x > 0).float() if t in events else x for t in "qkv"), **how)

    x = torch.randn(2, 3, 5, 4)
    fused = counted(attend, x)
    with sdpa_kernel(SDPBackend.MATH):
        plain = counted(attend, x)
    for field in ("dense_macs", "macs", "acs", "rows", "deliveries"):
        assert getattr(fused, field) == getattr(plain, field), field
    causal = counted(lambda _, x: attend(_, x, is_causal=True), x)
    seen, held = torch.ones(5, 5).tril(), [(x > 0) if t in events else torch.ones_like(x) for t in "qkv"]
    q, k, v = (t.float() for t in held)
    assert causal.macs + causal.acs == int((q @ k.mT * seen).sum() + (seen @ v).sum())


def test_a_head_of_events_that_several_read():
    x = torch.randn(2, 4, 5, 4)
    total = counted(
        lambda _, x: F.scaled_dot_product_attention(x, (x > 0).float()[:, :2], x[:, :2], enable_gqa=True), x
    )
    assert total.acs == 2 * 5 * int((x[:, :2] > 0).sum()) and total.macs == 2 * 4 * 5 * 5 * 4


def test_events_that_a_list_operator_wrote_to_are_none():
    def add(_, x):
        spikes = (x > 0).float()
        torch._foreach_add_([spikes], 1.0)
        return spikes @ x.t()

    total = count(With(add), X)
    assert total.macs == 4 * 4 * 5 and total.acs == 0 and total.uncounted == ("aten._foreach_add_",)


def test_no_rate_where_events_reach_no_unit():
    tally = count(With(lambda weight, x: (x > 0).float() @ weight, 5, 0), X)
    assert tally.deliveries and break_even(tally, "horowitz-45nm").rate is None


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr])
def test_events_meet_the_stored_values_of_a_sparse_matrix(layout):
    dense = torch.randn(6, 4) * torch.tensor([1.0, 1, 0, 0, 1, 1])[:, None]
    size = {"blocksize": (2, 2)} if layout == torch.sparse_bsr else {}
    weight, x = dense.to_sparse(layout=layout, **size), torch.randn(4, 5)
    total = counted(lambda _, x: weight @ (x > 0).float(), x)
    assert (total.macs, total.acs) == (0, int(((dense != 0).float() @ (x > 0).float()).sum()))
    assert total.deliveries == int((x > 0).sum())


def test_a_sparse_matrix_of_events_holds_events():
    total = counted(lambda _, x: (x > 0).float().to_sparse() @ torch.ones(5, 3), X)
    assert (total.macs, total.acs, total.deliveries) == (0, 3 * int((X > 0).sum()), int((X > 0).sum()))


def test_a_state_in_a_dictionary_is_a_state():
    class Net(nn.Module):
        def forward(self, x, state):
            return x @ (state["h"] if isinstance(state, dict) else state)

    h = torch.randn(5, 3)
    assert count(Net(), X, {"h": h}) == count(Net(), X, h) and count(Net(), X, h).weight_bytes == 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_refused(layout):
    nested = torch.nested.nested_tensor([X, X[:2]], layout=layout)
    with pytest.raises(ShapeError, match="count tokens: expected one tensor, got a nested one; pad it"):
        count(nn.Linear(5, 3), nested)
