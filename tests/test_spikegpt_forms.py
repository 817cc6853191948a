"""The forms of SpikeGPT that its original does not have, and what training adds to the cross-entropy."""

import copy
import dataclasses
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from test_golden_spikegpt import small, tokens_for

from rheobase import load
from rheobase.backends import count, simulate
from rheobase.models import RWKV4, RWKV4Config
from rheobase.models._norms import StaticNorm
from rheobase.models._rwkv import wake
from rheobase.models.training import loop
from rheobase.models.training.objective import Budget, BudgetConfig, Objective, Teacher, TeacherConfig, warm_start
from rheobase.models.training.run import RunConfig
from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError

FED = {"placement": "spike_fed"}
FORMS = {
    "static": {**FED, "norm": "static"},
    "static, spiking head": {**FED, "norm": "static", "head": "spiking", "binary_embedding": False},
    "spiking head": {**FED, "head": "spiking"},
    "learnt": {**FED, "learn": ("tau", "theta")},
    "ternary": {**FED, "ternary": True, "head": "spiking"},
    "ternary reference": {"ternary": True},
    "graded": {**FED, "graded": True, "tau": 1.0},
    "graded, static": {**FED, "graded": True, "norm": "static", "head": "spiking", "learn": ("tau", "theta")},
    "graded reference": {"graded": True, "ternary": True},
    "snntorch": {**FED, "neuron": "snntorch:Leaky", "neuron_settings": ("beta=0.5", "threshold=0.5")},
    "norse": {"neuron": "norse:LIF"},
    "continuous": {"placement": "continuous", "binary_embedding": False},
}


def form(name):
    """A model of that form whose norms, where they are static, hold statistics of their own and are removed."""
    model = small(**FORMS[name])
    if model.config.norm == "static":
        model.train()
        for _ in range(3):
            model(tokens_for(model, steps=20))
        model.advance(1.0)
    with torch.no_grad():
        for path, p in model.named_parameters():
            if path.endswith((".tau", ".theta")):
                p.copy_(torch.linspace(0.8, 1.2, len(p)))
    model.project_()
    return model.eval()


@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_step_form_is_sequence_form_at_any_cut(name):
    model = form(name)
    tokens = tokens_for(model)
    logits, end, runs = model.run(tokens)
    for cut in (0, 1, 6, 11):
        first, middle = model(tokens[:, :cut])
        second, last = model(tokens[:, cut:], middle)
        assert (torch.cat([first, second], 1) - logits).abs().max() <= 1e-12
        for a, b in zip(last, end, strict=True):
            assert all(torch.allclose(x, y, atol=1e-12, rtol=0) for x, y in zip(a, b, strict=True))
    rates = [s.abs().mean().item() for s in runs.spikes]
    assert not rates or 0.02 < sum(rates) / len(rates) < 0.9 and max(rates) < 0.95


@pytest.mark.parametrize("on", ["event", "torch"])
@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_the_lowered_model_gives_its_spikes_and_logits(name, on):
    model = form(name)
    tokens = tokens_for(model, steps=40)
    logits, _, runs = model.run(tokens)
    trace = simulate(model.lower(), tokens, on=on)
    assert np.abs(trace.outputs["logits"] - logits.numpy()).max() < 1e-9
    assert all(r.min() >= 1 for n, r in model.named_parameters() if n.endswith(".tau"))
    for path, spikes in zip(model.event_layers, runs.spikes, strict=True):
        sent = trace.events[f"{path}.s"].to_dense()
        if model.config.graded:
            assert np.array_equal(sent != 0, spikes.numpy() != 0) and not np.array_equal(sent, spikes.numpy()), path
        else:
            assert np.array_equal(sent, spikes.numpy()), path
    assert model.config.ternary == any((s < 0).any() for s in runs.spikes)


