"""Requests whose end, target or protocol a second server might see elsewhere: raw bytes."""

from __future__ import annotations

from tests.attacks.attack import Attack

FORM = b"customer={customer}&amount=2900&currency=usd&metadata[billing_period]={month}"
# Placeholders are filled in later, and would change a length: chunks carry their own.
CHUNK = b"customer=cus_Chunk99&amount=2900&currency=usd"
HOST = b"Host: {host}\r\n"
AUTH = HOST + b"Authorization: Bearer {token}\r\n"
TYPED = AUTH + b"Content-Type: application/x-www-form-urlencoded\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(CHUNK)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(CHUNK), CHUNK)


def _post(headers: bytes, body: bytes, line: bytes = b"POST /v1/charges HTTP/1.1\r\n") -> bytes:
    return line + TYPED + headers + b"\r\n" + body


def _get(line: bytes, headers: bytes = b"") -> bytes:
    return line + b"\r\n" + AUTH + headers + b"\r\n"


_LENGTHS = {
    "length twice": _post(LENGTH * 2, CHUNK),
    "two lengths": _post(LENGTH + b"Content-Length: 0\r\n", CHUNK),
    "length and chunks": _post(LENGTH + CHUNKED, CHUNKS),
    "chunks and length": _post(CHUNKED + LENGTH, CHUNKS),
    "length of zero and chunks": _post(b"Content-Length: 0\r\n" + CHUNKED, CHUNKS),
    "length with a sign": _post(b"Content-Length: +45\r\n", CHUNK),
    "length below zero": _post(b"Content-Length: -1\r\n", CHUNK),
    "list of lengths": _post(b"Content-Length: 45, 45\r\n", CHUNK),
    "length in hex": _post(b"Content-Length: 0x2d\r\n", CHUNK),
    "length beyond 64 bits": _post(b"Content-Length: 99999999999999999999999\r\n", CHUNK),
    "length with a blank in it": _post(b"Content-Length: 4 5\r\n", CHUNK),
    "length, empty": _post(b"Content-Length:\r\n", CHUNK),
    "chunked twice": _post(CHUNKED * 2, CHUNKS),
    "gzip and chunked": _post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS),
    "chunked and identity": _post(b"Transfer-Encoding: chunked, identity\r\n", CHUNKS),
    "identity": _post(b"Transfer-Encoding: identity\r\n", CHUNKS),
    "xchunked": _post(b"Transfer-Encoding: xchunked\r\n", CHUNKS),
    "chunked behind a tab": _post(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS),
    "chunked in quotes": _post(b'Transfer-Encoding: "chunked"\r\n', CHUNKS),
    "blank before a colon": _post(b"Transfer-Encoding : chunked\r\n" + LENGTH, CHUNK),
    "chunked in HTTP/1.0": _post(CHUNKED, CHUNKS, b"POST /v1/charges HTTP/1.0\r\n"),
}
_CHUNKS = {
    "chunk size in another base": _post(CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk size with a sign": _post(CHUNKED, b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": _post(CHUNKED, b"FFFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"),
    "chunk longer than its size": _post(CHUNKED, b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunk ended by a line feed": _post(CHUNKED, b"3\nabc\n0\n\n"),
    "chunk with a NUL": _post(CHUNKED, b"3\x00\r\nabc\r\n0\r\n\r\n"),
    "no chunk size": _post(CHUNKED, b"\r\nabc\r\n0\r\n\r\n"),
    "key in a trailer": b"POST /v1/charges HTTP/1.1\r\n" + HOST + CHUNKED
    + b"\r\n%x\r\n%s\r\n0\r\nAuthorization: Bearer {token}\r\n\r\n" % (len(CHUNK), CHUNK),
    "account in a trailer": _post(CHUNKED, CHUNKS[:-2] + b"Stripe-Account: acct_1Evil\r\n\r\n"),
    "length in a trailer": _post(CHUNKED, CHUNKS[:-2] + b"Content-Length: 1\r\n\r\n"),
}  # fmt: skip
_LINES = {
    "folded header": _post(b"X-A: b\r\n c\r\n" + LENGTH, CHUNK),
    "folded length": _post(b"Content-Length:\r\n 45\r\n", CHUNK),
    "line feeds only": _post(LENGTH, CHUNK).replace(b"\r\n", b"\n"),
    "carriage return in a header": _post(b"X-A: b\rStripe-Account: acct_1\r\n" + LENGTH, CHUNK),
    "NUL in a header": _post(b"X-A: b\x00c\r\n" + LENGTH, CHUNK),
    "blank in a header's name": _post(b"X A: b\r\n" + LENGTH, CHUNK),
    "header without a colon": _post(b"XA\r\n" + LENGTH, CHUNK),
    "header without a name": _post(b": b\r\n" + LENGTH, CHUNK),
    "blank before the first header": b"POST /v1/charges HTTP/1.1\r\n " + TYPED + LENGTH + b"\r\n",
    "method in small letters": _post(LENGTH, CHUNK, b"post /v1/charges HTTP/1.1\r\n"),
    "a method of its own": _post(LENGTH, CHUNK, b"CHARGE /v1/charges HTTP/1.1\r\n"),
    "tab in the request line": _post(LENGTH, CHUNK, b"POST\t/v1/charges HTTP/1.1\r\n"),
    "blank in the path": _post(LENGTH, CHUNK, b"POST /v1/charges x HTTP/1.1\r\n"),
    "path that is not ASCII": _post(LENGTH, CHUNK, b"POST /v1/charges\xff HTTP/1.1\r\n"),
    "HTTP/2.0": _post(LENGTH, CHUNK, b"POST /v1/charges HTTP/2.0\r\n"),
    "HTTP/1.2": _post(LENGTH, CHUNK, b"POST /v1/charges HTTP/1.2\r\n"),
    "HTTP/1.11": _post(LENGTH, CHUNK, b"POST /v1/charges HTTP/1.11\r\n"),
    "http in small letters": _post(LENGTH, CHUNK, b"POST /v1/charges http/1.1\r\n"),
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 by upgrade": _post(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                               b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n" + LENGTH, CHUNK),
    "web socket": _get(b"GET /mcp HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
                       b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGVzdA==\r\n"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "noise": b"\x00\xff\x10\r\n\r\n",
}  # fmt: skip
_TARGETS = {
    "absolute form": _get(b"GET http://{host}/v1/charges/ch_1 HTTP/1.1"),
    "absolute form, charge": _post(LENGTH, CHUNK, b"POST http://{host}/v1/charges HTTP/1.1\r\n"),
    "absolute form, elsewhere": _get(b"GET https://api.stripe.com/v1/charges/ch_1 HTTP/1.1"),
    "absolute form, metadata service": _get(b"GET http://169.254.169.254/latest HTTP/1.1"),
    "authority form": _get(b"CONNECT api.stripe.com:443 HTTP/1.1"),
    "asterisk form": _get(b"OPTIONS * HTTP/1.1"),
    "fragment": _post(LENGTH, CHUNK, b"POST /v1/charges#/v1/refunds HTTP/1.1\r\n"),
    "fragment in the query": _get(b"GET /v1/charges/ch_1?#expand[]=x HTTP/1.1"),
}
_LARGE = {
    "101 headers": _post(b"".join(b"X-%d: y\r\n" % i for i in range(101)), b""),
    "one header of 33 KiB": _post(b"X-A: " + b"y" * 33_000 + b"\r\n", b""),
    "a name of 33 KiB": _post(b"X" * 33_000 + b": y\r\n", b""),
    "a path of 33 KiB": _get(b"GET /v1/charges/" + b"c" * 33_000 + b" HTTP/1.1"),
    "headers without an end": b"GET /v1/charges/ch_1 HTTP/1.1\r\nX-A: " + b"y" * 200_000,
}
_ACCEPTED = {
    "plain": (_post(LENGTH, CHUNK), "framing"),
    "chunks": (_post(CHUNKED, CHUNKS), "chunks and trailers"),
    "chunks with extensions": (
        _post(CHUNKED, CHUNKS.replace(b"\r\n" + CHUNK, b";a=b\r\n" + CHUNK)),
        "chunks and trailers",
    ),
    "chunks of one byte": (
        _post(CHUNKED, b"".join(b"1\r\n%c\r\n" % byte for byte in CHUNK) + b"0\r\n\r\n"),
        "chunks and trailers",
    ),
    "HTTP/1.0": (_post(LENGTH, CHUNK, b"POST /v1/charges HTTP/1.0\r\n"), "request lines"),
    "empty lines in front": (b"\r\n\r\n" + _post(LENGTH, CHUNK), "request lines"),
    "origin form": (_post(LENGTH, CHUNK), "targets and sizes"),
}


def _refused(family: str, table: dict[str, bytes], code: str) -> tuple[Attack, ...]:
    return tuple(
        Attack(
            family=family,
            name=name,
            raw=raw,
            code=code,
            trace="count",
            closes=True,
            also="vault_key_missing" if name == "key in a trailer" else None,
        )
        for name, raw in table.items()
    )


ATTACKS = (
    *_refused("framing", _LENGTHS, "body_invalid"),
    *_refused("chunks and trailers", _CHUNKS, "body_invalid"),
    *_refused("request lines", _LINES, "body_invalid"),
    *_refused("targets and sizes", _TARGETS, "path_invalid"),
    *_refused("targets and sizes", _LARGE, "body_too_large"),
    *(Attack(family=family, name=f"accepted: {name}", code=None,
             raw=raw.replace(b"cus_Chunk99", b"cus_Chunk%02d" % number))
      for number, (name, (raw, family)) in enumerate(_ACCEPTED.items())),
)  # fmt: skip
