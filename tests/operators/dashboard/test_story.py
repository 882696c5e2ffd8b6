"""An operation's page tells what happened, in sentences, from the audit of real calls."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.in_process_proxy import PERIOD, InProcessProxy, Issued
from tests.months import lately
from tests.operators.operators_app import OTHER_TOKEN, OperatorsApp, asking_above
from tests.postgres import database, server

__all__ = ["database", "server"]

SENTENCE = re.compile(r'<li class="(\w+)">(.*?)<small>', re.DOTALL)


@pytest.fixture(params=["sqlite", "postgres"])
def operators_app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OperatorsApp]:
    stored: dict[str, str] = {}
    if request.param == "postgres":
        stored = request.getfixturevalue("database").environ
    with InProcessProxy(tmp_path, **stored) as in_process:
        yield OperatorsApp(in_process)


def labelled(operators_app: OperatorsApp, role: str = "billing") -> Issued:
    body = {"role": role, "label": "Nightly run", "uncapped": True}
    made = operators_app.api("POST", "/keys", json=body).json()
    return Issued(made["id"], made["token"])


def story(operators_app: OperatorsApp, operation_id: str) -> list[tuple[str, str]]:
    operators_app.log_in()
    page = operators_app.browser.get(f"/operations/{operation_id}").text
    told = page[page.index('id="story"') : page.index('id="facts"')]
    return [(tone, html.unescape(text)) for tone, text in SENTENCE.findall(told)]


def ask(operators_app: OperatorsApp, key: Issued, amount: int = 2900, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    operators_app.in_process.client.post(
        "/v1/charges",
        data={"customer": "cus_A1", "amount": str(amount), "currency": "usd",
              PERIOD: lately("2026-11")},
        headers={"Authorization": f"Bearer {key.token}", **named},
    )  # fmt: skip


def test_a_charge_that_was_asked_for_again_is_told_in_four_sentences(
    operators_app: OperatorsApp,
) -> None:
    key = labelled(operators_app)
    ask(operators_app, key, Keybrake_Agent="owl", Keybrake_Session="night-1",
        Keybrake_Subject="mira@example.com")  # fmt: skip
    for session in ("night-1", "night-2"):
        ask(operators_app, key, Keybrake_Agent="owl", Keybrake_Session=session)
    ask(operators_app, key, Keybrake_Agent="lark")
    ask(operators_app, key, 2901, Keybrake_Agent="lark")
    (operation,) = operators_app.in_process.operations()
    charge = operation.object_id
    assert story(operators_app, operation.id) == [
        (
            "plain",
            "Asked for by owl with key Nightly run (session night-1, for said:mira@example.com): "
            "29.00 USD were reserved, and the request was sent to Stripe.",
        ),
        ("good", f"Stripe answered with 200: charge {charge} was made."),
        (
            "good",
            "Asked again 3 times by owl with key Nightly run (2 times, sessions night-1 and "
            f"night-2) and lark with key Nightly run; each was answered with the first charge, "
            f"{charge}. Nothing was sent.",
        ),
        (
            "bad",
            "Asked again by lark with key Nightly run and refused: period_already_charged. "
            "Nothing was sent.",
        ),
    ]


def test_an_approval_and_a_refund_are_part_of_the_story(operators_app: OperatorsApp) -> None:
    in_process = operators_app.in_process
    key = asking_above(in_process, 1000)
    in_process.charge(key, period="2026-11")
    (approval,) = operators_app.api("GET", "/approvals").json()["data"]
    operators_app.api("POST", f"/approvals/{approval['id']}/approve", token=OTHER_TOKEN)
    charge = in_process.charge(key, period="2026-11").json()["id"]
    assert in_process.refund(labelled(operators_app, "refunds"), charge, amount=900).is_success
    texts = [text for _, text in story(operators_app, approval["operation_id"])]
    assert texts[0] == (
        f"Asked for by key {key.id}: 29.00 USD need an operator's approval. Nothing was sent."
    )
    assert texts[1].startswith(f"mira approved it ({approval['id']}")
    assert "29.00 USD were reserved and sent to Stripe (attempt 1)." in texts[2]
    assert texts[3] == f"Stripe answered with 200: charge {charge} was made."
    assert texts[4].startswith("9.00 USD of it were refunded with key Nightly run: re_")


def test_a_lost_answer_and_what_recovery_read_are_told(operators_app: OperatorsApp) -> None:
    in_process = operators_app.in_process
    in_process.fault("drop_after")
    in_process.charge(labelled(operators_app), period="2026-11")
    in_process.recover()
    (operation,) = in_process.operations()
    assert story(operators_app, operation.id)[1:] == [
        (
            "wait",
            "No answer came from Stripe: nobody knows what became of it, and 29.00 USD stay "
            "reserved.",
        ),
        ("good", f"Recovery read Stripe's records: charge {operation.object_id} was made."),
    ]


def test_a_decline_is_told_with_its_code(operators_app: OperatorsApp) -> None:
    in_process, key = operators_app.in_process, labelled(operators_app)
    in_process.fault("402")
    for _ in range(3):
        in_process.charge(key, period="2026-11")
    (operation,) = in_process.operations()
    told = story(operators_app, operation.id)
    assert told[1] == (
        "bad",
        "Stripe answered with 402 (card_declined): it came to nothing, and the reservation was "
        "released.",
    )
    assert told[2][1] == (
        "Asked again 2 times by key Nightly run; each was answered with "
        "what Stripe had answered. Nothing was sent."
    )
