"""The tick plan: hand counts, the fit against emulated elements, and bounds that hold."""

import numpy as np
import pytest
import torch

from rheobase.backends import export
from rheobase.backends.artifact import open_artifact
from rheobase.backends.exporters.spinnaker2 import emulate, firmware, load_images, plan, products, work
from rheobase.backends.exporters.spinnaker2.image import EGRU, TOKEN, Image, key
from rheobase.backends.exporters.spinnaker2.machine import Machine
from rheobase.backends.exporters.spinnaker2.partition import build
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.backends.trace import artifact_trace
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig

needs_qemu = pytest.mark.skipif(firmware.missing() is not None, reason=f"{firmware.missing()} is not installed")


def one_element() -> Image:
    """Two units of a layer of three, fed by four inputs: dense, and a sparse product with 1, 0 and 2 weights kept."""
    recurrent = {"rows": [0, 1, 1, 3], "gaps": [2, 1, 4], "weight": [1, 1, 1]}
    regions = {f"{name}_a": a for name, a in products.pack(np.ones((4, 6))).items()}
    regions |= {f"{name}_q": a for name, a in recurrent.items()}
    regions |= dict.fromkeys(("bias_a", "bias_q", "shift_a", "shift_q"), np.zeros(6))
    regions |= dict.fromkeys(("cell", "thr", "accumulators", "sigmoid", "tanh"), np.zeros(2))
    regions["keys"] = [[key(0, 0), 0, 4, 0], [key(1, 0), 0, 1, 1], [key(1, 1), 1, 2, 1]]
    fields = {"layer": 0, "slice": 1, "unit_lo": 1, "units": 2, "inputs": 4, "layer_units": 3, "listens": 3}
    return Image.of(EGRU, fields, regions)


def test_the_work_of_a_tick_by_hand():
    image = one_element()
    worst = dict(tick=1, unit=2, sent=2, dense_event=4, dense_weight=24, sparse_event=3, sparse_weight=3)
    assert work.worst(image) == worst | {"halving": 7 * 2}
    fired = {0: np.array([[1, 0, 0, 1], [0, 0, 0, 0]]), 1: np.array([[1, 0, 1], [0, 1, 0]])}
    done = {term: count.tolist() for term, count in work.recorded(image, fired).items()}
    assert done == {
        **{"tick": [1, 1], "unit": [2, 2], "sent": [1, 1], "halving": [6, 6]},
        **{"dense_event": [2, 0], "dense_weight": [12, 0], "sparse_event": [2, 1], "sparse_weight": [3, 0]},
    }
    prices = work.cycles()["egru"]
    assert work.instructions(image, {"tick": 1, "unit": 2}) == pytest.approx(prices["tick"] + 2 * prices["unit"])


def test_a_norm_s_work_is_by_what_it_hears():
    """It reads all 8 numbers of the stream, once a processing element."""
    model = SpikeGPT(SpikeGPTConfig(embedding=8, depth=1, placement="spike_fed")).eval()
    tokens = np.arange(40).reshape(1, 40)
    model.wake(torch.as_tensor(tokens))
    sources = [work.worst(p.image)["norm_source"] for p in build(quantise(model.lower(), tokens)[0]).placed]
    assert sorted(sources)[-4:] == [0, 8, 8, 8], "of both halves of the block, and of the head"


def test_rates_by_hand():
    """Three layers and the host at 1 ms: 250 tokens a second, whatever the clock."""
    found = plan.clock(300, {"worst": 150_000, "busiest": 30_000, "typical": 15_000}, 4, 1)
    assert found["tick_us"] == {"worst": 500.0, "busiest": 100.0, "typical": 50.0}
    assert found["slack_at_tick"]["worst"] == 0.5
    assert found["generated_per_s"] == {"at_tick": 250.0, "at_worst": 500.0}
    assert found["prefilled_per_s"] == {"at_tick": 1000.0, "at_worst": 2000.0}
    slow = plan.clock(300, {"worst": 900_000, "busiest": 600_000, "typical": 15_000}, 4, 3)
    assert slow["generated_per_s"]["at_tick"] == 125.0 and slow["prefilled_per_s"]["at_tick"] == 166.7


