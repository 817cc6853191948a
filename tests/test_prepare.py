"""Texts to token shards: what is written, whatever the pieces and the processes; what is refused; training on it."""

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import bpe

from rheobase.cli import run
from rheobase.models.training import documents, loop, prepare
from rheobase.models.training.prepare import PrepareConfig
from rheobase.models.training.run import Run, RunConfig
from rheobase.models.training.token_folder import open_tokens
from rheobase.models.training.tokenizers import Bytes, Words, from_json
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import sha256

MODEL = {"name": "lstm_lm", "embedding": 8, "layers": [8]}
TRAIN = {"steps": 6, "batch": 2, "context": 8, "warmup": 1, "evaluate_every": 3, "checkpoint_every": 3}
TEXT = "the cat sat on the mat ,\nnaïve 日本 and the dog did not .\n\n" * 40


def made(folder, sources, **settings):
    """The folder that the sources become, opened."""
    prepare.prepare(sources, folder, PrepareConfig(**settings))
    return open_tokens(folder)


def lines_of(texts, field="text"):
    return "".join(json.dumps({field: text}) + "\n" for text in texts).encode()


def plain(tokenizer, separator, texts):
    """Ids and the places where documents start, by the plainest of ways."""
    ids, starts = [], []
    for i, text in enumerate(texts):
        ids += [separator] * (i > 0 and separator is not None)
        starts.append(len(ids))
        ids += tokenizer.encode(text.encode()).tolist()
    return ids, starts


