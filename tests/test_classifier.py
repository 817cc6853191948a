"""Classification of sentences on top of each language model: what padding may not do, and saving."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rheobase.models import Classifier, ClassifierConfig, load_model
from rheobase.models.classifier import keep, places, real_tokens, trunk_type
from rheobase.models.training.sentences import pad
from rheobase.spiking.config import to_table
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError

V = 50
TRUNKS = {
    "spike_fed": ("spikegpt", {"embedding": 16, "depth": 2, "placement": "spike_fed"}),
    "reference": ("spikegpt", {"embedding": 16, "depth": 2}),
    "ffn_pre": ("spikegpt", {"embedding": 16, "depth": 2, "ffn_pre": True, "binary_embedding": False}),
    "spiking_head": ("spikegpt", {"embedding": 16, "depth": 2, "placement": "spike_fed", "head": "spiking"}),
    "rwkv4": ("rwkv4", {"embedding": 16, "depth": 2}),
    "egru": ("egru_lm", {"embedding": 12, "layers": [10, 12], "thr_mean": 0.1, "rate_weight": 2.0}),
    "gru": ("gru_lm", {"embedding": 12, "layers": [12]}),
    "lstm": ("lstm_lm", {"embedding": 12, "layers": [10], "projection": True}),
}


def rows(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, n) for n in (5, 1, 17, 9)]


def classifier(kind, classes=3):
    torch.manual_seed(1)
    name, settings = TRUNKS[kind]
    model = Classifier(ClassifierConfig(trunk=name, settings={"vocabulary": V, **settings}, classes=classes)).double()
    model.wake(*pad(rows()))
    return model.eval()


def layers(runs):
    """What event-based layers sent, whatever the trunk: a list of [1, N, H]."""
    if hasattr(runs, "spikes"):
        return runs.spikes
    return [run.o for run in runs if run is not None]


@pytest.mark.parametrize("kind", TRUNKS)
@torch.no_grad()
def test_a_trained_model_computes_the_same_whatever_its_settings_of_training(kind):
    trunk, (tokens, _) = classifier(kind).trunk, pad(rows())
    wanted = trunk(tokens)[0]
    for setting in trunk.training_settings:
        value = getattr(trunk.config, setting)
        if isinstance(value, str):
            other = "live" if value == "original" else "original"
        else:
            other = value / 2 + 0.05 if isinstance(value, float) else not value
        model = type(trunk)(replace(trunk.config, **{setting: other})).double().eval()
        model.load_state_dict(trunk.state_dict())
        assert torch.equal(model(tokens)[0], wanted), setting


@pytest.mark.parametrize("kind", TRUNKS)
@torch.no_grad()
def test_padding_changes_nothing(kind):
    """A padded batch, whatever its padding holds, against each sentence on its own: every event and every logit."""
    model = classifier(kind)
    tokens, lengths = pad(rows())
    alone = [model.run(torch.from_numpy(row)[None]) for row in rows()]
    noise = torch.randint(0, V, (len(lengths), 40), generator=torch.Generator().manual_seed(2))
    longer = noise.clone()
    for into, row in zip(longer, rows(), strict=True):
        into[: len(row)] = torch.from_numpy(row)
    for batch in (tokens, longer):
        logits, runs = model.run(batch, lengths)
        assert torch.allclose(logits, torch.cat([one for one, _ in alone]), atol=1e-12, rtol=0)
        for i, layer in enumerate(layers(runs)):
            assert layer.shape[:2] == (1, int(lengths.sum())) and layer.any()
            assert torch.equal(layer, torch.cat([layers(one)[i] for _, one in alone], 1))
    assert (len(layers(runs)) == 0) == (kind in ("lstm", "gru", "rwkv4"))


@pytest.mark.parametrize("kind", TRUNKS)
def test_rates_penalty_and_gradients_see_no_padding(kind):
    model = classifier(kind)
    tokens, lengths = pad(rows())
    wide = torch.nn.functional.pad(tokens, (0, 23), value=7)
    results = []
    for batch in (tokens, wide):
        model.zero_grad()
        logits, runs = model.run(batch, lengths)
        penalty = model.penalty(runs)
        (logits.square().sum() + penalty).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((model.rates(runs), float(torch.as_tensor(penalty).detach()), gradients))
    (rates, penalty, gradients), (others, other, wider) = results
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(rates, others, strict=True))
    assert penalty == pytest.approx(other, abs=1e-12) and (penalty > 0) == (kind == "egru")
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(gradients, wider, strict=True))
    per_layer = [layer[0].mean(0) for layer in layers(runs)]
    assert all(torch.allclose(a, b) for a, b in zip(rates, per_layer, strict=True))


@torch.no_grad()
def test_counted_words_join_the_network_and_are_saved_with_it(tmp_path):
    model = Classifier(replace(classifier("spike_fed").config, counted=40)).eval()
    tokens, lengths = pad(rows())
    assert torch.equal(model(tokens, lengths), model.read(tokens, lengths)[0])
    labels = torch.tensor([2, 0, 1, 2])
    model.counted.count(tokens, real_tokens(tokens, lengths), labels)
    score = model.counted(tokens, real_tokens(tokens, lengths))
    joined = model.read(tokens, lengths)[0] + 0.5 * score.float()
    assert torch.equal(model(tokens, lengths), joined) and torch.equal(score.argmax(1), labels)
    for row, logits in zip(rows(), joined, strict=True):
        assert torch.allclose(model(torch.from_numpy(row)[None])[0], logits, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(tokens, lengths), joined)


@torch.no_grad()
def test_logits_are_the_head_on_the_mean_of_what_the_language_model_reads_off():
    model = classifier("spike_fed")
    tokens, lengths = pad(rows())
    for row, logits in zip(rows(), model(tokens, lengths), strict=True):
        h, _, _ = model.trunk.hidden(torch.from_numpy(row)[None])
        by_hand = model.output.weight @ h[0].mean(0) + model.output.bias
        assert torch.allclose(logits, by_hand, atol=1e-12)
        assert torch.equal(model.trunk.decode(h), model.trunk(torch.from_numpy(row)[None])[0])


def test_waking_looks_at_real_tokens_only():
    model = classifier("spike_fed")
    tokens, lengths = pad(rows())
    rates = [r.mean().item() for r in model.rates(model.run(tokens, lengths)[1])]
    torch.manual_seed(1)
    other = Classifier(model.config).double()
    other.wake(torch.nn.functional.pad(tokens, (0, 23), value=7), lengths)
    assert rates == [r.mean().item() for r in other.eval().rates(other.run(tokens, lengths)[1])]
    assert 0.02 < min(rates) and max(rates) < 0.6


@pytest.mark.parametrize("kind", TRUNKS)
def test_a_classifier_starts_from_a_language_model_and_is_saved_and_loaded(kind, tmp_path):
    name, settings = TRUNKS[kind]
    kind_of = trunk_type(name)
    torch.manual_seed(3)
    trunk = classifier(kind).trunk
    assert isinstance(trunk, kind_of)
    model = Classifier.on(trunk, classes=4, dropout=0.1).double().eval()
    for key, tensor in trunk.state_dict().items():
        assert torch.equal(model.trunk.state_dict()[key].double(), tensor.float().double())
    assert to_table(model.trunk.config) == to_table(trunk.config)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    batch = pad(rows())
    assert torch.equal(loaded(*batch), model(*batch))


def test_bad_input(tmp_path):
    model = classifier("lstm")
    tokens, lengths = pad(rows())
    for bad in (lengths - 1, lengths + 1, lengths[:2], lengths.double(), lengths[:0]):
        with pytest.raises(ShapeError, match="whole numbers from 1 to T"):
            model(tokens, bad)
    with pytest.raises(ShapeError, match="ids from 0 to 49"):
        model(tokens + V, lengths)
    with pytest.raises(ShapeError, match="whole numbers from 1 to T"):
        model(tokens[0], lengths[:1])
    settings = {"vocabulary": V, **TRUNKS["lstm"][1]}
    for bad, message in (
        ({"classes": 1}, "at least 2"),
        ({"dropout": 1.0}, "below 1"),
        ({"counted": -1}, "at least 0"),
        ({"trunk": "classifier"}, "a language model"),
        ({"trunk": "lstm"}, "lstm_lm"),
        ({"settings": settings | {"layer": [3]}}, "layers"),
    ):
        with pytest.raises(ConfigError, match=message):
            Classifier(ClassifierConfig(**{"trunk": "lstm_lm", "settings": settings, **bad}))
    model.save_pretrained(tmp_path)
    header = json.loads((tmp_path / "config.json").read_text())
    header["config"]["settings"]["embedding"] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(header))
    with pytest.raises(FormatError, match="sizes that fit"):
        load_model(tmp_path)


def test_what_is_kept_is_one_row_of_the_masked_positions():
    x, mask = torch.arange(12.0).view(2, 3, 2), torch.tensor([[True, True, False], [True, False, False]])
    assert keep([x, None], places(mask))[0].tolist() == [[[0, 1], [2, 3], [6, 7]]]
