"""Who an operator is: their token, what a wrong one costs, and the sessions of the dashboard.

Floor: operators, below the admin API, the metrics and the dashboard. The clock and chance arrive
as arguments. Sessions live in memory: a restart logs everybody out, and nothing in the store can
forge one.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.requests import Request

from kb_mcp.environment import is_loopback
from kb_mcp.instants import how_many
from kb_mcp.operators.requests import InputError
from kb_mcp.proxy.access.tokens import hash_token

FIRST_OPERATOR = "admin"
IDLE_MS = 30 * 60_000
LIFETIME_MS = 12 * 3_600_000
SESSIONS_MAX = 256
FAILURES_MAX = 10
FAILURES_WITHIN_MS = 60_000
PEERS_MAX = 1024
NO_OPERATOR = (
    "No operator's token is configured. Set KEYBRAKE_ADMIN_TOKEN, or let `kb-mcp up` write one "
    "on its first run."
)
_ID_BYTES = 32
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# A proxy in front makes every peer look local; it leaves one of these.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@dataclass(slots=True)
class Throttle:
    """Bounds failed guesses: at most FAILURES_MAX per peer in FAILURES_WITHIN_MS."""

    now_ms: Callable[[], int]
    _failures: dict[str, list[int]] = field(default_factory=dict)

    def wait_s(self, peer: str) -> int:
        """Return for how many seconds `peer` may not guess; 0 when it may."""
        recent = self._recent(peer)
        if len(recent) < FAILURES_MAX:
            return 0
        return -(-(recent[0] + FAILURES_WITHIN_MS - self.now_ms()) // 1000)

    def fail(self, peer: str) -> None:
        """Count a wrong guess of `peer`."""
        recent = [*self._recent(peer), self.now_ms()][-FAILURES_MAX:]
        self._failures.pop(peer, None)
        while len(self._failures) >= PEERS_MAX:
            del self._failures[next(iter(self._failures))]
        self._failures[peer] = recent

    def _recent(self, peer: str) -> list[int]:
        since = self.now_ms() - FAILURES_WITHIN_MS
        return [at for at in self._failures.get(peer, []) if at > since]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come in: the first operator by the configured token, others by name.

    `token` yields the first operator's token or None; `named` yields SHA-256 hashes by name. Both
    are asked each time, so that a changed token or a removed operator counts at once. `public_url`
    is the https address operators use, if there is one.
    """

    token: Callable[[], str | None]
    named: Callable[[], Mapping[str, str]]
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
            message = f"Too many wrong tokens. Wait {how_many(wait_s, 'second')}."
            raise InputError(429, "rate_limited", message, retry_after_s=wait_s)
        operator = self.holder(hash_token(token))
        if operator is None:
            self.throttle.fail(peer)
        return operator

    def holder(self, token_hash: str) -> str | None:
        """Return the name of the operator whose token has this hash, or None."""
        found = None
        # Every hash is compared, so that time tells nothing about which one was near.
        for name, known in self._hashes():
            if same_text(known, token_hash):
                found = name
        return found

    def check_configured(self) -> None:
        """Check that somebody could be let in. Raises: InputError."""
        if not self._hashes():
            raise InputError(503, "operators_not_configured", NO_OPERATOR)

    def local(self, request: Request) -> bool:
        """Say whether the request was made on this machine, without a proxy in between."""
        forwarded = any(name in request.headers for name in _FORWARDED)
        peer = request.client.host if request.client else ""
        return not forwarded and self.host_is_loopback(request) and is_loopback(peer)

    def host_is_loopback(self, request: Request) -> bool:
        """Say whether the client called this listener by a loopback name."""
        return (request.url.hostname or "") in _LOOPBACK_NAMES

    @property
    def https(self) -> bool:
        """Say whether operators reach this listener over https."""
        return self.public_url is not None and urlsplit(self.public_url).scheme == "https"

    def _hashes(self) -> list[tuple[str, str]]:
        # Pairs, not a table: somebody may have been added under the first one's name.
        first = self.token()
        held = [(FIRST_OPERATOR, hash_token(first))] if first else []
        return [*held, *self.named().items()]


@dataclass(frozen=True, slots=True)
class Note:
    """What the next page of a session says, once; `token` is a new key's, shown nowhere else."""

    text: str
    token: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Session:
    """A login. `csrf` stands in every form of this session; times in ms UTC."""

    operator: str
    id_hash: str = field(repr=False)
    token_hash: str = field(repr=False)
    csrf: str = field(repr=False)
    begun_at: int
    seen_at: int
    note: Note | None = None


@dataclass(slots=True)
class Sessions:
    """The sessions of this process, by the hash of their id, bounded in number and in time."""

    access: Access
    random_bytes: Callable[[int], bytes]
    now_ms: Callable[[], int]
    _held: dict[str, Session] = field(default_factory=dict, repr=False)

    def begin(self, operator: str, token: str) -> str:
        """Begin a session for an operator who proved to be one; return its id for the cookie."""
        now = self.now_ms()
        self._held = {key: held for key, held in self._held.items() if not _over(held, now)}
        while len(self._held) >= SESSIONS_MAX:
            self.end(min(self._held.values(), key=lambda held: held.seen_at))
        session_id = self.fresh()
        key = hash_token(session_id)
        self._held[key] = Session(operator, key, hash_token(token), self.fresh(), now, now)
        return session_id

    def find(self, session_id: str) -> Session | None:
        """Return the session and mark it as used, or None where it is over or its operator gone."""
        session = self._held.get(hash_token(session_id))
        if session is None or not self.holds(session):
            return None
        session.seen_at = self.now_ms()
        return session

    def holds(self, session: Session) -> bool:
        """Say whether the session goes on, without marking it as used; one that does not ends."""
        over = _over(session, self.now_ms())
        if over or self.access.holder(session.token_hash) != session.operator:
            self.end(session)
        return self._held.get(session.id_hash) is session

    def end(self, session: Session) -> None:
        """End a session; one that is not there is over already."""
        self._held.pop(session.id_hash, None)

    def fresh(self) -> str:
        """Return an unpredictable text for a cookie or a form."""
        return self.random_bytes(_ID_BYTES).hex()


def same_text(given: str, wanted: str) -> bool:
    """Compare two secrets in time that tells nothing; an empty one is never the same."""
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


def _over(session: Session, now: int) -> bool:
    return now - session.seen_at >= IDLE_MS or now - session.begun_at >= LIFETIME_MS