@pytest.mark.parametrize("name", FORMS)
def test_counts(name):
    """Both counters agree on products with weights and events; what a budget sees is what they count."""
    model = form(name)
    tokens = tokens_for(model, steps=30)
    torch_count, graph_count = count(model, tokens), simulate(model.lower(), tokens).tally
    assert torch_count.uncounted == ()
    assert graph_count == simulate(model.lower(), tokens, on="torch").tally
    assert count(model, tokens, kernels="reference").without_bytes() == torch_count.without_bytes(), "told and seen"
    same = ("dense_macs", "macs", "acs", "state_updates")
    if model.config.neuron.startswith("snntorch"):  # its step computes more than the op that equals it
        assert all(getattr(torch_count, field) == getattr(graph_count, field) for field in (*same, "events"))
    elif model.config.norm == "layer":
        ours, graphs = torch_count.total.without_bytes(), graph_count.total.without_bytes()
        if model.config.neuron.startswith("norse"):  # its step adds more than the op that equals it
            assert ours.adds > graphs.adds
            graphs = dataclasses.replace(graphs, adds=ours.adds)
        assert ours == graphs
    else:
        assert "rsqrt" in count(small(**FED), tokens).total.transcendentals
        assert "rsqrt" not in graph_count.total.transcendentals
        for field in same:
            assert getattr(torch_count, field) == getattr(graph_count, field), field
        binary = model.embed(tokens).sum().item() if model.config.binary_embedding else 0
        assert torch_count.events - graph_count.events == binary, "the table holds what became of the embedding"
        assert graph_count.products < torch_count.products
    if model.config.placement == "spike_fed":
        operations = model.operations(model.run(tokens)[2]).item() * tokens.numel()
        assert operations == pytest.approx(graph_count.macs + graph_count.acs, rel=1e-12)
        if model.config.head == "spiking":
            assert (graph_count.acs if model.config.graded else graph_count.macs) == 0


@torch.no_grad()
def test_a_static_norm_goes_from_layer_norm_to_its_constants():
    torch.manual_seed(0)
    norm, x = StaticNorm(6).double(), 3 * torch.randn(4, 50, 6).double() + 1
    norm.weight.copy_(torch.linspace(0.5, 2, 6))
    norm.bias.copy_(torch.linspace(-1, 1, 6))
    plain = torch.nn.functional.layer_norm(x, (6,), norm.weight, norm.bias)
    assert torch.equal(norm(x), plain)
    mean, deviation = x.mean().item(), (x.var(-1, correction=0) + 1e-5).sqrt().mean().item()
    assert norm.mean.item() == pytest.approx(mean) and norm.deviation.item() == pytest.approx(deviation)
    norm(x + 1)
    assert norm.mean.item() == pytest.approx(mean + 0.01)
    norm.eval()
    norm(x + 9)
    norm.mean.fill_(mean)
    constant = (x - mean) / norm.deviation * norm.weight + norm.bias
    for removed in (0.25, 1.0):
        norm.removed.fill_(removed)
        assert torch.allclose(norm(x), (1 - removed) * plain + removed * constant, atol=1e-12)
    assert torch.allclose(norm(x) - norm(x * 0), norm.scale() * x, atol=1e-12), "linear"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda norm: pickle.loads(pickle.dumps(norm))])
def test_a_copied_static_norm_knows_what_it_loads(copied):
    norm, gone = StaticNorm(6), StaticNorm(6)
    for removed in (0.2, 0.5):  # two changes of a buffer, as many as the copy's sees
        norm.remove(removed)
    gone.remove(1.0)
    other = copied(norm)
    other.load_state_dict(gone.state_dict())
    assert other.gone and not norm.gone


def test_a_static_norm_runs_in_inference_mode():
    """Whose tensors count no changes."""
    norm, x = StaticNorm(6).eval(), torch.randn(2, 3, 6)
    with torch.inference_mode():
        there = norm.double()
        plain = there(x.double())
        there.remove(1.0)
        assert there.gone and not torch.equal(there(x.double()), plain)


def test_a_static_norm_learns_nothing_from_no_tokens():
    model = small(**FED, norm="static").train()
    tokens = tokens_for(model, steps=5)
    model(tokens)
    known = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(tokens[:0])
    model(tokens[:, :0])
    assert all(torch.equal(buffer, known[name]) for name, buffer in model.named_buffers())


