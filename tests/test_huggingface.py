"""Our language models through transformers: the same tokens, losses and bits."""

import pytest
import torch
import torch.nn.functional as F

from rheobase import models
from rheobase.models.training.sample import SampleConfig, sample
from rheobase.spiking.errors import ConfigError, UnsupportedError

transformers = pytest.importorskip("transformers", reason="pip install 'rheobase[transformers]'")
from rheobase.huggingface import RheobaseConfig, RheobaseForCausalLM  # noqa: E402

SMALL = {
    "egru_lm": {"embedding": 12, "layers": (16, 12), "thr_mean": 0.1, "embedding_range": 0.5},
    "lstm_lm": {"embedding": 12, "layers": (12,)},
    "gru_lm": {"embedding": 12, "layers": (12,)},
    "rwkv4": {"embedding": 12, "depth": 2},
    "spikegpt": {"embedding": 12, "depth": 2},
    "spike_fed": {"embedding": 12, "depth": 2, "placement": "spike_fed", "graded": True, "norm": "static"},
}
KINDS = {"egru_lm": models.EGRULM, "lstm_lm": models.LSTMLM, "gru_lm": models.GRULM, "rwkv4": models.RWKV4}
PROMPTS = [[84, 104, 101, 32], [73, 116, 32, 119]]


@pytest.fixture(params=SMALL)
def model(request):
    torch.manual_seed(3)
    kind = KINDS.get(request.param, models.SpikeGPT)
    made = kind(kind.Config(**SMALL[request.param])).eval()
    made.wake(torch.arange(120).reshape(2, 60))
    made.advance(1.0)
    return made


def test_greedy_text_is_our_samplers_and_each_token_is_one_step(model):
    wrapped, lengths = RheobaseForCausalLM.of(model), []
    wrapped.model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    out = wrapped.generate(torch.tensor(PROMPTS), max_new_tokens=20, do_sample=False)
    assert torch.equal(out[:, 4:], sample(model, PROMPTS, 20, SampleConfig(temperature=0)))
    assert torch.equal(out[:, :4], torch.tensor(PROMPTS)) and lengths == [4] + 19 * [1]
    whole = wrapped.generate(torch.tensor(PROMPTS), max_new_tokens=20, do_sample=False, use_cache=False)
    assert torch.equal(whole, out) and lengths[20:] == list(range(4, 24))


def test_text_goes_on_from_a_state(model):
    wrapped = RheobaseForCausalLM.of(model)
    out = wrapped.generate(torch.tensor(PROMPTS), max_new_tokens=6, do_sample=False)
    state = wrapped(torch.tensor(PROMPTS)[:, :3]).state
    again = wrapped.generate(torch.tensor(PROMPTS)[:, 3:], state=state, max_new_tokens=6, do_sample=False)
    assert torch.equal(again[:, 1:], out[:, 4:])


def test_sampling_repeats_with_its_seed_and_draws_from_the_softmax():
    torch.manual_seed(0)
    model = models.LSTMLM(models.LSTMLMConfig(vocabulary=5, embedding=12, layers=(12,))).eval()
    wrapped, prompt = RheobaseForCausalLM.of(model), torch.tensor([[1, 2]])
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(wrapped.generate(prompt, max_new_tokens=12, do_sample=True, num_return_sequences=3, top_k=0))
    assert texts[0].shape == (3, 14) and torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    torch.manual_seed(7)
    drawn = wrapped.generate(prompt, max_new_tokens=1, do_sample=True, num_return_sequences=4000, top_k=0)[:, -1]
    share, p = torch.bincount(drawn, minlength=5) / 4000, model(prompt)[0][0, -1].softmax(-1).detach()
    assert ((share - p).abs() < 4 * (p * (1 - p) / 4000).sqrt()).all()


def test_the_loss_is_the_cross_entropy(model):
    wrapped, tokens = RheobaseForCausalLM.of(model), torch.arange(60).reshape(2, 30)
    logits = model(tokens)[0]
    labels = tokens.clone()
    labels[0, :10] = -100
    kept = labels[:, 1:] != -100
    wanted = F.cross_entropy(logits[:, :-1][kept], tokens[:, 1:][kept])
    out = wrapped(tokens, labels=labels)
    assert torch.equal(out.logits, logits) and out.loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    shared = wrapped(tokens, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    assert shared.item() == pytest.approx(wanted.item() * kept.sum().item() / 100, rel=1e-6)
    out.loss.backward()
    assert sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in wrapped.parameters()) > 3
    assert isinstance(wrapped(tokens, return_dict=False), tuple)


def test_saved_and_found_by_the_auto_classes_to_the_bit(model, tmp_path):
    wrapped = RheobaseForCausalLM.of(model)
    wrapped.save_pretrained(tmp_path)
    assert isinstance(transformers.AutoConfig.from_pretrained(tmp_path), RheobaseConfig)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, RheobaseForCausalLM) and again.model.config == model.config and not again.training
    state = model.state_dict()
    assert again.model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())
    tokens = torch.arange(40).reshape(2, 20)
    assert torch.equal(again(tokens).logits, model(tokens)[0])


def test_what_there_is_not_is_refused():
    wrapped = RheobaseForCausalLM.of(models.GRULM(models.GRULMConfig(embedding=8, layers=(8,))).eval())
    tokens = torch.tensor(PROMPTS)
    for row in ([0, 1, 1, 1], [1, 1, 1, 0]):
        mask = torch.tensor([row, [1, 1, 1, 1]])
        for call in (wrapped, lambda *a, **k: wrapped.generate(*a, max_new_tokens=2, **k)):
            with pytest.raises(UnsupportedError, match="attention_mask: expected ones: no padding"):
                call(tokens, attention_mask=mask)
    with pytest.raises(UnsupportedError, match="attention_mask: expected ones: no padding"):
        wrapped(tokens, attention_mask=torch.ones(len(tokens), 2))
    with pytest.raises(UnsupportedError, match="expected no guidance_scale"):
        wrapped.generate(tokens, max_new_tokens=2, guidance_scale=1.5)
    with pytest.raises(UnsupportedError, match="expected num_beams = 1"):
        wrapped.generate(tokens, max_new_tokens=2, num_beams=2)
    with pytest.raises(ValueError, match="stateful"):
        wrapped.generate(tokens[:1], max_new_tokens=2, prompt_lookup_num_tokens=2)
    with pytest.raises(UnsupportedError, match="expected input_ids, got output_attentions"):
        wrapped(tokens, output_attentions=True)
    spiking = models.SpikeGPT(models.SpikeGPTConfig(embedding=8, depth=1)).eval()
    spiking.set_submodule(layer := spiking.event_layers[0], torch.nn.Identity())
    with pytest.raises(ConfigError, match=f"of, {layer}: expected LIF, got Identity"):
        RheobaseForCausalLM.of(spiking)
    for name in ("gesture", "classifier"):
        with pytest.raises(ConfigError, match=f"expected a language model, such as egru_lm, got '{name}'"):
            RheobaseConfig(model=name).build()
