"""Bad input gets one line that says what is wrong and what to do, status 1, and nothing half-written."""

import resource
import shutil

import pytest
import torch

from rheobase import load
from rheobase.cli import run
from rheobase.models import EGRULM, LSTMLM, EGRULMConfig, LSTMLMConfig
from rheobase.models.training import loop
from rheobase.models.training.checkpoint import alone, load_checkpoint, newest_checkpoint
from rheobase.models.training.run import Run, RunConfig
from rheobase.spiking import LIF
from rheobase.spiking.errors import FormatError, ShapeError
from rheobase.spiking.files import write_atomic

CONFIG = """
[model]
name = "egru_lm"
embedding = 8
layers = [8]
[train]
steps = 2
batch = 2
context = 8
warmup = 1
"""


@pytest.fixture
def say(capsys):
    """Run a command line that must fail; its one line."""

    def failing(*argv):
        assert run([str(a) for a in argv]) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("rheobase: ")
        return shown.err

    return failing


def train_on(tmp_path, text: bytes, config=CONFIG, *more):
    (tmp_path / "text.txt").write_bytes(text)
    (tmp_path / "config.toml").write_text(config)
    return [
        "train",
        tmp_path / "config.toml",
        "--out",
        tmp_path / "run",
        "--set",
        f"data.text={tmp_path / 'text.txt'}",
        *more,
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", "text.txt: expected at least 2 bytes of text, got 0; give a longer text"),
        (b"x", "text.txt: expected at least 2 bytes of text, got 1; give a longer text"),
        (b"x" * 60, "expected more than the context of 8 bytes, got 6; give a longer text or lower train.context"),
        ("caf\xe9 ".encode("latin-1") * 99, "expected utf-8 text, got the byte 0xe9 at byte 3; give a text in that"),
        (b"\xff\xfe" + "hello".encode("utf-16-le") * 99, "expected utf-8 text, got the byte 0xff at byte 0"),
    ],
)
def test_texts(tmp_path, say, text, line):
    assert line in say(*train_on(tmp_path, text))
    assert not (tmp_path / "run").exists()


def test_a_text_that_ends_inside_a_character(tmp_path, say):
    assert "expected utf-8 text, got the byte 0xc3 at byte 200" in say(*train_on(tmp_path, b"a" * 200 + b"\xc3"))


def test_a_text_too_short_for_its_streams(tmp_path, say):
    config = CONFIG.replace("batch = 2", "batch = 32")
    assert "32 streams of 8 bytes, 257 in all, got 240 bytes" in say(*train_on(tmp_path, b"word " * 60, config))
    assert not (tmp_path / "run").exists()


