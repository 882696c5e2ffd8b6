"""Whatever is sent, the sandbox answers in Stripe's shape and never breaks."""

from __future__ import annotations

from urllib.parse import urlencode

from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.sandbox.exchange import Request, Respond, exchange
from kb_mcp.sandbox.params import REQUESTS
from kb_mcp.sandbox.store import Store
from tests.sandbox.driver import AUTHORIZED, CHARGE, START_MS

FORM = AUTHORIZED | {"content-type": "application/x-www-form-urlencoded"}
SUFFIXES = st.sampled_from(["", "", "", "[]", "[0]", "[a]", "[gte]", "[default_payment_method]"])
VALUES = st.one_of(
    st.text(max_size=12), st.sampled_from(["1", "50", "usd", "true", "cus_A", "pm_A", "-1", ""])
)


@st.composite
def forms(draw: st.DrawFn) -> tuple[str, str]:
    """An endpoint and a form of the parameters it takes, with values it may not take."""
    endpoint = draw(st.sampled_from(sorted(REQUESTS)))
    known = st.sampled_from(sorted(REQUESTS[endpoint]["parameters"]))
    names = st.builds("".join, st.tuples(known, SUFFIXES, SUFFIXES))
    pairs = draw(st.lists(st.tuples(names, VALUES), max_size=6))
    base = list(CHARGE.items()) if draw(st.booleans()) else []
    return endpoint, urlencode([*base, *pairs])


@given(forms())
def test_any_form_gets_an_answer(sent: tuple[str, str]) -> None:
    method, path = sent[0].replace("{", "").replace("}", "").split(" ")
    assert 200 <= answer(Request(method, path, headers=FORM, body=sent[1].encode())).status < 500


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_any_bytes_get_an_answer(body: bytes, query: bytes) -> None:
    request = Request("POST", "/v1/charges", query=query, headers=FORM, body=body)
    assert answer(request).status in {400, 402}


def answer(request: Request) -> Respond:
    store = Store(None, lambda: START_MS)
    try:
        outcome = exchange(store, lambda: "x", request)
    finally:
        store.close()
    assert isinstance(outcome, Respond)
    return outcome
