"""Files of labelled sentences, strangers' ones included, and the bag of words that is the floor."""

import importlib
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from rheobase.models.training.bag_of_words import bag_of_words
from rheobase.models.training.sentences import Sentences, pad, part, read_sentences
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "sentences"
REAL = {
    "stsa.binary.train": (2, "utf-8", [3310, 3610]),
    "stsa.binary.dev": (2, "utf-8", [428, 444]),
    "stsa.fine.train": (5, "utf-8", [1092, 2218, 1624, 2322, 1288]),
    "stsa.fine.dev": (5, "utf-8", [139, 289, 229, 279, 165]),
    "rt-polarity.dev": (2, "latin-1", [4337, 4340]),
    "subj.dev90": (2, "latin-1", [4492, 4508]),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    path = DATA / f"{name}.xz"
    if not path.exists():
        pytest.skip("needs the sentence files in shared/data/sentences beside the checkout")
    classes, encoding, counts = REAL[name]
    sentences = read_sentences(path, classes, encoding)
    assert np.bincount(sentences.labels).tolist() == counts
    assert all(text == text.strip() and text for text in sentences.texts)


def test_a_file_is_read_packed_or_not(tmp_path):
    data = "1 a fine film\n0 dull .  \n1 caf\xe9\n".encode()
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "packed.xz").write_bytes(lzma.compress(data))
    for name in ("plain", "packed.xz"):
        read = read_sentences(tmp_path / name, 2)
        assert read.texts == ("a fine film", "dull .", "caf\xe9") and read.labels.tolist() == [1, 0, 1]
    (tmp_path / "old").write_bytes("1 caf\xe9".encode("latin-1"))
    assert read_sentences(tmp_path / "old", 2, "latin-1").texts == ("caf\xe9",)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "line 1: expected a label from 0 to 1"),
        (b"1 fine\n\n0 dull\n", "line 2: expected a label from 0 to 1"),
        (b"1 fine\n2 odd\n", "line 2: expected a label from 0 to 1"),
        (b"1 fine\n-1 odd\n", "line 2: expected a label from 0 to 1"),
        (b"1 fine\n1.0 odd\n", "line 2: expected a label from 0 to 1"),
        (b"1 fine\n" + b"9" * 5000 + b" odd\n", "line 2: expected a label from 0 to 1"),
        ("1 fine\n\u0661 odd\n".encode(), "line 2: expected a label from 0 to 1"),
        (b"1 fine\n0\n", "line 2: expected a sentence"),
        (b"1 fine\n0 caf\xe9\n", "line 2: expected utf-8 text, got the byte 0xe9"),
    ],
)
def test_a_bad_line_is_named(tmp_path, data, where):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(FormatError) as error:
        read_sentences(tmp_path / "file", 2)
    assert where in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_bad_files(tmp_path, monkeypatch):
    whole = lzma.compress(b"1 fine\n" * 1000)
    for data in (b"1 fine\n" * 9, whole[:-20], b""):
        (tmp_path / "bad.xz").write_bytes(data)
        with pytest.raises(FormatError, match="a whole .xz file"):
            read_sentences(tmp_path / "bad.xz", 2)
    with pytest.raises(FormatError, match="a file of sentences"):
        read_sentences(tmp_path / "none", 2)
    (tmp_path / "fine").write_bytes(b"1 fine\n")
    with pytest.raises(ConfigError, match="sentences.encoding"):
        read_sentences(tmp_path / "fine", 2, "utf-9")
    for classes in (-1, 1, 10**30):
        with pytest.raises(ConfigError, match=f"sentences.classes: expected from 2 to 10000, got {classes}"):
            read_sentences(tmp_path / "fine", classes)
    monkeypatch.setattr("rheobase.models.training.sentences.LARGEST", 6999)
    for name, data in (("bomb.xz", whole), ("large", b"1 fine\n" * 1000)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError, match="at most 6,999 bytes"):
            read_sentences(tmp_path / name, 2)


