"""The client of the proxy: its requests, when one is tried again, and how an answer is read.

Floor: wing A, above outcomes; below billing. A line sends the form of the Stripe SDK, under a
Stripe-Version and an Idempotency-Key as the SDK does, and tries again where the SDK would. It leads
into a proxy of this process: the ASGI application that a socket would reach, which spares a tool
call an HTTP client; on the application's own event loop also the threads that would both block. Or
it leads over the network (network).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, TypeVar
from urllib.parse import quote, quote_plus

from typing_extensions import override

from kb_mcp import __version__
from kb_mcp.agent.outcomes import (
    ProxyUnavailableError,
    Reply,
    as_map,
    says_nothing_sent,
    unread,
    without_card,
)
from kb_mcp.agent.wording import UNAVAILABLE
from kb_mcp.in_process import AsgiApp, Exchange
from kb_mcp.traces import Trace

T = TypeVar("T")
Headers = Mapping[str, str]

# The version of Stripe's API whose objects outcomes and status read: that of the Stripe SDK which
# the tests run beside. Without one, an account's own default version would decide.
STRIPE_VERSION: Final = "2026-10-28.endive"
# Above the proxy's own wait for Stripe (25 s) and for another caller (10 s).
ANSWER_TIMEOUT_S: Final = 60
# The proxy collapses repeats of one key into one send, so a retry cannot charge twice; and it
# answers Stripe-Should-Retry: false wherever a repeat would not help. Two retries carry a call
# over a broken line and over a proxy that is being replaced.
RETRIES_AFTER_S: Final = (0.5, 1.0)
SUBJECT: Final = "keybrake-subject"
_ID_LENGTH = 128
_FORM: Final = "application/x-www-form-urlencoded"
_OURS: Final = {"User-Agent": f"kb-mcp/{__version__}", "Accept": "application/json"}
# RFC 9110, 5.5, in ASCII: no control characters, no blank at either end.
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_.\-~]*")  # what quote_plus leaves as it is
_quoted = lru_cache(maxsize=256)(quote_plus)  # for names: they are the same in every call
_AGAIN: Final = {"true": True, "false": False}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallContext:
    """Who calls, as far as the runtime says so. It is recorded and decides nothing."""

    agent_id: str | None = None
    session_id: str | None = None
    trace: Trace | None = None
    subject: str | None = None  # for whom: what the caller says, and nobody has proven

    def headers(self) -> dict[str, str]:
        """Return the headers that carry it: bounded, printable ASCII only."""
        named = {
            "Keybrake-Agent": self.agent_id,
            "Keybrake-Session": self.session_id,
            "Keybrake-Subject": self.subject,
        }
        clean = {name: kept for name, text in named.items() if (kept := _clean(text))}
        return clean if self.trace is None else clean | self.trace.headers()


def read_subject(*attributes: object) -> str | None:
    """Return for whom a call is, where session attributes or metadata say so; the first counts.

    The name is `keybrake_subject`, in whatever case, with a dash or a slash for the underscore.
    """
    for each in attributes:
        for name, value in each.items() if isinstance(each, Mapping) else ():
            plain = str(name).lower().replace("_", "-").replace("/", "-")
            if plain == SUBJECT and isinstance(value, str) and value.strip():
                return value
    return None


def _clean(text: str | None) -> str:
    kept = (character for character in text or "" if " " <= character <= "~")
    return "".join(kept).strip()[:_ID_LENGTH].rstrip()


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the proxy; `path` begins with a slash and holds the query too."""

    method: str
    path: str
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, as it came; header names in lower case."""

    status: int
    headers: Headers = field(default_factory=dict)
    body: bytes = b""


class NeverSentError(ProxyUnavailableError):
    """No byte of the request left; `detail` is for an operator, `again` where it may help."""

    def __init__(self, message: str, detail: str, *, again: bool) -> None:
        """Say it in words for a model, and for the log."""
        super().__init__(message)
        self.detail = detail
        self.again = again


@dataclass(eq=False)
class MaybeSentError(Exception):
    """The request may have arrived, and no answer came; `again`: asking once more may help."""

    again: bool


class Line(ABC):
    """Requests to one proxy. Every request takes the vault key to use.

    Every request raises ProxyUnavailableError when nothing was sent. `livemode` is the mode of the
    keys, where it is known.
    """

    livemode: bool | None = None

    @property
    def on_loop(self) -> bool:
        """Whether the coroutines are awaited on the running event loop; else `wait` runs them."""
        return False

    @abstractmethod
    async def exchange(self, request: Request) -> Answer:
        """Send one request, once. Raises: NeverSentError, MaybeSentError."""

    @abstractmethod
    async def pause(self, seconds: float) -> None:
        """Wait before the next try."""

    @abstractmethod
    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run what asks this line from a thread that may block. Raises: what `work` raises."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def is_live(self, token: str) -> bool:
        """Say whether real money is concerned: `livemode` where it is known, else by the token."""
        return is_live(token) if self.livemode is None else self.livemode

    async def create(
        self, token: str, resource: str, params: Mapping[str, Any], key: str, headers: Headers
    ) -> Reply:
        """Create an object at Stripe (`charges`, `refunds`) under the idempotency key `key`."""
        sent = {**headers, "Stripe-Version": STRIPE_VERSION, "Idempotency-Key": key}
        return await self._ask(token, "POST", f"/stripe/v1/{resource}", sent, _form(params))

    async def retrieve(
        self, token: str, resource: str, object_id: str, headers: Headers, *, part: str = ""
    ) -> Reply:
        """Read one object, or the `part` of it, a path with its query."""
        path = f"/stripe/v1/{resource}/{quote(object_id, safe='')}{part}"
        return await self._ask(token, "GET", path, {**headers, "Stripe-Version": STRIPE_VERSION})

    async def operations(self, token: str, wanted: Mapping[str, str], headers: Headers) -> Reply:
        """Ask the ledger for operations, newest first, under `data`. One try."""
        query = _form(wanted).decode("ascii")
        return await self._ask(token, "GET", f"/keybrake/v1/operations?{query}", headers, pauses=())

    async def describe_key(self, token: str, headers: Headers) -> Reply:
        """Ask what the vault key itself may do. One try."""
        return await self._ask(token, "GET", "/keybrake/v1/key", headers, pauses=())

    async def default_payment_method(
        self, token: str, customer_id: str, headers: Headers
    ) -> str | Reply:
        """Find what to charge: the customer's default, else the only payment method there is.

        With several and no default, choosing would be guessing, so there is none.
        """
        customer = await self.retrieve(token, "customers", customer_id, headers)
        if customer.is_error:
            return customer
        default = as_map(customer.fields.get("invoice_settings")).get("default_payment_method")
        if isinstance(default, str) and default:
            return default
        part = "/payment_methods?limit=2"
        methods = await self.retrieve(token, "customers", customer_id, headers, part=part)
        if methods.is_error:
            return methods
        found = methods.fields.get("data")
        if isinstance(found, list) and len(found) == 1:
            only = as_map(found[0]).get("id")
            if isinstance(only, str):
                return only
        return without_card(livemode=self.is_live(token))

    async def _ask(
        self,
        token: str,
        method: str,
        path: str,
        headers: Headers,
        body: bytes = b"",
        *,
        pauses: tuple[float, ...] = RETRIES_AFTER_S,
    ) -> Reply:
        """Ask until there is an answer that is one, or the tries are used up."""
        sent = {**_OURS, "Authorization": f"Bearer {token}", **headers}
        request = Request(method, path, {**sent, "Content-Type": _FORM} if body else sent, body)
        acts = method == "POST"  # a read moves no money, so a lost answer leaves no doubt
        reply = lost = unread(livemode=self.is_live(token))
        reached = doubtful = False
        for pause in (*pauses, None):
            try:
                _check_values(sent)
                answer = await self.exchange(request)
                reached, again = True, _is_to_repeat(answer)
                reply = _read(answer, lost, doubtful=doubtful)
                broken = answer.status >= 500 and not says_nothing_sent(reply)
                doubtful = acts and (reply.doubtful or broken)
            except MaybeSentError as error:
                reached, again, doubtful, reply = True, error.again, acts, lost
            except NeverSentError as error:
                # What an earlier try was told, or was not, still stands.
                again = error.again
                if not reached and (pause is None or not again):
                    logger.error("%s", error.detail)  # noqa: TRY400 - no frames, no keys
                    raise
            if pause is None or not again:
                break
            await self.pause(pause)
        return reply


@dataclass(frozen=True)
class InProcessLine(Line):
    """Requests to `app`, which runs on `loop`, a loop of another thread, or on that of the caller.

    `extensions` go with every request beside its headers, where no client can put anything.
    `livemode` is the mode of that application's keys, where it is known. `pid` names the process
    in which that other thread runs.
    """

    app: AsgiApp
    loop: asyncio.AbstractEventLoop | None = None
    extensions: Mapping[str, object] = field(default_factory=dict)
    livemode: bool | None = None
    pid: int = field(default_factory=os.getpid)

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of that of the loop: no thread runs it here."""
        return self.pid != os.getpid()

    @property
    @override
    def on_loop(self) -> bool:
        return self.loop is None

    @override
    async def exchange(self, request: Request) -> Answer:
        headers = [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in request.headers.items()
        ]
        if request.body:
            headers.append((b"content-length", str(len(request.body)).encode()))
        target = request.path.encode("ascii")
        exchange = Exchange(
            request.method, target, headers, request.body, extensions=self.extensions
        )
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await exchange.run(self.app)
        except Exception as error:
            logger.error("The proxy in this process gave no answer: %s", type(error).__name__)  # noqa: TRY400 - no frames, no keys
            raise MaybeSentError(again=False) from error  # it may have acted, whatever broke
        raw = ((name.lower(), text) for name, text in exchange.headers)
        named = {name.decode("latin-1"): text.decode("latin-1") for name, text in raw}
        return Answer(exchange.status, named, bytes(exchange.body))

    @override
    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @override
    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        except RuntimeError as error:
            work.close()
            detail = f"The proxy in this process cannot be asked: {error}"
            logger.error("%s", detail)  # noqa: TRY400 - no frames, no keys
            raise NeverSentError(UNAVAILABLE, detail, again=False) from error
        return future.result()

    @override
    def close(self) -> None:
        """Close nothing: the application belongs to whoever serves it."""

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the other thread. Raises: RuntimeError, where there is none."""
        if self.loop is None:
            raise RuntimeError("it is asked on its own event loop, not from a thread")
        if self.is_forked:
            raise RuntimeError("this process was forked, and the thread of its event loop was not")
        return self.loop


def _check_values(headers: Headers) -> None:
    """Check each value: a bad one would break the send half-way. Raises: NeverSentError."""
    for name, value in headers.items():
        if not _HEADER_VALUE.fullmatch(value):
            detail = f"The value of the header {name} cannot be sent."
            raise NeverSentError(UNAVAILABLE, detail, again=False)


def _read(answer: Answer, lost: Reply, *, doubtful: bool) -> Reply:
    """Return what an answer says; `lost` where it is no JSON object or no error like Stripe's."""
    failed = not 200 <= answer.status < 300
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return lost
    fields = as_map(document).get("error") if failed else document
    if not isinstance(fields, dict) or (failed and not fields):
        return lost
    return replace(
        lost,
        status=answer.status,
        fields=fields,
        headers=answer.headers,
        is_error=failed,
        doubtful=doubtful,
    )


def is_live(token: str) -> bool:
    """Say whether the token may be one for real money: only a test key says that it is not."""
    return not token.startswith("vk_test_")


def _is_to_repeat(answer: Answer) -> bool:
    """Say whether the Stripe SDK would ask again: its `_should_retry`, for answers."""
    told = _AGAIN.get(answer.headers.get("stripe-should-retry", ""))
    return answer.status == 409 or answer.status >= 500 if told is None else told


def _form(params: Mapping[str, Any]) -> bytes:
    return "&".join(
        f"{_quoted(name)}={value if _UNQUOTED.fullmatch(value) else quote_plus(value)}"
        for name, value in _pairs(params)
    ).encode("ascii")


def _pairs(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield parameters as Stripe's form has them: `metadata[name]`, true and false."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}[{inner}]", text) for inner, text in _pairs(value))
        else:
            yield name, str(value).lower() if isinstance(value, bool) else str(value)
