"""Runs that classify sentences: what they learn from, what they keep, how they go on, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
import torch

from rheobase.cli import run
from rheobase.models import LSTMLM, Classifier, LSTMLMConfig, load_model
from rheobase.models.training import loop
from rheobase.models.training.checkpoint import load_checkpoint, newest_checkpoint
from rheobase.models.training.classify import Rows, SentenceBatches, encode_parts, judge, judge_apart
from rheobase.models.training.run import Run, RunConfig
from rheobase.models.training.sentence_sets import SETS, SentencesConfig, read_parts
from rheobase.models.training.tokenizers import Words
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError, UnsupportedError

GOOD, BAD = ("fine", "lovely", "warm"), ("dull", "cold", "flat")


def write_sentences(path, n, seed=0):
    """Sentences of which one word in the middle decides."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(n):
        label = rng.integers(2)
        around = [f"w{i}" for i in rng.integers(0, 20, rng.integers(2, 9))]
        at = len(around) // 2
        lines.append(" ".join([str(label), *around[:at], str(rng.choice((BAD, GOOD)[label])), *around[at:]]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def table(folder, **sections):
    base = {
        "model": {"name": "spikegpt", "embedding": 16, "depth": 1, "placement": "spike_fed", "dropout": 0.1},
        "data": {"tokenizer": "words"},
        "sentences": {"train": str(folder / "train"), "dev": str(folder / "dev"), "dropout": 0.1},
        "train": {"steps": 60, "batch": 16, "warmup": 5, "evaluate_every": 10, "checkpoint_every": 20, "context": 32},
    }
    return {name: base.get(name, {}) | sections.get(name, {}) for name in base.keys() | sections.keys()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sentences")
    write_sentences(made / "train", 400)
    write_sentences(made / "dev", 40, seed=1)
    return made


@pytest.fixture(scope="module")
def scratch(folder):
    return loop.start(folder / "scratch", RunConfig.from_table(table(folder)), quiet=True)


@pytest.fixture(scope="module")
def language(folder):
    """A language model of the sentences as text."""
    lines = (folder / "train").read_text().splitlines()
    (folder / "text").write_text("".join(f"{line.partition(' ')[2]}\n" for line in lines))
    sections = {"sentences": {}, "data": {"text": str(folder / "text"), "tokenizer": "words"}}
    made = table(folder) | sections
    made["train"] = made["train"] | {"steps": 20, "context": 8}
    return loop.start(folder / "language", RunConfig.from_table(made), quiet=True)


def test_every_sentence_is_in_an_epoch_once_and_batches_are_a_function_of_the_step():
    rng = np.random.default_rng(0)
    rows = Rows([np.full(rng.integers(1, 40), i) for i in range(103)], np.arange(103) % 3)
    batches, again = SentenceBatches(rows, 10, seed=5), SentenceBatches(rows, 10, seed=5)
    seen, orders = [], []
    for step in range(20):
        tokens, lengths, labels = batches(step)
        assert torch.equal(labels, tokens[:, 0] % 3) and lengths.max() == tokens.shape[1]
        assert all(row[n:].eq(0).all() and row[:n].eq(row[0]).all() for row, n in zip(tokens, lengths, strict=True))
        orders.append(tokens[:, 0].tolist())
        seen += orders[-1]
        if step in (9, 19):
            assert len(set(seen)) == 100
            seen = []
    assert orders[:10] != orders[10:]
    assert torch.equal(again(13)[0], batches(13)[0]) and torch.equal(again(2)[0], batches(2)[0])
    assert len(SentenceBatches(rows, 500, seed=0)(3)[1]) == 103


def test_batches_hold_sentences_of_like_length():
    rng = np.random.default_rng(0)
    rows = Rows([np.zeros(n, np.int64) for n in rng.integers(1, 60, 2000)], np.zeros(2000, np.int64))
    batches = SentenceBatches(rows, 32, seed=0)
    padded = [batches(step) for step in range(60)]
    assert sum(t.numel() for t, _, _ in padded) < 1.15 * sum(int(n.sum()) for _, n, _ in padded)


def test_parts_do_not_overlap_and_a_set_is_found_by_its_name(folder, tmp_path, monkeypatch):
    parts = read_parts(SentencesConfig(train=str(folder / "train"), held_out=0.2))
    assert [len(p) for p in (parts.train, parts.held_out, parts.dev)] == [288, 72, 40]
    whole = sorted(parts.train.texts + parts.held_out.texts + parts.dev.texts)
    assert whole == sorted(line.partition(" ")[2] for line in (folder / "train").read_text().splitlines())
    monkeypatch.delenv("RHEOBASE_DATA", raising=False)
    with pytest.raises(ConfigError, match="sentences.folder"):
        read_parts(SentencesConfig(train="sst2"))
    (tmp_path / "sentences").mkdir()
    for ours, theirs in (("train", "stsa.fine.train"), ("dev", "stsa.fine.dev")):
        shutil.copy(folder / ours, tmp_path / "sentences" / theirs)
    monkeypatch.setenv("RHEOBASE_DATA", str(tmp_path))
    found = read_parts(SentencesConfig(train="sst5"))
    assert (len(found.train), len(found.held_out), len(found.dev)) == (360, 40, 40)
    assert SentencesConfig(train="sst5").labels == SETS["sst5"].classes == 5
    with pytest.raises(FormatError, match="a file of sentences"):
        read_parts(SentencesConfig(train="sst3"))


def test_words_come_from_the_train_part_alone_and_a_long_sentence_is_refused(folder):
    parts = read_parts(SentencesConfig(train=str(folder / "train"), dev=str(folder / "dev")))
    corpus = encode_parts(parts, 32, "words")
    known = {word for text in parts.train.texts for word in text.split()}
    assert set(corpus.tokenizer.words) == {word.encode() for word in known} | {b"<eos>", b"<unk>"}
    assert corpus.dev.tokens[3].tolist() == corpus.tokenizer.encode(parts.dev.texts[3].encode()).tolist()
    assert encode_parts(parts, 32, corpus.tokenizer).digest == corpus.digest
    with pytest.raises(ShapeError, match=r"1 to 5 words, got [6-9]; raise train.context"):
        encode_parts(parts, 5, "words")


def test_a_verdict_is_what_sentence_by_sentence_gives(scratch):
    model, dev = scratch.model().double(), scratch.corpus().dev
    logits = torch.cat([model(torch.from_numpy(row)[None]) for row in dev.tokens]).detach()
    labels = torch.from_numpy(dev.labels)
    for batch in (1, 7, 40):
        verdict = judge(model, dev, batch)
        assert verdict.accuracy == (logits.argmax(1) == labels).double().mean().item() and verdict.sentences == 40
        assert verdict.cross_entropy == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
        fired = [model.rates(model.run(torch.from_numpy(row)[None])[1]) for row in dev.tokens]
        n = np.array([len(row) for row in dev.tokens])
        for i, rate in enumerate(verdict.rates):
            one = np.array([layers[i].mean().item() for layers in fired])
            assert rate == pytest.approx((one * n).sum() / n.sum())


def test_a_run_learns_and_keeps_the_step_that_the_held_out_part_chose(scratch):
    names = {path.name for path in scratch.folder.iterdir()}
    assert {"config.toml", "tokenizer.json", "model", "checkpoints", "log.jsonl", "metrics.json"} <= names
    metrics, log = scratch.metrics(), scratch.log()
    looks = {r["step"]: r["valid"] for r in log if "valid" in r}
    assert metrics["valid"]["accuracy"] == max(looks.values()) == looks[metrics["best_step"]] > 0.8
    assert metrics["valid"]["sentences"] == 40 and "test" not in metrics
    losses = [r["cross_entropy"] for r in log if "cross_entropy" in r]
    assert losses[-1] < 0.5 < losses[0] + 0.2
    assert isinstance(load_model(scratch.folder), Classifier)
    assert judge(scratch.model(), scratch.corpus().held_out, 32).accuracy == metrics["valid"]["accuracy"]


def test_a_resumed_run_ends_with_the_same_bits(scratch, folder, tmp_path):
    """Cut back to a checkpoint in the middle of its second epoch."""
    stopped = Run(shutil.copytree(scratch.folder, tmp_path / "stopped"))
    newest_checkpoint(stopped.checkpoints).unlink()
    shutil.rmtree(stopped.model_path)
    assert load_checkpoint(newest_checkpoint(stopped.checkpoints))["step"] == 40
    loop.resume(stopped.folder, quiet=True)
    for name, tensor in scratch.model().state_dict().items():
        assert torch.equal(tensor, stopped.model().state_dict()[name])
    assert scratch.metrics()["valid"] == stopped.metrics()["valid"]
    figures = ("step", "cross_entropy", "valid", "gradient_norm", "rates")
    logs = [[{name: record.get(name) for name in figures} for record in each.log()] for each in (scratch, stopped)]
    assert logs[0] == logs[1]


def test_the_language_models_own_loss_is_that_of_each_sentence_by_itself(folder):
    sections = {"sentences": {"language": 0.5}, "model": {"dropout": 0.0}}
    config = RunConfig.from_table(table(folder, **sections))
    corpus = config.corpus()
    task, model = loop.prepare(config.fitted(corpus.tokenizer), corpus)
    task.begin(model)
    loss = task.loss(model.eval(), 3)
    tokens, lengths, _ = task.batches(3)
    nats, n = 0.0, 0
    for row, length in zip(tokens, lengths, strict=True):
        logits, _ = model.trunk(row[None, :length])
        nats += torch.nn.functional.cross_entropy(logits[0, :-1], row[1:length], reduction="sum").item()
        n += int(length) - 1
    assert (loss.whole - loss.shown).item() == pytest.approx(0.5 * nats / n, rel=1e-4)


def test_fitting_all_sentences_learns_those_held_out_too_and_keeps_the_last_step(folder, tmp_path):
    settings = {"fit_all": True}
    run = loop.start(tmp_path / "all", RunConfig.from_table(table(folder, sentences=settings)), quiet=True)
    assert run.metrics()["best_step"] == 60
    corpus = run.corpus()
    task, _ = loop.prepare(run.config, corpus)
    assert len(task.batches.rows) == len(corpus.train) + len(corpus.held_out) == 400
    assert not set(map(bytes, corpus.dev.tokens)) & set(map(bytes, task.batches.rows.tokens))


@pytest.mark.parametrize("fit_all", [False, True])
def test_words_are_counted_in_what_is_trained_on_and_leave_the_networks_training_alone(
    folder, tmp_path, capsys, fit_all
):
    train, settings = {"steps": 20}, {"fit_all": fit_all}
    runs = [
        loop.start(
            tmp_path / str(n), RunConfig.from_table(table(folder, sentences=settings | {"counted": n}, train=train))
        )
        for n in (0, 500)
    ]
    bare, model = (run.model() for run in runs)
    for name, tensor in bare.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    corpus = runs[1].corpus()
    assert model.counted.sentences.sum() == (400 if fit_all else len(corpus.train))
    network, counts = judge_apart(model, corpus.dev, 7)
    assert network == judge(bare, corpus.dev, 7).accuracy and counts > 0.9
    assert judge(model, corpus.dev, 7).accuracy > network
    assert run(["eval", str(runs[1].folder), "--beside", str(runs[0].folder)]) == 0
    parts = f"({100 * network:.1f} % by its network alone, {100 * counts:.1f} % by its counted words alone): "
    assert capsys.readouterr().out.count(parts) == 1
    assert runs[1].metrics()["test"]["counts_alone"] == counts


def test_a_run_that_counts_words_goes_on_where_it_was_stopped(folder, tmp_path):
    config = RunConfig.from_table(table(folder, sentences={"counted": 500}, train={"steps": 40}))
    whole = loop.start(tmp_path / "whole", config, quiet=True)
    (last,) = whole.checkpoints.glob("step-*40.ckpt")
    last.unlink()
    before = whole.model().state_dict()
    shutil.rmtree(whole.model_path)
    again = loop.resume(whole.folder, quiet=True).model().state_dict()
    assert before["counted.counts"].any() and all(torch.equal(again[name], before[name]) for name in before)


def test_fine_tuning_starts_from_a_language_model(language, folder, tmp_path):
    names = {"data": {"tokenizer": str(language.tokenizer_path)}, "teacher": {"start": str(language.folder)}}
    config = RunConfig.from_table(table(folder, **names, train={"steps": 1, "learning_rate": 1e-12}))
    tuned = loop.start(tmp_path / "tuned", config, quiet=True)
    model, theirs = tuned.model(), language.model()
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(model.trunk.state_dict()[name], tensor, atol=1e-9)
    assert tuned.tokenizer().digest == language.tokenizer().digest
    two_words = Words([b"fine", b"dull"])
    assert config.corpus(two_words).tokenizer is two_words, "a run's own comes before what its configuration names"
    other = tmp_path / "other.json"
    other.write_text(two_words.to_json())
    for wrong, message in (
        ({"data": {"tokenizer": str(other)}}, "data.tokenizer: expected the tokenizer of"),
        ({"model": {"depth": 2}}, "model.depth: expected 1, as .* has it, got 2; copy its settings"),
        ({"model": {"placement": "reference"}}, "model.placement: expected 'spike_fed', as .* has it, got 'reference'"),
        ({"model": {"name": "rwkv4", "placement": "continuous"}}, "model.name: expected 'spikegpt', as"),
        ({"model": {"binary_embedding": False}}, "model.binary_embedding: expected True"),
        ({"model": {"head": "spiking"}}, "model.head: expected 'dense'"),
        ({"model": {"ternary": True}}, "model.ternary: expected False"),
        ({"model": {"neuron": "norse:LIF"}}, "model.neuron: expected 'lif'"),
    ):
        config = RunConfig.from_table(table(folder, **(names | wrong)))
        with pytest.raises(ConfigError, match=message):
            loop.start(tmp_path / message[:20], config, quiet=True)
        assert not (tmp_path / message[:20]).exists()


def test_what_a_classifier_does_not_take_is_refused(folder, scratch, tmp_path):
    for wrong, message in (
        ({"budget": {"ops_per_token": 10.0}}, r"no \[budget\]"),
        ({"teacher": {"share": 0.2}}, r"no \[budget\]"),
        ({"data": {"order": "crops"}}, r"of \[data\] `tokenizer` and `unknown` alone, and no train.restart"),
        ({"data": {"text": "enwik8"}}, r"of \[data\] `tokenizer` and `unknown` alone, and no train.restart"),
        ({"train": {"restart": True}}, r"of \[data\] `tokenizer` and `unknown` alone, and no train.restart"),
        ({"model": {"name": "classifier"}}, "a language model"),
        ({"sentences": {"held_out": 0.0}}, "some and not all"),
        ({"train": {"batch": 0}}, "at least 1"),
        (
            {"data": {"tokenizer": "bytes"}, "model": {"vocabulary": 120}, "train": {"context": 99}},
            "from 0 to 119, got 121",
        ),
    ):
        with pytest.raises((ConfigError, ShapeError), match=message):
            loop.start(tmp_path / "run", RunConfig.from_table(table(folder, **wrong)), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UnsupportedError, match="a language model's run"):
        scratch.splits()
    moved = tmp_path / "moved"
    shutil.copytree(scratch.folder, moved)
    config = Run.open(moved).config_path
    config.write_text(config.read_text().replace(str(folder / "dev"), write_sentences(tmp_path / "new", 50, seed=3)))
    with pytest.raises(FormatError, match="the text of the training"):
        Run.open(moved).corpus()


def test_a_character_stands_for_those_that_the_train_part_lacks(folder, tmp_path):
    (tmp_path / "dev").write_text("0 dull é\n1 fine\n")
    few = {"sentences": {"dev": str(tmp_path / "dev")}, "train": {"steps": 2, "context": 64}}
    made = table(folder, data={"tokenizer": "characters"}, **few)
    with pytest.raises(FormatError, match="of the sentence: .* or set data.unknown"):
        RunConfig.from_table(made).corpus()
    made["data"] |= {"unknown": "w"}
    trained = loop.start(tmp_path / "run", RunConfig.from_table(made), quiet=True)
    assert trained.tokenizer().decode(trained.corpus().dev.tokens[0]) == b"dull w"
    with pytest.raises(ConfigError, match="data.unknown: expected none unless"):
        RunConfig.from_table(table(folder, data={"tokenizer": "words", "unknown": "w"})).corpus()


def test_other_trunks_can_be_trained(folder, tmp_path):
    names = {"model": {"name": "lstm_lm", "embedding": 16, "layers": [16]}}
    made = table(folder) | names
    made["train"]["steps"] = 30
    trained = loop.start(tmp_path / "run", RunConfig.from_table(made), quiet=True)
    assert isinstance(trained.model().trunk, LSTMLM) and isinstance(trained.config.settings, LSTMLMConfig)
    assert json.loads((trained.model_path / "config.json").read_text())["model"] == "classifier"


def test_sentences_are_counted_one_by_one_without_padding(scratch, capsys):
    assert run(["count", str(scratch.folder), "--tokens", "60", "--target", "horowitz-45nm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lengths = np.array([len(row) for row in scratch.corpus().dev.tokens])
    n = int((lengths.cumsum() <= 60).sum())
    assert n > 2 and len(set(lengths[:n])) > 1 and found["tally"]["tokens"] == lengths[:n].sum()
    made, operators = scratch.model(), found["tally"]["operators"]
    assert operators["output"]["dense_macs"] == n * made.output.weight.numel()
    key = operators["trunk.blocks.0.att.key"]
    assert key["dense_macs"] == lengths[:n].sum() * made.trunk.config.embedding**2
    assert found["bills"][0]["priced_joules"]["central"] > 0


def test_the_command_line_judges_runs_beside_a_bag_of_words(scratch, language, capsys):
    def ask(*argv, status=0):
        assert run([str(a) for a in argv]) == status
        return "".join(capsys.readouterr())

    text = ask("eval", scratch.folder, "--beside", scratch.folder)
    accuracy = judge(scratch.model(), scratch.corpus().dev, 32).accuracy
    assert text.count(f"{100 * accuracy:.1f} % of 40 sentences right: {scratch.folder}") == 2
    assert "%: a bag of words\nblocks.0." in text
    table = json.loads(ask("eval", scratch.folder, "--json"))
    assert table["bag_of_words"] == scratch.metrics()["bag_of_words"] > 0.8
    assert table["runs"][str(scratch.folder)]["accuracy"] == scratch.metrics()["test"]["accuracy"] == accuracy
    assert "eval --text: expected a language model's run" in ask("eval", scratch.folder, "--text", "x", status=1)
    assert "a run that classifies sentences" in ask("eval", language.folder, "--beside", scratch.folder, status=1)
    shown = ask("eval", scratch.folder, "--beside", language.folder, status=1)
    assert "eval --beside: expected a run that judges the sentences of" in shown
    for command in (
        ["sample"],
        ["count", "--prefill", "5"],
        ["simulate"],
        ["report"],
        ["export", "--to", "spinnaker2", "--out", "x"],
    ):
        shown = ask(command[0], scratch.folder, *command[1:], status=1)
        assert "expected a language model's run, got a classifier's" in shown
    assert "0 differ" in ask("diff", scratch.folder, scratch.folder)
    assert all(any(r.measure in record for record in r.log()) for r in (scratch, language))
    assert "zhu2023spikegpt" in ask("cite", scratch.folder)
    assert "spikegpt" in ask("inspect", scratch.folder)
