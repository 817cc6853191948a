"""A model that does not fit SpiNNaker 2 is refused with what would fit, and that fits when it is followed."""

import re

import numpy as np
import pytest
import torch
from spikegpts import model_of

from rheobase.backends.exporters.spinnaker2 import partition
from rheobase.backends.exporters.spinnaker2.fitting import cut
from rheobase.backends.exporters.spinnaker2.partition import build
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph, Node


def egru(widths, vocabulary=256):
    torch.manual_seed(0)
    embedding, *layers = widths
    return EGRULM(
        EGRULMConfig(vocabulary=vocabulary, embedding=embedding, layers=tuple(layers or widths), thr_mean=0.1)
    )


def spikegpt(widths, vocabulary=256):
    return model_of(embedding=widths[0], vocabulary=vocabulary)


def integers_of(model, percent=100):
    """Each matrix pruned to its largest weights before it is rounded."""
    for matrix in (p.data for p in model.parameters() if p.ndim == 2):
        gone = matrix.numel() - matrix.numel() * percent // 100
        matrix.view(-1)[matrix.abs().flatten().argsort()[:gone]] = 0
    tokens = np.arange(16)[None] % model.config.vocabulary
    return quantise(model.lower(), tokens, allow_lossy=True)[0]


def refusal(graph, **options) -> str:
    with pytest.raises(UnsupportedError) as refused:
        build(graph, **options)
    return str(refused.value)


def found(pattern, text) -> list[int]:
    match = re.search(pattern, text)
    return [int(number) for number in match[1].split(", ")] if match else []


@pytest.mark.parametrize("percent", [100, 30], ids="{} %".format)
@pytest.mark.parametrize(
    ("model", "widths", "dram", "pes"),
    [
        (egru, [150], True, 8),
        (egru, [120, 200, 90, 120], True, 14),
        (egru, [150], False, 10),
        (spikegpt, [96], True, 22),
    ],
    ids=["EGRU", "EGRU of three", "EGRU without DRAM", "SpikeGPT"],
)
def test_what_a_refusal_proposes_fits(model, widths, dram, pes, percent, monkeypatch):
    """Pruned or not before: what is proposed is less than what is, and fits."""
    monkeypatch.setattr(partition, "PES", pes)
    monkeypatch.setattr(partition, "PE_BYTES", 16_000)
    said = refusal(integers_of(model(widths), percent), dram=dram)
    assert f"expected at most {pes} processing elements in all, got " in said
    (less,) = found(r"the largest (\d+) % of its weights", said)
    assert less < percent and build(integers_of(model(widths), less), dram=dram)
    narrower = found(r"(\d[\d, ]*) wide instead of", said)
    assert max(narrower) < max(widths) and build(integers_of(model(narrower), percent), dram=dram)
    assert ("as sparse as now" in said) == (percent == 30)
    if percent == 100 and len(narrower) == 1:  # nothing is left to chance
        wider = refusal(integers_of(model([narrower[0] + 1])), dram=dram)
        assert found(r"(\d[\d, ]*) wide instead of", wider) == narrower
    assert ("the embedding and the head too" in said) == (not dram)


def test_a_vocabulary_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(partition, "PES", 12)
    monkeypatch.setattr(partition, "PE_BYTES", 9000)
    said = refusal(integers_of(egru([32], 3000)), dram=False)
    assert said.startswith("decoder: expected at most 12 processing elements in all, got ")
    (words,) = found(r"take a vocabulary of (\d+) instead of 3000", said)
    assert build(integers_of(egru([32], words)), dram=False)
    assert "or leave embedding and head in DRAM" in said and build(integers_of(egru([32], 3000)))
    monkeypatch.setattr(partition, "PES", 3)
    said = refusal(integers_of(egru([32], 3000)), dram=False)
    assert said.endswith("; leave embedding and head in DRAM; no pruning and no width alone would do")


def test_what_neither_pruning_nor_width_would_cure(monkeypatch):
    monkeypatch.setattr(partition, "PES", 13)
    graph = integers_of(model_of(depth=3))
    said = "got 19 or more, 1 of them for it; no pruning and no width would do: take fewer layers, or more chips"
    assert refusal(graph).endswith(said)
    assert build(graph, chips=2) and build(integers_of(model_of(depth=2)))


def test_an_embedding_of_its_own_stays_as_wide_as_it_is(monkeypatch):
    """That of frames is as wide as they are."""
    graph = integers_of(egru([150]))
    nodes = tuple(
        Node(n.name, n.op, {**n.arrays, "weight": "own", "exponent": "own.exponent"}) if n.name == "decoder" else n
        for n in graph.nodes
    )
    arrays = {f"own{end}": graph.arrays[f"embedding.weight{end}"] for end in ("", ".exponent")}
    graph = EventGraph(nodes, graph.edges, {**graph.arrays, **arrays}, graph.outputs)
    monkeypatch.setattr(partition, "PES", 8)
    monkeypatch.setattr(partition, "PE_BYTES", 20_000)
    assert re.search(r"or make every layer \d+ wide instead of 150$", refusal(graph))


@pytest.mark.parametrize("percent", [100, 40, 5])
@pytest.mark.parametrize(("model", "dram"), [(egru, False), (spikegpt, True)])
def test_the_bytes_that_images_take_are_known_without_them(model, dram, percent, monkeypatch):
    """All but padding of the weights and fillers; and the fewest elements are those that a search one by one finds."""
    monkeypatch.setattr(partition, "PE_BYTES", 7000)
    seen = []

    def hold(stage):
        sizes = {n: max(sum(i.sizes().values()) for i in stage.make(cut(stage.units, n))) for n in range(1, 20)}
        assert all(0 <= size - stage.least_bytes(n) < 6 * 16 for n, size in sizes.items())
        images = partition.fewest(stage, 148)
        assert len(images) == next(n for n, size in sizes.items() if size <= partition.PE_BYTES)
        seen.append(len(images))
        return cut(stage.units, len(images))

    partition._hold(integers_of(model([48]), percent), dram, hold)
    assert max(seen) > 1