def test_a_static_norm_is_called_twice_before_a_backward_pass():
    model = small(**FED, norm="static").train()
    tokens = tokens_for(model, steps=5)
    first, state = model(tokens)
    second, _ = model(tokens, state)
    (first.sum() + second.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_a_static_norm_watches_the_new_tokens_and_not_the_one_carried():
    torch.manual_seed(0)
    last, (shifting, plain) = torch.full((4, 6), 1e6).double(), (StaticNorm(6).double() for _ in range(2))
    for x in torch.randn(2, 4, 50, 6).double():
        a, _, carried = shifting.shifted(x, last)
        assert torch.equal(a, plain(x)) and torch.equal(carried, x[:, -1])
        assert (shifting.mean, shifting.deviation) == (plain.mean, plain.deviation)


@pytest.mark.parametrize("kernels", ["", "reference"])
@pytest.mark.parametrize("form", [{}, *FORMS.values()], ids=["reference", *FORMS])
def test_a_state_keeps_no_sequence(form, kernels, monkeypatch):
    monkeypatch.setenv("RHEOBASE_KERNELS", kernels)
    model = small(**form)
    for part in (part for layer in model.run(tokens_for(model, 1, 20))[1] for part in layer):
        assert part.untyped_storage().nbytes() <= 3 * part.nbytes, "WKV's three lie side by side"


@torch.no_grad()
def test_autocast_leaves_a_model_in_float64_alone():
    model = small()
    tokens = tokens_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = model(tokens)
    assert torch.equal(got, model(tokens)[0])


def test_the_schedule_of_the_norms():
    model = small(**FED, norm="static")
    shares = []
    for done in (0.0, 0.2, 0.4, 0.6, 1.0):
        model.advance(done)
        shares.append(round(model.ln_out.removed.item(), 12))
        assert model.complete == (done >= 0.6)
        if not model.complete:
            with pytest.raises(UnsupportedError, match="train to the end of the schedule"):
                model.lower()
    assert shares == [0, 0, 0.5, 1, 1] and small().complete


def test_rwkv4_has_the_parameters_of_its_spiking_twin():
    torch.manual_seed(0)
    twin = RWKV4(RWKV4Config(vocabulary=13, embedding=8, depth=3)).double()
    assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in small().named_parameters()}
    runs = twin.run(tokens_for(twin))[2]
    assert runs.spikes == [] == twin.rates(runs)
    with pytest.raises(ConfigError, match="rwkv4 placement: expected 'continuous', got 'spike_fed'"):
        RWKV4(RWKV4Config(placement="spike_fed"))
    with pytest.raises(ConfigError, match='expected placement = "spike_fed"'):
        twin.operations(runs)


@pytest.mark.parametrize("options", [{"norm": "static"}, {"head": "spiking"}])
def test_forms_that_need_spikes_before_the_products_say_so(options):
    with pytest.raises(ConfigError, match="expected placement = \"spike_fed\", got 'reference'"):
        small(**options)


def test_where_the_embedding_starts():
    narrow = small(embedding_range=0.05).emb.weight
    assert 0.04 < narrow.abs().max() <= 0.05 and small().emb.weight.abs().max() > 1
    with pytest.raises(ConfigError, match="embedding_range"):
        small(embedding_range=-0.1)


@torch.no_grad()
def test_settling_shrinks_the_embedding_and_keeps_the_function():
    model = small(embedding_range=0.05, binary_embedding=False)
    model.blocks[0].ln0.eps = 0.0
    model.emb.weight *= 4
    tokens = tokens_for(model)
    before = model(tokens)[0]
    model.settle()
    assert model.emb.weight.square().mean().sqrt().item() == pytest.approx(0.05 / 3**0.5)
    assert torch.allclose(model(tokens)[0], before, atol=1e-9)
    for options in ({"embedding_range": 0.05}, {"binary_embedding": False}):
        other = small(**options)
        weight = other.emb.weight.clone()
        other.settle()
        assert torch.equal(other.emb.weight, weight)