@pytest.fixture(autouse=True, scope="module")
def unsynced():
    """Thousands of tiny files: flushing each to disk would take minutes, and is a law of files, not of this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


words = st.text(st.sampled_from("ab é日\n\t 0."), max_size=40)


@given(
    st.lists(st.lists(words, min_size=1, max_size=6), min_size=1, max_size=4), st.integers(1, 60), st.integers(1, 90)
)
@settings(max_examples=20, deadline=None)
def test_json_lines_become_what_their_documents_are(tmp_path_factory, files, unit, shard):
    """Ids, starts and counts are those of each document encoded on its own, wherever units, blocks and shards end."""
    folder = tmp_path_factory.mktemp("p")
    texts = [text for file in files for text in file]
    for i, file in enumerate(files):
        (folder / f"{i}.jsonl").write_bytes(lines_of(file) + b" \n" * (i == 1))
    if not "".join(texts).split():
        return
    whole = Words.from_text(text.encode() for text in texts)
    for name, tokenizer, separator in (("bytes", Bytes(), 0), ("words", whole, whole.words.index(b"<eos>"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(documents, "UNIT", unit)
            sources = [folder / f"{i}.jsonl" for i in range(len(files))]
            tokens = made(folder / name, sources, tokenizer=name, shard_tokens=shard)
        wanted, starts = plain(tokenizer, separator, texts)
        assert tokens.tokenizer.to_json() == tokenizer.to_json()
        assert tokens.shards[:].tolist() == wanted and tokens.documents().tolist() == starts
        assert tokens.index["bytes"] == len("".join(texts).encode()) and tokens.index["separator"] == separator
        assert all(s["tokens"] >= shard for s in tokens.index["shards"][:-1])
        tokens.verify(lambda n: None)


@given(st.lists(st.sampled_from(["ab ", "é", "日本\n", "\n", " x"]), min_size=1, max_size=50), st.integers(2, 30))
@settings(max_examples=15, deadline=None)
def test_a_text_file_is_one_document_wherever_it_is_cut(tmp_path_factory, parts, unit):
    folder = tmp_path_factory.mktemp("p")
    text = "".join(parts)
    (folder / "a.txt").write_text(text)
    (folder / "b.txt").write_text(text[::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "UNIT", unit)
        bytes_ = made(folder / "b", [folder / "a.txt", folder / "b.txt"], shard_tokens=5)
        named = made(folder / "w", [folder / "a.txt"], tokenizer="words", shard_tokens=3) if text.split() else None
    assert bytes(bytes_.shards[:].tolist()) == (text + "\0" + text[::-1]).encode()
    if named:
        alone = Words.from_text([text.encode()])
        assert named.tokenizer.to_json() == alone.to_json()
        assert named.shards[:].tolist() == alone.encode(text.encode()).tolist()


def test_a_byte_pair_encoding_has_its_own_separator(tmp_path):
    library = pytest.importorskip("tokenizers")
    with_end = library.Tokenizer.from_str(bpe(TEXT))
    with_end.add_special_tokens(["</s>", "<|endoftext|>"])
    (tmp_path / "end.json").write_text(with_end.to_str())
    (tmp_path / "none.json").write_text(bpe(TEXT))
    texts = [TEXT, "", "a <|endoftext|> inside", "日" * 50]
    (tmp_path / "a.jsonl").write_bytes(lines_of(texts))
    for name, separator in (("end", with_end.token_to_id("<|endoftext|>")), ("none", None)):
        tokens = made(tmp_path / name, [tmp_path / "a.jsonl"], tokenizer=str(tmp_path / f"{name}.json"))
        tokenizer = from_json((tmp_path / f"{name}.json").read_text())
        assert tokens.index["separator"] == separator and tokens.index["dtype"] == "uint16"
        wanted, starts = plain(tokenizer, separator, texts)
        assert tokens.shards[:].tolist() == wanted and tokens.documents().tolist() == starts


def test_packed_files_and_parquet_are_the_same_documents(tmp_path):
    pyarrow, zstandard = pytest.importorskip("pyarrow"), pytest.importorskip("zstandard")
    from pyarrow import parquet

    texts = [TEXT, "second", "", "last é"]
    lines = lines_of(texts, "content")
    pack = zstandard.ZstdCompressor().compress
    contents = {
        "a.jsonl": lines,
        "b.jsonl.gz": gzip.compress(lines[:100]) + gzip.compress(lines[100:]),
        "c.ndjson.xz": lzma.compress(lines),
        "d.json.zst": pack(lines[:100]) + pack(lines[100:]),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        name = f"{str(kind).partition('<')[0]}.parquet"
        table = pyarrow.table({"n": list(range(4)), "content": pyarrow.array(texts).cast(kind)})
        parquet.write_table(table, tmp_path / name, row_group_size=3)
        contents[name] = None
    found = [made(tmp_path / f"{name}-out", [tmp_path / name], field="content").digest for name in contents]
    assert len(found) == 7 and len(set(found)) == 1
    one = made(tmp_path / "x", [tmp_path / "b.jsonl.gz"], field="content")
    assert bytes(one.shards[:].tolist()).decode().split("\0") == texts


def files_in(folder):
    return {p.name: sha256(p.read_bytes()) for p in folder.iterdir()}


def test_any_number_of_processes_writes_the_same_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(documents, "UNIT", 700)
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.jsonl").write_bytes(lines_of(TEXT.split("\n")))
    (tmp_path / "c.jsonl").write_bytes(lines_of(TEXT.split()) + b"{}\n")
    sources = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    for jobs in (1, 3):
        out = str(tmp_path / f"out{jobs}")
        options = ["--tokenizer", "words", "--shard-tokens", "1k", "--jobs", str(jobs)]
        assert run(["prepare", *sources, "--out", out, *options]) == 0
        assert "122 documents with token 6 between them, in 2 shards of uint8" in capsys.readouterr().out
        assert run(["prepare", sources[0], str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "no"), *options]) == 1
        said = capsys.readouterr().err
        assert f"c.jsonl line {len(TEXT.split()) + 1}: expected a JSON object with the text 'text'" in said
        assert "got an object without; mend the line" in said
    assert files_in(tmp_path / "out1") == files_in(tmp_path / "out3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.jsonl", "c.jsonl", "out1", "out3"]


GOOD = b'{"text": "fine"}\n\n'
BAD_LINES = [
    (
        b'{"text": "half\n',
        "expected a JSON object with the text 'text', got Unterminated string starting at column 10; mend",
    ),
    (b"[1, 2]\n", "got list b'[1, 2]'; write an object a line"),
    (b'{"txt": "a", "n": 2}\n', "got an object without; name another --field; did you mean 'txt'?"),
    (b'{"text": null}\n', "got NoneType None; mend it or name another --field"),
    (b'{"text": "\\ud800"}\n', "got half a surrogate pair, '\\ud800'; mend it"),
    (b'{"text": "\xe9"}\n', "expected JSON in UTF-8, got the byte 0xe9; mend the line"),
    (b"[" * 99_999 + b"\n", "expected a JSON object"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named(line, message, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "UNIT", 50)
    (tmp_path / "a.jsonl").write_bytes(GOOD * 20 + line + GOOD)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(GOOD * 20 + line + GOOD))
    for name in ("a.jsonl", "b.jsonl.gz"):
        with pytest.raises(FormatError) as error:
            made(tmp_path / "out", [tmp_path / name])
        assert f"{name} line 41: " in str(error.value) and message in str(error.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl.gz"]


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    zstandard, pyarrow = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(documents, "FAR", 400)

    def said(name, content, kind=FormatError, **settings):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(kind) as error:
            made(tmp_path / "out", [tmp_path / name], **settings)
        assert not list(tmp_path.glob("*out*"))
        return str(error.value).removeprefix(f"{tmp_path}/")

    assert "a.txt line 1001: expected utf-8 text, got the byte 0xe9" in said("a.txt", b"fine\n" * 1000 + b"caf\xe9\n")
    assert "a.txt line 2: expected ascii text, got the byte 0xc3" in said("a.txt", "1\né".encode(), encoding="ascii")
    assert "a.txt line 1: expected utf-8 text, got the byte 0xff" in said("a.txt", "wide".encode("utf-16"))
    made(tmp_path / "any", [tmp_path / "a.txt"], encoding="bytes")
    assert "expected a file of text, JSON Lines or Parquet, got no file" in said("none.txt", None)
    assert "got a folder; name the files in it" in said(".", None)
    assert "expected a text, got an empty file" in said("a.txt", b"")
    assert "expected texts of at least one token, got none" in said("a.jsonl", b"\n\n")
    long = b'{"text": "' + b"x" * 1000 + b'"}'
    assert "a.jsonl line 2: expected a line of at most 400 bytes" in said("a.jsonl", GOOD[:-1] + long)
    wanted = "a.txt line 1: expected a place to cut the text within 400 bytes, got none; give JSON Lines"
    assert wanted in said("a.txt", b"x" * 999, tokenizer="words", shard_tokens=9)
    for name, packed in (
        ("t.gz", gzip.compress),
        ("t.xz", lzma.compress),
        ("t.zst", zstandard.ZstdCompressor(write_checksum=True).compress),
    ):
        whole = packed(TEXT.encode())
        for damaged in (whole[:-5], whole[:20], b"no " + whole, whole[:40] + b"\0\xff\0\xff" + whole[44:]):
            assert f"{name}: expected a whole .{name[2:]} file, got " in said(name, damaged)
    assert "expected bytes, words or a .json file" in said("a.txt", b"text", ConfigError, tokenizer="characters")
    assert "prepare --shard-tokens: expected at least 1, got 0" in said("a.txt", b"text", ConfigError, shard_tokens=0)
    (tmp_path / "c.json").write_text(
        '{"format": "rheobase-tokenizer/1", "kind": "characters", "characters": "ab", "unknown": ""}'
    )
    wanted = "a.jsonl line 3: expected one of the 2 characters of the vocabulary, got 'f'"
    assert wanted in said("a.jsonl", b'{"text": "ab"}\n\n' + GOOD, tokenizer=str(tmp_path / "c.json"))
    assert "a.parquet: expected a whole Parquet file" in said("a.parquet", b"PAR1 not")
    for texts, message in (
        (["a", "b", None], "a.parquet row 3: expected a text in column 'text', got NoneType"),
        ([1], "got int 1"),
    ):
        parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=2)
        assert message in said("a.parquet", None)
    assert "a column 'txt', got others; did you mean 'text'?" in said("a.parquet", None, field="txt")
    plain = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    parquet.write_table(pyarrow.table({"text": ["some words"] * 100}), tmp_path / "a.parquet", **plain)
    flipped = (tmp_path / "a.parquet").read_bytes().replace(b"words", b"sword")
    assert "a.parquet row 1: expected a text in column 'text', got could not verify" in said("a.parquet", flipped)
    monkeypatch.setattr("rheobase.models.training.encoding.MOST_WORDS", 3)
    assert "line 1: expected at most 3 different words, got more" in said("a.txt", b"a b c d\n", tokenizer="words")


def table_of(text, **data):
    return {"model": MODEL, "train": TRAIN | data.pop("train", {}), "data": {"text": str(text), **data}}


def test_training_on_a_prepared_text_is_training_on_the_text(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    made(tmp_path / "tokens", [tmp_path / "t.txt"], shard_tokens=500)
    runs = []
    for text, workers in (("t.txt", 0), ("tokens", 0), ("tokens", 2)):
        config = RunConfig.from_table(table_of(tmp_path / text, order="shuffled", workers=workers))
        runs.append(loop.start(tmp_path / f"run{len(runs)}", config, quiet=True))
    weights = [{k: v.tolist() for k, v in r.model().state_dict().items()} for r in runs]
    assert weights[0] == weights[1] == weights[2]
    assert runs[0].metrics()["valid"] == runs[1].metrics()["valid"]


def test_a_run_takes_the_tokenizer_of_its_folder(tmp_path, capsys):
    (tmp_path / "t.txt").write_text(TEXT)
    made(tmp_path / "tokens", [tmp_path / "t.txt"], tokenizer="words")
    config = RunConfig.from_table(table_of(tmp_path / "tokens", order="shuffled"))
    out = loop.start(tmp_path / "run", config, quiet=True)
    own = open_tokens(tmp_path / "tokens").tokenizer
    assert out.config.settings.vocabulary == own.vocabulary == 15
    assert Run.open(tmp_path / "run").tokenizer().digest == own.digest
    assert run(["eval", str(out.folder)]) == 0 and "bits a word" in capsys.readouterr().out
    loop.resume(out.folder, quiet=True)
    (tmp_path / "other.json").write_text(Words([b"a"]).to_json())
    for name in ("characters", str(tmp_path / "other.json")):
        with pytest.raises(ConfigError, match="data.tokenizer: expected that of .*tokens, 15 words, got another"):
            RunConfig.from_table(table_of(tmp_path / "tokens", tokenizer=name)).corpus()
    for name in ("words", str(tmp_path / "tokens" / "tokenizer.json")):
        RunConfig.from_table(table_of(tmp_path / "tokens", tokenizer=name)).corpus()
    made(tmp_path / "bytes", [tmp_path / "t.txt"])
    config = RunConfig.from_table(table_of(tmp_path / "bytes", tokenizer=str(tmp_path / "bytes" / "tokenizer.json")))
    assert loop.start(tmp_path / "named", config, quiet=True).tokenizer().unit == "byte"


def test_damage_is_found(tmp_path, capsys):
    source = tmp_path / "t.txt"
    source.write_bytes(bytes(range(1, 128)) * 3000)
    folder = tmp_path / "tokens"
    made(folder, [source], shard_tokens=150_000)
    assert run(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "381,000 tokens of 381,000 bytes of text, 1 documents" in said and "every sha256 is right" in said
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}
    shard = whole["shard-00001.bin"]

    def damaged(name, content):
        for other, good in whole.items():
            (folder / other).write_bytes(good)
        (folder / name).write_bytes(content)

    def changed(**entries):
        return json.dumps(json.loads(whole["index.json"]) | entries).encode()

    index = json.loads(whole["index.json"])
    for name, content, message in (
        ("shard-00001.bin", shard[:-1], "shard-00001.bin: expected 150,000 bytes, got 149,999; prepare or copy"),
        ("shard-00001.bin", b"?" + shard[1:], "shard-00001.bin: expected ends "),
        ("documents.bin", b"", "documents.bin: expected 8 bytes, got 0"),
        ("tokenizer.json", Words([b"a"]).to_json().encode(), "tokenizer.json: expected sha256 "),
        ("index.json", b"{", "index.json: expected an index as rheobase prepare writes it"),
        ("index.json", b"[" * 99_999, "index.json: expected an index as rheobase prepare writes it"),
        (
            "index.json",
            changed(format="rheobase-tokens/9"),
            "expected format rheobase-tokens/1, got 'rheobase-tokens/9'",
        ),
        ("index.json", changed(tokens=5), "index.json: expected an index"),
        ("index.json", changed(dtype="uint16"), "expected ids of uint8, as its tokenizer's, got uint16"),
        ("index.json", changed(shards=[index["shards"][0] | {"file": "../t.txt"}]), "index.json: expected an index"),
    ):
        damaged(name, content)
        with pytest.raises(FormatError) as error:
            open_tokens(folder)
        assert message in str(error.value)
    damaged("shard-00001.bin", shard[:75_000] + b"?" + shard[75_001:])
    open_tokens(folder)
    assert run(["inspect", str(folder)]) == 1
    assert "shard-00001.bin: expected sha256 " in capsys.readouterr().err


def test_a_killed_one_leaves_no_folder_and_no_process(tmp_path, monkeypatch):
    """kill -9 of the parent, while two processes read what takes them some seconds."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from token_shards import tree

    (tmp_path / "t.jsonl").write_bytes(lines_of(["some words " * 2000]) * 1000)
    command = [
        sys.executable,
        "-m",
        "rheobase",
        "prepare",
        *[str(tmp_path / "t.jsonl")] * 2,
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen([*command, "--tokenizer", "words", "--jobs", "2"])
    children, until = [], time.monotonic() + 60
    while len(children) < 3 and time.monotonic() < until:
        time.sleep(0.05)
        children = tree(process.pid)[1:]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(alive(child) for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(children) >= 3 and not any(alive(child) for child in children)
    assert not (tmp_path / "out").exists()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_prepare_needs_no_torch():
    code = "import sys, rheobase.cli, rheobase.preparing; sys.exit('torch' in sys.modules or 'h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_blank_lines_before_the_first_document_are_no_block_of_less_than_nothing(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"\n" * 70_000 + lines_of(["one two three"]))
    assert made(tmp_path / "bytes", [source], shard_tokens=5).shards[:].tobytes() == b"one two three"
    assert len(made(tmp_path / "words", [source], tokenizer="words").shards) == 3


def test_a_tokenizer_that_is_named_is_not_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    made(tmp_path / "words", [tmp_path / "a.txt"], tokenizer="words")
    data = {"text": str(tmp_path / "words")}
    assert RunConfig.from_table({"model": MODEL, "data": data, "train": TRAIN}).corpus().tokenizer.unit == "word"
    with pytest.raises(ConfigError, match="data.tokenizer: expected that of .*words, got another"):
        RunConfig.from_table({"model": MODEL, "data": data | {"tokenizer": "bytes"}, "train": TRAIN}).corpus()


def test_a_data_sets_name_is_no_folder_that_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    made(tmp_path / "pydoc", [tmp_path / "a.txt"])
    own, there = (RunConfig.from_table({"model": MODEL, "data": {"text": t}}).corpus() for t in ("./pydoc", "pydoc"))
    assert len(own.splits.train) < 10_000 < len(there.splits.train)