def test_a_text_that_is_not_there(tmp_path, say):
    line = say("quickstart", "--small", "--text", tmp_path / "none.txt", "--out", tmp_path / "q")
    assert "none.txt: expected a text file, got no file; check data.text or --text" in line
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("text", ["", "pydoc"])
def test_a_text_to_predict_that_is_no_file(small_run, say, text):
    """An empty name is no name left out, and a built-in text's name is no file."""
    line = say("eval", small_run.folder, "--text", text)
    assert line == f"rheobase: {text or '.'}: expected a text file, got no file; check data.text or --text\n"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.stepz=3", "train: expected a known key, got 'stepz'; did you mean 'steps'?"),
        ("model.layer=[3]", "model: expected a known key, got 'layer'; did you mean 'layers'?"),
        ("trian.steps=3", "expected a known section, got 'trian'; did you mean 'train'?"),
        ("model.name=egru", "models: expected a known name, got 'egru'; did you mean 'egru_lm'?"),
        ("train.steps=many", "train.steps: expected int, got 'many'"),
        ("train.steps=1.5", "train.steps: expected int, got 1.5"),
        ("train.steps=0", "train.steps: expected at least 1, got 0"),
        (
            f"train.steps={2**63}",
            "train.steps: expected a whole number from -2^63 to below 2^63, got one of 64 bits; mend the value",
        ),
        ("train", "--set: expected key=value, got 'train'"),
        ("train.recompute=True", "train.recompute: expected a value in TOML, got True; TOML has true and false"),
        ("data.order=random", "data.order: expected one of streams, crops, shuffled, got 'random'"),
        ("data.encoding=utf8", "data.encoding: expected one of utf-8, ascii, bytes, got 'utf8'"),
        (
            "model.layers=[9]",
            "expected a last layer of 8 units, as wide as the embedding that the decoder shares, got 9",
        ),
        ("model.layers=9", "model.layers: expected a list, got 9"),
        ("model.zoneout=1.0", "EGRU zoneout: expected a probability from 0 to below 1, got 1.0"),
        ("data.test=1.5", "expected fractions with a sum below 1"),
        ("prune.sparsity=1.0", "prune.sparsity: expected at least 0 and below 1, got 1.0"),
        ("prune.sparsity=nan", "prune.sparsity: expected at least 0 and below 1, got nan"),
        ("prune.end=0.1", "prune.start, prune.end: expected rising parts of 1, both below it, got 0.2 and 0.1"),
        ("prune.end=1.0", "prune.start, prune.end: expected rising parts of 1, both below it, got 0.2 and 1.0"),
        ("prune.every=0", "prune.every: expected at least 1, got 0"),
        ("prune.scope=row", "prune.scope: expected 'global' or 'layer', got 'row'"),
        ("prune.sparsty=0.5", "prune: expected a known key, got 'sparsty'; did you mean 'sparsity'?"),
        ("quantise.weights=4", "quantise.weights: expected 8 bits, or 0, got 4"),
        ("quantise.start=1.0", "quantise.start: expected at least 0 and below 1, got 1.0"),
        (
            "sentences.dev=dev.txt",
            "sentences.train: expected what is classified, got none; name it, or drop [sentences]",
        ),
        ("events.steps=5", "events.set: expected what is classified, got none; name it, or drop [events]"),
        ("train.device=cuda:9", "train.device: expected a device of this machine, got 'cuda:9'"),
    ],
)
def test_configurations(tmp_path, say, change, line):
    assert line in say(*train_on(tmp_path, b"some words " * 99, CONFIG, "--set", change))
    assert not (tmp_path / "run").exists()


def test_a_restart_of_what_has_no_c(tmp_path, say):
    line = say(
        *train_on(tmp_path, b"some words " * 99, CONFIG.replace("egru_lm", "lstm_lm"), "--set", "train.restart=true")
    )
    assert "train.restart: expected an EGRU, whose c it zeroes, got lstm_lm; drop it" in line


@pytest.mark.parametrize("device", ["cuda:1", "cuda:one"])
def test_a_gpu_to_train_on(device, tmp_path, say, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    line = say(*train_on(tmp_path, b"some words " * 99, CONFIG, "--set", f"train.device={device}"))
    assert f"train.device: expected a device of this machine, got '{device}'" in line


def test_a_device_to_simulate_on(small_run, say, monkeypatch):
    for on in ("event", "integer"):
        line = say("simulate", small_run.folder, "--on", on, "--device", "cpu")
        assert f"simulate --device: expected --on torch, got --on {on}; leave --device out" in line
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = say("simulate", small_run.folder, "--on", "torch", "--device", "cuda")
    assert "simulate device: expected a device of this machine, got 'cuda'" in line


def test_a_configuration_that_is_not_toml(tmp_path, say):
    assert "config.toml: expected TOML, got" in say(*train_on(tmp_path, b"word " * 99, "= 3"))
    assert "expected a TOML file or a built-in configuration, got 'quickstart_egr'" in say("train", "quickstart_egr")


def test_usage_is_status_2(capsys):
    for argv in (["trian"], ["export", "x"], ["count", "x", "--tokens", "0"], [], ["train"], ["train", "--resume"]):
        with pytest.raises(SystemExit) as stop:
            run(argv)
        assert stop.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    "model", [EGRULM(EGRULMConfig(embedding=8, layers=(8,))), LSTMLM(LSTMLMConfig(embedding=8, layers=(8,)))]
)
def test_tokens_and_states(model):
    tokens = torch.tensor([[1, 2, 3]])
    with pytest.raises(ShapeError, match="tokens: expected ids from 0 to 255, got 256; check the tokenizer"):
        model(torch.tensor([[0, 256]]))
    with pytest.raises(ShapeError, match="tokens: expected ids from 0 to 255, got -1"):
        model(torch.tensor([[0, -1]]))
    with pytest.raises(ShapeError, match=r"tokens: expected integers \[B, T\]"):
        model(torch.tensor([1, 2]))
    _, two = model(tokens.repeat(2, 1))
    with pytest.raises(ShapeError, match="state: expected .* use a state of this model and batch size"):
        model(tokens, two)
    _, other = EGRULM(EGRULMConfig(embedding=8, layers=(5, 8)))(tokens)
    with pytest.raises(ShapeError, match="state: expected .* use a state of this model and batch size"):
        model(tokens, other)


