"""An identity provider that is not ours, in a process of its own: oauthlib grants, joserfc signs.

    python tests/identity/provider.py

prints its address, and serves discovery, keys, registration, authorization code with PKCE and
client credentials. `/_test/…` lets a test rotate its keys, sign what it likes, and misbehave.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey
from oauthlib.oauth2 import RequestValidator, Server  # type: ignore[import-untyped]  # none exist
from typing_extensions import override

SCOPES = ["charge", "charge_status", "refund", "openid"]


class AnyHeader(jws.JWSRegistry):
    """Signs whatever header a test asks for."""

    @override
    def check_header(self, *_: Any, **__: Any) -> None:
        """Check nothing."""


class Keys:
    """The provider's signing keys, the newest last; `published` is what its JWKS shows."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self.current = ""
        self.rotate("RS256")

    def rotate(self, algorithm: str, *, keep: bool = False, bits: int = 2048) -> str:
        """Make a new key for `algorithm`, and forget the old ones unless they are kept."""
        kid = f"key-{len(self.held) + 1}-{secrets.token_hex(3)}"
        extra: Any = {"kid": kid, "alg": algorithm, "use": "sig"}
        if algorithm.startswith(("RS", "PS")):
            made: Any = RSAKey.generate_key(bits, extra)
        elif algorithm == "EdDSA":
            made = OKPKey.generate_key("Ed25519", extra)
        else:
            made = ECKey.generate_key(f"P-{algorithm[2:].replace('512', '521')}", extra)
        self.held = {**(self.held if keep else {}), kid: made}
        self.current = kid
        return kid

    def published(self) -> dict[str, Any]:
        """Return the JWKS."""
        return {"keys": [key.as_dict(private=False) for key in self.held.values()]}

    def sign(self, claims: Any, header: dict[str, Any]) -> str:
        """Sign `claims` with the newest key; `header` is added to what names it."""
        key = self.held[self.current]
        algorithm = key.as_dict(private=False)["alg"]
        named = {"alg": algorithm, "kid": self.current, "typ": "JWT", **header}
        payload = claims if isinstance(claims, str) else json.dumps(claims)
        registry = AnyHeader(algorithms=[algorithm], strict_check_header=False)
        return jws.serialize_compact(named, payload, key, registry=registry)


class Grants(RequestValidator):  # type: ignore[misc]  # oauthlib ships no types
    """What oauthlib asks of a provider: clients, codes, and whom a token is for."""

    def __init__(self) -> None:
        self.clients: dict[str, dict[str, Any]] = {}
        self.codes: dict[str, dict[str, Any]] = {}

    def validate_client_id(self, client_id: str, request: Any, *_: Any, **__: Any) -> bool:
        request.client = self.clients.get(client_id)
        return request.client is not None

    def validate_redirect_uri(self, client_id: str, redirect_uri: str, *_: Any, **__: Any) -> bool:
        return redirect_uri in self.clients[client_id].get("redirect_uris", [])

    def validate_response_type(self, _: str, response_type: str, *__: Any, **___: Any) -> bool:
        return response_type == "code"

    def get_default_redirect_uri(self, client_id: str, *_: Any, **__: Any) -> str:
        return str(self.clients[client_id]["redirect_uris"][0])

    def get_default_scopes(self, *_: Any, **__: Any) -> list[str]:
        return []

    def validate_scopes(self, _: str, scopes: list[str], *__: Any, **___: Any) -> bool:
        return set(scopes) <= set(SCOPES)

    def is_pkce_required(self, *_: Any) -> bool:
        return True

    def save_authorization_code(self, client_id: str, code: Any, request: Any, *_: Any) -> None:
        self.codes[code["code"]] = {
            "client_id": client_id,
            "redirect_uri": request.redirect_uri,
            "scopes": request.scopes,
            "challenge": request.code_challenge,
            "method": request.code_challenge_method,
            "resource": dict(request.uri_query_params).get("resource"),
        }

    def client_authentication_required(self, request: Any, *_: Any, **__: Any) -> bool:
        client = self.clients.get(request.client_id or "")
        return client is None or client["token_endpoint_auth_method"] != "none"

    def authenticate_client(self, request: Any, *_: Any, **__: Any) -> bool:
        body = dict(request.decoded_body or [])
        client = self.clients.get(body.get("client_id", ""))
        if client is None or client.get("client_secret") != body.get("client_secret"):
            return False
        request.client = Client(client)
        return True

    def authenticate_client_id(self, client_id: str, request: Any, *_: Any, **__: Any) -> bool:
        client = self.clients.get(client_id)
        if client is None:
            return False
        request.client = Client(client)
        return True

    def validate_grant_type(self, _: str, grant_type: str, *__: Any, **___: Any) -> bool:
        return grant_type in {"authorization_code", "client_credentials"}

    def validate_code(self, client_id: str, code: str, _: Any, request: Any, **__: Any) -> bool:
        found = self.codes.get(code)
        if found is None or found["client_id"] != client_id:
            return False
        request.scopes, request.user = found["scopes"], "person-1"
        request.resource = found["resource"]
        return True

    def confirm_redirect_uri(
        self, _: str, code: str, redirect_uri: str, *__: Any, **___: Any
    ) -> bool:
        return bool(self.codes[code]["redirect_uri"] == redirect_uri)

    def get_code_challenge(self, code: str, _: Any) -> Any:
        return self.codes[code]["challenge"]

    def get_code_challenge_method(self, code: str, _: Any) -> Any:
        return self.codes[code]["method"]

    def invalidate_authorization_code(self, _: str, code: str, *__: Any, **___: Any) -> None:
        del self.codes[code]

    def save_bearer_token(self, *_: Any, **__: Any) -> None:
        """Keep nothing: a token says all by itself."""


