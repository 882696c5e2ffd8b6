"""An attack as data, and the proof that it came to nothing: answer, sandbox and audit agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Literal
from urllib.parse import quote_plus

from kb_mcp.proxy.access.policy import Policy
from tests.attacks.attacked_proxy import AttackedProxy, Issued
from tests.attacks.wire import Answer, ask

Trace = Literal["row", "count"]
FORM_TYPE = "application/x-www-form-urlencoded"
BILL: Mapping[str, str] = MappingProxyType(
    {
        "customer": "{customer}",
        "amount": "2900",
        "currency": "usd",
        "metadata[billing_period]": "{month}",
    }
)
STATUS = MappingProxyType(
    {
        "vault_key_missing": 401,
        "vault_key_unknown": 401,
        "vault_key_expired": 401,
        "vault_key_revoked": 401,
        "path_unknown": 404,
        "method_not_allowed": 405,
        "body_too_large": 413,
        "host_unknown": 421,
        "body_invalid": 400,
        "path_invalid": 400,
        "parameter_invalid": 400,
        "parameter_unknown": 400,
        "parameter_duplicate": 400,
        "parameter_missing": 400,
        "period_out_of_window": 400,
        "idempotency_key_required": 400,
        "idempotency_key_reused": 400,
        "period_already_charged": 400,
        "duplicate_suspected": 400,
        "rate_limited": 429,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One request. `code` None is the accepted neighbour, which must reach the sandbox.

    In texts, `{customer}` and `{n}` are of this attack alone, `{month}` is the sandbox's, `{token}`
    the issued key, `{host}` the listener. `body` replaces the form, `raw` the whole request.
    `closes`: one answer, then the connection ends. `also` is counted by whoever read the head.
    """

    family: str
    name: str
    code: str | None
    method: str = "POST"
    target: str = "/v1/charges"
    headers: tuple[str, ...] = ()
    host: str | None = "{host}"
    authorization: str | None = "Bearer {token}"
    form: Mapping[str, str] = field(default_factory=lambda: BILL)
    body: bytes | None = None
    content_type: str | None = FORM_TYPE
    raw: bytes | None = None
    policy: Policy | str = "billing"
    key: str = "granted"
    trace: Trace | None = None
    accepted: tuple[int, ...] = (200,)
    sent: int = 1
    closes: bool = False
    also: str | None = None

    @property
    def id(self) -> str:
        return f"{self.family}: {self.name}"

    @property
    def status(self) -> int:
        return STATUS.get(self.code or "", 403)

    @property
    def leaves(self) -> Trace:
        """Where the audit says so: a row of the key, or the counts of refusals."""
        return self.trace or ("count" if self.status in {401, 421, 429} else "row")


def bill(**changes: str | None) -> dict[str, str]:
    """Return the bill with changes; None leaves a field out, `__` in a name is a bracket."""
    named = {name: value for name, value in changes.items() if value is not None}
    dropped = {name for name, value in changes.items() if value is None}
    return {**{k: v for k, v in BILL.items() if k not in dropped}, **named}


def prove(attacked: AttackedProxy, attack: Attack) -> Answer:
    """Launch `attack` and check that it came to what it says."""
    key = attacked.issue(attack.policy, attack.key)
    before = attacked.reached()
    answer = ask(attacked.agents, octets(attacked, attack, key), closes=attack.closes)
    after = attacked.reached()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.keys() & {"location", "server", "x-powered-by"} == set()
    assert answer.headers["request-id"].startswith("req_")
    if attack.code is None:
        assert answer.status in attack.accepted, answer.body
        assert after[0] - before[0] == attack.sent
        assert any(row["stripe_status"] for row in attacked.rows(key))
        return answer
    assert (answer.status, answer.code) == (attack.status, attack.code)
    assert after == before, "it reached the sandbox"
    if attack.leaves == "count":
        attacked.expected.update(filter(None, (attack.code, attack.also)))
        # What was wrong with a body may also have been found by whoever was reading it.
        assert {row["code"] for row in attacked.rows(key)} <= {
            attack.code if attack.closes else None
        }
    else:
        assert [row["code"] for row in attacked.rows(key)] == [attack.code]
    return answer


def octets(attacked: AttackedProxy, attack: Attack, key: Issued) -> bytes:
    """Return the request as it goes over the wire."""
    number = attacked.next()
    words = {
        "{customer}": f"cus_A{number}",
        "{n}": str(number),
        "{month}": f"{attacked.now:%Y-%m}",
        "{month_long}": f"{attacked.now:%B %Y}",
        "{last_month}": f"{attacked.now.replace(day=1) - timedelta(days=1):%Y-%m}",
        "{token}": key.token,
        "{host}": f"{attacked.agents[0]}:{attacked.agents[1]}",
    }

    def filled(text: str) -> bytes:
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        return text.encode("latin-1")

    if attack.raw is not None:
        return filled(attack.raw.decode("latin-1"))
    body = attack.body
    if body is None:
        written = "&".join(f"{name}={value}" for name, value in _encoded(attack.form, words))
        body = written.encode() if attack.method == "POST" else b""
    else:
        body = filled(body.decode("latin-1"))
    lines = [f"{attack.method} {attack.target} HTTP/1.1"]
    lines += [f"Host: {attack.host}"] if attack.host is not None else []
    lines += [f"Authorization: {attack.authorization}"] if attack.authorization is not None else []
    if body:
        lines += [f"Content-Type: {attack.content_type}"] if attack.content_type else []
        lines += [f"Content-Length: {len(body)}"]
    return filled("\r\n".join([*lines, *attack.headers, "", ""])) + body


def _encoded(form: Mapping[str, str], words: Mapping[str, str]) -> list[tuple[str, str]]:
    def filled(text: str) -> str:
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        return text

    return [
        (quote_plus(name, safe="[]"), quote_plus(filled(value))) for name, value in form.items()
    ]
