"""Grants over the admin API: as the commands make them, each act in the audit by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.in_process_proxy import InProcessProxy, error_of
from tests.operators.operators_app import OTHER_TOKEN, OperatorsApp

ISSUER = "https://idp.example"


@pytest.fixture
def operators_app(tmp_path: Path) -> Iterator[OperatorsApp]:
    with InProcessProxy(tmp_path) as in_process:
        yield OperatorsApp(in_process)


def asked(operators_app: OperatorsApp, **changed: Any) -> dict[str, Any]:
    key = operators_app.in_process.issue("billing", daily={"usd": 10_000})
    return {"issuer": ISSUER, "match": {"sub": "agent-*"}, "key_id": key.id, **changed}


def test_a_grant_is_added_listed_and_removed_by_a_named_operator(
    operators_app: OperatorsApp,
) -> None:
    body = asked(operators_app, label="support")

    made = operators_app.api("POST", "/grants", json=body, token=OTHER_TOKEN)
    listed = operators_app.api("GET", "/grants").json()["data"]
    path = f"/grants/{made.json()['id']}/remove"
    removed = operators_app.api("POST", path, token=OTHER_TOKEN)

    assert made.status_code == 201
    assert listed == [made.json()]
    assert {name: listed[0][name] for name in body} == body
    assert (removed.status_code, removed.json()["under_way"]) == (200, 0)
    assert removed.json()["removed_at"] is not None
    assert operators_app.api("GET", "/grants").json()["data"] == []
    rows = operators_app.in_process.audit(agent="mira")
    assert [row["decision"] for row in rows] == ["grant_add", "grant_remove"]
    assert ISSUER in rows[0]["note"]


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"issuer": "idp.example"}, 400, "parameter_invalid"),
        ({"match": {}}, 400, "parameter_invalid"),
        ({"match": {"sub": ""}}, 400, "parameter_invalid"),
        ({"match": {"iss": "x"}}, 400, "parameter_invalid"),
        ({"match": {"sub": 7}}, 400, "parameter_invalid"),
        ({"match": {"sub=a": "b"}}, 400, "parameter_invalid"),
        ({"match": ["sub=a"]}, 400, "parameter_invalid"),
        ({"key_id": "nosuchkeyaaa"}, 404, "key_unknown"),
        ({"claims": {}}, 400, "parameter_invalid"),
    ],
    ids=str,
)
def test_a_grant_that_cannot_be_is_refused(
    operators_app: OperatorsApp, changed: dict[str, Any], status: int, code: str
) -> None:
    refused = operators_app.api("POST", "/grants", json=asked(operators_app, **changed))

    assert (refused.status_code, error_of(refused)) == (status, code)
    assert operators_app.api("GET", "/grants").json()["data"] == []


def test_a_grant_that_overlaps_or_is_not_there_is_told_so(operators_app: OperatorsApp) -> None:
    first = operators_app.api("POST", "/grants", json=asked(operators_app)).json()

    overlaps = operators_app.api(
        "POST", "/grants", json=asked(operators_app, match={"sub": "agent-7"})
    )
    unknown = operators_app.api("POST", "/grants/grt_none/remove")
    removed = [operators_app.api("POST", f"/grants/{first['id']}/remove") for _ in range(2)]

    assert (overlaps.status_code, error_of(overlaps)) == (409, "grant_refused")
    assert first["id"] in overlaps.text
    assert (unknown.status_code, error_of(unknown)) == (404, "grant_unknown")
    # Once removed it stays as it was removed.
    assert removed[0].json()["removed_at"] == removed[1].json()["removed_at"]
