"""An approval that waits reaches a person, by a receiver of each form."""

from __future__ import annotations

from pathlib import Path

from kb_mcp.operators.alerts import of_unknown
from kb_mcp.proxy.access.roles import built_in
from tests.in_process_proxy import InProcessProxy
from tests.operators.alerts.test_alerts import hook, receiver, told, watching


def test_an_approval_that_waits_reaches_a_person_in_the_form_of_each_receiver(
    tmp_path: Path,
) -> None:
    with (
        InProcessProxy(tmp_path, KEYBRAKE_PUBLIC_URL="https://bills.example.com") as in_process,
        receiver() as plain,
        receiver() as slack,
        receiver() as teams,
    ):
        policy = built_in("billing").model_copy(update={"approval_above": {"usd": 1000}})
        key = in_process.issue(policy)
        text = hook(plain)
        for server, form in ((slack, "slack"), (teams, "teams")):
            url = f"http://127.0.0.1:{server.server_address[1]}/hook"
            text += f'[[webhook]]\nurl = "{url}"\nformat = "{form}"\nallow_private = true\n'
        alerts = watching(in_process, text)
        in_process.charge(key, period="2026-11")
        in_process.run(alerts.run())
        (asked,) = told(plain)
        assert (asked["kind"], asked["amount"], asked["customer_id"]) == (
            "approval_waiting", 2900, "cus_A1",
        )  # fmt: skip
        assert asked["link"] == f"https://bills.example.com/operations/{asked['operation_id']}"
        (to_slack,) = told(slack)
        assert to_slack == {"text": f"{asked['text']} <{asked['link']}|Open>"}
        (to_teams,) = told(teams)
        card = to_teams["attachments"][0]["content"]
        assert (to_teams["type"], card["type"]) == ("message", "AdaptiveCard")
        assert card["body"][0]["text"] == asked["text"]
        assert card["actions"][0]["url"] == asked["link"]
        assert "Keybrake-Signature" not in slack.taken[0][0]
        in_process.turn_clock(23 * 3600 + 1800)
        in_process.run(in_process.proxy.app.pipeline.follow())
        in_process.run(alerts.run())
        assert [each["kind"] for each in told(plain)][1:] == ["approval_expiring"]


def test_a_payout_has_no_customer_and_its_alert_names_none() -> None:
    row = {
        "id": "op_1", "kind": "charge", "amount": 2900, "currency": "usd", "customer_id": None,
        "key_id": "abc", "attempts": [],
    }  # fmt: skip
    (alert,) = of_unknown([row])
    assert "29.00 USD for no customer" in (alert.note or "")
