"""The path of a request: one reading or none."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.proxy.errors.refusals import Code, Refusal
from kb_mcp.proxy.stripe.forms import MAX_PATH, canonical_path


def code(raw: bytes) -> Code | str:
    """Return the canonical path, or the code it was refused with."""
    path = canonical_path(raw)
    return path.code if isinstance(path, Refusal) else path


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/v1/charges", "/v1/charges"),
        (b"/stripe/v1/charges", "/v1/charges"),
        (b"/stripe//v1/charges", "/v1/charges"),
        (b"//v1/charges", "/v1/charges"),
        (b"/v1/charges/ch_3Abc", "/v1/charges/ch_3Abc"),
        (b"/v1/%63harges", "/v1/charges"),
        (b"/v1/payment_intents/pi_1/confirm", "/v1/payment_intents/pi_1/confirm"),
    ],
)
def test_a_plain_path_is_read(raw: bytes, path: str) -> None:
    assert code(raw) == path


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"v1/charges",
        b"http://api.stripe.com/v1/charges",
        b"///v1/charges",
        b"//v1//charges",
        b"//v1",
        b"//keybrake/v1/key",
        b"//evil.example/v1/charges",
        b"/v1//charges",
        b"/v1/charges//ch_1",
        b"/stripe///v1/charges",
        b"/stripe/stripe//v1/charges",
        b"/v1/charges/",
        b"/v1/charges.",
        b"/v1/charges/ch_1.",
        b"/v1/./charges",
        b"/v1/../v1/charges",
        b"/v1/customers/../charges",
        b"/v1/customers/..",
        b"/v1/%2e%2e/v1/charges",
        b"/v1/customers/%2e%2e/charges",
        b"/v1%2fcharges",
        b"/v1/charges%2Fch_1",
        b"/v1/charges%2f",
        b"/v1/%5ccharges",
        b"/v1\\charges",
        b"/v1/charges;a=b",
        b"/v1/charges%3ba=b",
        b"/v1/charges#x",
        b"/v1/charges%23x",
        b"/v1/charges?x=1",
        b"/v1/charges%3fx=1",
        b"/v1/%2563harges",
        b"/v1/charges%252fch_1",
        b"/v1/charges%25",
        b"/v1/charges%",
        b"/v1/charges%4",
        b"/v1/charges%zz",
        b"/v1/charges%00",
        b"/v1/charges\0",
        b"/v1/charges\t",
        b"/v1/charges ",
        b"/v1/charges%20",
        b"/v1/charges%0d%0aX:1",
        b"/v1/ch\xc3\xa4rges",
        b"/v1/ch%C3%A4rges",
        b"/v1/%c0%afcharges",
        b"/v1/charges%c0%ae",
        b"/v1/charges%ff",
        b"/v1/charges+x",
        b"/v1/charges/*",
        b"/v1/charges/" + b"a" * MAX_PATH,
    ],
)
def test_a_path_that_can_be_read_in_two_ways_is_invalid(raw: bytes) -> None:
    assert code(raw) is Code.PATH_INVALID


@pytest.mark.parametrize(
    "raw",
    [
        b"/v2/charges",
        b"/V1/charges",
        b"/v1",
        b"/stripe/v2/core/events",
        b"/stripe/stripe/v1/charges",
        b"/Stripe/v1/charges",
        b"/%73tripe/v1/charges",
        b"/keybrake/v1/key",
        b"/v1x/charges",
        b"/stripev1/charges",
    ],
)
def test_a_plain_path_that_is_not_v1_is_unknown(raw: bytes) -> None:
    assert code(raw) is Code.PATH_UNKNOWN


@given(
    st.binary(max_size=80)
    | st.text(alphabet="/.%v1chargesA2fe;\\#?\0 _-", max_size=40).map(
        lambda text: f"/v1/{text}".encode()
    )
)
def test_whatever_comes_out_is_plain_and_reads_as_itself(raw: bytes) -> None:
    path = canonical_path(raw)
    if isinstance(path, Refusal):
        assert path.code in {Code.PATH_INVALID, Code.PATH_UNKNOWN}
        return
    assert re.fullmatch(r"/v1(/[A-Za-z0-9_-]+)+", path)
    assert canonical_path(path.encode()) == path