@pytest.mark.parametrize(
    ("drives", "trained", "gain", "message"),
    [
        ([0.5, 0.25, 0.125, -1], False, 4.0, None),  # a half from 4 on
        ([0.5] * 5 + [-1] * 3, False, 2.0, None),  # none or five of eight
        ([1] * 3 + [-1] * 4, False, 2.0**8, None),  # three of seven miss a half by half a unit
        ([1] * 3 + [-1] * 5, False, None, "got 0.375 at 256 times the weights; set model.init_rate within its reach"),
        ([1] * 3 + [-1] * 5, True, 2.0**8, None),
        ([2.0**-9, -1], True, None, "got 0.000 at 256 times"),
        ([2.0**9] * 3 + [0], True, None, "got 0.750 at 0.00391 times"),
    ],
)
def test_a_gain_is_found_or_an_error_says_how_near_it_came(drives, trained, gain, message):
    """A neuron layer whose units fire where gain x drive is at least 1, to be woken to a mean rate of a half."""
    parameter = torch.nn.Parameter(torch.ones(1))
    arguments = [(parameter, (1,))], lambda: [None, (parameter * torch.tensor(drives) >= 1).float()[None, None]]
    if message:
        with pytest.raises(ConfigError, match=f"^b: expected a mean rate of 0.5 on the first batch, {message}"):
            wake(*arguments, ["a", "b"], 0.5, trained)
    else:
        wake(*arguments, ["a", "b"], 0.5, trained)
        assert parameter.item() == pytest.approx(gain, rel=3e-4)


def test_a_start_from_a_model_with_few_active_units_goes_on_with_few(tmp_path):
    """Two of 32 hidden units can ever fire, 6 %; the wanted rate is 15 %."""
    twin = RWKV4(RWKV4Config(embedding=8, depth=1))
    with torch.no_grad():
        twin.blocks[0].ffn.key.weight.fill_(-1)[:2] = 1
    twin.save_pretrained(tmp_path / "twin")
    train = {"steps": 1, "batch": 8, "context": 16, "evaluate_batch": 256}
    table = {"model": {"name": "spikegpt", "embedding": 8, "depth": 1, **FED}, "train": train}
    run = loop.start(tmp_path / "run", RunConfig.from_table(table | {"teacher": {"start": str(tmp_path / "twin")}}))
    rates = dict(zip(run.model().event_layers, run.log()[0]["rates"], strict=True))
    assert 0.02 < rates["blocks.0.ffn.lif_h"] <= 2 / 32


def test_a_rate_out_of_reach_leaves_no_run(tmp_path):
    model = {"name": "spikegpt", "embedding": 16, "depth": 1, "init_rate": 0.9}
    table = {"model": model, "train": {"steps": 1, "batch": 8, "context": 16}}
    with pytest.raises(ConfigError, match="blocks.0.lif1: expected a mean rate of 0.9 on the first batch"):
        loop.start(tmp_path / "run", RunConfig.from_table(table), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_budget_tightens_and_pulls_the_rates_down():
    model = small(**FED)
    tokens = tokens_for(model)
    runs = model.run(tokens)[2]
    spent = model.operations(runs).item()
    budget = Budget(BudgetConfig(ops_per_token=spent / 4, strength=2.0, ramp=0.5))
    wanted = {0.0: 0.0, 0.25: 2 * math.log(2), 0.5: 2 * math.log(4), 1.0: 2 * math.log(4)}
    for done, penalty in wanted.items():
        assert torch.as_tensor(budget(model, runs, done)).item() == pytest.approx(penalty, abs=1e-9)
    budget(model, runs, 1.0).backward()
    gradient = model.blocks[0].ln1.weight.grad.clone()
    with torch.no_grad():
        model.blocks[0].ln1.weight -= 0.3 * gradient / gradient.norm()
    assert model.operations(model.run(tokens)[2]).item() < spent
    assert Budget(BudgetConfig(ops_per_token=2 * spent))(model, runs, 1.0).item() == 0
    silent = small(**FED, head="spiking", init="original")
    with torch.no_grad():
        for p in silent.parameters():
            p.mul_(0)
    activity = silent.run(tokens)[2]
    assert silent.operations(activity).item() == 0
    Budget(BudgetConfig(ops_per_token=100.0, rates=(0.1,)))(silent, activity, 1.0).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in silent.parameters())
    assert Budget(BudgetConfig())(model, runs, 1.0) == 0
    rates = [r.mean().item() for r in model.rates(runs)]
    per_layer = Budget(BudgetConfig(rates=tuple(r / 2 for r in rates)))
    assert per_layer(model, runs, 0.0).item() == pytest.approx(math.log(2), abs=1e-6)
    assert Budget(BudgetConfig(rates=(0.999,)))(model, runs, 0.0).item() == 0
    with pytest.raises(ConfigError, match="expected 21 layers or one, got 2"):
        Budget(BudgetConfig(rates=(0.1, 0.2)))(model, runs, 0.0)
    with pytest.raises(ConfigError, match="budget.rates: expected a model with event-based layers, got none"):
        Budget(BudgetConfig(rates=(0.1,)))(
            small(**FORMS["continuous"]), small(**FORMS["continuous"]).run(tokens)[2], 0.0
        )
    for wrong in ({"ops_per_token": 0.0}, {"rates": (-1.0,)}, {"ramp": 2.0}, {"strength": math.inf}):
        with pytest.raises(ConfigError, match="budget"):
            Budget(BudgetConfig(**wrong))