def test_one_step_takes_a_state_of_its_own_batch():
    """A state of two streams made two outputs of one input."""
    for x, state in ((1, 2), (2, 1)):
        with pytest.raises(ShapeError, match=rf"LIF step: expected v of shape \({x}, 3\), got \({state}, 3\)"):
            LIF(3).step(torch.ones(x, 3), LIF(3).initial_state(state))


def test_damaged_models(small_run, tmp_path, say):
    folder = tmp_path / "run"
    shutil.copytree(small_run.folder, folder)
    weights = folder / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "model.safetensors: expected sha256" in say("eval", folder)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    weights.write_bytes(flipped)
    assert "model.safetensors: expected sha256" in say("sample", folder)
    weights.unlink()
    assert "model.safetensors: expected a model's weights, got No such file or directory" in say("count", folder)
    (folder / "model" / "config.json").write_text("{}")
    assert "config.json: expected JSON that names a model" in say("eval", folder)
    assert "expected a run folder with config.toml, got none" in say("eval", tmp_path)
    with pytest.raises(FormatError, match="expected a lstm_lm model, got 'egru_lm'"):
        LSTMLM.from_pretrained(small_run.model_path)
    with pytest.raises(FormatError, match="expected a model's folder, a shipped model or user/name on the hub"):
        load(tmp_path / "nothing")


def test_damaged_checkpoints(small_run, tmp_path, say):
    folder = tmp_path / "run"
    shutil.copytree(small_run.folder, folder)
    path = newest_checkpoint(folder / "checkpoints")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:]):
        path.write_bytes(damaged)
        line = say("train", "--resume", "--out", folder)
        assert f"{path.name}: expected the sha256 it was written with, got another; delete it" in line
    path.write_bytes(b"PK\x03\x04 something else")
    assert f"{path.name}: expected a rheobase checkpoint, got another file" in say("train", "--resume", "--out", folder)


def test_a_model_of_a_name_that_is_not_known(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "egru"}')
    with pytest.raises(FormatError, match="config.json: expected a known name, got 'egru'; did you mean 'egru_lm'"):
        load(tmp_path)


def test_another_model_in_a_runs_folder(small_run, tmp_path, say):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    negated = Run(folder).model()
    negated.embedding.weight.data.neg_()
    for other in (negated, LSTMLM(LSTMLMConfig(vocabulary=256, embedding=8, layers=(8,)))):
        other.save_pretrained(folder / "model")
        for command in ("eval", "report", "card", "count"):
            assert "run/model: expected the model of this run's training, got another" in say(command, folder)
        (folder / "metrics.json").unlink(missing_ok=True)  # the other's settings are seen without


def test_damaged_logs(small_run, tmp_path, say):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    good = (folder / "log.jsonl").read_text()
    for line, wanted in (
        ("{}", "expected a step, got none"),
        ('{"step": "1"}', "line 1.step: expected int, got '1'"),
        ('{"step": 1, "valid": []}', "line 1.valid: expected float, got []"),
        ('{"step": 1, "bits_per_byte": 1, "rates": [null]}', "line 1.rates[0]: expected float, got None"),
    ):
        (folder / "log.jsonl").write_text(f"{line}\n{good}")
        assert wanted in say("report", folder)
    (folder / "log.jsonl").write_text('{"step": 1, "bits_per_byte": 0.0}\n' + good)  # learnt by heart
    assert run(["report", str(folder)]) == 0


