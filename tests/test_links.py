"""Links of the README and of docs/ lead to files and headings that are there; the site is built without a warning."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from doc_blocks import FENCE, PAGES, ROOT, name

MADE = ("reference/cli.md",)
"""pages of docs/ that docs/hooks.py makes"""
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(path: Path) -> list[str]:
    """What a page links to, code left out."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text())))


def anchors(path: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    heads = re.findall(r"^#+ +(.*?) *$", FENCE.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", head).lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path):
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), link
            continue
        target = (path.parent / parts.path).resolve() if parts.path else path
        assert target.is_relative_to(ROOT), link
        if target.relative_to(ROOT).as_posix() in [f"docs/{made}" for made in MADE]:
            continue
        assert target.exists(), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


def test_a_wrong_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n[one](no.md) `[two](x.md)`\n```\n[three](y.md)\n```\n![four](z.png)\n")
    assert links(page) == ["no.md", "z.png"] and anchors(page) == {"a-b-c"}


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason='pip install -e ".[docs]"')
def test_the_site_is_built_without_a_warning(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "reference" / "cli.html").read_text()
    assert "--allow-lossy" in page and (tmp_path / "reference" / "spiking.html").read_text().count("doc-class") > 20
    assert "graded, 0 or 2" in (tmp_path / "counters.html").read_text()  # braces at a cell's end would be attributes
    # errors that flow together are set apart
    backends = re.sub(r"<[^>]*>", "", (tmp_path / "reference" / "backends.html").read_text())
    assert re.findall(r".*[a-z](?<!raises)\s+[A-Z][A-Za-z]+Error: ", backends) == []
