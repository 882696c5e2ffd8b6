"""Requests for property tests, bent and whole; and a naive allowlist, to judge what is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from string import Formatter
from urllib.parse import parse_qsl, unquote

from hypothesis import strategies as st

from kb_mcp.proxy.errors.refusals import WORDING, Code

_PATH_PIECES = (
    b"/ /v1 /charges /ch_1 /cus_A1 /stripe // /. /.. %2f %2e%2e %2F %00 %25 %5c ; ;a=b # . "
    b"%c0%af \\ /V1 /payment_intents /pi_1 /refunds /search /capture /* /customers /v2 "
    b"charges v1 %63harges"
).split(b" ")
_NAMES = (
    b"amount customer currency description metadata[billing_period] metadata[order] capture source "
    b"metadata[keybrake_operation] metadata[KEYBRAKE_key] metadata[reference] "
    b"transfer_data[destination] expand[] expand[0] on_behalf_of destination amount[] amount[0] "
    b"%61mount metadata[ metadata[][a] idempotency_key receipt_email "
    b"application_fee_amount metadata%5Ba%5D limit Amount"
).split(b" ")
_VALUES = (
    b"2900 1 -1 0 usd USD jpy isk cus_A1 cus_B2 2026-11 2031-01 June acct_1 tok_visa %00 %ff "
    b"+ 29.00 Subscription+2026-11 x true %F0%9F%92%B8 ch_1 99999999 1e3"
).split(b" ")
BILL = (
    (b"customer", b"cus_A1"),
    (b"amount", b"2900"),
    (b"currency", b"usd"),
    (b"metadata[billing_period]", b"2026-11"),
)
FORM_TYPE = "application/x-www-form-urlencoded"
PLAIN = (("content-type", FORM_TYPE),)
_HEADERS = (
    ("stripe-account", "acct_1"),
    ("stripe-context", "ctx"),
    ("stripe-version", "2026-05-27.dahlia"),
    ("stripe-version", "latest"),
    ("x-http-method-override", "DELETE"),
    ("idempotency-key", "june"),
    ("idempotency-key", "\xe9"),
    ("content-type", "application/json"),
    ("content-length", "\xb2"),
    ("content-length", "9" * 5_000),
    ("keybrake-agent", "\x1b[31m"),
    ("cookie", "a=b"),
)
# Roots of names that send money elsewhere, take it otherwise, or show more. Written down anew.
DANGEROUS = frozenset(
    "transfer_data destination on_behalf_of application_fee application_fee_amount source card "
    "capture capture_method expand transfer_group".split()
)


@dataclass(frozen=True, slots=True)
class Raw:
    """A request as bytes."""

    method: str
    path: bytes
    query: bytes
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


def raw_requests() -> st.SearchStrategy[Raw]:
    """Yield requests: most of them good ones with a thing or two bent, the others anything."""
    pair = st.tuples(st.sampled_from(_NAMES), st.sampled_from(_VALUES))
    form = st.lists(pair, max_size=5).map(encoded)
    octets = st.one_of(form, st.binary(max_size=60))
    path = st.one_of(
        st.sampled_from([b"/v1/charges", b"/stripe/v1/charges", b"/v1/charges/ch_1"]),
        st.lists(st.sampled_from(_PATH_PIECES), max_size=6).map(b"".join),
        st.binary(max_size=40),
    )
    method = st.sampled_from(["POST", "GET", "DELETE", "PUT", "post", "HEAD"])
    header = st.sampled_from(_HEADERS)
    whole = st.sampled_from(
        [Raw("POST", b"/v1/charges", b"", PLAIN, encoded(BILL)),
         Raw("GET", b"/v1/charges/ch_1", b"", PLAIN, b"")]
    )  # fmt: skip
    changes = st.one_of(
        method.map(lambda new: {"method": new}),
        path.map(lambda new: {"path": new}),
        octets.map(lambda new: {"query": new}),
        octets.map(lambda new: {"body": new}),
        header.map(lambda new: {"headers": (*PLAIN, new)}),
        pair.map(lambda new: {"body": encoded((*BILL, new))}),
        st.permutations(BILL).map(lambda new: {"body": encoded(tuple(new))}),
        st.tuples(st.integers(0, 3), st.sampled_from(_VALUES)).map(
            lambda new: {"body": encoded(tuple(
                (name, new[1] if at == new[0] else value) for at, (name, value) in enumerate(BILL)
            ))}
        ),
    )  # fmt: skip
    bent = st.tuples(whole, st.lists(changes, max_size=2)).map(
        lambda two: replace(two[0], **{k: v for change in two[1] for k, v in change.items()})
    )
    headers = st.lists(header, max_size=2).map(lambda more: (*PLAIN, *more))
    return st.one_of(bent, bent, bent, st.builds(Raw, method, path, octets, headers, octets))


def encoded(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Join names and values that are encoded already, or bent."""
    return b"&".join(name + b"=" + value for name, value in pairs)


def naively_allowed(allow: tuple[str, ...], raw: Raw) -> bool:
    """Say whether a simple reader, with an allowlist and a list of bad words, would let it pass."""
    path = unquote(raw.path.decode("latin-1"))
    path = path.removeprefix("/stripe").replace("//", "/", 1 if path.startswith("/stripe//") else 0)
    if not any(_entry(entry).fullmatch(f"{raw.method} {path}") for entry in allow):
        return False
    octets = raw.body if raw.method == "POST" else raw.query
    pairs = parse_qsl(octets.decode("latin-1"), keep_blank_values=True)
    names = [re.sub(r"\[\d+\]$", "[]", name) for name, _ in pairs]
    scalars = [name for name in names if not name.endswith("[]")]
    if len(set(scalars)) != len(scalars):
        return False
    if any(name.split("[")[0] in DANGEROUS or "keybrake" in name.lower() for name in names):
        return False
    if {"stripe-account", "stripe-context", "x-http-method-override"} & {n for n, _ in raw.headers}:
        return False
    if raw.method != "POST":
        return not raw.body
    sent = dict(pairs)
    amount, currency = sent.get("amount", ""), sent.get("currency", "")
    return bool(
        not raw.query
        and re.fullmatch(r"[1-9][0-9]{0,11}", amount)
        and re.fullmatch(r"[A-Za-z]{3}", currency)
        and re.fullmatch(r"cus_[A-Za-z0-9_]+", sent.get("customer", ""))
    )


def _entry(entry: str) -> re.Pattern[str]:
    return re.compile(re.escape(entry).replace(r"\*", "[a-z]+_[A-Za-z0-9]+"))


def fields_of(code: Code) -> set[str]:
    """Return the names that the sentence of `code` must be given, beside `param`."""
    return {name for _, name, _, _ in Formatter().parse(WORDING[code][0]) if name} - {"param"}
