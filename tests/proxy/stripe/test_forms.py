"""Stripe's form encoding: strictly in, rebuilt out."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.proxy.errors.refusals import Code, Refusal
from kb_mcp.proxy.stripe.forms import EMPTY, FORM_TYPE, MAX_PARAMETERS, Form, parse_form


def read(body: bytes) -> Form | Refusal:
    """Read `body` as that of a POST."""
    return parse_form(body, FORM_TYPE, b"", "POST")


def code(body: bytes) -> Code | None:
    """Return the code that `body` is refused with."""
    form = read(body)
    return form.code if isinstance(form, Refusal) else None


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b"", {}),
        (b"amount=2900&currency=usd", {"amount": "2900", "currency": "usd"}),
        (b"description=a+b%20c%2Bd", {"description": "a b c+d"}),
        (b"description=", {"description": ""}),
        (b"description=a=b", {"description": "a=b"}),
        (b"description=a;b=c", {"description": "a;b=c"}),
        (b"metadata[billing_period]=2026-06", {"metadata[billing_period]": "2026-06"}),
        (b"metadata%5Bbilling_period%5D=2026-06", {"metadata[billing_period]": "2026-06"}),
        (b"metadata[order id]=7", {"metadata[order id]": "7"}),
        (b"expand[]=a&expand[]=b", {"expand[0]": "a", "expand[1]": "b"}),
        (b"expand[0]=a&expand[1]=b", {"expand[0]": "a", "expand[1]": "b"}),
        (
            b"items[0][price]=p&items[0][tax][]=t&items[0][tax][]=u",
            {"items[0][price]": "p", "items[0][tax][0]": "t", "items[0][tax][1]": "u"},
        ),
        ("description=é".encode(), {"description": "é"}),
        (b"description=%C3%A9", {"description": "é"}),
    ],
)
def test_a_form_is_read(body: bytes, values: dict[str, str]) -> None:
    form = read(body)
    assert isinstance(form, Form)
    assert list(form.items()) == list(values.items())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"amount=1&amount=1", Code.PARAMETER_DUPLICATE),
        (b"amount=1&%61mount=2", Code.PARAMETER_DUPLICATE),
        (b"metadata[a]=1&metadata%5Ba%5D=2", Code.PARAMETER_DUPLICATE),
        (b"metadata=&metadata[a]=1", Code.PARAMETER_DUPLICATE),
        (b"metadata[a]=1&metadata=", Code.PARAMETER_DUPLICATE),
        (b"metadata[a]=1&metadata[]=1", Code.PARAMETER_DUPLICATE),
        (b"expand[]=a&expand[0]=b", Code.PARAMETER_DUPLICATE),
        (b"expand[0]=a&expand[]=b", Code.PARAMETER_DUPLICATE),
        (b"expand[0]=a&expand[0]=b", Code.PARAMETER_DUPLICATE),
        (b"expand=a&expand[]=b", Code.PARAMETER_DUPLICATE),
        (b"a[b]=1&a[b][c]=2", Code.PARAMETER_DUPLICATE),
        (b"=1", Code.PARAMETER_UNKNOWN),
        (b"Amount=1", Code.PARAMETER_UNKNOWN),
        (b"AMOUNT=1", Code.PARAMETER_UNKNOWN),
        (b"+amount=1", Code.PARAMETER_UNKNOWN),
        (b"amount+=1", Code.PARAMETER_UNKNOWN),
        (b"amount%0a=1", Code.PARAMETER_UNKNOWN),
        (b"am\xc3\xb6unt=1", Code.PARAMETER_UNKNOWN),
        (b"amount.x=1", Code.PARAMETER_UNKNOWN),
        (b"[amount]=1", Code.PARAMETER_UNKNOWN),
        (b"metadata[a=1", Code.PARAMETER_UNKNOWN),
        (b"metadata]a[=1", Code.PARAMETER_UNKNOWN),
        (b"metadata[a]b=1", Code.PARAMETER_UNKNOWN),
        (b"metadata[[a]]=1", Code.PARAMETER_UNKNOWN),
        (b"items[][price]=1", Code.PARAMETER_UNKNOWN),
        (b"a[b][c][d][e][f]=1", Code.PARAMETER_UNKNOWN),
        (b"amount", Code.BODY_INVALID),
        (b"amount=1&", Code.BODY_INVALID),
        (b"&amount=1", Code.BODY_INVALID),
        (b"amount=1&&currency=usd", Code.BODY_INVALID),
        (b"amount=%", Code.BODY_INVALID),
        (b"amount=%zz", Code.BODY_INVALID),
        (b"amount=%4", Code.BODY_INVALID),
        (b"amount=1%00", Code.BODY_INVALID),
        (b"amount=1\0", Code.BODY_INVALID),
        (b"description=%ff", Code.BODY_INVALID),
        (b"description=\xff", Code.BODY_INVALID),
        (b"description=%c0%af", Code.BODY_INVALID),
        (b"description=%ed%a0%80", Code.BODY_INVALID),
        (b'{"amount": 1}', Code.BODY_INVALID),
        (b"&".join(b"metadata[k%d]=1" % n for n in range(MAX_PARAMETERS + 1)), Code.BODY_INVALID),
    ],
)
def test_a_form_that_can_be_read_in_two_ways_is_refused(body: bytes, expected: Code) -> None:
    assert code(body) is expected


@pytest.mark.parametrize(
    ("method", "body", "content_type", "query", "expected"),
    [
        ("POST", b"a=1", FORM_TYPE, b"", None),
        ("POST", b"a=1", "application/x-www-form-urlencoded; charset=utf-8", b"", None),
        ("POST", b"a=1", 'Application/X-WWW-Form-Urlencoded;charset="UTF-8"', b"", None),
        ("POST", b"", None, b"", None),
        ("POST", b"", "application/json", b"", None),
        ("POST", b"a=1", None, b"", Code.BODY_INVALID),
        ("POST", b"a=1", "application/json", b"", Code.BODY_INVALID),
        ("POST", b"a=1", "text/plain", b"", Code.BODY_INVALID),
        ("POST", b"a=1", "multipart/form-data; boundary=x", b"", Code.BODY_INVALID),
        ("POST", b"a=1", f"{FORM_TYPE}; charset=utf-7", b"", Code.BODY_INVALID),
        ("POST", b"a=1", f"{FORM_TYPE}, text/plain", b"", Code.BODY_INVALID),
        ("POST", b"a=1", FORM_TYPE, b"b=2", Code.BODY_INVALID),
        ("POST", b"", None, b"amount=1", Code.BODY_INVALID),
        ("GET", b"", None, b"limit=3", None),
        ("GET", b"a=1", FORM_TYPE, b"", Code.BODY_INVALID),
        ("GET", b"", None, b"limit=3&limit=4", Code.PARAMETER_DUPLICATE),
        ("DELETE", b"a=1", FORM_TYPE, b"", Code.BODY_INVALID),
        ("DELETE", b"", None, b"invoice_now=true", None),
    ],
)
def test_parameters_come_in_one_place_only(
    method: str, body: bytes, content_type: str | None, query: bytes, expected: Code | None
) -> None:
    form = parse_form(body, content_type, query, method)
    assert (form.code if isinstance(form, Refusal) else None) is expected


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}(\[[a-z0-9_ ]{1,8}\]){0,2}", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_what_is_rebuilt_reads_the_same_to_us_and_to_others(values: dict[str, str]) -> None:
    form = read(urlencode(values).encode())
    if isinstance(form, Refusal):
        assert form.code is Code.PARAMETER_DUPLICATE  # a name that is both a value and a map
        return
    assert read(form.encode()) == form
    assert dict(parse_qsl(form.encode().decode(), keep_blank_values=True)) == values
    assert read(form.canonical()) == form


@given(st.data(), st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), VALUES))
def test_the_canonical_body_does_not_depend_on_order(
    data: st.DataObject, values: dict[str, str]
) -> None:
    items = data.draw(st.permutations(list(values.items())))
    assert Form(items).canonical() == Form(values).canonical()


@given(st.binary(max_size=60))
def test_no_body_does_anything_but_parse_or_be_refused(body: bytes) -> None:
    form = read(body)
    if not isinstance(form, Refusal):
        assert read(form.encode()) == form


def test_a_form_is_a_value() -> None:
    form = Form({"b": "1", "a": "2"})
    assert form.encode() == b"b=1&a=2"
    assert form.canonical() == b"a=2&b=1"
    assert form.without("b", "zz") == Form({"a": "2"})
    assert form.with_({"a": "3", "metadata[x]": "y"}).encode() == b"b=1&a=3&metadata%5Bx%5D=y"
    assert form == Form({"b": "1", "a": "2"})
    assert (form.get("a"), form.get("c"), form.get("c", "d")) == ("2", None, "d")
    assert len(EMPTY) == 0


def test_a_repr_shows_names_and_no_values() -> None:
    assert repr(Form({"receipt_email": "who@example.com"})) == "Form(receipt_email)"
