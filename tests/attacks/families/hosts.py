"""Names a listener does not answer to: DNS rebinding, misdirected requests, foreign pages."""

from __future__ import annotations

from tests.attacks.attack import Attack, bill

_HOSTS = {
    "another name": "evil.example",
    "another name with our port": "evil.example:8787",
    "Stripe's": "api.stripe.com",
    "ours as a prefix": "localhost.evil.example",
    "ours as a suffix": "evil-localhost",
    "our address as a prefix": "127.0.0.1.evil.example",
    "our address in decimals": "2130706433",
    "our address cut short": "127.1",
    "another loopback address": "127.0.0.2",
    "every address": "0.0.0.0",
    "a dot behind": "localhost.",
    "a user in front": "evil@localhost",
    "a path behind": "localhost/evil",
    "a name behind a blank": "localhost evil.example",
    "two names": "localhost, evil.example",
    "a port that is none": "localhost:evil",
    "two ports": "localhost:80:80",
    "only a port": ":8787",
    "an address without brackets": "::1",
    "a zone": "[::1%25lo]",
    "empty": "",
    "a wildcard": "*",
}
_ORIGINS = {
    "another page": "https://evil.example",
    "another page with our name in it": "https://localhost.evil.example",
    "a file": "null",
    "an extension": "chrome-extension://abcdef",
    "a list": "http://localhost http://evil.example",
    "a user in it": "http://localhost@evil.example",
    "our address, another scheme": "gopher://127.0.0.1",
    "our address and a path": "http://127.0.0.1/evil",
    "no URL at all": "http://[",
    "a wildcard": "*",
    "empty": "",
}

ATTACKS = (
    *(Attack(family="hosts", name=name, host=value, code="host_unknown")
      for name, value in _HOSTS.items()),
    Attack(family="hosts", name="none", host=None, code="host_unknown"),
    Attack(family="hosts", name="two, both ours", headers=("Host: localhost",),
           code="host_unknown"),
    Attack(family="hosts", name="two, one ours", headers=("Host: evil.example",),
           code="host_unknown"),
    Attack(family="hosts", name="forwarded for ours", host="evil.example", code="host_unknown",
           headers=("X-Forwarded-Host: localhost",)),
    Attack(family="hosts", name="none in HTTP/1.0", code="host_unknown",
           raw=b"GET /v1/charges/ch_1 HTTP/1.0\r\nAuthorization: Bearer {token}\r\n\r\n"),
    *(Attack(family="origins", name=name, headers=(f"Origin: {value}",), trace="count",
             code="origin_not_allowed") for name, value in _ORIGINS.items()),
    Attack(family="origins", name="two, both ours", trace="count", code="origin_not_allowed",
           headers=("Origin: http://localhost", "Origin: http://127.0.0.1")),
    Attack(family="origins", name="two, one ours", trace="count", code="origin_not_allowed",
           headers=("Origin: http://localhost", "Origin: https://evil.example")),
    *(Attack(family="hosts", name=f"accepted {host}", host=host, code=None)
      for host in ("localhost", "LOCALHOST:1", "[::1]:8787")),
    Attack(family="origins", name="accepted: ours", headers=("Origin: http://{host}",), code=None),
    Attack(family="origins", name="accepted: none", form=bill(), code=None),
)  # fmt: skip