def test_a_foreign_torch_file_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(FormatError, match="evil.pt: expected a torch checkpoint .*, got Unsupported global"):
        EGRULM.from_reference(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_checkpoint_cut_off_in_writing_leaves_the_last_good_one(small_run, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(small_run.checkpoints, folder)
    good = newest_checkpoint(folder)
    (folder / ".step-00000099.ckpt.12345678.partial").write_bytes(good.read_bytes()[:1000])
    assert newest_checkpoint(folder) == good and load_checkpoint(good)["step"] == 60
    with alone(tmp_path, tmp_path / "log.jsonl"):  # as who goes on with it
        assert not list(folder.glob(".*"))


def test_folders_that_exist_are_not_overwritten(small_run, tmp_path, say):
    (tmp_path / "q").mkdir()
    assert "q: expected a folder that does not exist yet" in say("quickstart", "--small", "--out", tmp_path / "q")
    line = say("train", "quickstart_egru", "--out", small_run.folder)
    assert "expected a folder without a run, got a run; resume it with --resume" in line
    assert "train --resume: expected --out RUN, or its CONFIG too" in say(
        "train", "--resume", "--out", "x", "--dry-run"
    )


def test_names_are_suggested(small_run, tmp_path, say):
    assert "exporters: expected a known name, got 'spinnaker'; did you mean 'spinnaker2'?" in say(
        "export", small_run.folder, "--to", "spinnaker", "--out", tmp_path / "x"
    )
    assert "target: expected a known target, got 'horowitz'; did you mean 'horowitz-45nm'?" in say(
        "count", small_run.folder, "--target", "horowitz"
    )
    assert "record: expected a node's output, got 'layers.0.z'" in say(
        "simulate", small_run.folder, "--record", "layers.0.z", "--out", tmp_path / "t.h5"
    )
    assert "--tokens to" in say("count", small_run.folder, "--tokens", "99999999")
    assert not list(tmp_path.iterdir())


def test_a_strangers_sizes_are_checked_before_anything_is_allocated(small_run, tmp_path):
    import json

    import h5py

    from rheobase.backends.trace import load_trace

    shutil.copytree(small_run.model_path, tmp_path / "m")
    header = json.loads((tmp_path / "m" / "config.json").read_text())
    header["config"] |= {"vocabulary": 10**9, "embedding": 10**6, "layers": [10**6]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(header))
    with pytest.raises(FormatError, match="expected sizes that fit"):
        load(tmp_path / "m")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.attrs.update({"format": "rheobase-trace/1", "graph": "", "simulator": ""})
        file.create_dataset("tokens", (10**6, 10**6), "i8", chunks=(1000, 1000))
    with pytest.raises(FormatError, match="at most [0-9]+ bytes, got 8000000000000 at tokens"):
        load_trace(tmp_path / "bomb.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(FormatError, match="a trace in HDF5"):
        load_trace(tmp_path / "text.h5")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.clip=0", "train.clip: expected from 1e-12 to below inf, got 0"),
        ("train.clip=inf", "train.clip"),
        ("train.learning_rate=nan", "train.learning_rate"),
        ("train.seed=-1", "train.seed"),
        ("model.dropout_output=1.0", "egru_lm dropout_output: expected at least 0 and below 1, got 1.0"),
        ("model.vocabulary=-3", "egru_lm vocabulary: expected at least 1"),
        ("model.vocabulary=100", "the train part of the text: expected ids from 0 to 99"),
        ("model.name=training", "config.toml: expected a language model, got 'training'"),
        ("train.threads=99999999999", "train.threads: expected from 1 to 1024, got 99999999999"),
        ("data.workers=99999999999", "data.workers: expected from 0 to 1024, got 99999999999"),
        ("model.vocabulary=9999999999999999", "model: expected sizes for which this machine has memory, got "),
        ("train.device=foo", "train.device: expected a device of this machine, got 'foo'"),
    ],
)
def test_settings_that_cannot_train_leave_no_run(tmp_path, say, change, line):
    assert line in say(*train_on(tmp_path, b"some words " * 99, CONFIG, "--set", change))
    assert not (tmp_path / "run").exists()


def test_a_byte_beyond_the_vocabulary_is_found_before_the_training(tmp_path, say):
    text = b"some words " * 90 + "ü".encode()
    line = say(*train_on(tmp_path, text, CONFIG, "--set", "model.vocabulary=128"))
    assert "the test part of the text: expected ids from 0 to 127, got 195" in line
    assert not (tmp_path / "run").exists()


def test_a_start_on_other_tokens_names_a_tokenizer_that_there_is(small_run, tmp_path, say):
    more = "--set", f"teacher.start={small_run.folder}", "--set", "data.tokenizer=words"
    line = say(*train_on(tmp_path, b"some words " * 99, CONFIG, *more))
    assert f"expected the tokenizer of {small_run.folder}, got another" in line and 'data.tokenizer = "bytes"' in line


def test_what_cannot_be_sampled_says_nothing_before(small_run, tmp_path, say, capsys):
    assert "seed: expected from 0" in say("sample", small_run.folder, "--seed", -1)
    more = "--set", "data.tokenizer=characters"
    assert run([str(a) for a in train_on(tmp_path, b"some words " * 99, CONFIG, *more)]) == 0
    capsys.readouterr()
    line = say("sample", tmp_path / "run", "--prompt", "so?")
    assert "character 2 of the prompt: expected one of the 8 characters of the vocabulary, got '?'" in line


def test_a_full_disk_is_named(tmp_path):
    """A file that cannot grow beyond 4 KiB, only while it is written: the log of the tests may be a file too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match="File too large: .*big'$"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            write_atomic(tmp_path / "big", bytes(5000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


def test_an_evaluation_that_cannot_be_kept_is_shown(small_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(small_run.folder, folder)
    (folder / "metrics.json").unlink(missing_ok=True)
    (folder / "metrics.json").mkdir()
    assert run(["eval", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "bits a byte" in shown and f"not kept in {folder}/metrics.json: Is a directory" in shown


def test_a_run_resumes_beside_its_own_config_and_no_other(tmp_path, say, capsys):
    argv = [str(a) for a in train_on(tmp_path, bytes(range(32, 127)) * 20)]
    assert run(argv) == 0 and run([*argv, "--resume"]) == 0
    capsys.readouterr()
    line = say(*argv, "--resume", "--set", "train.seed=3")
    assert line == f"rheobase: train.seed: expected 0, as the run {tmp_path / 'run'} has it, got 3; " + (
        "leave CONFIG out, or train another run\n"
    )
    assert "expected a run folder with config.toml" in say(argv[0], argv[1], "--resume", "--out", tmp_path / "none")


def test_a_run_knows_its_settings_and_its_text(tmp_path, say, capsys):
    text = bytes(range(32, 127)) * 20
    assert run([str(a) for a in train_on(tmp_path, text)]) == 0
    folder, config = tmp_path / "run", tmp_path / "run" / "config.toml"
    whole = config.read_text()
    capsys.readouterr()
    config.write_text(whole.replace("seed = 0", "seed = 1"))
    line = say("train", "--resume", "--out", folder)
    assert "expected the config that the checkpoint was trained with, got another; put it back; only where" in line
    config.write_text(whole)
    (tmp_path / "text.txt").write_bytes(text[::-1])
    assert "the text that the checkpoint was trained with" in say("train", "--resume", "--out", folder)
    assert "text.txt: expected the text of the training, got another" in say("eval", folder)
    (tmp_path / "text.txt").write_bytes(text)
    assert run(["eval", str(folder)]) == 0 and "test" in Run.open(folder).metrics()
    (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    whole = whole.replace("text.txt", "moved.txt")
    config.write_text(whole.replace("steps = 2", "steps = 4"))
    (folder / "log.jsonl").unlink()
    assert run(["train", "--resume", "--out", str(folder)]) == 0
    assert "test" not in Run.open(folder).metrics() and Run.open(folder).log()[-1]["step"] == 4
    (folder / "metrics.json").write_text("[")
    capsys.readouterr()
    assert "metrics.json: expected a table in JSON" in say("inspect", folder)


OTHER = {
    "model": {"name": "egru_lm", "embedding": 8, "layers": [8]},
    "train": {"steps": 2, "batch": 2, "context": 8, "warmup": 1},
}


def test_reports_do_not_mix_models_or_texts(small_image, tmp_path, say):
    other = loop.start(tmp_path / "other", RunConfig.from_table(OTHER), quiet=True)
    assert "expected an export of" in say("report", other.folder, "--image", small_image, "--out", tmp_path / "r.html")
    (tmp_path / "t.txt").write_bytes(b"other words " * 200)
    data = {"text": str(tmp_path / "t.txt")}
    third = loop.start(tmp_path / "third", RunConfig.from_table(OTHER | {"data": data}), quiet=True)
    line = say("report", other.folder, "--beside", third.folder, "--out", tmp_path / "r.html")
    assert "third: expected a run on the same text, got another text" in line
    assert not (tmp_path / "r.html").exists()
