"""Alerts over the real ledger, to a real receiver and a real program."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typing_extensions import override

from kb_mcp.environment import SettingsError
from kb_mcp.operators import alerts as rules
from kb_mcp.operators.alert_file import AlertFileError, load_alert_file
from kb_mcp.operators.alerts import QUEUE_MAX, RECONCILE_DIFFERENCE, TRIES_MAX, Alerts
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.port import note
from kb_mcp.proxy.ledger.records import AuditDraft
from kb_mcp.proxy.rules.outcomes.matching import GAP_FOUND, WALK_FAILED
from kb_mcp.wiring.alerts import alerts_path, build_alerts, is_public
from tests.in_process_proxy import InProcessProxy

SECRET = "a-secret-of-the-receiver"


class Receiver(BaseHTTPRequestHandler):
    """Answers what it is told to, and keeps what it was sent."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append((dict(self.headers), body))
        statuses = self.server.statuses
        self.send_response(statuses.pop(0) if statuses else 204)
        self.end_headers()

    @override
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def receiver(*statuses: int) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.statuses, server.taken = list(statuses), []
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[InProcessProxy]:
    with InProcessProxy(tmp_path) as built:
        built.begin_day()
        yield built


def watching(in_process: InProcessProxy, text: str) -> Alerts:
    """Write the alerts file of `in_process` and build its alerts."""
    alerts_path(in_process.proxy.store).write_text(f"version = 1\n{text}")
    built = build_alerts(in_process.settings, in_process.proxy.store)
    assert built is not None
    return built


def hook(server: Any, more: str = "allow_private = true") -> str:
    url = f"http://127.0.0.1:{server.server_address[1]}/hook?token=x"
    return f'[[webhook]]\nurl = "{url}"\nsecret = "{SECRET}"\n{more}\n'


def is_signed(server: Any) -> bool:
    ((headers, body),) = server.taken
    signature = dict(part.split("=", 1) for part in headers["Keybrake-Signature"].split(","))
    wanted = hmac.new(SECRET.encode(), f"{signature['t']}.".encode() + body, "sha256")
    return hmac.compare_digest(signature["v1"], wanted.hexdigest())


def told(server: Any) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in server.taken]


def test_every_kind_of_trouble_is_told_once(in_process: InProcessProxy) -> None:
    capped = in_process.issue(daily={"usd": 5000})
    frozen, revoked = in_process.issue(), in_process.issue()
    with receiver() as server:
        alerts = watching(in_process, f"refusals_per_minute = 3\n{hook(server)}")
        in_process.run(alerts.run())
        assert server.taken == []
        in_process.charge(capped, period="2026-11")
        in_process.charge(capped, customer="cus_B2", amount=1100, period="2026-11")
        in_process.run(alerts.run())
        in_process.charge(capped, customer="cus_C3", amount=1000, period="2026-11")
        in_process.fault("drop_after")
        lost = in_process.charge(frozen, customer="cus_Lost", period="2026-11")
        assert lost.status_code == 504
        row = AuditDraft(kind="admin", code=RECONCILE_DIFFERENCE, note="1 differing")
        in_process.run(note(in_process.proxy.store.ledger, row))
        for _ in range(5):  # three of them are of one minute, also where it turns meanwhile
            in_process.charge(capped, customer="cus_D4", amount=1, period="2026-11")
        from kb_mcp.operators.actions.keys import revoke_key

        store = in_process.proxy.store
        in_process.run(revoke_key(store.ledger, store.records, revoked.id, "lost", "mira", 1))  # type: ignore[arg-type]  # the id of a test's key is plain text
        for _ in range(3):
            in_process.run(alerts.run())
    kinds = [each["kind"] for each in told(server)]
    wanted = "cap_80 cap_100 key_revoked outcome_unknown reconcile_differs refusal_burst".split()
    assert sorted(kinds) == sorted(wanted)
    unknown = next(each for each in told(server) if each["kind"] == "outcome_unknown")
    assert (unknown["customer_id"], unknown["amount"], unknown["mode"]) == (
        "cus_Lost",
        2900,
        "sandbox",
    )


def test_refund_caps_and_a_refund_that_fails_later_are_told(in_process: InProcessProxy) -> None:
    fields = built_in("refunds").model_dump(mode="json", by_alias=True)
    fields |= {"refund_caps": {"daily": {"usd": 2900}}}
    refunder = in_process.issue(Policy.model_validate(fields, strict=False))
    payer = in_process.issue()
    charge = in_process.charge(payer, period="2026-11").json()["id"]
    with receiver() as server:
        alerts = watching(in_process, hook(server))
        refund = in_process.refund(refunder, charge, amount=2900)
        assert refund.status_code == 200, refund.text
        in_process.run(alerts.run())
        moved = {"refund": refund.json()["id"], "status": "failed"}
        in_process.stripe.post("/_sandbox/refunds", json=moved)
        in_process.turn_clock(2 * 86_400)
        in_process.recover()
        for _ in range(2):
            in_process.run(alerts.run())
    capped = next(each for each in told(server) if each["kind"] == "cap_100")
    assert f"of the day's refund cap of key {refunder.id} are used" in capped["text"]
    failed = [each for each in told(server) if each["kind"] == "refund_returned"]
    assert [each["amount"] for each in failed] == [2900]
    assert f"The refund {refund.json()['id']} of 29.00 USD to cus_A1 failed" in failed[0]["text"]


