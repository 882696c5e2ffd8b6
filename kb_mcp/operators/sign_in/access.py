"""Access to the operators' listener: tokens as bearer, and who sits at this very machine.

Floor: operators, below the admin API, the metrics and the dashboard.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from kb_mcp.operators.requests import InputError
from kb_mcp.operators.sign_in.sessions import Operators, Throttle

NO_OPERATOR = (
    "No operator's token is configured. Set KEYBRAKE_ADMIN_TOKEN, or let `kb-mcp up` write one "
    "on its first run."
)
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# A proxy in front makes every peer look local; it leaves one of these.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come in. `public_url` is the https address operators use, if there is one."""

    operators: Operators
    throttle: Throttle
    public_url: str | None = None

    def bearer(self, request: Request) -> str:
        """Return the operator whose token is the request's bearer. Raises: InputError."""
        self.check_configured()
        values = request.headers.getlist("authorization")
        scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token.strip():
            message = "Send an operator's token as a bearer token."
            raise InputError(401, "operator_token_missing", message)
        operator = self.guess(request, token.strip())
        if operator is None:
            raise InputError(401, "operator_token_unknown", "This is no operator's token.")
        return operator

    def guess(self, request: Request, token: str) -> str | None:
        """Return whose token this is, or None and count the failure. Raises: InputError."""
        peer = request.client.host if request.client else ""
        wait_s = self.throttle.wait_s(peer)
        if wait_s:
            message = f"Too many wrong tokens. Wait {wait_s} seconds."
            raise InputError(429, "rate_limited", message, retry_after_s=wait_s)
        operator = self.operators.identify(token)
        if operator is None:
            self.throttle.fail(peer)
        return operator

    def check_configured(self) -> None:
        """Check that somebody could be let in. Raises: InputError."""
        if not self.operators.configured:
            raise InputError(503, "operators_not_configured", NO_OPERATOR)

    def local(self, request: Request) -> bool:
        """Say whether the request was made on this machine, without a proxy in between."""
        if request.client is None or not self.host_is_loopback(request):
            return False
        if any(name in request.headers for name in _FORWARDED):
            return False
        try:
            return ipaddress.ip_address(request.client.host).is_loopback
        except ValueError:
            return False

    def host_is_loopback(self, request: Request) -> bool:
        """Say whether the client called this listener by a loopback name."""
        return (request.url.hostname or "") in _LOOPBACK_NAMES

    @property
    def https(self) -> bool:
        """Say whether operators reach this listener over https."""
        return self.public_url is not None and urlsplit(self.public_url).scheme == "https"
