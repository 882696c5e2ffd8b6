"""The pages of a store with more keys than a page holds: none is read that is not shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.ops import bars, pages
from tests.house import House, Issued
from tests.proxy.ops.desk import Desk

NAMED = re.compile(r'<th scope="row"><a href="/keys/([^"]+)"')
LINK = re.compile(r'<a href="(/keys[^"]*)">(Newest|Older) keys</a>')
BAR = re.compile(r'<span><a href="/keys/([^"]+)">([^<]+)</a>, day')


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with House(tmp_path) as house:
        made = Desk(house)
        made.log_in()
        yield made


def issue(desk: Desk, **body: Any) -> Issued:
    made = desk.api("POST", "/keys", json={"role": "billing", **body}).json()
    return Issued(made["id"], made["token"])


def shown(desk: Desk, path: str = "/keys") -> tuple[list[str], dict[str, str]]:
    """Return the keys on a page, and the links to other pages by their names."""
    answer = desk.browser.get(path)
    assert answer.status_code == 200
    links = {name: link.replace("&amp;", "&") for link, name in LINK.findall(answer.text)}
    return NAMED.findall(answer.text), links


def test_every_key_is_reached_by_turning_pages_and_revoked_there(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "KEYS_MAX", 2)
    issued = {issue(desk).id for _ in range(5)}
    seen, links, path, turned = list[str](), dict[str, str](), "/keys", 0
    while path:
        found, links = shown(desk, path)
        assert len(found) <= 2
        assert ("Newest" in links) == (turned > 0)
        seen, path, turned = seen + found, links.get("Older", ""), turned + 1
    assert (turned, len(seen), set(seen)) == (3, 5, issued)
    assert shown(desk, links["Newest"])[0] == seen[:2]
    before_last = f"/keys?after={seen[3]}"
    assert f'action="/keys/{seen[4]}/revoke"' in desk.browser.get(before_last).text
    assert desk.submit(before_last, f"/keys/{seen[4]}/revoke").status_code == 303
    assert shown(desk, "/keys?status=revoked")[0] == [seen[4]]


def test_a_search_goes_on_over_its_pages_whatever_was_typed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "KEYS_MAX", 1)
    text = "ö&status=revoked" + "é" * 100
    wanted = [issue(desk, label=text).id for _ in range(2)]
    issue(desk, label="another")
    path = str(desk.browser.build_request("GET", "/keys", params={"q": text}).url)
    first, links = shown(desk, path)
    second, last = shown(desk, links["Older"])
    assert sorted(first + second) == sorted(wanted)
    assert "Older" not in last
    assert shown(desk, last["Newest"])[0] == first


def test_keys_are_found_by_what_the_form_says(desk: Desk) -> None:
    owl, lark = issue(desk, label="Night", agent="owl"), issue(desk, agent="lark", role="audit")
    for query, found in (
        (f"q={owl.id}&status=", [owl.id]),
        ("q=nIGHT", [owl.id]),
        ("q=LAR", [lark.id]),
        ("q=AUD&status=active", [lark.id]),
        ("q=AUD&status=frozen", []),
        (f"q={owl.id[:-1]}", []),
    ):
        assert shown(desk, f"/keys?{query}")[0] == found, query
    assert 'value="nIGHT"' in desk.browser.get("/keys?q=nIGHT").text
    desk.api("POST", f"/keys/{owl.id}/revoke")
    assert "2 in all: 1 active, 1 revoked." in desk.browser.get("/keys").text


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("after=unheard-of", 200), ("q=%00%1b%3Cscript%3E", 200),
        ("status=dead", 200), ("q=" + "x" * 5_000, 200), ("q=1&q=2", 400), ("colour=red", 400),
    ],
)  # fmt: skip
def test_a_search_that_finds_nothing_does_no_harm(desk: Desk, query: str, status: int) -> None:
    issue(desk)
    answer = desk.browser.get(f"/keys?{query}")
    assert (answer.status_code, "<script>" in answer.text) == (status, False)
    assert NAMED.findall(answer.text) == []


def test_a_place_that_cannot_be_printed_is_the_first_page(desk: Desk) -> None:
    key = issue(desk)
    assert shown(desk, "/keys?after=%00%1b") == ([key.id], {})


@pytest.mark.parametrize("key_id", ["none", "%00", "%1b%ff"])
def test_a_key_that_is_not_there_is_not_found(desk: Desk, key_id: str) -> None:
    issue(desk)
    assert desk.browser.get(f"/keys/{key_id}").status_code == 404
    assert desk.api("GET", f"/keys/{key_id}").status_code == 404
    assert desk.api("GET", f"/spend?key={key_id}").json()["data"] == []


def test_no_page_reads_every_key_or_every_window(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = issue(desk, caps={"daily": {"usd": 10_000}})
    desk.house.charge(key)
    records: Any = desk.house.proxy.store.records
    monkeypatch.setattr(type(records), "keys", None)
    windows = records.windows

    async def few(**asked: Any) -> Any:
        assert asked["scope"] == "account"
        return await windows(**asked)

    monkeypatch.setattr(records, "windows", few)
    for page in ("/", "/keys", f"/keys/{key.id}"):
        assert desk.browser.get(page).status_code == 200
    spend = desk.api("GET", f"/spend?key={key.id}").json()["data"]
    assert [(row["window"], row["cap"], row["settled"]) for row in spend] == [
        ("day", 10_000, 2_900),
        ("month", None, 2_900),
    ]


def test_a_rotated_key_shows_what_its_lineage_holds_and_has_no_bar_of_its_own(desk: Desk) -> None:
    key = issue(desk, caps={"daily": {"usd": 10_000}})
    desk.house.charge(key)
    newer = desk.api("POST", f"/keys/{key.id}/rotate").json()["id"]
    for each in (key.id, newer):
        assert "29.00 USD of 100.00 USD" in desk.browser.get(f"/keys/{each}").text
    assert [found for found, _ in BAR.findall(desk.browser.get("/").text)] == [newer]


def test_few_keys_all_have_bars_by_their_age_and_ended_ones_only_with_spend(desk: Desk) -> None:
    caps = {"daily": {"usd": 10_000}}
    idle, spent, unused, full = (issue(desk, caps=caps, label=f"no {n}") for n in range(4))
    desk.house.charge(full, amount=9_000)
    desk.house.charge(spent)
    for key in (spent, unused):
        desk.api("POST", f"/keys/{key.id}/revoke")
    text = desk.browser.get("/").text
    assert sorted(BAR.findall(text)) == sorted(
        [(idle.id, "no 0"), (spent.id, "no 1"), (full.id, "no 3")]
    )
    listed = [row["id"] for row in desk.api("GET", "/keys").json()["data"]]
    assert [found for found, _ in BAR.findall(text)] == [
        each for each in listed if each != unused.id
    ]
    assert "nearest to their caps" not in text


def test_of_too_many_keys_the_fullest_have_bars_and_are_chosen_once_a_minute(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "BARS_MAX", 3)  # the account's bar, and two more
    desk.house.begin_day()
    keys = [issue(desk, caps={"daily": {"usd": cap}}) for cap in (90_000, 8_000, 5_000, 30_000)]
    idle, half, full, some = (key.id for key in keys)
    for key in keys[1:]:
        desk.house.charge(key, customer=f"cus_{key.id}")
    desk.log_in()  # the hours that were turned have ended the session

    def barred() -> list[str]:
        return [found for found, _ in BAR.findall(desk.browser.get("/").text)]

    assert barred() == [full, half]
    assert "chosen once a minute out of 4 keys" in desk.browser.get("/").text
    for number in range(30):
        desk.house.charge(keys[0], customer=f"cus_I{number}")
    assert barred() == [full, half]
    desk.house.charge(keys[3], amount=25_000)
    assert barred() == [some, full]  # among those chosen; what they hold is of this moment
    desk.later_ms = bars.CHOSEN_FOR_MS
    assert barred() == [idle, some]


def test_the_newest_frozen_keys_need_a_person_and_lead_to_the_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "NEEDS_MAX", 2)
    desk.house.fault("402", times=60)
    frozen = [issue(desk, label=f"frozen {n}") for n in range(3)]
    issue(desk, label="serves")

    def freeze(key: Issued) -> None:
        for number in range(20):
            desk.house.charge(key, customer=f"cus_{key.id}{number}")

    def waiting() -> str:
        text = desk.browser.get("/").text
        return text[text.index("Needs a person") : text.index("Spend against cap")]

    freeze(frozen[0])
    assert f'<a href="/keys/{frozen[0].id}">frozen 0</a>: ' in waiting()
    assert ("serves" in waiting(), "status=frozen" in waiting()) == (False, False)
    for key in frozen[1:]:
        freeze(key)
    assert len(re.findall(r'<li><a href="/keys/[^"]+">frozen [0-9]</a>', waiting())) == 2
    assert 'href="/keys?status=frozen"' in waiting()
    assert set(shown(desk, "/keys?status=frozen")[0]) == {key.id for key in frozen}
