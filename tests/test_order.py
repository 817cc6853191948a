"""The shuffled order of a training's blocks: a permutation an epoch, the same however the work is shared out."""

import gc
import hashlib
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheobase.models.training.data import Batches
from rheobase.models.training.order import Shuffled
from rheobase.models.training.prefetch import Prefetched, prefetched
from rheobase.models.training.shards import Shards, gather
from rheobase.spiking.errors import ConfigError, ShapeError


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_every_epoch_is_a_permutation_and_has_an_order_of_its_own(n, seed, epoch):
    order = Shuffled(n, seed)
    places = order(np.arange(epoch * n, (epoch + 1) * n))
    assert np.array_equal(np.sort(places), np.arange(n))
    if n > 30:
        assert not np.array_equal(places, np.arange(n))
        assert not np.array_equal(places, order(np.arange((epoch + 1) * n, (epoch + 2) * n)))
        assert not np.array_equal(places, Shuffled(n, seed + 1)(np.arange(epoch * n, (epoch + 1) * n)))


def by_hand(n, seed, sample):
    """One place in plain integers: a Feistel network on the least even split of n's bits, and cycle walking."""
    epoch, x = divmod(sample, n)
    keys = hashlib.shake_256(f"{seed} {epoch}".encode()).digest(64)
    bits = max(4, (n - 1).bit_length())
    right_bits = bits // 2
    while True:
        left, right = divmod(x, 1 << right_bits)
        for r in range(8):
            z = (int.from_bytes(keys[8 * r : 8 * r + 8], "little") + (left if r % 2 else right)) % 2**64
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            z ^= z >> 31
            if r % 2:
                right ^= z % (1 << right_bits)
            else:
                left ^= z % (1 << bits - right_bits)
        x = left << right_bits | right
        if x < n:
            return x


@pytest.mark.parametrize("n", [1, 5, 17, 1000, 1_000_003, 2**40 + 9])
def test_places_are_those_of_plain_integers(n):
    """They are part of what a seed means: a change of them would change every run."""
    samples = [0, 1, n - 1, n, 3 * n + n // 2, 10**15]
    assert Shuffled(n, 7)(np.array(samples)).tolist() == [by_hand(n, 7, s) for s in samples]
    assert Shuffled(1_000_003, 7)(np.array([0, 10**15])).tolist() == [15098, 930939]


@pytest.mark.parametrize("n", [13, 16])
def test_places_and_pairs_of_places_are_even(n):
    """Chi-square over 3,000 epochs: of the place of each number, and of the distance from one to the next."""
    epochs, order = 3000, Shuffled(n, 3)
    places = np.stack([order(np.arange(epoch * n, (epoch + 1) * n)) for epoch in range(epochs)])
    for values, kinds in ((places[:, 0], n), (places[:, n // 2], n), ((places[:, 5] - places[:, 4]) % n - 1, n - 1)):
        counts = np.bincount(values, minlength=kinds)
        chi_square = ((counts - epochs / kinds) ** 2 / (epochs / kinds)).sum()
        assert len(counts) == kinds and chi_square < kinds + 5 * (2 * kinds) ** 0.5


@given(st.data())
@settings(max_examples=6, deadline=None)
def test_each_token_once_an_epoch_whatever_the_batch_the_ranks_the_threads_and_the_cuts(data):
    """Every token but the first and the `left_out` at the end is a target once an epoch."""
    context, blocks = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    left_out = data.draw(st.integers(0, context - 1))
    batch, ranks = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    text = np.arange(blocks * context + 1 + left_out, dtype=np.uint16)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
    stored = Shards(np.split(text, cuts))
    epochs = 3
    steps = -(-epochs * blocks // batch)
    rows, cut = [], data.draw(st.integers(0, steps))
    batches = Batches(stored, batch, context, "shuffled", seed=5)
    bounds = [batch * r // ranks for r in range(ranks + 1)]
    for step in range(steps):
        if step == cut:  # a run that is taken up again, with threads
            batches = Prefetched(Batches(stored, batch, context, "shuffled", seed=5), 1)
        shares = [batches(step, slice(*bounds[r : r + 2])) for r in range(ranks)]
        tokens, targets = (torch.cat([share[i] for share in shares]) for i in (0, 1))
        assert all(fresh for _, _, fresh in shares) and torch.equal(targets, tokens + 1)
        rows.append(targets)
    assert Batches(stored, batch, context, "shuffled", seed=5).left_out == left_out
    seen = torch.cat(rows)[: epochs * blocks].reshape(epochs, -1)
    assert torch.equal(seen.sort(1).values, torch.arange(1, blocks * context + 1).expand(epochs, -1))


def test_rows_that_are_not_asked_for_are_not_read(monkeypatch):
    for order in ("shuffled", "crops", "streams"):
        batches = Batches(Shards([np.arange(999)]), 8, 10, order, seed=1)
        whole, read = batches(3), []
        gathered = Shards.gather
        monkeypatch.setattr(Shards, "gather", lambda *a, g=gathered, r=read: (r.append(len(a[1])), g(*a))[1])
        part = batches(3, slice(2, 5))
        monkeypatch.undo()
        assert read == [3] and torch.equal(part[0], whole[0][2:5]) and torch.equal(part[1], whole[1][2:5])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_a_gather_is_its_slices(dtype):
    ids = (np.arange(60) * 4).astype(dtype)
    for stored in (ids, Shards(np.split(ids, [0, 1, 20, 20, 33])), Shards([ids[:5], np.tile(ids, 2)], 5, 65)):
        starts = np.array([0, 52, 13, 20, 13, 1])
        rows = gather(stored, starts, 8)
        assert rows.dtype == np.int64 and rows.tolist() == [ids[s : s + 8].tolist() for s in starts]
        assert gather(stored, starts[:0], 8).shape == (0, 8)


def test_a_text_shorter_than_a_block_is_refused():
    with pytest.raises(ShapeError, match="more than the context of 8 bytes, got 8"):
        Batches(np.arange(8), 2, 8, "shuffled", seed=0)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_read_ahead_are_the_same_and_their_threads_end(workers):
    batches = Batches(np.arange(5000), 4, 16, "shuffled", seed=2)
    ahead = Prefetched(batches, workers)
    for step in [*range(20), 7, 8, 100, 99, 100]:
        for part in (slice(None), slice(1, 3)):
            assert all(torch.equal(a, b) for a, b in zip(ahead(step, part)[:2], batches(step, part)[:2], strict=True))
    started = [t for t in threading.enumerate() if t.name.startswith("batches")]
    assert len(started) == workers
    del ahead
    gc.collect()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


def test_an_error_comes_up_at_its_own_step():
    text = np.arange(1000)
    text[640:] = 5000
    ahead = prefetched(Batches(text, 1, 10, "streams", seed=0, vocabulary=1000), 2)
    for step in range(63):
        ahead(step)
    for _ in range(2):
        with pytest.raises(ShapeError, match="ids from 0 to 999, got 5000"):
            ahead(63)
    assert ahead(0)[0][0, 0] == 0
    for workers in (-1, 1025):
        with pytest.raises(ConfigError, match=f"data.workers: expected from 0 to 1024, got {workers}"):
            prefetched(ahead, workers)
