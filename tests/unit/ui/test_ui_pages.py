"""What the pages show: everything that is there, nothing that could do harm."""

import re
from html.parser import HTMLParser

import pytest
from made_runs import HARM, write_answers

from selfalign.errors import DataError
from selfalign.report.text import LIMIT
from selfalign.runs.files import write_json
from selfalign.ui.pages import address, whole

PARTS = (
    "", "/live", "/prompts", "/candidates", "/judgments", "/pairs", "/pairs?text=evil&place=x&sort=margin",
    "/compare", "/compare?text=held", "/vote", "/vote?one=M1&other=M0", "/chat", "/prompt?id=none",
)  # fmt: skip


class Tags(HTMLParser):
    """Gathers what a browser would take for tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag == "script":
            self.scripts.append(dict(attrs))


def check_harmless(text: str) -> None:
    tags = Tags(text)
    assert "img" not in tags.tags
    assert [name for name in tags.attributes if name.startswith("on") or name == "style"] == []
    assert [script.get("src") for script in tags.scripts] in ([], ["/static/ui.js"])
    assert "\u202e" not in text


@pytest.mark.parametrize("part", PARTS)
def test_hostile_text_is_shown_and_does_nothing(page, make_run, part) -> None:
    root = make_run(harm=HARM)
    write_json(root / "iteration-1" / "manifests" / "broken.json", {"stage": HARM, "warnings": 3})
    answer = page.get(f"/runs/one{part}")
    assert answer.status_code == 200
    check_harmless(answer.text)


def test_hostile_names_of_runs_and_models_are_shown_and_do_nothing(page, make_run) -> None:
    name = HARM.replace("/", "")
    root = make_run(name, harm=HARM)
    write_answers(root, ["M0", name], 2, HARM)
    home = page.get("/").text
    check_harmless(home)
    [link] = re.findall(r'class="open" href="([^"]+)"', home)
    for part in ("", "/pairs", "/vote", "/compare", "/chat"):
        answer = page.get(link.replace("&amp;", "&") + part)
        assert answer.status_code == 200
        check_harmless(answer.text)


def test_hostile_words_in_an_address_come_back_as_words(page, make_run) -> None:
    make_run()
    answer = page.get("/runs/one/pairs", params={"text": '"><script>x</script>', "place": '"x'})
    check_harmless(answer.text)
    assert 'value="&#34;&gt;&lt;script&gt;x&lt;/script&gt;"' in answer.text
    check_harmless(page.get("/runs/<script>x<%2fscript>").text)
    check_harmless(page.get("/runs/one/pairs", params={"page": "<img src=x>"}).text)


def test_a_text_of_a_megabyte_is_cut_and_there_as_a_whole(page, make_run) -> None:
    make_run(harm="é" * 1_000_000)
    listed = page.get("/runs/one/candidates?sort=length")
    assert len(listed.content) < 50_000
    [row, *_] = re.findall(r'class="open" dir="auto" href="([^"]+)"', listed.text)
    shown = page.get(row.partition("#")[0])
    assert len(shown.content) < 200_000
    [link, *_] = re.findall(r'class="whole" href="([^"]+candidates[^"]+)"', shown.text)
    text = page.get(link.replace("&amp;", "&"))
    assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert text.text == f"bad {'é' * 1_000_000} answer"


def test_answers_of_all_models_stand_side_by_side(page, make_run) -> None:
    make_run()
    listed = page.get("/runs/one/compare?text=says+2").text
    [row] = re.findall(r'class="open" dir="auto" href="([^"]+)"', listed)
    shown = page.get(row).text
    assert re.findall(r"(M\d) says 2", shown) == ["M0", "M1", "M2"]
    assert "held-out prompt 3 of 4" in shown
    before, after = (re.search(rf'rel="{rel}" href="([^"]+)"', shown) for rel in ("prev", "next"))
    assert "says 1" in page.get(before[1]).text
    assert "says 3" in page.get(after[1]).text
    model = page.get(row.replace("prompt?id=", "whole/answers?field=M1&id="))
    assert model.text == "M1 says 2."


def test_pages_of_rows_lead_to_each_other_and_keep_the_filter(page, make_run, monkeypatch) -> None:
    from selfalign.ui import browsing, rows

    monkeypatch.setattr(rows, "PAGE", 2)
    monkeypatch.setattr(browsing, "PAGE", 2)
    make_run()
    link = "/runs/one/candidates?text=answer&sort=length&order=asc"
    seen = []
    while link:
        text = page.get(link).text
        seen += re.findall(r"#(\w{16})", text)
        found = re.search(r'rel="next" href="([^"]+)"', text)
        link = found[1].replace("&amp;", "&") if found else ""
    assert len(seen) == len(set(seen)) == 6


def test_a_damaged_run_shows_what_is_there_and_names_what_is_not(page, make_run) -> None:
    root = make_run()
    for file in ("votes.jsonl", "iteration-1/pairs.jsonl", "evaluation/M1/head_to_head_answers.jsonl"):
        with (root / file).open("a") as lines:
            lines.write("{broken\n")
    text = page.get("/runs/one").text
    for named in (
        "votes.jsonl, row 1",
        "1/pairs.jsonl, row 3",
        "head_to_head_answers.jsonl, row 5",
    ):
        assert named in text
    assert page.get("/runs/one/pairs").text.count('class="open"') == 3
    answer = page.get("/runs/one/vote")
    assert answer.status_code == 409
    assert "row 5" in answer.text


@pytest.mark.parametrize("file", ["manifest.json", "data/held_out.jsonl", "evaluation/plan.json"])
def test_an_incomplete_run_is_shown(page, make_run, file) -> None:
    root = make_run()
    (root / file).unlink()
    for part in ("", "/live", "/pairs", "/prompt?id=x", "/chat"):
        assert page.get(f"/runs/one{part}").status_code == 200


def test_rows_that_vanish_while_they_are_read_are_no_defect(page, make_run, monkeypatch) -> None:
    from selfalign.ui import tables

    def gone(*_: object) -> None:
        raise DataError("the rows can't be read: gone; load again")

    make_run()
    monkeypatch.setattr("selfalign.ui.rows.ask", gone)
    assert tables.ask is not gone
    assert page.get("/runs/one/pairs").status_code == 409
    assert "rows can&#39;t be read: gone" in page.get("/runs/one").text


@pytest.mark.parametrize(
    "query", ["page=0", "page=x", "sort=secret", "order=up", "score_from=nan", "score_from=x", "a=1"]
)
def test_a_wrong_query_is_told_what_is_wrong(page, make_run, query) -> None:
    make_run()
    answer = page.get(f"/runs/one/pairs?{query}")
    assert answer.status_code == 422
    assert f"query.{query.partition('=')[0]}" in answer.text


def test_whole_shows_every_character_and_hides_none() -> None:
    text = "a\r\nb\u202ec" * LIMIT
    assert whole(text) == "a\nb⟨U+202E⟩c" * LIMIT


def test_an_address_is_quoted_and_leaves_out_what_is_not_asked() -> None:
    assert address("runs", "a/b ?", x="&", y="", z=None) == "/runs/a%2Fb%20%3F?x=%26"
    assert address() == "/"
