"""One tool call, from any door: read its arguments, find the tool, run it, answer with a value.

Floor: wing A, above billing; below the doors, which only translate what this returns.
Arguments are read strictly into the catalogue's models: what is wrong is a value that says what to
send instead and never repeats what was sent. No text of an exception and no secret gets into an
answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, assert_never, get_args

from pydantic import ValidationError

from kb_mcp.agent import outcomes, wording
from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import (
    Arguments,
    ChargeArguments,
    ChargeStatusArguments,
    RefundArguments,
    Tool,
    find_tool,
)
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.results import Result
from kb_mcp.agent.status import nothing_shown

logger = logging.getLogger(__name__)

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
# Bedrock hands every value over as text, and a model writes an empty one as its language does.
_ABSENT: Final = frozenset({"", "none", "null"})


@dataclass(frozen=True, slots=True)
class Answered:
    """The tool ran, and this is what it says; a refusal and a decline are answers too."""

    result: Result


@dataclass(frozen=True, slots=True)
class Invalid:
    """Arguments that are not valid, as sentences without the caller's values."""

    message: str


@dataclass(frozen=True, slots=True)
class NotOffered:
    """No such tool here: unknown, or its vault key is not held, which must look the same."""


@dataclass(frozen=True, slots=True)
class RateLimited:
    """Nothing was done; wait."""

    retry_after_s: int | None


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Proxy or store not reachable: nothing was sent, and asking again is safe."""

    message: str


Answer = Answered | Invalid | NotOffered | RateLimited | Unavailable
Caller = Callable[[str, Mapping[str, object] | None, CallContext], Answer]
"""A tool name, raw arguments and context in, an answer out: `call_tool` with its billing."""


def call_with_texts(
    caller: Caller, tool: Tool | None, context: CallContext, *parts: Iterable[tuple[object, object]]
) -> Answer:
    """Call `tool` with arguments in `parts`, as `read_texts` takes them; None is no tool."""
    if tool is None:
        return NotOffered()
    texts = read_texts(tool, *parts)
    return texts if isinstance(texts, Invalid) else caller(tool.name, texts, context)


def read_arguments(tool: Tool, raw: Mapping[str, object] | None) -> Arguments | Invalid:
    """Check `raw` against the arguments of `tool`, with no coercion.

    Nothing is dropped but what is absent: null, empty text, and the texts that models write for it.
    """
    named: dict[str, object] = {}
    for given_name, value in (raw or {}).items():
        name = tool.aliases.get(given_name, given_name)
        if name in named:
            return Invalid(f"{name} was sent twice, under its old and its new name.")
        named[name] = value
    if not set(named) <= set(tool.argument_names()):
        names = ", ".join(tool.argument_names())
        return Invalid(f"An argument is unknown; {tool.name} takes {names}.")
    given = {name: value for name, value in named.items() if not _is_absent(tool, name, value)}
    try:
        return tool.arguments.model_validate(given)
    except ValidationError as error:
        return Invalid(" ".join(_problems(tool, error)))


def read_texts(tool: Tool, *parts: Iterable[tuple[object, object]]) -> dict[str, object] | Invalid:
    """Turn names and text values, as Bedrock sends them, into JSON values for `read_arguments`.

    `parts` are a body's properties and a path's or query's parameters: a name may stand in both
    with the same value, and in one of them once. Integers are written as JSON writes them.
    """
    texts: dict[str, object] = {}
    for part in parts:
        pairs = list(part)
        names = [name for name, _ in pairs if isinstance(name, str)]
        if len(names) != len(pairs):
            return Invalid("An argument has no name.")
        if len(set(names)) != len(names):
            return Invalid("An argument was sent twice. Send it once.")
        for name, (_, value) in zip(names, pairs, strict=True):
            if name in texts and (type(texts[name]), texts[name]) != (type(value), value):
                return Invalid("An argument was sent twice with different values.")
            texts[name] = value
    return {name: _from_text(tool, name, value) for name, value in texts.items()}


def _is_absent(tool: Tool, name: str, value: object) -> bool:
    empty = isinstance(value, str) and value.strip().casefold() in _ABSENT
    return value is None or (empty and name not in tool.said_by_absence)


def _from_text(tool: Tool, name: str, value: object) -> object:
    plain = isinstance(value, str) and _INTEGER.fullmatch(value)
    return int(plain[0]) if plain and _takes_integer(tool, tool.aliases.get(name, name)) else value


def _takes_integer(tool: Tool, name: str) -> bool:
    field = tool.arguments.model_fields.get(name)
    return field is not None and int in {field.annotation, *get_args(field.annotation)}


def _problems(tool: Tool, error: ValidationError) -> Iterable[str]:
    for detail in error.errors(include_url=False, include_input=False):
        cause = detail.get("ctx", {}).get("error")
        name = str(detail["loc"][0]) if detail["loc"] else ""
        if detail["type"] == "value_error" and isinstance(cause, ValueError):
            # Messages of our own checks: they say what to send, never what came.
            yield f"{name}: {cause}" if name else str(cause)
        elif detail["type"] == "string_unicode":
            yield f"{name} holds half of a surrogate pair, which is no text. Send it without."
        else:
            wrong = "is missing" if detail["type"] == "missing" else "is not valid"
            form = "an integer without quotes" if _takes_integer(tool, name) else "a string"
            meaning = tool.arguments.model_fields[name].description
            yield f"{name} {wrong}. Send it as {form}. {meaning}"


def call_tool(
    billing: Billing, name: str, raw: Mapping[str, object] | None, context: CallContext
) -> Answer:
    """Call the tool `name` with `raw` arguments (JSON values). Never raises."""
    arguments = _prepare(billing, name, raw)
    if isinstance(arguments, Invalid | NotOffered):
        return arguments
    try:
        return Answered(billing.wait(billing.run(arguments, context)))
    except Exception as error:  # noqa: BLE001 - a door must answer; after a send, with "unknown"
        return _failed(name, arguments, error)


async def call_tool_on_loop(
    billing: Billing, name: str, raw: Mapping[str, object] | None, context: CallContext
) -> Answer:
    """Do the same where the proxy is asked on this event loop."""
    arguments = _prepare(billing, name, raw)
    if isinstance(arguments, Invalid | NotOffered):
        return arguments
    try:
        return Answered(await billing.run(arguments, context))
    except Exception as error:  # noqa: BLE001 - as above
        return _failed(name, arguments, error)


def _prepare(
    billing: Billing, name: str, raw: Mapping[str, object] | None
) -> Arguments | Invalid | NotOffered:
    tool = find_tool(name, allow_reference=billing.allow_reference)
    if tool is None or not billing.may_offer(tool.name):
        return NotOffered()
    return read_arguments(tool, raw)


def _failed(name: str, arguments: Arguments, error: Exception) -> Answer:
    match error:
        case outcomes.ToolNotGrantedError():
            return NotOffered()
        case outcomes.RateLimitedError():
            return RateLimited(error.retry_after_s)
        case outcomes.ProxyUnavailableError():
            return Unavailable(str(error))
        case _:
            # Not the exception itself: its text and frames can hold keys.
            logger.error("The tool %s broke: %s", name, type(error).__name__)
            return Answered(_uncertain(arguments))


def _uncertain(arguments: Arguments) -> Result:
    """Say, of a call that broke in our own code, what is safe to assume: nothing."""
    broken = outcomes.Reply(0, {"code": "internal_error"}, is_error=True)
    match arguments:
        case ChargeArguments():
            return outcomes.charge_outcome(arguments, broken)
        case RefundArguments():
            return outcomes.refund_outcome(arguments, broken)
        case ChargeStatusArguments():
            return nothing_shown("broken", status="unknown")
        case _:
            assert_never(arguments)


# Bedrock takes 25 KB; a result is a tenth of it, since every text in it is bounded.
Body = dict[str, str | int | bool]


def body_of(answer: Answer) -> Body:
    """Return the JSON object that `answer` is for a model; absent fields are left out."""
    match answer:
        case Answered():
            return answer.result.model_dump(mode="json", exclude_none=True)
        case Invalid():
            told = "invalid", f"{wording.NOTHING_DONE} {answer.message}", wording.CORRECT
        case NotOffered():
            told = "unknown_tool", wording.NOT_OFFERED, wording.USE_ANOTHER
        case RateLimited():
            told = "rate_limited", wording.RATE_LIMITED, wording.wait(answer.retry_after_s)
        case Unavailable():
            told = "unavailable", answer.message, wording.LATER
        case _:
            assert_never(answer)
    return dict(zip(("status", "message", "next_step"), told, strict=True))


def is_error(answer: Answer) -> bool:
    """Say whether the tool did not run at all; refusals and declines are answers."""
    return not isinstance(answer, Answered)