def test_a_teachers_word_is_the_divergence_from_it(tmp_path):
    model, teacher = small(), small(seed=5)
    teacher.save_pretrained(tmp_path / "teacher")
    tokens, targets = tokens_for(model), tokens_for(model).roll(1, 0)
    objective = Objective(BudgetConfig(), TeacherConfig(model=str(tmp_path / "teacher"), share=0.25), model, "cpu")
    logits, _, runs = model.run(tokens)
    text, whole = objective(model, (tokens, targets, True), logits, runs, 0.0)
    p, q = (m(tokens)[0].softmax(-1) for m in (teacher, model))
    apart = (p * (p / q).log()).sum(-1).mean()
    assert (whole - model.penalty(runs)).item() == pytest.approx((0.75 * text + 0.25 * apart).item(), rel=1e-9)
    state = objective.carried(lambda states: states[0])["teacher"]
    second, _, _ = teacher.run(torch.cat([tokens, tokens], 1))
    again = Objective(BudgetConfig(), TeacherConfig(model=str(tmp_path / "teacher"), share=1.0), model, "cpu")
    again.carry({"budget": None, "teacher": state}, lambda saved, _: {0: saved})
    _, whole = again(model, (tokens, targets, False), logits, runs, 0.0)
    apart = (second[:, tokens.shape[1] :].softmax(-1).log() - logits.log_softmax(-1)) * second[:, 11:].softmax(-1)
    assert (whole - model.penalty(runs)).item() == pytest.approx(apart.sum(-1).mean().item(), rel=1e-9)
    small(vocabulary=5).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="expected a model of 13 tokens, got a model of 5 tokens"):
        Objective(BudgetConfig(), TeacherConfig(model=str(tmp_path / "other")), model, "cpu")


