import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'selfalign[docs]'")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: a page outside the navigation or a dead link or anchor ends the build."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_page_is_built_and_so_are_the_generated_ones(site):
    docs = ROOT / "docs"
    expected = {path.relative_to(docs).with_suffix(".html").as_posix() for path in docs.rglob("*.md")}
    expected |= {"reference/command_line.html", "reference/rlcd.html", "repository/LOG.html"}
    assert {path for path in expected if not (site / path).is_file()} == set()
    assert "--dry-run" in (site / "reference" / "command_line.html").read_text()


def test_a_link_to_source_code_leads_to_a_page_of_it(site):
    page = "repository/src/selfalign/methods/rlcd.py.html"
    assert page in (site / "index.html").read_text()
    assert "def rlcd" in re.sub(r"<[^>]+>", "", (site / page).read_text())


def test_nothing_is_fetched_from_the_network(site):
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//|<link[^>]*stylesheet[^>]*href=\"?(?:https?:)?//"
    )
    pages = list(site.rglob("*.html"))
    assert pages
    assert [page.name for page in pages if fetched.search(page.read_text(encoding="utf-8"))] == []
