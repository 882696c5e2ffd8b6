"""Bodies that two readers would read in two ways."""

from __future__ import annotations

from tests.attacks.attack import Attack

_B = b"customer={customer}&amount=2900&currency=usd&metadata[billing_period]={month}"
_BODIES: dict[str, tuple[bytes, str]] = {
    "amount twice": (_B + b"&amount=1", "parameter_duplicate"),
    "amount twice, equal": (_B + b"&amount=2900", "parameter_duplicate"),
    "amount twice, encoded name": (_B + b"&%61mount=1", "parameter_duplicate"),
    "currency twice": (_B + b"&currency=eur", "parameter_duplicate"),
    "customer twice": (_B + b"&customer=cus_Other", "parameter_duplicate"),
    "period twice": (_B + b"&metadata[billing_period]=2026-01", "parameter_duplicate"),
    "period twice, encoded": (_B + b"&metadata%5Bbilling_period%5D=x", "parameter_duplicate"),
    "amount as a map": (_B + b"&amount[value]=1", "parameter_duplicate"),
    "amount as a list": (_B + b"&amount[]=1", "parameter_duplicate"),
    "amount as an item": (_B + b"&amount[0]=1", "parameter_duplicate"),
    "list and map": (_B + b"&metadata[0]=1", "parameter_duplicate"),
    "indexed and appended": (b"metadata[]=1&metadata[0]=2", "parameter_duplicate"),
    "item without an end": (_B + b"&metadata[][a]=1", "parameter_unknown"),
    "open bracket": (_B + b"&metadata[a=1", "parameter_unknown"),
    "closing bracket": (_B + b"&metadata]a[=1", "parameter_unknown"),
    "brackets within": (_B + b"&metadata[a[b]]=1", "parameter_unknown"),
    "text behind a bracket": (_B + b"&metadata[a]b=1", "parameter_unknown"),
    "only a bracket": (_B + b"&[amount]=1", "parameter_unknown"),
    "no name": (_B + b"&=1", "parameter_unknown"),
    "blank before a name": (_B + b"&+amount=1", "parameter_unknown"),
    "name in capitals": (_B + b"&Amount=1", "parameter_unknown"),
    "name with a dot": (_B + b"&transfer.data=1", "parameter_unknown"),
    "name of another alphabet": (_B + b"&%D0%B0mount=1", "parameter_unknown"),
    "too deep": (_B + b"&metadata[a][b][c][d][e]=1", "parameter_unknown"),
    "a very long name": (_B + b"&" + b"a" * 65 + b"=1", "parameter_unknown"),
    "no equals sign": (_B + b"&amount", "body_invalid"),
    "two ampersands": (_B + b"&&description=x", "body_invalid"),
    "an ampersand at the end": (_B + b"&", "body_invalid"),
    "semicolons": (b"customer={customer};amount=2900;currency=usd", "parameter_missing"),
    "half a percent": (_B + b"&description=%4", "body_invalid"),
    "percent and letters": (_B + b"&description=%zz", "body_invalid"),
    "encoded NUL": (_B + b"&description=a%00b", "body_invalid"),
    "NUL": (_B + b"&description=a\0b", "body_invalid"),
    "NUL in a name": (_B + b"&amount%00=1", "body_invalid"),
    "overlong slash": (_B + b"&description=%c0%af", "body_invalid"),
    "overlong NUL": (_B + b"&description=%c0%80", "body_invalid"),
    "half of a pair": (_B + b"&description=%ed%a0%80", "body_invalid"),
    "not UTF-8": (_B + b"&description=\xff", "body_invalid"),
    "UTF-16": ("amount=1".encode("utf-16"), "body_invalid"),
    "201 parameters": (_B + b"".join(b"&metadata[k%d]=v" % i for i in range(200)), "body_invalid"),
    "64 KiB and a byte": (_B + b"&description=" + b"x" * 65_536, "body_too_large"),
}
_TYPES: dict[str, tuple[str | None, bytes]] = {
    "JSON": ("application/json", b'{"amount":2900,"currency":"usd","customer":"{customer}"}'),
    "JSON as a form": ("application/x-www-form-urlencoded", b'{"amount":2900}'),
    "form as JSON": ("application/json", _B),
    "form as text": ("text/plain", _B),
    "multipart": ("multipart/form-data; boundary=b", b"--b\r\n\r\namount\r\n--b--"),
    "no type": (None, _B),
    "UTF-16 named": ("application/x-www-form-urlencoded; charset=utf-16", _B),
    "two charsets": ("application/x-www-form-urlencoded; charset=utf-8; charset=utf-7", _B),
    "another type first": ("application/json, application/x-www-form-urlencoded", _B),
    "a longer type": ("application/x-www-form-urlencoded-v2", _B),
}
_ACCEPTED = {
    "plain": _B,
    "encoded brackets": _B.replace(b"[", b"%5B").replace(b"]", b"%5D"),
    "currency in capitals": _B.replace(b"usd", b"USD"),
    "plus is a blank": _B + b"&description=June+fees",
    "accents": _B + b"&description=%C3%A9",
}

ATTACKS = (
    *(Attack(family="bodies", name=name, body=body, code=code)
      for name, (body, code) in list(_BODIES.items())[:25]),
    *(Attack(family="encodings", name=name, body=body, code=code)
      for name, (body, code) in list(_BODIES.items())[25:]),
    *(Attack(family="encodings", name=name, body=body, content_type=kind, code="body_invalid")
      for name, (kind, body) in _TYPES.items()),
    *(Attack(family="bodies", name=f"accepted {name}", body=body, code=None)
      for name, body in _ACCEPTED.items()),
    Attack(family="encodings", name="accepted charset", body=_B, code=None,
           content_type='application/x-www-form-urlencoded; charset="UTF-8"'),
    Attack(family="encodings", name="query on a POST", target="/v1/charges?amount=1", body=_B,
           code="body_invalid"),
    Attack(family="encodings", name="all in the query", body=b"", code="body_invalid",
           target="/v1/charges?customer=cus_1&amount=2900&currency=usd"),
    Attack(family="encodings", name="empty query on a POST", target="/v1/charges?", body=_B,
           code=None),
    Attack(family="encodings", name="body on a GET", method="GET", target="/v1/charges/ch_1",
           body=b"expand[]=customer", policy="audit", code="body_invalid"),
)  # fmt: skip