def test_a_freeze_and_a_broken_chain_are_told(in_process: InProcessProxy) -> None:
    key = in_process.issue()
    with receiver() as server:
        alerts = watching(in_process, f"verify_every_minutes = 1\n{hook(server)}")
        in_process.fault("402", times=30)
        for number in range(21):
            in_process.charge(key, customer=f"cus_N{number}", period="2026-11")
        in_process.run(alerts.run())
        import sqlite3

        connection = sqlite3.connect(in_process.folder / "ledger.db")
        connection.execute("DROP TRIGGER audit_refuses_update")
        connection.execute("UPDATE audit SET amount = 1 WHERE amount = 2900 AND seq < 9")
        connection.commit()
        connection.close()
        in_process.turn_clock(120)
        in_process.run(in_process.proxy.app.pipeline.follow())
        in_process.run(alerts.run())
    assert {"key_frozen", "chain_broken"} <= {each["kind"] for each in told(server)}


def test_a_large_write_ahead_log_is_told_once_a_day(
    in_process: InProcessProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "WAL_LARGE_BYTES", 0)
    in_process.charge(in_process.issue(), period="2026-11")
    with receiver() as server:
        alerts = watching(in_process, hook(server))
        for _ in range(2):
            in_process.run(alerts.run())
        (alert,) = told(server)
    assert alert["kind"] == "wal_large"
    assert "cannot be emptied" in alert["text"]


def test_a_body_is_signed_and_holds_no_secret(in_process: InProcessProxy) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.charge(key, period="2026-11")
    with receiver() as server:
        in_process.run(watching(in_process, hook(server)).run())
    ((_, body),) = server.taken
    assert is_signed(server)
    assert key.token.encode() not in body
    assert SECRET not in str(in_process.audit())
    assert "token=x" not in str(in_process.audit())


def test_a_receiver_that_fails_is_told_again_later_and_after_a_restart(
    in_process: InProcessProxy,
) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.charge(key, period="2026-11")
    with receiver(500, 503) as server:
        text = hook(server)
        alerts = watching(in_process, text)
        in_process.run(alerts.run())
        in_process.run(alerts.run())
        assert len(server.taken) == 1  # not due yet
        in_process.restart()
        alerts = watching(in_process, text)
        for _ in range(2):
            in_process.turn_clock(3600)
            in_process.run(in_process.proxy.app.pipeline.follow())
            in_process.run(alerts.run())
        in_process.turn_clock(3600)
        in_process.run(alerts.run())
    assert len({body for _, body in server.taken}) == 1
    assert len(server.taken) == 3
    rows = [row for row in in_process.audit() if row["kind"] == "alert"]
    assert [row["decision"] for row in rows] == ["raise", "deliver"]


def test_refusals_of_the_same_code_do_not_hide_an_alert_that_waits(
    in_process: InProcessProxy,
) -> None:
    ledger = in_process.proxy.store.ledger
    with receiver(500) as server:
        alerts = watching(in_process, hook(server))
        in_process.run(note(ledger, AuditDraft(kind="recovery", code=GAP_FOUND, note="ch_1")))
        in_process.run(alerts.run())
        refused = AuditDraft(kind="refusal", decision="refuse", code="ledger_behind")
        for _ in range(QUEUE_MAX):
            in_process.run(note(ledger, refused))
        in_process.turn_clock(3600)
        in_process.run(in_process.proxy.app.pipeline.follow())
        in_process.run(alerts.run())
    assert [each["kind"] for each in told(server)].count("ledger_behind") == 2


def test_a_receiver_that_never_answers_is_given_up(in_process: InProcessProxy) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.charge(key, period="2026-11")
    with receiver(*[500] * 99) as server:
        alerts = watching(in_process, hook(server))
        for _ in range(TRIES_MAX + 3):
            in_process.run(alerts.run())
            in_process.turn_clock(3600)
            in_process.run(in_process.proxy.app.pipeline.follow())
    assert len(server.taken) == TRIES_MAX
    assert [row["decision"] for row in in_process.audit() if row["kind"] == "alert"] == [
        "raise",
        "give_up",
    ]


