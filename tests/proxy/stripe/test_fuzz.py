"""Anything at all against the wall: nothing falls over, nothing ungranted is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.proxy.access.authorize import authorize
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import ROLES
from kb_mcp.proxy.errors.refusals import Code, Refusal, error_body, refuse
from kb_mcp.proxy.stripe.endpoints import find_route
from kb_mcp.proxy.stripe.forms import canonical_path, parse_form
from kb_mcp.proxy.stripe.interpret import Reading, read_request
from tests.in_process_proxy import InProcessProxy, Issued
from tests.proxy.requests import DANGEROUS, Raw, fields_of, naively_allowed, raw_requests

POLICIES = tuple(ROLES[name] for name in ("billing", "audit", "billing-with-status"))


def understand(policy: Policy, raw: Raw) -> Reading | Refusal:
    """Read a request as the pipeline does."""
    path = canonical_path(raw.path)
    if isinstance(path, Refusal):
        return path
    route = find_route(raw.method, path)
    if isinstance(route, Refusal):
        return route
    form = parse_form(raw.body, raw.header("content-type"), raw.query, raw.method)
    if isinstance(form, Refusal):
        return form
    refusal = authorize(policy, route, path, dict(raw.headers), form)
    return refusal or read_request(raw.method, path, form, raw.header("idempotency-key"))


@given(st.sampled_from(POLICIES), raw_requests())
def test_nothing_is_granted_that_a_naive_allowlist_would_refuse(policy: Policy, raw: Raw) -> None:
    outcome = understand(policy, raw)
    if isinstance(outcome, Refusal):
        check_written(outcome)
    else:
        assert naively_allowed(policy.allow, raw)


@given(st.sampled_from(POLICIES), raw_requests())
def test_what_goes_upstream_reads_the_same_to_another_parser(policy: Policy, raw: Raw) -> None:
    outcome = understand(policy, raw)
    if isinstance(outcome, Refusal):
        return
    form = outcome.form
    assert dict(parse_qsl(form.encode().decode("ascii"), keep_blank_values=True)) == dict(form)
    assert {name.split("[")[0] for name in form} & DANGEROUS == set()
    assert outcome.path.startswith("/v1/")
    assert outcome.path.isascii()


@given(st.binary(max_size=600))
def test_any_path_is_read_or_refused(raw: bytes) -> None:
    outcome = canonical_path(raw)
    if isinstance(outcome, Refusal):
        check_written(outcome)
    else:
        assert canonical_path(outcome.encode()) == outcome


@given(st.binary(max_size=300))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    outcome = parse_form(body, "application/x-www-form-urlencoded", b"", "POST")
    if isinstance(outcome, Refusal):
        check_written(outcome)
    else:
        again = parse_form(outcome.encode(), "application/x-www-form-urlencoded", b"", "POST")
        assert again == outcome


@given(st.sampled_from(list(Code)), st.text(max_size=300), st.text(max_size=300))
def test_any_refusal_is_written_in_stripes_shape(code: Code, param: str, text: str) -> None:
    fields = dict.fromkeys(fields_of(code), text) | {"currency": "usd"}
    check_written(refuse(code, param=param, facts={"note": text}, **fields))


def check_written(refusal: Refusal) -> None:
    """Check that a refusal is bounded ASCII JSON in Stripe's shape."""
    body = error_body(refusal)
    error = json.loads(body.decode("ascii"))["error"]
    assert error["type"] in {
        "invalid_request_error",
        "idempotency_error",
        "rate_limit_error",
        "api_error",
    }
    assert error["code"] == refusal.code
    assert len(error["message"]) < 10_000
    assert len(error.get("param", "")) < 1_000
    assert error["message"].isprintable()


@pytest.fixture(scope="module")
def in_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[InProcessProxy, dict[str, Issued]]]:
    with InProcessProxy(tmp_path_factory.mktemp("house")) as snapshot:
        # A rate that the longest run does not reach.
        keys = {
            policy.role: snapshot.issue(policy.model_copy(update={"rate": 1_000_000}))
            for policy in POLICIES
        }
        yield snapshot, keys


@given(policy=st.sampled_from(POLICIES), raw=raw_requests())
def test_the_whole_house_answers_anything_and_sends_only_what_was_granted(
    in_process: tuple[InProcessProxy, dict[str, Issued]], policy: Policy, raw: Raw
) -> None:
    snapshot, keys = in_process
    before = _reached(snapshot)
    status, body = _ask(snapshot, keys[policy.role], raw)
    assert status < 500
    if _reached(snapshot) != before:
        assert naively_allowed(policy.allow, raw)
    elif status != 200 and raw.method != "HEAD":
        assert json.loads(body)["error"]["code"] in list(Code)


def _reached(in_process: InProcessProxy) -> int:
    return int(in_process.stripe.get("/_sandbox/state").json()["request_count"])


def _ask(in_process: InProcessProxy, key: Issued, raw: Raw) -> tuple[int, bytes]:
    headers = [("host", "localhost"), ("authorization", f"Bearer {key.token}"), *raw.headers]
    scope = {
        "type": "http",
        "method": raw.method,
        "path": raw.path.decode("latin-1"),
        "raw_path": raw.path,
        "query_string": raw.query,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw.body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    in_process.run(in_process.proxy.app(scope, receive, send))  # type: ignore[arg-type]  # a dict is a message
    return int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent[1:])
