"""Charge, refund and look up: each asks the proxy by Stripe's API, with a vault key.

Floor: wing A, above outcomes, status and the client; below the doors. The work is in coroutines.
With a proxy in this process they run on its event loop, and the proxy finishes its sends by itself.
Over the network they block: a door runs them on a worker thread, so that a cancelled door never
cancels a send.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, assert_never

from kb_mcp.agent import outcomes
from kb_mcp.agent.catalogue import (
    Arguments,
    ChargeApi,
    ChargeArguments,
    ChargeStatusArguments,
    RefundArguments,
    ToolName,
    tools_granted,
)
from kb_mcp.agent.client.line import CallContext, Line
from kb_mcp.agent.results import ChargeResult, ChargeStatusResult, RefundResult, Result
from kb_mcp.agent.status import (
    contradicts,
    describe_charge,
    describe_operation,
    describe_refunds,
    most_telling,
    not_readable,
    nothing_shown,
)
from kb_mcp.agent.wording import UNAVAILABLE
from kb_mcp.environment import SettingsError
from kb_mcp.idempotency import refund_name

T = TypeVar("T")
KeySource = str | Callable[[], str]
"""A token, or a function that fetches the current one (a file, a secret store)."""
Ask = Callable[[str], Awaitable[outcomes.Reply]]
"""One request to the proxy with the token that is given."""

logger = logging.getLogger(__name__)

# docs.stripe.com/payments/save-and-reuse, "Charge the saved payment method later": nobody is there
# to be redirected or to confirm, so either is an error at once.
OFF_SESSION: Final[Mapping[str, bool]] = {
    "off_session": True,
    "confirm": True,
    "error_on_requires_action": True,
}
LOOKED_UP: Final = "Keybrake-Looked-Up"
_STALE: Final = frozenset({"vault_key_expired", "vault_key_revoked", "vault_key_unknown"})
_RESOURCES: Final[Mapping[str, str]] = {"ch": "charges", "py": "charges", "pi": "payment_intents"}


class HeldKey:
    """One vault key and where it comes from; never shown, logged or put into a message."""

    def __init__(self, source: KeySource) -> None:
        """Hold `source`; a function is first called when the key is first needed."""
        self._source = source
        self._token: str | None = None

    async def ask(self, ask: Ask) -> outcomes.Reply:
        """Ask with the token; of one that was rotated under us, once more with the newer one.

        Raises: ProxyUnavailableError, where there is no token; and what `ask` raises.
        """
        token = self._token or self._read()
        if token is None:
            raise outcomes.ProxyUnavailableError
        answer = await ask(token)
        stale = answer.status == 401 and answer.text("code") in _STALE and not answer.doubtful
        newer = self._read() if stale else None
        return answer if newer in {None, token} else await ask(newer)

    def _read(self) -> str | None:
        """Read the token anew; None where its source fails: nothing was sent."""
        try:
            self._token = self._source if isinstance(self._source, str) else self._source()
        except Exception as error:  # noqa: BLE001 - a source is a file or a service of anybody's
            # SettingsError names a variable and never its value; of others, only the kind is safe.
            shown = str(error) if isinstance(error, SettingsError) else type(error).__name__
            logger.error("A vault key cannot be read: %s", shown)  # noqa: TRY400 - no frames, no keys
            return None
        return self._token


class Billing:
    """The tools behind every door. Thread-safe; close it when done."""

    def __init__(
        self,
        keys: Mapping[ToolName, KeySource] | KeySource,
        line: Line,
        *,
        charge_api: ChargeApi = "charges",
        allow_reference: bool = False,
        period_kinds: tuple[str, ...] = (),
    ) -> None:
        """Hold `keys` for the proxy that `line` leads to.

        `keys` are the keys by tool, or one for all tools that it grants, which the proxy is asked.
        `charge_api` is which of Stripe's ways to charge is used; `allow_reference` switches the
        argument `reference` on. `period_kinds` are those of the key of `charge`, where they are
        known: the only kinds of period that it may bill.
        """
        self.line = line
        self.charge_api: ChargeApi = charge_api
        self.allow_reference = allow_reference
        self._period_kinds = period_kinds
        by_tool = keys if isinstance(keys, Mapping) else {}
        self._keys = {name: HeldKey(source) for name, source in by_tool.items()}
        self._shared = None if isinstance(keys, Mapping) else HeldKey(keys)

    async def offered(self) -> tuple[frozenset[ToolName], tuple[str, ...]]:
        """Return the tools whose vault key is held, and the kinds of period that it may bill.

        The proxy tells the kinds with the tools that a key grants: a bearer's, or that of one key
        for all tools. A key for `charge` alone is not asked about: a server on stdio lists its
        tools without a proxy. The proxy refuses other kinds and names these all the same.
        Raises: ProxyUnavailableError, RateLimitedError, where one key is held for all and the
        proxy does not say what it grants.
        """
        if self._shared is None:
            return frozenset(self._keys), self._period_kinds
        return await self._granted(self._shared)

    def may_offer(self, tool: ToolName) -> bool:
        """Say whether a key is held for `tool`, without asking whether the key grants it."""
        return self._shared is not None or tool in self._keys

    @property
    def on_loop(self) -> bool:
        """Whether coroutines of this are awaited on the running loop; else `wait` runs them."""
        return self.line.on_loop

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of this from a thread that may block. Raises: what it raises."""
        return self.line.wait(work)

    def with_keys(
        self,
        keys: Mapping[ToolName, KeySource],
        period_kinds: tuple[str, ...] = (),
        line: Line | None = None,
    ) -> Billing:
        """Return a Billing with other keys over the same connections, or over another `line`."""
        return Billing(
            keys,
            line or self.line,
            charge_api=self.charge_api,
            allow_reference=self.allow_reference,
            period_kinds=period_kinds,
        )

    def close(self) -> None:
        """Close the connections to the proxy."""
        self.line.close()

    def charge(self, arguments: ChargeArguments, context: CallContext) -> ChargeResult:
        """Charge once for a period.

        Raises: ProxyUnavailableError, RateLimitedError, ToolNotGrantedError, where nothing was
        sent.
        """
        return self.wait(self._charge_once(arguments, context))

    def charge_status(
        self, arguments: ChargeStatusArguments, context: CallContext
    ) -> ChargeStatusResult:
        """Look up a charge by its id, or by customer and period. Raises: as `charge`."""
        return self.wait(self._look_up(arguments, context))

    def refund(self, arguments: RefundArguments, context: CallContext) -> RefundResult:
        """Give a charge back once, all that is left of it or a part. Raises: as `charge`."""
        return self.wait(self._give_back(arguments, context))

    async def run(self, arguments: Arguments, context: CallContext) -> Result:
        """Do what `arguments` ask for, on the event loop of the line. Raises: as `charge`."""
        match arguments:
            case ChargeArguments():
                return await self._charge_once(arguments, context)
            case ChargeStatusArguments():
                return await self._look_up(arguments, context)
            case RefundArguments():
                return await self._give_back(arguments, context)
            case _:
                assert_never(arguments)

    async def _charge_once(self, arguments: ChargeArguments, context: CallContext) -> ChargeResult:
        answer = await self._ask(ToolName.CHARGE, partial(self._charge, arguments, context))
        return outcomes.charge_outcome(arguments, answer)

    async def _charge(
        self, arguments: ChargeArguments, context: CallContext, token: str
    ) -> outcomes.Reply:
        headers = context.headers()
        params = charge_params(arguments)
        if self.charge_api == "payment_intents":
            card = await self.line.default_payment_method(token, arguments.customer_id, headers)
            if isinstance(card, outcomes.Reply):
                if outcomes.proves_nothing(card):
                    # Only a look-up went wrong: nothing has been charged.
                    raise outcomes.ProxyUnavailableError
                return card
            params |= {"payment_method": card, **OFF_SESSION}
            # The proxy leaves out of the bill what we looked up: a new card is no other bill.
            headers = {**headers, LOOKED_UP: "payment_method"}
        key = arguments.idempotency_key
        return await self.line.create(token, self.charge_api, params, key, headers)

    async def _give_back(self, arguments: RefundArguments, context: CallContext) -> RefundResult:
        params, key = refund_params(arguments), refund_name(arguments.charge_id)
        answer = await self._ask(
            ToolName.REFUND,
            lambda token: self.line.create(token, "refunds", params, key, context.headers()),
        )
        return outcomes.refund_outcome(arguments, answer)

    async def _look_up(
        self, arguments: ChargeStatusArguments, context: CallContext
    ) -> ChargeStatusResult:
        """Look up a charge by what is given of it; all three arguments must agree."""
        if arguments.charge_id is not None:
            found = await self._status_by_id(arguments.charge_id, context)
            return nothing_shown("another_bill") if contradicts(found, arguments) else found
        reply = await self._operations(context, **arguments.model_dump(exclude={"charge_id"}))
        if reply.is_error:
            return not_readable(reply)
        operation = most_telling(reply.fields.get("data"))
        if operation is None:
            return nothing_shown("not_found")
        charge_id = operation.get("charge_id")
        if isinstance(charge_id, str) and operation.get("state") in {"succeeded", "failed"}:
            # A declined intent, too: the customer may have paid it since.
            with suppress(outcomes.ProxyUnavailableError, outcomes.RateLimitedError):
                shown = await self._status_of(charge_id, context)
                if shown.found:
                    return shown
        # What cannot be read at Stripe now is told as the ledger has it.
        return describe_operation(operation, livemode=reply.livemode)

    async def _status_by_id(self, charge_id: str, context: CallContext) -> ChargeStatusResult:
        """Look a charge up at Stripe; where that does not show it, the ledger may know it."""
        found = None
        with suppress(outcomes.ProxyUnavailableError):
            found = await self._status_of(charge_id, context)
        if found is not None and found.found:
            return found
        reply = await self._operations(context, charge_id=charge_id)
        operation = None if reply.is_error else most_telling(reply.fields.get("data"))
        if operation is not None:
            return describe_operation(operation, livemode=reply.livemode)
        if found is None:
            raise outcomes.ProxyUnavailableError
        return found

    async def _status_of(self, charge_id: str, context: CallContext) -> ChargeStatusResult:
        resource = _RESOURCES[charge_id.partition("_")[0]]
        reply = await self._read(
            lambda token: self.line.retrieve(token, resource, charge_id, context.headers())
        )
        if reply.is_error:
            return nothing_shown("not_found") if reply.status == 404 else not_readable(reply)
        refunds = None
        # The charge was found: that there is more to say must not hide it.
        with suppress(outcomes.ProxyUnavailableError, outcomes.RateLimitedError):
            refunds = describe_refunds(await self._operations(context, charge_id=charge_id))
        return describe_charge(reply, refunds)

    async def _operations(self, context: CallContext, **wanted: str) -> outcomes.Reply:
        return await self._read(
            lambda token: self.line.operations(token, wanted, context.headers())
        )

    async def _read(self, ask: Ask) -> outcomes.Reply:
        answer = await self._ask(ToolName.CHARGE_STATUS, ask)
        outcomes.raise_if_nothing_sent(answer)
        if outcomes.proves_nothing(answer):
            raise outcomes.ProxyUnavailableError
        return answer

    async def _ask(self, tool: ToolName, ask: Ask) -> outcomes.Reply:
        if self._shared is None:
            return await self._keys[tool].ask(ask)
        answer = await self._shared.ask(ask)
        denied = answer.text("code") == "vault_key_not_authorized"
        if denied and tool not in (await self._granted(self._shared))[0]:
            raise outcomes.ToolNotGrantedError
        return answer

    async def _granted(self, held: HeldKey) -> tuple[frozenset[ToolName], tuple[str, ...]]:
        answer = await held.ask(lambda token: self.line.describe_key(token, {}))
        outcomes.raise_if_nothing_sent(answer)
        granted = grants(answer, self.charge_api)
        if granted is None:
            raise outcomes.ProxyUnavailableError(answer.text("message") or UNAVAILABLE)
        return granted