def test_a_warm_start_takes_all_weights_or_none(tmp_path):
    twin, model = small(**FORMS["continuous"]), small(seed=3, **FED, learn=("theta",))
    twin.save_pretrained(tmp_path / "twin")
    assert warm_start(model, tmp_path / "twin") is False
    assert all(torch.equal(tensor, model.state_dict()[n]) for n, tensor in twin.state_dict().items())
    small(embedding=5).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"other: expected \(3, 3\) blocks.0.att.key.weight, got \(5, 5\) blocks"):
        warm_start(RWKV4(RWKV4Config(vocabulary=2, embedding=3)), tmp_path / "other")
    deeper, words = small(depth=model.config.depth + 1, **FED), small(vocabulary=model.config.vocabulary + 1, **FED)
    for other, message in ((deeper, "got no blocks"), (words, "expected .* emb.weight, got .* emb.weight")):
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(ConfigError, match=message):
            warm_start(other, tmp_path / "twin")
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_start_from_a_model_that_fires_is_not_scaled_again(tmp_path):
    model = {"name": "spikegpt", "embedding": 8, "depth": 1, **FED}
    train = {"steps": 1, "batch": 2, "context": 8, "warmup": 0, "evaluate_batch": 256, "learning_rate": 1e-12}
    table = {"model": model, "train": {**train, "weight_decay": 0.0}}
    first = loop.start(tmp_path / "first", RunConfig.from_table(table))
    with pytest.raises(FormatError, match="nowhere"):
        loop.start(tmp_path / "second", RunConfig.from_table(table | {"teacher": {"start": str(tmp_path / "nowhere")}}))
    assert not (tmp_path / "second").exists()
    second = loop.start(tmp_path / "second", RunConfig.from_table(table | {"teacher": {"start": str(first.folder)}}))
    after = second.model().state_dict()
    assert all(torch.allclose(tensor, after[n], atol=1e-9) for n, tensor in first.model().state_dict().items())
    other = {**table, "data": {"tokenizer": "characters"}, "teacher": {"start": str(first.folder)}}
    with pytest.raises(ConfigError, match="data.tokenizer: expected the tokenizer of"):
        loop.start(tmp_path / "third", RunConfig.from_table(other))
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "continuous", "ternary": True}, "expected a placement with neurons, got 'continuous'"),
        ({"placement": "continuous", "learn": ("tau",)}, "expected a placement with neurons, got 'continuous'"),
        ({"init_rate": 1.5}, "init_rate: expected above 0 and below 1, got 1.5"),
        ({"neuron": "snntorch:Leaky", "ternary": True}, "expected neuron = \"lif\", got 'snntorch:Leaky'"),
        ({"neuron_settings": ("beta=0.5",)}, "expected none for lif"),
        ({"norm_from": 0.7}, "expected rising parts of 1, got 0.7, 0.6"),
    ],
)
def test_settings_without_effect_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_a_run_with_all_of_it_resumes_to_the_same_bits(tmp_path):
    sizes = {"embedding": 12, "depth": 1}
    train = {"steps": 8, "batch": 2, "context": 8, "warmup": 2, "evaluate_every": 8, "checkpoint_every": 4}
    common = {"train": {**train, "evaluate_batch": 256}}
    twin = loop.start(tmp_path / "twin", RunConfig.from_table({"model": {"name": "rwkv4", **sizes}, **common}))
    table = {
        "model": {"name": "spikegpt", **sizes, **FED, "norm": "static", "head": "spiking", "learn": ["theta"]},
        "budget": {"ops_per_token": 500.0, "rates": [0.1]},
        "teacher": {"start": str(twin.folder), "model": str(twin.folder)},
        **common,
    }
    run = loop.start(tmp_path / "run", RunConfig.from_table(table))
    assert run.config == RunConfig.from_table(table)
    before = run.model().state_dict()
    (run.checkpoints / "step-00000008.ckpt").unlink()
    after = loop.resume(run.folder).model()
    assert all(torch.equal(tensor, after.state_dict()[n]) for n, tensor in before.items())
    assert load(run.folder).complete and "Affine" in {type(n.op).__name__ for n in after.lower().nodes}


def test_a_run_whose_teacher_has_changed_does_not_resume(tmp_path):
    train = {"steps": 2, "batch": 2, "context": 8, "warmup": 1, "evaluate_batch": 256}
    table = {"model": {"name": "rwkv4", "embedding": 8, "depth": 1}, "train": train}
    teacher = loop.start(tmp_path / "teacher", RunConfig.from_table(table))
    run = loop.start(tmp_path / "run", RunConfig.from_table(table | {"teacher": {"model": str(teacher.folder)}}))
    table["teacher"] = {"start": str(teacher.folder)}
    started = loop.start(tmp_path / "started", RunConfig.from_table(table))
    loop.resume(run.folder)
    model = teacher.model()
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    model.save_pretrained(teacher.model_path)
    with pytest.raises(ConfigError, match="the teacher that the checkpoint was trained with, got another; put it back"):
        loop.resume(run.folder)
    shutil.rmtree(teacher.folder)
    with pytest.raises(FormatError, match="teacher"):
        loop.resume(run.folder)
    loop.resume(started.folder)  # what it started from is in its checkpoint


def test_a_teacher_in_bfloat16_is_widened_before_its_probabilities(tmp_path):
    """They sum to 1 in float32, and to 1.01 in bfloat16."""
    torch.manual_seed(0)
    RWKV4(RWKV4Config(vocabulary=256, embedding=16, depth=1)).save_pretrained(tmp_path / "teacher")
    teacher = Teacher(TeacherConfig(model=str(tmp_path / "teacher"), share=1.0), 256, "cpu")
    tokens, logits = torch.arange(40).view(2, 20), torch.randn(2, 20, 256)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got = teacher(tokens, logits, torch.zeros(()), True, 0)
        said = teacher.model(tokens)[0]
    p, q = said.double().softmax(-1), logits.double().softmax(-1)
    wanted = (p * (p.log() - q.log())).sum() / tokens.numel()
    assert said.dtype == torch.bfloat16 and got.item() == pytest.approx(wanted.item(), rel=1e-5)
