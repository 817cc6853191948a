"""Tokenizers, data sets, shards, and the units in which a run says how good it is."""

import hashlib
import http.server
import json
import lzma
import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheobase.cli import run
from rheobase.models import LSTMLM, LSTMLMConfig
from rheobase.models.training import cache, corpus, datasets, tokenizers
from rheobase.models.training.corpus import encode, load_corpus
from rheobase.models.training.data import DataConfig
from rheobase.models.training.datasets import DATA_SETS, DataSet
from rheobase.models.training.evaluate import evaluate_part
from rheobase.models.training.run import Run, RunConfig, TrainConfig, config_path
from rheobase.models.training.shards import Shards, read_shards
from rheobase.models.training.tokenizers import Bytes, Characters, Pieces, Words, from_json, pieces
from rheobase.spiking.config import read_toml, to_toml
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError

REAL = Path(__file__).parent.parent.parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real data beside the checkout")
TEXT = "Naïve words, 日本 and\nsome lines .\n\n  More words , and lines .\n".encode()


def bpe(text: str = TEXT.decode(), size: int = 300, runs: int = 1) -> str:
    """JSON of a byte-level BPE trained on a text; with tokens for runs of up to `runs` spaces, as GPT-NeoX has."""
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([text], trainer)
    if runs > 1:
        made.normalizer = library.normalizers.NFC()
        made.add_tokens([library.AddedToken(" " * n, normalized=True) for n in range(runs, 1, -1)])
    return made.to_str()


@given(st.text(st.characters(codec="utf-8")))
def test_text_comes_back_from_ids(text):
    raw = text.encode()
    assert Bytes().decode(Bytes().encode(raw)) == raw
    if text:
        tokenizer = Characters(text)
        ids = tokenizer.encode(raw)
        assert tokenizer.decode(ids) == raw and len(ids) == len(text)
        assert tokenizer.characters == "".join(sorted(set(text)))


def test_words_keep_line_ends_and_know_what_is_unknown():
    words = Words.from_text([b"the cat  sat\n\n", b"the mat"])
    assert words.words == [b"the", b"cat", b"sat", b"<eos>", b"mat", b"<unk>"]
    assert words.encode(b"the dog\n sat").tolist() == [0, 5, 3, 2]
    assert words.decode([0, 5, 3, 2]) == b"the <unk> \nsat "


