"""Counted words and pairs as a direct path to classes: by hand, against plain Python, and what padding may not do."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from rheobase.models._counted_words import CountedWords
from rheobase.models.classifier import real_tokens
from rheobase.models.training.sentences import pad

V = 12


def sentences(n, classes, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, V, rng.integers(1, 9)) for _ in range(n)]
    return rows, rng.integers(0, classes, n)


def counted(rows, labels, places, classes):
    tokens, lengths = pad(rows)
    made = CountedWords(places, V, classes)
    made.count(tokens, real_tokens(tokens, lengths), torch.from_numpy(labels))
    return made


def features(row):
    words = [int(w) for w in row]
    return set(words) | set(zip([None, *words], [*words, None], strict=True))


def plain(rows, labels, classes, row):
    """The scores of a row, by dictionaries."""
    counts = [
        Counter(f for r, label in zip(rows, labels, strict=True) if label == c for f in features(r))
        for c in range(classes)
    ]
    known = set().union(*counts)
    scores = []
    for c in range(classes):
        score = math.log((labels == c).sum() + 1)
        for f in features(row) & known:
            score += math.log((counts[c][f] + 1) / (sum(counts[c].values()) + len(known)))
        scores.append(score)
    return [score - max(scores) for score in scores]


def test_one_sentence_of_each_class_by_hand():
    """0: "1 2", 1: "1". Counted: 1, 2, (edge, 1), (1, 2), (2, edge) and 1, (edge, 1), (1, edge): six different."""
    made = counted([np.array([1, 2]), np.array([1])], np.array([0, 1]), 50, 2)
    score = made(torch.tensor([[2, 2, 5]]), torch.ones(1, 3, dtype=torch.bool))
    by_hand = [math.log(2) + math.log(2 / 11), math.log(2) + math.log(1 / 9)]  # only "2" is known
    assert (score[0, 1] - score[0, 0]).item() == pytest.approx(by_hand[1] - by_hand[0], abs=1e-15) and score.max() == 0
    assert torch.equal(made(torch.tensor([[2, 2, 5]], dtype=torch.int32), torch.ones(1, 3, dtype=torch.bool)), score)


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_those_of_plain_dictionaries(classes):
    rows, labels = sentences(60, classes, 0)
    made = counted(rows, labels, 1000, classes)
    others, _ = sentences(40, classes, 1)
    tokens, lengths = pad(others)
    mask = real_tokens(tokens, lengths)
    wanted = torch.tensor([plain(rows, labels, classes, row) for row in others], dtype=torch.float64)
    assert torch.allclose(made(tokens, mask), wanted, atol=1e-12, rtol=0)
    wide = torch.nn.functional.pad(tokens, (0, 7), value=3)
    assert torch.equal(made(wide, real_tokens(wide, lengths)), made(tokens, mask))


def test_the_most_frequent_are_kept_where_places_are_few():
    rows, labels = sentences(60, 2, 0)
    whole, few = counted(rows, labels, 1000, 2), counted(rows, labels, 20, 2)
    totals = whole.counts.sum(1)
    at = torch.searchsorted(whole.keys, few.keys)
    assert torch.equal(whole.keys[at], few.keys) and torch.equal(whole.counts[at], few.counts)
    left = torch.ones(1000, dtype=torch.bool).index_fill(0, at, False)
    assert few.counts.sum(1).min() >= totals[left].max() > 0
    frequent = Counter(f for row in rows for f in features(row)).most_common(20)
    assert sorted(few.counts.sum(1).tolist(), reverse=True) == [n for _, n in frequent]


def test_counting_again_forgets_and_nothing_counted_says_nothing():
    rows, labels = sentences(30, 3, 2)
    tokens, lengths = pad(rows)
    mask = real_tokens(tokens, lengths)
    made = CountedWords(500, V, 3)
    assert made(tokens, mask).abs().max() == 0
    made.count(tokens, mask, torch.from_numpy(labels))
    first = made(tokens, mask)
    made.count(tokens[:5], mask[:5], torch.from_numpy(labels[:5]))
    made.count(tokens, mask, torch.from_numpy(labels))
    assert torch.equal(made(tokens, mask), first) and made.sentences.sum() == 30
