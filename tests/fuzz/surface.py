"""Coverage-guided fuzzing of the wall (atheris): `make fuzz`, or with libFuzzer's own options.

Bytes become a request: method, path, query, content type, body. Whatever is granted must be what a
naive allowlist would grant, and must read the same to another parser; nothing may raise.
"""

from __future__ import annotations

import sys
from urllib.parse import parse_qsl

import atheris

with atheris.instrument_imports(include=["kb_mcp"]):
    from kb_mcp.proxy.access.authorize import authorize
    from kb_mcp.proxy.access.roles import built_in
    from kb_mcp.proxy.errors.refusals import Refusal, error_body
    from kb_mcp.proxy.stripe.endpoints import find_route
    from kb_mcp.proxy.stripe.forms import canonical_path, parse_form
    from kb_mcp.proxy.stripe.interpret import Reading, read_request

POLICIES = [built_in(role) for role in ("billing", "audit", "billing-with-status")]
FORM = "application/x-www-form-urlencoded"
METHODS = ("POST", "GET", "DELETE", "PUT")
PATHS = (b"/v1/charges", b"/v1/charges/ch_1", b"/stripe//v1/charges", b"/v1/payment_intents")


def fuzz_one(data: bytes) -> None:
    """Read one request made of `data`."""
    source = atheris.FuzzedDataProvider(data)
    policy = POLICIES[source.ConsumeIntInRange(0, len(POLICIES) - 1)]
    method = METHODS[source.ConsumeIntInRange(0, len(METHODS) - 1)]
    known = PATHS[source.ConsumeIntInRange(0, len(PATHS) - 1)]
    raw = source.ConsumeBytes(40) if source.ConsumeBool() else known
    query = source.ConsumeBytes(20) if source.ConsumeBool() else b""
    header_key = source.ConsumeUnicode(20) if source.ConsumeBool() else None
    body = source.ConsumeBytes(source.remaining_bytes())
    path = canonical_path(raw)
    outcome: object = path
    if isinstance(path, str):
        outcome = find_route(method, path)
        form = parse_form(body, FORM, query, method)
        if not isinstance(outcome, Refusal) and not isinstance(form, Refusal):
            refused = authorize(policy, outcome, path, {}, form)
            outcome = refused or read_request(method, path, form, header_key)
    _check(outcome, method)


def _check(outcome: object, method: str) -> None:
    if isinstance(outcome, Refusal):
        assert len(error_body(outcome)) < 10_000
    elif isinstance(outcome, Reading):
        granted = ("POST", "/v1/charges") if method == "POST" else ("GET", "/v1/charges/ch_")
        assert (method, outcome.path.startswith(granted[1])) == (granted[0], True)
        encoded = outcome.form.encode().decode("ascii")
        assert dict(parse_qsl(encoded, keep_blank_values=True)) == dict(outcome.form)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
