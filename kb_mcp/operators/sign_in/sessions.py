"""Operators and their sessions: who is asking, for how long, and how often they may guess.

Floor: operators, below the operators' listener. No IO; the clock and chance arrive as arguments.
Sessions live in memory: a restart logs everybody out, and nothing in the store can forge one.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kb_mcp.proxy.access.tokens import hash_token

FIRST_OPERATOR = "admin"
IDLE_MS = 30 * 60_000
LIFETIME_MS = 12 * 3_600_000
SESSIONS_MAX = 256
FAILURES_MAX = 10
FAILURES_WITHIN_MS = 60_000
PEERS_MAX = 1024
_ID_BYTES = 32


class Operators:
    """The people who may operate: the first one by the configured token, others by name.

    `token` yields the first operator's token or None; `named` yields SHA-256 hashes by name.
    Both are asked each time, so that a changed token or a removed operator counts at once.
    """

    def __init__(
        self,
        token: Callable[[], str | None],
        named: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Ask `token` and `named` for who there is."""
        self._token = token
        self._named = named

    @property
    def configured(self) -> bool:
        """Say whether anybody could be let in."""
        return bool(self._hashes())

    def identify(self, token: str) -> str | None:
        """Return the name of the operator whose token this is, or None."""
        return self.holder(hash_token(token))

    def holder(self, token_hash: str) -> str | None:
        """Return the name of the operator whose token has this hash, or None."""
        found = None
        # Every hash is compared, so that time tells nothing about which one was near.
        for name, known in self._hashes():
            if hmac.compare_digest(known.encode(), token_hash.encode()):
                found = name
        return found

    def _hashes(self) -> list[tuple[str, str]]:
        # Pairs, not a table: somebody may have been added under the first one's name.
        first = self._token()
        held = [] if not first else [(FIRST_OPERATOR, hash_token(first))]
        return [*held, *self._named().items()]


@dataclass(frozen=True, slots=True)
class Session:
    """A login. `csrf` stands in every form of this session; times in ms UTC."""

    operator: str
    token_hash: str = field(repr=False)
    csrf: str = field(repr=False)
    begun_at: int
    seen_at: int


@dataclass(frozen=True, slots=True)
class Note:
    """What the next page of a session says, once; `token` is a new key's, shown nowhere else."""

    text: str
    token: str | None = field(default=None, repr=False)


class Sessions:
    """The sessions of this process, by the hash of their id, bounded in number and in time."""

    def __init__(
        self, operators: Operators, random_bytes: Callable[[int], bytes], now_ms: Callable[[], int]
    ) -> None:
        """Begin without sessions."""
        self._operators = operators
        self._random_bytes = random_bytes
        self._now_ms = now_ms
        self._held: dict[str, Session] = {}
        self._notes: dict[str, Note] = {}

    def begin(self, operator: str, token: str) -> str:
        """Begin a session for an operator who proved to be one; return its id for the cookie."""
        now = self._now_ms()
        self._held = {key: held for key, held in self._held.items() if not _over(held, now)}
        while len(self._held) >= SESSIONS_MAX:
            del self._held[min(self._held, key=lambda key: self._held[key].seen_at)]
        self._notes = {key: note for key, note in self._notes.items() if key in self._held}
        session_id = self.fresh()
        self._held[hash_token(session_id)] = Session(
            operator, hash_token(token), self.fresh(), now, now
        )
        return session_id

    def find(self, session_id: str) -> Session | None:
        """Return the session and mark it as used, or None where it is over or its operator gone."""
        key = hash_token(session_id)
        session = self._held.get(key)
        if session is None:
            return None
        now = self._now_ms()
        if _over(session, now) or self._operators.holder(session.token_hash) != session.operator:
            self._drop(key)
            return None
        session = self._held[key] = replace(session, seen_at=now)
        return session

    def holds(self, session_id: str) -> bool:
        """Say whether the session goes on, without marking it as used."""
        session = self._held.get(hash_token(session_id))
        return (
            session is not None
            and not _over(session, self._now_ms())
            and self._operators.holder(session.token_hash) == session.operator
        )

    def end(self, session_id: str) -> None:
        """End a session; one that is not there is over already."""
        self._drop(hash_token(session_id))

    def leave(self, session_id: str, note: Note) -> None:
        """Leave a note for the next page of a session."""
        key = hash_token(session_id)
        if key in self._held:
            self._notes[key] = note

    def take(self, session_id: str) -> Note | None:
        """Return the note that was left, and forget it."""
        return self._notes.pop(hash_token(session_id), None)

    def fresh(self) -> str:
        """Return an unpredictable text for a cookie or a form."""
        return self._random_bytes(_ID_BYTES).hex()

    def _drop(self, key: str) -> None:
        self._held.pop(key, None)
        self._notes.pop(key, None)


class Throttle:
    """Bounds failed guesses: at most FAILURES_MAX per peer in FAILURES_WITHIN_MS."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """Begin without failures."""
        self._now_ms = now_ms
        self._failures: dict[str, list[int]] = {}

    def wait_s(self, peer: str) -> int:
        """Return for how many seconds `peer` may not guess; 0 when it may."""
        recent = self._recent(peer)
        if len(recent) < FAILURES_MAX:
            return 0
        return -(-(recent[0] + FAILURES_WITHIN_MS - self._now_ms()) // 1000)

    def fail(self, peer: str) -> None:
        """Count a wrong guess of `peer`."""
        recent = [*self._recent(peer), self._now_ms()][-FAILURES_MAX:]
        self._failures.pop(peer, None)
        while len(self._failures) >= PEERS_MAX:
            del self._failures[next(iter(self._failures))]
        self._failures[peer] = recent

    def _recent(self, peer: str) -> list[int]:
        since = self._now_ms() - FAILURES_WITHIN_MS
        return [at for at in self._failures.get(peer, []) if at > since]


def same_text(given: str, wanted: str) -> bool:
    """Compare two secrets in time that tells nothing; an empty one is never the same."""
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


def _over(session: Session, now: int) -> bool:
    return now - session.seen_at >= IDLE_MS or now - session.begun_at >= LIFETIME_MS
