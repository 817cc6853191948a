"""Every command on a real run: what people read and what programs read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from rheobase import __version__, commands
from rheobase.answer import Answer
from rheobase.cli import run


@pytest.fixture
def ask(capsys):
    """Run a command line; what it printed, as text or as JSON."""

    def asking(*argv, status=0):
        assert run([str(a) for a in argv]) == status
        shown = capsys.readouterr()
        assert shown.err == ""
        return json.loads(shown.out) if "--json" in argv else shown.out

    return asking


def test_eval_sample_and_cite(small_run, ask):
    text = ask("eval", small_run.folder)
    assert re.search(r"^\d\.\d{4} bits a byte, perplexity", text) and "layers.1: " in text
    table = ask("eval", small_run.folder, "--json")
    assert table["ok"] and table["tokens"] == len(small_run.config.splits().test) - 1
    assert ask("sample", small_run.folder, "--length", "20", "--prompt", "if ").startswith("if ")
    assert "@inproceedings{subramoney2023egru" in ask("cite", small_run.folder)


def test_eval_takes_a_text_of_yours(small_run, ask, tmp_path):
    metrics = small_run.metrics()
    part = tmp_path / "part.txt"
    part.write_bytes(small_run.config.splits().test.tobytes())
    assert ask("eval", small_run.folder, "--text", part, "--json") == ask("eval", small_run.folder, "--json")
    part.write_text("neither of the two\n" * 40)
    shown = ask("eval", small_run.folder, "--text", part)
    assert "759 predictions" in shown and small_run.metrics() | metrics == small_run.metrics()
    assert ask("eval", "egru-enwik8", "--text", part, "--json")["tokens"] == 759


def test_sample_streams_the_first_trial_and_gives_all(small_run, ask):
    arguments = ("sample", small_run.folder, "--length", 40, "--prompt", "if ", "--top-p", 0.9, "--top-k", 50)
    table = ask(*arguments, "--trials", 3, "--seed", 5, "--json")
    assert table["seeds"] == [5, 6, 7] and len(set(table["texts"])) == 3
    assert all(text.startswith("if ") for text in table["texts"])
    assert ask(*arguments, "--seed", 6) == table["texts"][1] + "\n"
    titled = [f"--- seed {seed} ---\n{text}\n" for seed, text in zip((5, 6, 7), table["texts"], strict=True)]
    assert ask(*arguments, "--trials", 3, "--seed", 5) == "".join(titled)
    greedy = [ask("sample", small_run.folder, "--temperature", 0, "--seed", seed) for seed in (0, 9)]
    assert greedy[0] == greedy[1]


def test_count_gives_operators_and_bills(small_run, ask):
    text = ask(
        "count", small_run.folder, "--tokens", "50", "--target", "spinnaker2", "--target", "horowitz-45nm", "--strict"
    )
    assert "layers.1.recurrent_kernel" in text and "unknown" in text and "memory traffic" in text
    assert text.count("break-even with a dense twin on ") == 2 and "products alone" in text.rpartition("break-even")[2]
    assert max(map(len, text.partition("\n\n")[2].splitlines())) <= 100
    table = ask("count", small_run.folder, "--tokens", "50", "--target", "spinnaker2", "--json")
    assert table["tally"]["tokens"] == 50 and table["bills"][0]["unpriced"]
    priced, rate = table["bills"][0]["priced_joules"], table["break_even"][0]["rate"]
    assert 0 < priced["low"] < priced["central"] < priced["high"] and 0 < rate["low"] <= rate["central"] <= rate["high"]
    assert 0 < table["tally"]["total"]["macs"] < table["tally"]["total"]["dense_macs"]


def test_simulators_record_one_format_and_diff_compares_it(small_run, tmp_path, ask):
    for on in ("event", "torch", "integer"):
        arguments = ("--tokens", 40, "--on", on, "--record", "layers.*.{c,y}", "--out", tmp_path / f"{on}.h5")
        assert f"40 tokens on {on}" in ask("simulate", small_run.folder, *arguments)
        with h5py.File(tmp_path / f"{on}.h5") as file:
            assert file["signals/layers.1.y"].shape == (1, 40, 48)
            assert file["signals/layers.1.y"].attrs["kind"] == "GRADED" and file.attrs["simulator"] == on
    assert "trace of 40 tokens on integer" in ask("inspect", tmp_path / "integer.h5")
    assert "0 differ" in ask("diff", tmp_path / "event.h5", tmp_path / "event.h5")
    text = ask("diff", tmp_path / "event.h5", tmp_path / "integer.h5", status=1)
    assert re.search(r"first: step 0, node layers\.0\.[cy], unit \d+: expected [-\d.e]+, got -?\d+", text)
    ask("diff", small_run.folder, small_run.folder)


def test_a_dense_replay_on_a_device_of_this_machine(small_run, ask):
    arguments = ("simulate", small_run.folder, "--tokens", 40, "--json")
    event, dense = (ask(*arguments, *more) for more in ((), ("--on", "torch", "--device", "cpu")))
    assert dense["tally"]["operators"].keys() == event["tally"]["operators"].keys()
    for key in ("dense_macs", "products", "state_updates"):
        assert dense["tally"]["total"][key] == event["tally"]["total"][key] > 0
    assert dense["rates"] == pytest.approx(event["rates"], rel=0.01)


def test_export_verify_inspect(small_run, tmp_path, ask):
    assert "at most" in ask("export", small_run.folder, "--to", "spinnaker2", "--out", tmp_path / "image")
    assert re.match(r"verified: [\d,]+ numbers compared, 0 mismatches\n", ask("verify", tmp_path / "image"))
    text = ask("inspect", tmp_path / "image")
    assert text.startswith("s2lm/1") and "pe/000.bin" in text and "not claimed" in text
    assert "differ" in ask("diff", tmp_path / "image", tmp_path / "image")
    ask("export", small_run.folder, "--to", "onnx", "--out", tmp_path / "onnx")
    error = ask("diff", tmp_path / "onnx", tmp_path / "image", "--json", status=1)["error"]
    assert re.match(r"diff: expected a recorded trace, got .*onnx.* without one; diff what `rheobase simulate", error)
    assert "egru_lm" in ask("inspect", small_run.folder)
    for path in (small_run.folder, tmp_path / "none"):
        error = ask("verify", path, "--json", status=1)["error"]
        assert error == f"{path}: expected an exported directory, got none; name the --out of an export"


def test_inspect_says_what_it_reads_off_an_originals_file(ask):
    path = Path(__file__).parent / "golden" / "spikegpt_reference.pt"
    text = ask("inspect", path)
    assert "78 tensors, 59,712 numbers" in text and "vocabulary 77, width 32, 4 blocks, att and ffn" in text
    assert ask("inspect", path, "--json")["config"]["depth"] == 4


def test_report_is_one_self_contained_page(small_run, tmp_path, ask):
    ask("export", small_run.folder, "--to", "spinnaker2", "--out", tmp_path / "image")
    ask("report", small_run.folder, "--image", tmp_path / "image", "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "<svg" in page and "bits a byte" in page and "<pre><b>The </b>" in page
    assert re.search(r"<span class=\"of\">[\d,.]+ to [\d,.]+</span>", page)
    assert "Operations a token, by layer and kind" in page and "Bytes a token, by layer and kind" in page
    assert page.count('<circle class="all"') == 1 + page.count('<line class="all"') > 2
    assert "one figure" in page and "Idle power 0.5647 W" in page and "TrueNorth" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page) and "<script" not in page


def test_targets_and_doctor(ask):
    assert "spinnaker2" in ask("targets") and "ISSCC" in ask("targets", "horowitz-45nm")
    table = ask("doctor", "--json")
    assert table["rheobase"] == __version__ and isinstance(table["c_library"], bool) and "cuda" in table
    kernels = {table[f"{op}_kernels"].partition(":")[0] for op in ("lif", "wkv", "egru")}
    assert kernels <= {"native", "reference"}
    assert "torch" in ask("doctor")


def test_doctor_says_what_each_op_gets_on_a_gpu_and_why(ask, monkeypatch):
    monkeypatch.delenv("RHEOBASE_KERNELS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a GPU")
    monkeypatch.setattr("rheobase.spiking.ops.choice.lacking_triton", lambda op: None)
    with monkeypatch.context() as there:
        there.setattr("rheobase.doctor._few", lambda op, device: None)
        there.setattr("torch.cuda.synchronize", lambda: None)
        assert ask("doctor", "--json")["wkv_kernels_cuda"] == "triton"
    why = ("Triton", "none", "pip install triton")
    monkeypatch.setattr("rheobase.spiking.ops.choice.lacking_triton", lambda op: why)
    table = ask("doctor", "--json")
    said = "reference: triton needs Triton, got none; pip install triton, which FAILS here: "
    assert table["wkv_kernels_cuda"].startswith(said), "tried on a device that is not there"
    assert table["cuda"] == "a GPU"


def test_the_documented_table_of_targets_is_what_the_command_prints(ask):
    assert ask("targets") in (Path(__file__).parent.parent / "docs" / "energy.md").read_text()


def test_doctor_shows_a_wrong_choice_of_kernels_and_the_rest(ask, monkeypatch):
    monkeypatch.setenv("RHEOBASE_KERNELS", "natve")
    table = ask("doctor", "--json")
    said = "RHEOBASE_KERNELS: expected auto or reference or native or triton, got natve; name one of them"
    assert {table[f"{op}_kernels"] for op in ("lif", "wkv", "egru")} == {said} and table["rheobase"] == __version__
    assert said in ask("doctor")


def test_json_has_null_where_there_is_no_finite_number(capsys, monkeypatch):
    table = {"a": [float("inf"), 1.5], "b": {"c": float("nan")}, "path": Path("x")}
    monkeypatch.setattr(commands, "targets", lambda args: Answer(table, ""))
    assert run(["targets", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert shown == {"ok": True, "a": [None, 1.5], "b": {"c": None}, "path": "x"}


def test_places_that_the_system_refuses_are_named(tmp_path, ask):
    (tmp_path / "taken").touch()
    config = tmp_path / "c.toml"
    config.write_text((Path(commands.__file__).parent.parent / "models/configs/quickstart_egru.toml").read_text())
    error = ask("train", config, "--out", tmp_path / "taken", "--json", status=1)["error"]
    assert error == f"{tmp_path / 'taken'}: File exists; name another place"


def test_a_dry_run_that_is_stopped_has_nothing_to_resume(capsys, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "train", stopped)
    for words, said in ((["--dry-run"], "interrupted"), ([], "interrupted, go on with --resume")):
        assert run(["train", "c.toml", *words]) == 1
        assert capsys.readouterr().err == f"rheobase: {said}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("argv", [["targets"], ["targets", "--json"], ["inspect", "none", "--json"]])
def test_where_no_more_can_be_written_is_said_in_one_line(argv, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rheobase", *argv], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[0] == "rheobase: standard output, No space left on device: give it another place"
    assert len(lines) == 1 if argv[0] == "targets" else lines[1].startswith("rheobase: none: expected a run folder")