def test_two_processes_on_one_store_tell_once(in_process: InProcessProxy) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.charge(key, period="2026-11")
    with receiver() as server:
        first, second = watching(in_process, hook(server)), watching(in_process, hook(server))
        in_process.run(first.run())
        in_process.run(second.run())
    assert len(server.taken) == 1


def test_a_private_address_is_not_posted_to_unless_it_is_allowed(
    in_process: InProcessProxy,
) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.charge(key, period="2026-11")
    with receiver() as server:
        port = server.server_address[1]
        text = f'[[webhook]]\nurl = "https://127.0.0.1:{port}/"\nsecret = "{SECRET}"\n'
        alerts = watching(in_process, text)
        (sender,) = alerts.senders
        assert "private address" in str(in_process.run(sender.send(b"{}")))
        in_process.run(alerts.run())
    assert server.taken == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("nonsense", False),
    ],
)
def test_what_is_public_is_judged_by_what_it_reaches(address: str, *, public: bool) -> None:
    assert is_public(address) is public


def test_a_command_is_given_the_alert_and_nothing_of_our_environment(
    in_process: InProcessProxy,
) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.charge(key, period="2026-11")
    out = in_process.folder / "out.json"
    script = f'cat > "{out}"; env > "{out}.env"'
    alerts = watching(in_process, f"[[command]]\nrun = {json.dumps(['/bin/sh', '-c', script])}\n")
    in_process.run(alerts.run())
    assert json.loads(out.read_text())["kind"] == "cap_100"
    assert "HOME=" not in Path(f"{out}.env").read_text()
    assert [row["decision"] for row in in_process.audit() if row["kind"] == "alert"] == [
        "raise",
        "deliver",
    ]


@pytest.mark.parametrize("run", [["/bin/false"], ["/does/not/exist"]])
def test_a_command_that_fails_is_run_again_later(
    in_process: InProcessProxy, run: list[str]
) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.charge(key, period="2026-11")
    in_process.run(watching(in_process, f"[[command]]\nrun = {json.dumps(run)}\n").run())
    assert [row["decision"] for row in in_process.audit() if row["kind"] == "alert"] == ["raise"]


def test_only_what_was_asked_for_is_told(in_process: InProcessProxy) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.charge(key, period="2026-11")
    with receiver() as server:
        more = 'allow_private = true\non = ["key_frozen"]'
        in_process.run(watching(in_process, hook(server, more)).run())
    assert server.taken == []


def test_without_a_file_there_are_no_alerts(in_process: InProcessProxy) -> None:
    assert build_alerts(in_process.settings, in_process.proxy.store) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 2", "version"),
        ("version = 1\ncolour = 1", "colour"),
        ('version = 1\n[[webhook]]\nurl = "ftp://x"\nsecret = "0123456789abcdef"', "url"),
        ('version = 1\n[[webhook]]\nurl = "http://example.com"\nsecret = "0123456789abcdef"',
         "allow_private"),
        ('version = 1\n[[webhook]]\nurl = "https://example.com"', "secret"),
        ('version = 1\n[[webhook]]\nurl = "https://u:p@example.com"\nsecret = "0123456789abcdef"',
         "user"),
        ("version = 1\n[[command]]\nrun = []", "run"),
        ('version = 1\n[[command]]\nrun = ["x"]\non = ["everything"]', "on"),
        ("not toml", "TOML"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(AlertFileError, match=said):
        load_alert_file(text)


def test_a_file_that_others_may_write_is_refused(in_process: InProcessProxy) -> None:
    file = alerts_path(in_process.proxy.store)
    file.write_text("version = 1\n")
    file.chmod(0o666)
    with pytest.raises(SettingsError, match="written by others"):
        build_alerts(in_process.settings, in_process.proxy.store)


def test_a_secret_may_stand_in_a_file_beside(in_process: InProcessProxy) -> None:
    (in_process.folder / "hook.secret").write_text(f"{SECRET}\n")
    with receiver() as server:
        text = hook(server).replace(f'secret = "{SECRET}"', 'secret_file = "hook.secret"')
        (sender,) = watching(in_process, text).senders
        assert in_process.run(sender.send(b"{}")) is None
    assert is_signed(server)
    (in_process.folder / "hook.secret").unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        build_alerts(in_process.settings, in_process.proxy.store)


def test_a_gap_and_lists_that_cannot_be_read_are_told_once(in_process: InProcessProxy) -> None:
    with receiver() as server:
        alerts = watching(in_process, hook(server))
        in_process.run(alerts.run())
        for code in (GAP_FOUND, WALK_FAILED):
            row = AuditDraft(kind="recovery", code=code, note="ch_1")
            in_process.run(note(in_process.proxy.store.ledger, row))
        for _ in range(2):
            in_process.run(alerts.run())
    assert sorted(each["kind"] for each in told(server)) == ["ledger_behind", "walk_failed"]
    assert all("ch_1" in each["text"] for each in told(server))
