"""A person who opens the agents' address in a browser is told what it is."""

from __future__ import annotations

from pathlib import Path

from tests.in_process_proxy import InProcessProxy


def test_a_browser_is_told_what_this_is_and_a_program_gets_stripes_shape(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        page = in_process.client.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
        plain = in_process.client.get("/", headers={"Accept": "application/json"})
        posted = in_process.client.post("/", headers={"Accept": "text/html"})

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "This address is for agents" in page.text
    assert "dashboard" in page.text
    assert (plain.status_code, plain.json()["error"]["code"]) == (404, "path_unknown")
    assert (posted.status_code, posted.json()["error"]["code"]) == (404, "path_unknown")