def test_a_part_is_always_the_same_and_leaves_the_rest():
    every = Sentences(tuple(map(str, range(50))), np.arange(50))
    rest, out = part(every, 0.2)
    again = part(every, 0.2)
    assert (len(rest), len(out)) == (40, 10) and (rest.texts, out.texts) == (again[0].texts, again[1].texts)
    assert sorted(rest.texts + out.texts) == sorted(every.texts)
    assert all(text == str(label) for s in (rest, out) for text, label in zip(s.texts, s.labels, strict=True))
    for fraction in (0.0, 1.0):
        with pytest.raises(ShapeError, match="some and not all"):
            part(every, fraction)


@pytest.fixture
def text_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("understanding_text")


def test_judged_sentences_are_known_in_any_spelling(text_benchmark):
    t = text_benchmark
    assert t.words("It's a Don't-miss (really) ``film''!") == "it 's a do n't - miss ( really ) \" film \" !".split()
    judged = t.Judged(
        map(t.words, ["you wo n't like roger -lrb- the dodger -rrb- at all .", "barely gets off the ground ."])
    )
    for text in (
        "You won't like Roger (the dodger) at all",
        "first of all , you won't like roger ( the dodger ) at all , and then it goes on and on .",
        "the plot barely gets off the ground",
    ):
        assert judged.holds(t.words(text)), text
    for text in ("you like roger .", "the ground .", "gets off the plane", ""):
        assert not judged.holds(t.words(text)), text


def test_the_likest_rows_come_first_up_to_a_number_of_words(text_benchmark):
    rows = [["war", "of", "kings"], ["a", "fine", "film"], ["of", "the", "kings"], ["film", "of", "kings"]]
    wanted = [["a", "film"], ["fine", "film"], ["the", "film"]]
    assert text_benchmark.likest(rows, wanted, 7) == [rows[1], rows[3]]


@pytest.mark.slow
def test_no_dev_sentence_is_in_the_text_of_the_language_model(text_benchmark, tmp_path):
    if not DATA.exists():
        pytest.skip("needs shared/data beside the checkout")
    t = text_benchmark
    made = t.write_text(DATA.parent, tmp_path)
    assert made["vocabulary"] == t.VOCABULARY and made["sentences"] > 10_000
    text = {t.letters(line.split()) for line in (tmp_path / "text").read_text().splitlines()}
    known = {word for line in (tmp_path / "text").read_text().splitlines() for word in line.split()}
    for name in ("sst2", "sst5", "mr", "subj"):
        lines = [line.split()[1:] for line in (tmp_path / f"{name}.dev").read_text().splitlines()]
        lines = [line for line in lines if len(line) >= 8]
        assert lines and not text & {t.letters([w if w in known else t.UNK for w in line]) for line in lines}


def test_padding_is_to_the_right():
    tokens, lengths = pad([np.array([3, 4]), np.array([5]), np.array([6, 7, 8])])
    assert lengths.tolist() == [2, 1, 3] and torch.equal(tokens, torch.tensor([[3, 4, 0], [5, 0, 0], [6, 7, 8]]))


def test_a_bag_of_words_finds_the_word_and_not_the_order():
    rng = np.random.default_rng(0)
    filler = [f"w{i}" for i in range(30)]

    def sentences(n, ordered):
        labels = rng.integers(0, 3, n)
        texts = []
        for label in labels:
            words = [*rng.choice(filler, 5)]
            words += ["x", "y", "z"][label:] + ["x", "y", "z"][:label] if ordered else [["good", "bad", "odd"][label]]
            texts.append(" ".join(words))
        return Sentences(tuple(texts), labels)

    assert bag_of_words(sentences(150, False), sentences(50, False), sentences(100, False), 3) == 1.0
    assert bag_of_words(sentences(150, True), sentences(50, True), sentences(300, True), 3) < 0.45


def test_a_bag_of_words_on_one_sentence_that_can_be_solved_by_hand():
    """Two sentences without a word in common: at any decay the words' own class wins, and an unknown word ties."""
    two = Sentences(("good", "bad"), np.array([1, 0]))
    assert bag_of_words(two, two, Sentences(("good good", "bad new"), np.array([1, 0])), 2) == 1.0