def charge_params(arguments: ChargeArguments) -> dict[str, Any]:  # Stripe's parameters by name
    """Return what Stripe takes for a charge."""
    metadata = {"billing_period": arguments.billing_period}
    if arguments.reference is not None:
        metadata["reference"] = arguments.reference
    return {
        "amount": arguments.amount_cents,
        "currency": arguments.currency,
        "customer": arguments.customer_id,
        "description": arguments.description or f"Subscription {arguments.billing_period}",
        "metadata": metadata,
    }


def refund_params(arguments: RefundArguments) -> dict[str, Any]:  # as above
    """Return what Stripe takes for a refund; without an amount it is all that is left."""
    of = "payment_intent" if arguments.charge_id.startswith("pi_") else "charge"
    asked = {of: arguments.charge_id, "amount": arguments.amount_cents, "reason": arguments.reason}
    return {name: value for name, value in asked.items() if value is not None}


def grants(
    reply: outcomes.Reply, charge_api: ChargeApi
) -> tuple[frozenset[ToolName], tuple[str, ...]] | None:
    """Return the tools and kinds of period that the proxy says a key grants; None: it does not."""
    policy = outcomes.as_map(reply.fields.get("policy"))
    allow, kinds = policy.get("allow"), policy.get("period_kinds")
    if reply.is_error or not isinstance(allow, list):
        return None
    tools = tools_granted(frozenset(each for each in allow if isinstance(each, str)), charge_api)
    return tools, tuple(kind for kind in outcomes.as_list(kinds) if isinstance(kind, str))
