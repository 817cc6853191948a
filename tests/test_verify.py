"""What `verify` refuses before it compares a number: artefacts of another format, options of another exporter."""

import json

import pytest
from reader_seeds import EXPORTED, READERS

from rheobase.backends import export, verify
from rheobase.backends.artifact import MANIFEST, open_artifact, reseal
from rheobase.backends.exporters.nir import rejoin
from rheobase.backends.exporters.spinnaker2 import host
from rheobase.backends.exporters.spinnaker2.image import unpack
from rheobase.cli import run
from rheobase.spiking.errors import ConfigError, FormatError


def relabelled(folder, name):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": name}))
    reseal(folder)
    return manifest["format"]


@pytest.fixture(params=[*EXPORTED, "spinnaker2"])
def artefact(request, tmp_path):
    if request.param == "spinnaker2":
        return request.getfixturevalue("small_image")
    folder = tmp_path / "x"
    folder.mkdir()
    READERS[f"artifact-{request.param}"].make(folder)
    return folder


def test_a_format_that_is_not_the_exporters_own_is_refused_in_one_line(artefact):
    assert verify(artefact).ok
    for name in ("s2lm/2", "foreign/7", ""):
        own = relabelled(artefact, name)
        problem = f"{artefact / MANIFEST}: expected the format {own}, got {name!r}; use the version that wrote it, or "
        assert verify(artefact).problem == problem + "export it anew"
        relabelled(artefact, own)
    assert verify(artefact).ok


def test_no_other_command_takes_it(small_image, tmp_path, capsys):
    relabelled(small_image, "s2lm/2")
    assert run(["inspect", str(small_image)]) == 1 and "expected the format s2lm/1" in capsys.readouterr().err
    (tmp_path / "nir").mkdir()
    READERS["artifact-nir"].make(tmp_path / "nir")
    relabelled(tmp_path / "nir", "rheobase-nir/2")
    with pytest.raises(FormatError, match="the format rheobase-nir/1"):
        rejoin(open_artifact(tmp_path / "nir"))


@pytest.mark.parametrize("option, flag", [("emulation", "--emulate"), ("against", "--against")])
def test_what_only_spinnaker2_has_is_refused_as_such(tmp_path, capsys, option, flag):
    folder = tmp_path / "x"
    folder.mkdir()
    READERS["artifact-nir"].make(folder)
    line = f"{folder}: expected an artefact of spinnaker2, since {option} is of these alone, got one of nir; leave"
    assert run(["verify", str(folder), flag, "qemu"]) == 1
    error = capsys.readouterr().err
    assert error == f"rheobase: {line} {option} out\n"
    with pytest.raises(ConfigError, match="since"):
        verify(folder, **{option: "qemu"})
    for option in ("emulate", "artifact"):
        with pytest.raises(ConfigError, match=f"nir verify: expected no options, got '{option}'; leave it out"):
            verify(folder, **{option: "qemu"})
    with pytest.raises(ConfigError, match="nir export: expected one of .*gain.*, got 'version'"):
        export(rejoin(open_artifact(folder)), "nir", tmp_path / "y", version="9")


def test_without_the_library_the_firmware_is_said_not_to_have_run(small_image, monkeypatch):
    monkeypatch.setattr(host, "library", lambda: None)
    report = verify(small_image)
    assert report.ok and report.notes[0] == (
        "firmware on the host: not run, since the package was installed without a C compiler"
    )


def test_a_mismatch_is_given_by_fields_too(small_image, capsys):
    path = small_image / "pe" / "000.bin"
    image = unpack(path.read_bytes(), "pe/000.bin")
    bias = image.regions["bias_q"].copy()
    bias[5] += 1 << 20
    path.write_bytes(type(image)(image.kind, image.fields, {**image.regions, "bias_q": bias}).pack())
    reseal(small_image)
    report = verify(small_image)
    assert run(["verify", str(small_image), "--json"]) == 1
    table = json.loads(capsys.readouterr().out)
    assert (table["ok"], table["mismatches"], table["first"]) == (False, report.mismatches, report.first)
    assert report.problem in table["error"]
    place = {"where": "pe/000.bin", "slice": 0, "gate": "z", "unit_of_layer": 5, "unit_of_element": 5}
    first = {"step": 0, "node": "layers.0.recurrent_kernel.out", "unit": 5, "stream": 0}
    assert {name: report.first[name] for name in (*place, *first)} == place | first