@pytest.mark.parametrize(("n", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_ids_take_the_smallest_type_that_fits(n, dtype):
    words = Words(str(i).encode() for i in range(n - 2))
    assert words.vocabulary == n and words.encode(b"7 <unk>").dtype == dtype
    assert words.encode(b"7 <unk>").tolist() == [7, n - 1]


def makers():
    words = Words.from_text([TEXT])
    return [Bytes(), Characters(TEXT.decode(), " "), words, from_json(bpe()), from_json(bpe(runs=24))]


def test_json_brings_back_the_same_tokenizer():
    for tokenizer in makers():
        again = from_json(tokenizer.to_json())
        assert type(again) is type(tokenizer) and again.digest == tokenizer.digest
        assert np.array_equal(again.encode(TEXT), tokenizer.encode(TEXT))
        assert (again.vocabulary, again.unit) == (tokenizer.vocabulary, tokenizer.unit)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_a_text_encoded_in_pieces_has_the_same_tokens(size, monkeypatch):
    text = TEXT * 4
    for tokenizer in makers():
        whole = tokenizer.encode(text)
        with monkeypatch.context() as patch:
            patch.setattr(tokenizers, "PIECE", size)
            patch.setattr(corpus, "PIECE", size)
            parts = list(pieces(tokenizer.boundary, np.frombuffer(text, np.uint8), "test"))
            assert len(parts) > 1 and b"".join(parts) == text
            stored = encode(tokenizer, np.frombuffer(text, np.uint8))
        assert np.array_equal(stored, whole) and stored.dtype == tokenizer.dtype == whole.dtype
        assert tokenizer.unit == "byte" or isinstance(stored, np.memmap)


def test_a_run_of_spaces_is_one_token_and_not_cut():
    tokenizer, text = from_json(bpe(runs=24)), b"if so:" + b" " * 8 + b"and" + b" " * 3 + b"more or less"
    whole = tokenizer.encode(text)
    assert (whole >= tokenizer.vocabulary - 23).sum() == 2 and tokenizer.decode(whole) == text
    cuts = {tokenizer.boundary(text, at) for at in range(1, len(text))}
    assert {text[cut:][:3] for cut in cuts} == {b" so", b" or", b" le", b""}


def test_no_text_is_cut_where_that_changes_its_tokens():
    """LLaMA's puts a space before whatever it is given."""
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer.from_str(bpe())
    made.normalizer = library.normalizers.Prepend(" ")
    tokenizer, text = from_json(made.to_str()), b"some words and more of them " * 8
    assert tokenizer.boundary(text, 51) == 55 and tokenizer.seam(text, 51) == len(text)
    assert from_json(bpe()).seam(text, 51) == 55


def test_a_character_that_an_encoding_would_leave_out_is_refused():
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokenizer = from_json(made.to_str())
    assert tokenizer.encode(b"ab a").tolist() == [2, 0]
    with pytest.raises(FormatError, match="text: expected characters that the tokenizer knows, got 'c' .U.0063"):
        tokenizer.encode(b"abc")


def test_special_tokens_are_neither_added_nor_dropped():
    tokenizer = from_json(bpe())
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT and len(tokenizer.encode(b"")) == 0


@pytest.mark.parametrize("name", ["bytes", "characters", "words"])
def test_a_vocabulary_comes_from_the_training_part(name, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"some words here\n" * 50)
    made = load_corpus(DataConfig(text=str(tmp_path / "t.txt"), tokenizer=name), 4)
    assert made.tokenizer.vocabulary == {"bytes": 256, "characters": 10, "words": 5}[name]
    lengths = [len(made.tokenizer.decode(part)) for part in made.splits.parts.values()]
    assert name == "words" or sum(lengths) == 800
    assert made.splits.n_bytes == {"train": 640, "valid": 80, "test": 80}


@pytest.mark.parametrize("tokenizer", ["characters", "words", "bpe"])
def test_bits_a_byte_are_over_the_bytes_that_the_file_has(tokenizer, tmp_path):
    """Whatever its first token decodes to: an unknown word, a part of a character."""
    (tmp_path / "bpe.json").write_text(bpe("a b", 258))
    text = "日記  a b  c\n" * 30
    for part, written in (("a", text.replace("日記", "日 記")), ("b", text), ("c", text)):
        (tmp_path / part).write_text(written)
    a, b, c = (str(tmp_path / part) for part in "abc")
    name = str(tmp_path / "bpe.json") if tokenizer == "bpe" else tokenizer
    made = load_corpus(DataConfig(text=a, valid_text=b, test_text=c, tokenizer=name), 4)
    model = LSTMLM(LSTMLMConfig(vocabulary=made.tokenizer.vocabulary, embedding=4, layers=(4,)))
    look = evaluate_part(model, made.splits, "test", TrainConfig())
    n_tokens, n_bytes = look.tokens + 1, len(text.encode())
    assert made.splits.n_bytes["test"] == n_bytes and n_tokens == len(made.splits.test)
    assert look.bits_per_byte == pytest.approx(look.bits_per_token * n_tokens / n_bytes, rel=1e-12)


def test_a_file_for_each_part(tmp_path):
    for name, word in (("a", b"alpha beta\n"), ("b", b"beta alpha\n"), ("c", b"beta beta\n")):
        (tmp_path / name).write_bytes(word * 20)
    a, b, c = (str(tmp_path / name) for name in "abc")
    three = load_corpus(DataConfig(text=a, valid_text=b, test_text=c, tokenizer="words"), 4).splits
    assert [part[:3].tolist() for part in three.parts.values()] == [[0, 1, 2], [1, 0, 2], [1, 1, 2]]
    two = load_corpus(DataConfig(text=a, valid_text=b, tokenizer="words"), 4).splits
    assert (len(two.train), len(two.valid), len(two.test)) == (60, 30, 30)
    with pytest.raises(ConfigError, match="data.valid_text beside it"):
        load_corpus(DataConfig(text=a, test_text=c), 4)
    with pytest.raises(ConfigError, match="data.splits: expected none where parts are files of their own"):
        load_corpus(DataConfig(text=a, valid_text=b, splits=(100, 50, 50)), 4)


def test_files_for_parts_are_refused_where_the_text_has_its_own(tmp_path, monkeypatch):
    (tmp_path / "two").mkdir()
    for name in ("two/a", "two/b", "c"):
        (tmp_path / name).write_bytes(b"some words\n" * 20)
    monkeypatch.setitem(DATA_SETS, "two", DataSet(address="http://x", licence="none", files=("a", "b")))
    np.arange(200).astype("<u2").tofile(tmp_path / "0.bin")
    (tmp_path / "t.json").write_text(Words([b"some", b"words"]).to_json())
    for text, tokenizer in (("two", "bytes"), (str(tmp_path), str(tmp_path / "t.json"))):
        config = DataConfig(text=text, folder=str(tmp_path), tokenizer=tokenizer)
        assert set(load_corpus(config, 4).splits.parts) == {"train", "valid", "test"}
        with pytest.raises(ConfigError, match="data.valid_text, data.test_text: expected none beside"):
            load_corpus(replace(config, valid_text=str(tmp_path / "c")), 4)


def test_counts_cut_exactly_and_a_missing_test_part_is_said(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(bytes(range(97, 122)) * 4)
    splits = load_corpus(DataConfig(text=str(path), splits=(50, 30, 20)), 4).splits
    assert [len(part) for part in splits.parts.values()] == [50, 30, 20]
    short = load_corpus(DataConfig(text=str(path), splits=(50, 50, 20)), 4).splits
    assert len(short.valid) == 50
    with pytest.raises(FormatError, match="the test part: expected a text that reaches to it"):
        _ = short.test
    for wrong, message in (((50, 40, 20), r"90 \(no test part\) or 110"), ((90, 30, 0), "120 at least")):
        with pytest.raises(ShapeError, match=message):
            load_corpus(DataConfig(text=str(path), splits=wrong), 4)
    with pytest.raises(ConfigError, match="three counts"):
        load_corpus(DataConfig(text=str(path), splits=(50, 50)), 4)


def test_an_xz_file_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RHEOBASE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t.txt.xz").write_bytes(lzma.compress(TEXT * 9))
    config = DataConfig(text=str(tmp_path / "t.txt.xz"))
    first = load_corpus(config, 4)
    (made,) = (tmp_path / "cache" / "unpacked").iterdir()
    assert made.read_bytes() == TEXT * 9
    monkeypatch.setattr(cache.lzma, "open", None)
    assert load_corpus(config, 4).digest == first.digest


@pytest.mark.parametrize("sizes", [(5, 1, 30), (36,)])
def test_shards_read_as_one_stream(tmp_path, sizes):
    ids = np.arange(sum(sizes), dtype="<u2") + 1000
    for i, part in enumerate(np.split(ids, np.cumsum(sizes)[:-1])):
        part.tofile(tmp_path / f"{i}.bin")
    shards, digest = read_shards(tmp_path)
    assert len(shards) == len(ids) and isinstance(shards, Shards) and len(digest) == 64
    for low in range(0, len(ids) + 1):
        for high in range(0, len(ids) + 3):
            assert np.array_equal(shards[low:high], ids[low:high])
            if low <= high <= len(ids):
                assert np.array_equal(shards.cut(low, high)[1:5], ids[low:high][1:5])


MODEL = {"name": "lstm_lm", "embedding": 8, "layers": [8]}
TRAIN = {"steps": 2, "batch": 2, "context": 8, "warmup": 1, "evaluate_batch": 2}


@pytest.fixture
def say(capsys):
    """Run a command line; what it printed."""

    def saying(*argv, status=0):
        assert run([str(a) for a in argv]) == status
        shown = capsys.readouterr()
        return shown.err if status else shown.out

    return saying


def write_config(tmp_path, **data):
    path = tmp_path / "c.toml"
    path.write_text(to_toml({"model": MODEL, "train": TRAIN, "data": data}))
    return path


@pytest.mark.parametrize(
    ("tokenizer", "unit", "vocabulary"), [("characters", "character", 16), ("words", "word", 13), ("bpe", "token", 300)]
)
def test_a_run_keeps_its_tokenizer_and_says_its_unit(tokenizer, unit, vocabulary, tmp_path, say):
    text = tmp_path / "t.txt"
    text.write_bytes(b"the cat sat on the mat , and\nthe dog did not .\n" * 60)
    if tokenizer == "bpe":
        (tmp_path / "bpe.json").write_text(bpe())
        tokenizer, vocabulary = str(tmp_path / "bpe.json"), from_json(bpe()).vocabulary
    out = tmp_path / "run"
    shown = say("train", write_config(tmp_path, text=str(text), tokenizer=tokenizer), "--out", out)
    assert f" bits a {unit} on the validation part" in shown
    made = Run.open(out)
    assert made.config.settings.vocabulary == vocabulary == made.tokenizer().vocabulary
    assert "bits_per_token" in made.log()[0] and "bits_per_byte" not in made.log()[0]
    (tmp_path / "bpe.json").unlink(missing_ok=True)
    table = json.loads(say("eval", out, "--json"))
    part = made.splits()
    whole = table["bits_per_token"] * len(part.test)
    assert whole == pytest.approx(table["bits_per_byte"] * part.n_bytes["test"])
    assert table["perplexity"] == pytest.approx(2 ** table["bits_per_token"])
    line = say("eval", out)
    assert f"bits a {unit}, perplexity" in line and f"a {unit}, " in line and "bits a byte" in line
    assert say("sample", out, "--prompt", "the ", "--length", 5).startswith("the ")
    assert "MACs" in say("count", out, "--tokens", 20)
    say("report", out)
    page = (out / "report.html").read_text()
    assert f"bits a {unit} of test text" in page and "bits a byte" not in page
    prompt = made.tokenizer().decode(part.test[:4]).decode()
    assert f"<pre><b>{prompt}</b>" in page, "the usual prompt holds a letter that these tokens do not know"
    say("train", "--resume", "--out", out)
    swapped = {"character": (" ,", " !"), "word": ('"cat"', '"cot"'), "token": ('"a":64,"b":65', '"a":65,"b":64')}[unit]
    made.tokenizer_path.write_text(other := made.tokenizer().to_json().replace(*swapped, 1))
    assert from_json(other).vocabulary == vocabulary
    wanted = f"{made.tokenizer_path}: expected a tokenizer of sha256 {made.config.data.tokenizer_sha256[:12]}…, got "
    for command in (["eval", out], ["sample", out], ["count", out], ["train", "--resume", "--out", out]):
        assert wanted in say(*command, status=1)


def test_a_run_on_shards_has_no_bits_a_byte(tmp_path, say):
    (tmp_path / "bpe.json").write_text(bpe())
    shards = tmp_path / "shards"
    shards.mkdir()
    ids = np.random.default_rng(0).integers(0, 256, 400).astype("<u2")
    ids.tofile(shards / "0.bin")
    config = write_config(tmp_path, text=str(shards), tokenizer=str(tmp_path / "bpe.json"), order="crops")
    assert "bits a token on the validation part" in say("train", config, "--out", tmp_path / "run")
    assert json.loads(say("eval", tmp_path / "run", "--json"))["bits_per_byte"] is None
    assert "bits a byte" not in say("eval", tmp_path / "run")
    ids[-1] = 60000
    ids[:200] = 60000
    ids.tofile(shards / "0.bin")
    line = say("train", config, "--out", tmp_path / "other", status=1)
    assert "the training tokens: expected ids from 0 to" in line and "got 60000; check data.tokenizer" in line
    (shards / "1.bin").write_bytes(b"odd")
    line = say("train", config, "--out", tmp_path / "other", status=1)
    assert "1.bin: expected uint16 ids, 2 bytes each, got 3 bytes" in line
    config = write_config(tmp_path, text=str(shards))
    line = say("train", config, "--out", tmp_path / "other", status=1)
    assert "expected the JSON file of the tokenizer that made the shards, got 'bytes'" in line
    assert not (tmp_path / "other").exists()


def test_bad_tokenizers_and_texts(tmp_path, say):
    text, other = tmp_path / "t.txt", tmp_path / "o.json"
    text.write_bytes(b"some words " * 90 + "é".encode() * 50)

    def line(*assignments, **data):
        options = [x for a in assignments for x in ("--set", a)]
        config = write_config(tmp_path, text=str(text), **data)
        return say("train", config, "--out", tmp_path / "run", *options, status=1)

    assert "got 'charcters'; did you mean 'characters'?" in line(tokenizer="charcters")
    said = line(tokenizer="characters", splits=[800, 190, 100])
    assert "character 0 of the test part of the text: expected one of the 8 characters" in said
    assert "got 'é' (U+00E9); train on a text that holds it, or set data.unknown" in said
    said = line(tokenizer="characters", unknown="?")
    assert "data.unknown: expected one character of the vocabulary, got '?'" in said
    assert 'expected none unless data.tokenizer is "characters"' in line(unknown="?")
    assert "o.json: expected a tokenizer's JSON file, got No such file" in line(tokenizer=str(other))
    merges = {"type": "BPE", "continuing_subword_prefix": "longer", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    panics = json.dumps({"version": "1.0", "added_tokens": [], "model": merges})
    spells = '{"format": "rheobase-tokenizer/1", "kind": "spells"}'
    for foreign in ("{}", "[1]", "nonsense", spells, '{"model": {}}', panics):
        other.write_text(foreign)
        assert "o.json: expected a tokenizer in JSON (ours or the tokenizers library's), got" in line(
            tokenizer=str(other)
        )
    said = line("model.vocabulary=3", tokenizer="words", splits=[700, 140, 150])
    assert "model.vocabulary: expected the tokenizer's 4 or more, got 3; leave it out" in said
    packed = lzma.compress(b"words " * 900)
    for damaged in (packed[:-20], packed[:30] + b"xx" + packed[32:], b"no xz"):
        (tmp_path / "t.xz").write_bytes(damaged)
        assert "t.xz: expected a whole .xz file, got" in line(f"data.text={tmp_path / 't.xz'}")
    assert "expected a text file, got no file; did you mean 'enwik8'?" in line("data.text=enwik9")
    (tmp_path / "empty").mkdir()
    other.write_text(bpe())
    said = line(f"data.text={tmp_path / 'empty'}", tokenizer=str(other))
    assert "expected a text file, or a folder of .bin files" in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="expected ids from 0 to 255, got 256"):
        Bytes().decode([256])


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe"])
@pytest.mark.parametrize("at", [(1 << 20) - 1, (5 << 20) + 3])
def test_a_byte_that_is_no_utf_8_is_found_in_its_file(at, tokenizer, tmp_path):
    """A first byte of a character before one that is no second, at the end of a piece and beyond the first one."""
    (tmp_path / "t.txt").write_bytes(b"a" * at + b"\xc3" + b" b" * 99)
    (tmp_path / "bpe.json").write_text(bpe())
    name, encoding = str(tmp_path / "bpe.json") if tokenizer == "bpe" else tokenizer, "bytes"
    if tokenizer == "bytes":
        encoding = "utf-8"
        load_corpus(DataConfig(text=str(tmp_path / "t.txt"), encoding="bytes"), 8)
    with pytest.raises(FormatError, match=f"t.txt: expected utf-8 text, got the byte 0xc3 at byte {at};"):
        load_corpus(DataConfig(text=str(tmp_path / "t.txt"), encoding=encoding, tokenizer=name), 8)


def test_a_data_set_that_is_not_there(tmp_path, say, monkeypatch):
    config = write_config(tmp_path, text="enwik8", folder=str(tmp_path))
    line = say("train", config, "--out", tmp_path / "run", status=1)
    assert "expected enwik8/enwik8[.xz], got none" in line and "http://mattmahoney.net/dc/enwik8.zip" in line
    monkeypatch.setenv("RHEOBASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(datasets.DATA_SETS, "enwik8", enwik8_at("http://127.0.0.1:9/enwik8.zip"))
    line = say("train", config, "--set", "data.folder=", "--out", tmp_path / "run", status=1)
    assert "fetch http://127.0.0.1:9/enwik8.zip elsewhere and put its files at" in line
    assert str(tmp_path / "cache" / "data" / "enwik8" / "enwik8") in line
    (tmp_path / "enwik8").mkdir()
    (tmp_path / "enwik8" / "enwik8").write_bytes(b"not it")
    line = say("train", config, "--out", tmp_path / "run", status=1)
    assert "enwik8: expected md5 a1fa5ffddb56…, got" in line and not (tmp_path / "run").exists()


def enwik8_at(address, **changes):
    return replace(datasets.DATA_SETS["enwik8"], address=address, **changes)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder and the address at which its files can be fetched."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_data_set_is_fetched_checked_and_kept(tmp_path, served, monkeypatch):
    pytest.importorskip("pooch")
    folder, address = served
    with zipfile.ZipFile(folder / "e.zip", "w") as archive:
        archive.writestr("inside/enwik8", TEXT * 20)
    monkeypatch.setenv("RHEOBASE_CACHE", str(tmp_path / "cache"))
    wrong = enwik8_at(f"{address}/e.zip")
    monkeypatch.setitem(datasets.DATA_SETS, "enwik8", wrong)
    with pytest.raises(FormatError, match="expected md5 a1fa5ffddb56…, got .*; delete it and fetch it anew"):
        datasets.locate("enwik8")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    right = enwik8_at(f"{address}/e.zip", sums={"enwik8": f"sha256:{hashlib.sha256(TEXT * 20).hexdigest()}"})
    monkeypatch.setitem(datasets.DATA_SETS, "enwik8", right)
    (found,) = datasets.locate("enwik8")
    assert found.read_bytes() == TEXT * 20
    (folder / "e.zip").unlink()
    assert datasets.locate("enwik8") == [found]


def test_an_archive_is_checked_whole_where_its_files_have_no_sums(tmp_path, served, monkeypatch):
    pytest.importorskip("pooch")
    folder, address = served
    texts = {name: f"{name} ".encode() * 9 for name in datasets.DATA_SETS["wikitext-103"].files}
    with zipfile.ZipFile(folder / "w.zip", "w") as archive:
        for name, text in texts.items():
            archive.writestr(f"wikitext-103/{name}", text)
    monkeypatch.setenv("RHEOBASE_CACHE", str(tmp_path / "cache"))
    wrong = replace(datasets.DATA_SETS["wikitext-103"], address=f"{address}/w.zip")
    monkeypatch.setitem(datasets.DATA_SETS, "wikitext-103", wrong)
    with pytest.raises(FormatError, match="expected md5 9ddaacaf6af0…, got .*; delete it and fetch it anew"):
        datasets.locate("wikitext-103")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    digest = hashlib.sha256((folder / "w.zip").read_bytes()).hexdigest()
    monkeypatch.setitem(datasets.DATA_SETS, "wikitext-103", replace(wrong, archive=f"sha256:{digest}"))
    assert [path.read_bytes() for path in datasets.locate("wikitext-103")] == list(texts.values())


def test_every_data_set_has_an_address_a_licence_and_mostly_sums():
    for name, data in datasets.DATA_SETS.items():
        assert data.address.startswith("http") and data.licence and len(data.files) in (1, 2, 3), name
        assert data.archive or set(data.files) <= set(data.sums)


@real
def test_wikitext_2_has_its_canonical_words_and_unigram_perplexity():
    """967.6 is the perplexity of the training part's word counts, plus one each, on the validation file."""
    made = load_corpus(DataConfig(text="wikitext-2", folder=str(REAL), tokenizer="words"), 8)
    assert made.tokenizer.vocabulary == 33278
    assert len(made.splits.train) == 2_088_628 and len(made.splits.valid) + len(made.splits.test) == 217_646
    assert abs(len(made.splits.valid) - len(made.splits.test)) < 3000
    counts = np.bincount(made.splits.train, minlength=33278) + 1
    held_out = np.concatenate([made.splits.valid, made.splits.test])
    assert np.exp(-np.log(counts[held_out] / counts.sum()).mean()) == pytest.approx(967.6, abs=0.05)


@real
def test_enwik8_is_cut_at_its_canonical_bytes():
    config = DataConfig(**read_toml(config_path("enwik8_byte"))["data"], folder=str(REAL))
    splits = load_corpus(config, 128).splits
    assert (len(splits.train), len(splits.valid)) == (90_000_000, 5_000_000)
    with pytest.raises(FormatError, match="a text that reaches to it"):
        _ = splits.test
    whole = lzma.open(REAL / "enwik8" / "enwik8.first95000000.xz").read()
    assert splits.train[-40:].tobytes() + splits.valid[:40].tobytes() == whole[89_999_960:90_000_040]
    assert splits.valid[-1] == whole[-1]


@pytest.mark.slow
@real
def test_enwik8_has_the_published_characters():
    config = DataConfig(**read_toml(config_path("enwik8_char"))["data"], folder=str(REAL))
    made = load_corpus(config, 1024)
    assert made.tokenizer.vocabulary == 5458 and made.tokenizer.dtype == np.uint16
    assert isinstance(made.splits.train, np.memmap)


def test_a_model_without_a_vocabulary_takes_the_tokenizers():
    table = {"model": {"name": "spikegpt", "embedding": 8, "depth": 1}, "data": {"tokenizer": "words"}}
    config = RunConfig.from_table(table)
    words = Words([b"a", b"b"])
    assert config.fitted(words).settings.vocabulary == 4
    table["model"]["vocabulary"] = 50
    assert RunConfig.from_table(table).fitted(words).settings.vocabulary == 50


def test_a_text_of_cyrillic_words_can_be_cut():
    text = "слово за словом ".encode() * 50
    at = Pieces.boundary(text, 700)
    assert 700 <= at < 740 and text[at:].decode().startswith(" ")