class Client:
    """A client as oauthlib wants it: with an id."""

    def __init__(self, registered: dict[str, Any]) -> None:
        self.client_id = registered["client_id"]


class Provider:
    """The provider's state, and its misbehaviour."""

    def __init__(self) -> None:
        self.url = ""
        self.keys = Keys()
        self.grants = Grants()
        self.asked: Counter[str] = Counter()
        self.lies: dict[str, Any] = {}
        self.server = Server(self.grants, token_expires_in=300, token_generator=self.token)
        # A client that holds a refresh token tries that before it sends the person for more scopes.
        self.server.auth_grant.refresh_token = False

    def token(self, request: Any) -> str:
        """Return an access token of RFC 9068 for the resource that was asked for (RFC 8707)."""
        asked = dict(request.decoded_body or [])
        resource = asked.get("resource") or getattr(request, "resource", None)
        subject = request.user if isinstance(request.user, str) else request.client.client_id
        now = int(time.time())  # noqa: TID251 - a provider's time is the host's
        claims = {
            "iss": self.url,
            "sub": subject,
            "aud": resource,
            "client_id": request.client.client_id,
            "scope": " ".join(request.scopes or []),
            "iat": now,
            "exp": now + 300,
        }
        return self.keys.sign(claims, {"typ": "at+jwt"})

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of RFC 8414."""
        return {
            "issuer": self.lies.get("issuer", self.url),
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "registration_endpoint": f"{self.url}/register",
            "jwks_uri": self.lies.get("jwks_uri", f"{self.url}/jwks"),
            "scopes_supported": SCOPES,
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "client_credentials"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_post"],
            "code_challenge_methods_supported": ["S256"],
        }

    def register(self, body: dict[str, Any]) -> dict[str, Any]:
        """Register a client (RFC 7591)."""
        method = body.get("token_endpoint_auth_method", "none")
        secret = {} if method == "none" else {"client_secret": secrets.token_urlsafe()}
        client_id = body.get("client_id") or f"client-{secrets.token_hex(4)}"
        client = {**body, "client_id": client_id, "token_endpoint_auth_method": method, **secret}
        self.grants.clients[client_id] = client
        return client

    def control(self, path: str, body: dict[str, Any]) -> Any:
        """Do what a test asks for."""
        match path:
            case "/_test/rotate":
                return {"kid": self.keys.rotate(body.pop("alg", "RS256"), **body)}
            case "/_test/sign":
                return {"token": self.keys.sign(body["claims"], body.get("header", {}))}
            case "/_test/lie":
                self.lies = body
                return {}
            case "/_test/asked":
                return dict(self.asked)
            case _:
                return None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    provider: Provider

    def do_GET(self) -> None:
        """Serve discovery, keys and the authorization endpoint."""
        path = urlsplit(self.path).path
        self.provider.asked[path] += 1
        if self.provider.lies.get("status"):
            self.say(self.provider.lies["status"], {})
        elif path in {
            "/.well-known/oauth-authorization-server",
            "/.well-known/openid-configuration",
        }:
            self.say(200, self.provider.metadata())
        elif path == "/jwks":
            padding = "x" * self.provider.lies.get("jwks_bytes", 0)
            self.say(200, {**self.provider.keys.published(), **({"p": padding} if padding else {})})
        elif path == "/authorize":
            self.authorize()
        else:
            self.say(404, {})

    def do_POST(self) -> None:
        """Serve the token endpoint, registration, and tests."""
        path = urlsplit(self.path).path
        self.provider.asked[path] += 1
        raw = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        if path == "/token":
            headers, body, status = self.provider.server.create_token_response(
                f"{self.provider.url}/token", "POST", raw, dict(self.headers)
            )
            self.say(status, json.loads(body), headers)
            return
        body = json.loads(raw or "{}")
        if path == "/register":
            self.say(201, self.provider.register(body))
            return
        answer = self.provider.control(path, body)
        self.say(404 if answer is None else 200, answer)

    def authorize(self) -> None:
        """Grant what is asked for; a test may have the person consent to less, once."""
        url = self.provider.url + self.path
        scopes, info = self.provider.server.validate_authorization_request(url)
        del info["request"]
        scopes = self.provider.lies.pop("consents", scopes)
        headers, _, status = self.provider.server.create_authorization_response(
            url, scopes=scopes, credentials={**info, "user": "person-1"}
        )
        self.say(status, {}, headers)

    def say(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """Answer in JSON."""
        payload = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def main() -> None:
    """Serve on a free port of loopback, or the one that is given, until stdin ends."""
    provider = Provider()
    Handler.provider = provider
    server = ThreadingHTTPServer(("127.0.0.1", int((sys.argv[1:] or ["0"])[0])), Handler)
    server.daemon_threads = True
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    print(provider.url, flush=True)  # noqa: T201 - whoever started it waits for this line
    server.serve_forever()


if __name__ == "__main__":
    main()
