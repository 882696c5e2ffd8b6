"""One tool call, from any door: find the tool, read its arguments, run it, answer with a value.

Floor: wing A, above arguments; below the doors, which only translate what this returns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from kb_mcp.agent.arguments import Invalid, read_arguments
from kb_mcp.agent.catalogue import (
    Arguments,
    ChargeArguments,
    ChargeStatusArguments,
    RefundArguments,
    ToolName,
    find_tool,
)
from kb_mcp.agent.outcomes import (
    ProxyUnavailableError,
    RateLimitedError,
    ToolNotGrantedError,
    uncertain,
)
from kb_mcp.agent.refunds import refund_unknown
from kb_mcp.agent.results import ChargeResult, ChargeStatusResult, RefundResult, Result
from kb_mcp.traces import Trace

logger = logging.getLogger(__name__)

SUBJECT: Final = "keybrake-subject"
_ID_LENGTH = 128


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


class Biller(Protocol):
    """What doors need of `billing.Billing`."""

    @property
    def tools(self) -> frozenset[ToolName]:
        """The tools whose vault key is held. Raises: ProxyUnavailableError, RateLimitedError."""

    def may_offer(self, tool: ToolName) -> bool:
        """Say whether a key is held for `tool`, without asking anyone."""

    @property
    def period_kinds(self) -> tuple[str, ...]:
        """The only kinds of period that `charge` may bill; none where all are."""

    @property
    def allow_reference(self) -> bool:
        """Whether `reference` is switched on."""

    def charge(self, arguments: ChargeArguments, context: CallContext) -> ChargeResult:
        """Charge once."""

    def charge_status(
        self, arguments: ChargeStatusArguments, context: CallContext
    ) -> ChargeStatusResult:
        """Look up a charge."""

    def refund(self, arguments: RefundArguments, context: CallContext) -> RefundResult:
        """Give a charge back once."""


class LoopBiller(Biller, Protocol):
    """A biller whose proxy may be one of this process, asked on its event loop."""

    @property
    def on_loop(self) -> bool:
        """Whether it is, so that `run` is asked; else a thread is needed for the other methods."""

    async def run(self, arguments: Arguments, context: CallContext) -> Result:
        """Do what `arguments` ask for."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The tool ran, and this is what it says; a refusal and a decline are answers too."""

    result: Result


@dataclass(frozen=True, slots=True)
class NotOffered:
    """No such tool here: unknown, or its vault key is not held, which must look the same."""


@dataclass(frozen=True, slots=True)
class RateLimited:
    """Nothing was done; wait."""

    message: str
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Proxy or store not reachable: nothing was sent, and asking again is safe."""

    message: str


Answer = Answered | Invalid | NotOffered | RateLimited | Unavailable
Caller = Callable[[str, Mapping[str, object] | None, CallContext], Answer]
"""A tool name, raw arguments and context in, an answer out: what every door is given."""


def caller_of(biller: Biller) -> Caller:
    """Bind `call_tool` to `biller`."""
    return lambda name, raw, context: call_tool(biller, name, raw, context)


def call_tool(
    biller: Biller, name: str, raw: Mapping[str, object] | None, context: CallContext
) -> Answer:
    """Call the tool `name` with `raw` arguments (JSON values). Never raises."""
    arguments = _prepare(biller, name, raw)
    if isinstance(arguments, Invalid | NotOffered):
        return arguments
    try:
        return Answered(_run(biller, arguments, context))
    except Exception as error:  # noqa: BLE001 - a door must answer; after a send, with "unknown"
        return _failed(name, arguments, error)


async def call_tool_on_loop(
    biller: LoopBiller, name: str, raw: Mapping[str, object] | None, context: CallContext
) -> Answer:
    """Do the same where the proxy is asked on this event loop."""
    arguments = _prepare(biller, name, raw)
    if isinstance(arguments, Invalid | NotOffered):
        return arguments
    try:
        return Answered(await biller.run(arguments, context))
    except Exception as error:  # noqa: BLE001 - as above
        return _failed(name, arguments, error)


def _prepare(
    biller: Biller, name: str, raw: Mapping[str, object] | None
) -> Arguments | Invalid | NotOffered:
    tool = find_tool(name, allow_reference=biller.allow_reference)
    if tool is None or not biller.may_offer(tool.name):
        return NotOffered()
    return read_arguments(tool, raw)


def _failed(name: str, arguments: Arguments, error: Exception) -> Answer:
    match error:
        case ToolNotGrantedError():
            return NotOffered()
        case RateLimitedError():
            return RateLimited(str(error), error.retry_after_s)
        case ProxyUnavailableError():
            return Unavailable(str(error))
        case _:
            # Not the exception itself: its text and frames can hold keys.
            logger.error("The tool %s broke: %s", name, type(error).__name__)
            return Answered(_broken(arguments))


def _run(biller: Biller, arguments: Arguments, context: CallContext) -> Result:
    match arguments:
        case ChargeArguments():
            return biller.charge(arguments, context)
        case ChargeStatusArguments():
            return biller.charge_status(arguments, context)
        case RefundArguments():
            return biller.refund(arguments, context)
        case _:
            assert_never(arguments)


def _broken(arguments: Arguments) -> Result:
    """Say, of a call that broke in our own code, what is safe to assume: nothing."""
    if isinstance(arguments, RefundArguments):
        return refund_unknown(arguments, code="internal_error", livemode=False)
    return uncertain(arguments)


def _clean(text: str | None) -> str:
    kept = (character for character in text or "" if " " <= character <= "~")
    return "".join(kept).strip()[:_ID_LENGTH]
