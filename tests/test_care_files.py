"""CITATION.cff, the changelog and the workflows say what is so, by their formats' own rules."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import rheobase

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_citation_is_of_this_version():
    assert CITATION["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(CITATION)
    assert CITATION["authors"] == [{"name": "The Rheobase maintainers"}]
    assert CITATION["version"] == rheobase.__version__
    assert CITATION["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


def test_the_citation_by_its_formats_schema():
    found = importlib.util.find_spec("cffconvert")
    if found is None:
        pytest.skip(
            "the schema comes with cffconvert, which wants an older jsonschema: pip install --no-deps cffconvert"
        )
    (folder,) = found.submodule_search_locations
    schema = json.loads((Path(folder) / "schemas" / "1.2.0" / "schema.json").read_text())
    jsonschema.validate(CITATION, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(CITATION | {"licence": "Apache-2.0"}, schema)


def test_the_changelog_has_this_version():
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[:2] == ["Unreleased", rheobase.__version__]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_may_do_no_more_than_it_must(path):
    table = yaml.safe_load(path.read_text())
    assert table["permissions"] in ({}, {"contents": "read"}) and "pull_request_target" not in table[True]
    for name, job in table["jobs"].items():
        assert set(job.get("permissions", {}).items()) <= {("contents", "read"), ("id-token", "write")}
        assert ("id-token" in job.get("permissions", {})) == (name == "publish")
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "secrets." not in str(step) and "${{" not in step.get("run", "")


def test_there_are_workflows():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
