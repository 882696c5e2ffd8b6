"""Secrets: canaries are planted, everything is asked for, and nothing that was written has them."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.attacks.attack import BILL, Attack, octets
from tests.attacks.attacked_proxy import Address, AttackedProxy, Issued, standing_fort
from tests.attacks.wire import ask

STRIPE_KEY = "rk_test_CanaryCanaryCanary4242"
MASTER_KEY = "master-canary-0123456789abcdef0123456789abcdef"
ADMIN_TOKEN = "operator-canary-0123456789abcdef"
# These hold secrets because they are where secrets are kept, for their owner only.
_KEPT = ("ledger.env", "ledger.billing.key", "ledger.audit.key", "ledger.db.master-key")
_COMMANDS = """
keys list --json
audit list --json
audit verify
operations list --json
spend --json
settings show
doctor
recover
export mcp
keys show nosuchkey
""".strip().splitlines()


@contextmanager
def sandbox() -> Iterator[str]:
    """Run a sandbox that takes any test key."""
    command = [sys.executable, "-m", "kb_mcp", "sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().rpartition(" on ")[2].strip()
        finally:
            process.terminate()


def _ask(attacked: AttackedProxy, key: Issued, seen: list[bytes], **attack: object) -> None:
    fields = {"family": "secrets", "name": "", "code": None, **attack}
    answer = ask(attacked.agents, octets(attacked, Attack(**fields), key))  # type: ignore[arg-type]  # a table's row
    seen += [answer.body, str(answer.headers).encode()]


def _admin(address: Address, path: str, token: str) -> bytes:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    answer = ask(address, head.encode())
    return answer.body + str(answer.headers).encode()


def _everything(attacked: AttackedProxy, seen: list[bytes]) -> list[Issued]:
    """Charge, read, fail, be refused, be malformed, and look from the operators' side."""
    billing, audit, revoked = (
        attacked.issue(),
        attacked.issue("audit"),
        attacked.issue(kind="revoked"),
    )
    intents = attacked.issue("billing-payment-intents")
    for fault in ("401", "403", "drop_after", "500_before", "402", "429"):
        rule = {"match": "POST /v1/charges", "kind": fault}
        assert attacked.stripe.post("/_sandbox/faults", json=[rule]).status_code == 200
        _ask(attacked, billing, seen)
    _ask(attacked, billing, seen)
    _ask(attacked, billing, seen, headers=(f"Idempotency-Key: {billing.token}",))
    _ask(attacked, billing, seen, headers=(f"Keybrake-Agent: {STRIPE_KEY}-not",))
    _ask(attacked, billing, seen, target=f"/v1/charges/{billing.token}")
    _ask(attacked, billing, seen, target=f"/v1/charges?key={billing.token}")
    _ask(attacked, billing, seen, form={**BILL, billing.token: "x"})
    _ask(attacked, audit, seen, method="GET", target="/v1/charges/ch_1", form={})
    _ask(attacked, revoked, seen)
    _ask(attacked, billing, seen, raw=b"GET /{token} HTTP/9\r\n\r\n")
    _ask(attacked, billing, seen, method="GET", target="/keybrake/v1/key", form={})
    card = {"payment_method": "pm_card_visa", "confirm": "true"}
    _ask(attacked, intents, seen, target="/v1/payment_intents", form={**BILL, **card})
    for path in ("/admin/v1/keys", "/admin/v1/audit", "/admin/v1/operations", "/admin/v1/spend",
                 "/metrics", "/", "/nowhere"):  # fmt: skip
        seen.append(_admin(attacked.operators, path, ADMIN_TOKEN))
        seen.append(_admin(attacked.operators, path, billing.token))
    return [billing, audit, revoked, intents]


def _commands(attacked: AttackedProxy) -> Iterator[bytes]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(attacked.folder), **attacked.environ}  # noqa: TID251 - a child's
    for command in _COMMANDS:
        run = [sys.executable, "-m", "kb_mcp", *command.split()]
        done = subprocess.run(run, env=environ, capture_output=True, check=False, timeout=60)
        assert b"Traceback" not in done.stderr, command
        yield done.stdout + done.stderr


def _found(secrets: dict[str, str], where: dict[str, bytes]) -> list[str]:
    written = {
        f"{name}, {form}": encoded
        for name, secret in secrets.items()
        for form, encoded in (
            ("plain", secret.encode()),
            ("base 64", base64.b64encode(secret.encode())[:-4]),
            ("hex", secret.encode().hex().encode()),
            ("its secret part", secret.rpartition("_")[2][:40].encode()),
        )
    }
    return [f"{name} in {place}" for place, octets in where.items()
            for name, encoded in written.items() if encoded in octets]  # fmt: skip


@pytest.mark.slow
def test_no_secret_is_in_anything_that_was_ever_written(tmp_path: Path) -> None:
    seen: list[bytes] = []
    with sandbox() as base, standing_fort(
        tmp_path,
        KEYBRAKE_STRIPE_KEY=STRIPE_KEY,
        KEYBRAKE_STRIPE_API_BASE=base,
        KEYBRAKE_MASTER_KEY=MASTER_KEY,
        KEYBRAKE_ADMIN_TOKEN=ADMIN_TOKEN,
    ) as attacked:  # fmt: skip
        keys = _everything(attacked, seen)
        said = list(_commands(attacked))
        files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert attacked.end() == 0
        files |= {f"{path.name} at the end": path.read_bytes() for path in tmp_path.rglob("*")
                  if path.is_file()}  # fmt: skip
        printed = "".join(attacked.said).encode()
    tokens = (tmp_path / "ledger.env").read_text()
    secrets = {f"vault key {number}": key.token for number, key in enumerate(keys)} | {
        "Stripe key": STRIPE_KEY,
        "master key": MASTER_KEY,
        "operator's token": ADMIN_TOKEN,
    }
    for line in tokens.splitlines():
        if "_KEY_" in line:
            secrets[f"first {line.partition('=')[0]}"] = line.partition("=")[2]
    where = {name: octets for name, octets in files.items() if not name.startswith(_KEPT)}
    where |= {f"answer {number}": octets for number, octets in enumerate(seen)}
    where |= {f"command {number}": octets for number, octets in enumerate(said)}
    where["what up printed"] = printed
    assert {"ledger.db", "ledger.db-wal", "stderr"} <= where.keys()
    assert _found(secrets, where) == []
    assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in _KEPT
               if (tmp_path / name).exists())  # fmt: skip


def test_the_search_finds_what_was_planted() -> None:
    token = "vk_test_abc_secret"
    assert _found({"key": token}, {"log": b"token=vk_test_abc_secret;"})
    assert _found({"key": token}, {"log": base64.b64encode(token.encode())})
    assert _found({"key": token}, {"log": b"nothing"}) == []
