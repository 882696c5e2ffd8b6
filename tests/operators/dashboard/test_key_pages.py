"""The pages of a store with more keys than a page holds: none is read that is not shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.operators.dashboard import pages
from tests.in_process_proxy import InProcessProxy, Issued
from tests.operators.operators_app import OperatorsApp

NAMED = re.compile(r'<th scope="row"[^>]*><a href="/keys/([^"]+)"')
LINK = re.compile(r'<a href="(/keys[^"]*)">(Newest|Older) keys</a>')
BAR = re.compile(r'<span><a href="/keys/([^"]+)">([^<]+)</a>, day')


@pytest.fixture
def operators_app(tmp_path: Path) -> Iterator[OperatorsApp]:
    with InProcessProxy(tmp_path) as in_process:
        made = OperatorsApp(in_process)
        made.log_in()
        yield made


def issue(operators_app: OperatorsApp, **body: Any) -> Issued:
    made = operators_app.api(
        "POST", "/keys", json={"role": "billing", "uncapped": True, **body}
    ).json()
    return Issued(made["id"], made["token"])


def shown(operators_app: OperatorsApp, path: str = "/keys") -> tuple[list[str], dict[str, str]]:
    """Return the keys on a page, and the links to other pages by their names."""
    answer = operators_app.browser.get(path)
    assert answer.status_code == 200
    links = {name: link.replace("&amp;", "&") for link, name in LINK.findall(answer.text)}
    return NAMED.findall(answer.text), links


def test_every_key_is_reached_by_turning_pages_and_revoked_there(
    operators_app: OperatorsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "KEYS_MAX", 2)
    issued = {issue(operators_app).id for _ in range(5)}
    seen, links, path, turned = list[str](), dict[str, str](), "/keys", 0
    while path:
        found, links = shown(operators_app, path)
        assert len(found) <= 2
        assert ("Newest" in links) == (turned > 0)
        seen, path, turned = seen + found, links.get("Older", ""), turned + 1
    assert (turned, len(seen), set(seen)) == (3, 5, issued)
    assert shown(operators_app, links["Newest"])[0] == seen[:2]
    before_last = f"/keys?after={seen[3]}"
    assert f'action="/keys/{seen[4]}/revoke"' in operators_app.browser.get(before_last).text
    assert operators_app.submit(before_last, f"/keys/{seen[4]}/revoke").status_code == 303
    assert shown(operators_app, "/keys?status=revoked")[0] == [seen[4]]


def test_the_overview_offers_no_revocation_of_a_key_that_serves_no_more(
    operators_app: OperatorsApp,
) -> None:
    key = issue(operators_app)
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 200
    action = f'action="/keys/{key.id}/revoke"'
    assert action in operators_app.browser.get("/").text
    assert operators_app.submit("/", f"/keys/{key.id}/revoke").status_code == 303
    page = operators_app.browser.get("/").text
    # What it spent today still shows.
    assert [found for found, _ in BAR.findall(page)] == [key.id]
    assert action not in page
    one = operators_app.browser.get(f"/keys/{key.id}").text
    assert "</time></p>" in one.replace("\n", "")


def test_a_search_goes_on_over_its_pages_whatever_was_typed(
    operators_app: OperatorsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "KEYS_MAX", 1)
    text = "ö&status=revoked" + "é" * 100
    wanted = [issue(operators_app, label=text).id for _ in range(2)]
    issue(operators_app, label="another")
    path = str(operators_app.browser.build_request("GET", "/keys", params={"q": text}).url)
    first, links = shown(operators_app, path)
    second, last = shown(operators_app, links["Older"])
    assert sorted(first + second) == sorted(wanted)
    assert "Older" not in last
    assert shown(operators_app, last["Newest"])[0] == first


def test_keys_are_found_by_what_the_form_says(operators_app: OperatorsApp) -> None:
    owl, lark = (
        issue(operators_app, label="Night", agent="owl"),
        issue(operators_app, agent="lark", role="audit"),
    )
    for query, found in (
        (f"q={owl.id}&status=", [owl.id]),
        ("q=nIGHT", [owl.id]),
        ("q=LAR", [lark.id]),
        ("q=AUD&status=active", [lark.id]),
        ("q=AUD&status=frozen", []),
        (f"q={owl.id[:-1]}", []),
    ):
        assert shown(operators_app, f"/keys?{query}")[0] == found, query
    assert 'value="nIGHT"' in operators_app.browser.get("/keys?q=nIGHT").text
    operators_app.api("POST", f"/keys/{owl.id}/revoke")
    assert "2 in all: 1 active, 1 revoked." in operators_app.browser.get("/keys").text


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("after=unheard-of", 200), ("q=%00%1b%3Cscript%3E", 200),
        ("status=dead", 200), ("q=" + "x" * 5_000, 200), ("q=1&q=2", 400), ("colour=red", 400),
    ],
)  # fmt: skip
def test_a_search_that_finds_nothing_does_no_harm(
    operators_app: OperatorsApp, query: str, status: int
) -> None:
    issue(operators_app)
    answer = operators_app.browser.get(f"/keys?{query}")
    assert (answer.status_code, "<script>" in answer.text) == (status, False)
    assert NAMED.findall(answer.text) == []


def test_a_place_that_cannot_be_printed_is_the_first_page(operators_app: OperatorsApp) -> None:
    key = issue(operators_app)
    assert shown(operators_app, "/keys?after=%00%1b") == ([key.id], {})


@pytest.mark.parametrize("key_id", ["none", "%00", "%1b%ff"])
def test_a_key_that_is_not_there_is_not_found(operators_app: OperatorsApp, key_id: str) -> None:
    issue(operators_app)
    assert operators_app.browser.get(f"/keys/{key_id}").status_code == 404
    assert operators_app.api("GET", f"/keys/{key_id}").status_code == 404
    assert operators_app.api("GET", f"/spend?key={key_id}").status_code == 404


def test_no_page_reads_every_key_or_every_window(
    operators_app: OperatorsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = issue(operators_app, caps={"daily": {"usd": 10_000}})
    operators_app.in_process.charge(key)
    records: Any = operators_app.in_process.proxy.store.records
    monkeypatch.setattr(type(records), "keys", None)
    windows = records.windows

    async def few(**asked: Any) -> Any:
        assert asked["scope"] in {"account", "account_refunds"}
        return await windows(**asked)

    monkeypatch.setattr(records, "windows", few)
    for page in ("/", "/keys", f"/keys/{key.id}"):
        assert operators_app.browser.get(page).status_code == 200
    spend = operators_app.api("GET", f"/spend?key={key.id}").json()["data"]
    assert [(row["window"], row["cap"], row["settled"]) for row in spend] == [
        ("day", 10_000, 2_900),
        ("month", None, 2_900),
    ]


def test_a_rotated_key_shows_what_its_lineage_holds_and_has_no_bar_of_its_own(
    operators_app: OperatorsApp,
) -> None:
    key = issue(operators_app, caps={"daily": {"usd": 10_000}})
    operators_app.in_process.charge(key)
    newer = operators_app.api("POST", f"/keys/{key.id}/rotate").json()["id"]
    for each in (key.id, newer):
        assert "29.00 USD of 100.00 USD" in operators_app.browser.get(f"/keys/{each}").text
    assert [found for found, _ in BAR.findall(operators_app.browser.get("/").text)] == [newer]


def test_few_keys_all_have_bars_by_their_age_and_ended_ones_only_with_spend(
    operators_app: OperatorsApp,
) -> None:
    caps = {"daily": {"usd": 10_000}}
    idle, spent, unused, full = (issue(operators_app, caps=caps, label=f"no {n}") for n in range(4))
    operators_app.in_process.charge(full, amount=9_000)
    operators_app.in_process.charge(spent)
    for key in (spent, unused):
        operators_app.api("POST", f"/keys/{key.id}/revoke")
    text = operators_app.browser.get("/").text
    assert sorted(BAR.findall(text)) == sorted(
        [(idle.id, "no 0"), (spent.id, "no 1"), (full.id, "no 3")]
    )
    listed = [row["id"] for row in operators_app.api("GET", "/keys").json()["data"]]
    assert [found for found, _ in BAR.findall(text)] == [
        each for each in listed if each != unused.id
    ]
    assert "nearest to their caps" not in text


def test_of_too_many_keys_the_fullest_have_bars_and_are_chosen_once_a_minute(
    operators_app: OperatorsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "BARS_MAX", 3)  # the account's bar, and two more
    operators_app.in_process.begin_day()
    keys = [
        issue(operators_app, caps={"daily": {"usd": cap}}) for cap in (90_000, 8_000, 5_000, 30_000)
    ]
    idle, half, full, some = (key.id for key in keys)
    for key in keys[1:]:
        operators_app.in_process.charge(key, customer=f"cus_{key.id}")
    operators_app.log_in()  # the hours that were turned have ended the session

    def barred() -> list[str]:
        return [found for found, _ in BAR.findall(operators_app.browser.get("/").text)]

    assert barred() == [full, half]
    assert "chosen once a minute out of 4 keys" in operators_app.browser.get("/").text
    for number in range(30):
        operators_app.in_process.charge(keys[0], customer=f"cus_I{number}")
    assert barred() == [full, half]
    operators_app.in_process.charge(keys[3], amount=25_000)
    assert barred() == [some, full]  # among those chosen; what they hold is of this moment
    operators_app.later_ms = pages.CHOSEN_FOR_MS
    assert barred() == [idle, some]


def test_the_newest_frozen_keys_need_a_person_and_lead_to_the_others(
    operators_app: OperatorsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "NEEDS_MAX", 2)
    operators_app.in_process.fault("402", times=60)
    frozen = [issue(operators_app, label=f"frozen {n}") for n in range(3)]
    issue(operators_app, label="serves")

    def freeze(key: Issued) -> None:
        for number in range(20):
            operators_app.in_process.charge(key, customer=f"cus_{key.id}{number}")

    def waiting() -> str:
        text = operators_app.browser.get("/").text
        return text[text.index("<h3>Frozen keys") : text.index("<h3>Keys without a cap")]

    freeze(frozen[0])
    assert f'<a href="/keys/{frozen[0].id}">frozen 0</a>: ' in waiting()
    assert ("serves" in waiting(), "status=frozen" in waiting()) == (False, False)
    for key in frozen[1:]:
        freeze(key)
    assert len(re.findall(r'<li><a href="/keys/[^"]+">frozen [0-9]</a>', waiting())) == 2
    assert 'href="/keys?status=frozen"' in waiting()
    assert set(shown(operators_app, "/keys?status=frozen")[0]) == {key.id for key in frozen}