def pipelined(machine: Machine, tokens: list[int], interval: int) -> np.ndarray:
    """Logits when a token enters every `interval` ticks; at a tick all stages step, then all hear what was sent."""
    logits = []
    for tick in range(interval * (len(tokens) - 1) + len(machine.elements) + 1):
        sent = []
        for stage, pes in enumerate(machine.elements):
            token, waits = divmod(tick - 1 - stage, interval)
            if not waits and 0 <= token < len(tokens):
                done = [pe.tick() for pe in pes]
                sent += [events for events, _ in done]
                if pes is machine.elements[-1]:
                    logits.append(np.concatenate([probes["out"] for _, probes in done]))
        token, waits = divmod(tick, interval)
        if not waits and token < len(tokens):
            sent.append(machine.first_events(tokens[token]))
        for events in sent:
            machine.deliver(events)
    return np.array(logits)


@pytest.mark.parametrize("kind", ["egru", "spikegpt"])
def test_a_prompt_may_follow_itself_at_the_plan_s_interval_and_no_closer(kind):
    text = np.arange(40).reshape(1, 40) * 7 % 256
    torch.manual_seed(0)
    if kind == "egru":
        model = EGRULM(EGRULMConfig(embedding=16, layers=(24, 24, 16), thr_mean=0.05))
    else:
        model = SpikeGPT(SpikeGPTConfig(embedding=24, depth=2, placement="spike_fed")).eval()
        model.wake(torch.as_tensor(text))
    made = build(quantise(model.lower(), text)[0])
    interval, tokens = plan.ticks_prefilled(made.images[1]), text[0, :12].tolist()
    machine = Machine(*made.images)
    wanted = np.array([machine.step(token)[0] for token in tokens])
    assert interval == {"egru": 1, "spikegpt": 3}[kind]
    assert np.array_equal(pipelined(Machine(*made.images), tokens, interval), wanted)
    assert interval == 1 or not np.array_equal(pipelined(Machine(*made.images), tokens, interval - 1), wanted)


def test_elements_without_a_fit_give_no_numbers(monkeypatch):
    monkeypatch.setattr(work, "cycles", lambda: {"head": {}})
    assert plan.tick_plan([("x", one_element())], {}) == {
        "unknown": "cycles of egru: none are fitted in firmware/cycles.toml"
    }


@needs_qemu
@pytest.mark.parametrize("dram", [True, False])
def test_the_plan_of_a_trained_model_against_its_emulation(small_run, tmp_path, dram):
    text = small_run.config.splits().valid[: 2 * 48].reshape(2, 48)
    export(small_run.model(), "spinnaker2", tmp_path / "image", calibration=text, dram=dram)
    artifact = open_artifact(tmp_path / "image")
    dram_image, pes = load_images(artifact)
    trace = artifact_trace(artifact)
    found = artifact.manifest["tick_plan"]
    assert found["ticks_a_token"] == (3 if dram else 5)
    fired = plan.fired_of(pes, trace.signals, artifact.manifest["probes"], trace.tokens)
    assert (TOKEN in fired) == (not dram)
    taken = emulate.alone(Machine(dram_image, pes, record=True), trace.tokens).instructions
    for where, image in pes:
        predicted = work.instructions(image, work.recorded(image, fired))
        assert taken[where].max() <= 1.05 * found["pes"][where]["worst"]
        assert np.isclose(predicted.mean(), taken[where].mean(), rtol=0.05), where
        assert predicted.mean() == pytest.approx(found["pes"][where]["mean"], abs=0.5)


@needs_qemu
def test_the_plan_of_a_spikegpt_against_its_emulation(tmp_path):
    text = np.arange(240).reshape(2, 120) * 7 % 256
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(embedding=24, depth=1, placement="spike_fed")).eval()
    model.wake(torch.as_tensor(text))
    model.advance(1.0)
    artifact = export(model, "spinnaker2", tmp_path / "image", calibration=text[:, :24])
    dram, pes = load_images(artifact)
    trace = artifact_trace(artifact)
    found = artifact.manifest["tick_plan"]
    assert found["ticks_a_token"] == len(pes) + 1
    taken = emulate.alone(Machine(dram, pes, record=True), trace.tokens).instructions
    for where, _ in pes:
        assert taken[where].max() <= 1.15 * found["pes"][where]["worst"]
        assert np.isclose(found["pes"][where]["mean"], taken[where].mean(), rtol=0.15), where
