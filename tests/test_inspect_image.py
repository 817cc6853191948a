"""`rheobase inspect` of a SpiNNaker 2 image: its map, its tables, and its picture."""

import json

import numpy as np
import pytest

from rheobase.backends.artifact import open_artifact, reseal
from rheobase.backends.exporters.spinnaker2 import describe, overview, work
from rheobase.cli import run
from rheobase.spiking.errors import FormatError


def ask(capsys, *args):
    assert run([str(a) for a in args]) == 0
    return capsys.readouterr().out


def test_the_map_and_the_numbers(small_image, tmp_path, capsys):
    text = ask(capsys, "inspect", small_image, "--out", tmp_path / "map.png")
    assert "2 elements on 1 chip(s)" in text and "ab.. .... ...." in text
    assert "a egru 0" in text and "0x01000000" in text and "events a token: stream 0 " in text
    assert "3 ticks a token generated, 1 prefilled" in text and "333 at 1 ms" in text
    assert "unknown, and in no figure: DRAM" in text
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    table = json.loads(ask(capsys, "inspect", small_image, "--json"))
    assert [e["p"] for e in table["elements"]] == [77, 78] and len(table["estimates"]) == 4
    assert run(["inspect", str(tmp_path / "map.png"), "--out", str(tmp_path / "x.png")]) == 1


def test_what_ifs_cost_more_the_more_units_send(small_image):
    view = describe(open_artifact(small_image))
    for found in overview.what_ifs(view).values():
        joules = [e.joules for e in found]
        assert joules == sorted(joules) and joules[0] < joules[-1]


def test_the_shortest_tick_is_as_long_as_the_fullest_element_works(small_image):
    """Cycles over cycles a microsecond; the other tick is of 1 ms or as long."""
    view = describe(open_artifact(small_image))
    found = overview.what_ifs(view)
    for i, activity in enumerate(overview.ACTIVITIES):
        fired = {
            stream: np.full((1, row.shape[1]), activity) if stream and row.ndim == 2 else row
            for stream, row in view.fired.items()
        }
        most = max(work.instructions(image, work.recorded(image, fired)).mean() for _, image in view.pes)
        for level in view.levels:
            need = most / level.mhz
            assert found[f"{level.name}, shortest tick"][i].tick_us == pytest.approx(need)
            assert found[f"{level.name}, tick of 1 ms, or longer"][i].tick_us == pytest.approx(
                max(1000, most / level.mhz)
            )


def test_a_manifest_that_lacks_its_probes_is_refused(small_image):
    manifest = json.loads((small_image / "manifest.json").read_text())
    (small_image / "manifest.json").write_text(json.dumps(manifest | {"probes": {}}))
    reseal(small_image)
    with pytest.raises(FormatError, match="expected a well-formed image, got KeyError"):
        describe(open_artifact(small_image))


@pytest.mark.parametrize(
    "field", "format exporter version graph coverage not_claimed deviations tick_plan notes".split()
)
def test_a_manifest_that_lacks_what_is_shown_is_refused(small_image, capsys, field):
    manifest = json.loads((small_image / "manifest.json").read_text())
    (small_image / "manifest.json").write_text(json.dumps(manifest | {field: [3] if field == "notes" else None}))
    reseal(small_image)
    assert run(["inspect", str(small_image)]) == 1
    assert "internal error" not in capsys.readouterr().err


def test_a_picture_is_a_png(small_image, tmp_path, capsys):
    assert run(["inspect", str(small_image), "--out", str(tmp_path / "picture.svg")]) == 1
    assert "expected a name that ends in .png, got" in capsys.readouterr().err
    assert run(["inspect", str(small_image), "--out", str(tmp_path / "picture.png")]) == 0
    assert [path.name for path in tmp_path.glob("picture*")] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
