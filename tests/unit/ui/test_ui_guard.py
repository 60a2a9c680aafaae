"""Only the page itself may ask, and only for what lies in the directory of runs."""

import pytest

from selfalign.ui.guard import MOST_BYTES, POLICY

VOTE = {"one": "M1", "other": "M0", "prompt_id": "x", "choice": "tie"}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1",
        "127.0.0.1:8766",
        "localhost:8765.evil",
        "0.0.0.0:8765",
        "",
    ],
)
def test_another_host_gets_nothing(page, host) -> None:
    answer = page.get("/", headers={"Host": host})
    assert (answer.status_code, answer.content) == (421, b"")


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "[::1]:8765"])
def test_this_machine_is_answered(page, host) -> None:
    assert page.get("/", headers={"Host": host}).status_code == 200


def test_every_answer_forbids_scripts_that_are_not_ours_and_says_nothing_to_other_origins(
    page, make_run
) -> None:
    make_run()
    for address in (
        "/",
        "/runs/one",
        "/runs/one/pairs",
        "/runs/none",
        "/static/ui.js",
        "/nowhere",
        "/runs/one/x",
    ):
        answer = page.get(address, headers={"Origin": "http://evil.example"})
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_report_is_shown_where_nothing_in_it_can_run(page, make_run) -> None:
    root = make_run()
    assert page.get("/runs/one/report").status_code == 404
    (root / "report.html").write_text("<script>1</script>")
    answer = page.get("/runs/one/report")
    assert answer.text == "<script>1</script>"
    policy = answer.headers.get_list("Content-Security-Policy")
    assert len(policy) == 1
    assert policy[0].startswith("sandbox; default-src 'none'")
    assert "script" not in policy[0]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Origin": None}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8766"}, 403),
        ({"Origin": "https://127.0.0.1:8765"}, 403),
        ({"Origin": "http://localhost:8765"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"X_Selfalign_Token": None}, 403),
        ({"X_Selfalign_Token": "guess"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Length": str(MOST_BYTES + 1)}, 413),
    ],
)
def test_what_does_not_come_from_the_page_writes_nothing(post, make_run, changed, status) -> None:
    root = make_run()
    assert post("/runs/one/votes", VOTE, **changed).status_code == status
    assert not (root / "votes.jsonl").exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(page, method) -> None:
    assert page.request(method, "/").status_code == 405


@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e",
        "..%2fsecret",
        "%2fetc",
        "one%00",
        "link",
        "no-run",
        "file",
        "%2e%2e%2f..",
    ],
)
def test_no_name_leads_out_of_the_directory_of_runs(page, make_run, tmp_path, name) -> None:
    make_run()
    outside = make_run("two").rename(tmp_path / "secret")
    (tmp_path / "runs" / "link").symlink_to(outside)
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "runs" / "file").touch()
    for part in ("/pairs", "/report", "/live"):
        answer = page.get(f"/runs/{name}{part}")
        assert answer.status_code == 404
        assert "What is water" not in answer.text
    assert "/runs/link" not in page.get("/").text
