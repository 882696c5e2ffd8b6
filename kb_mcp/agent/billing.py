"""Charging and looking up charges: the Stripe SDK, pointed at the proxy, with a vault key.

Floor: wing A, above outcomes and status; below the doors. Synchronous: a door runs it on a
worker thread, so that a cancelled door never cancels a send.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, assert_never

from kb_mcp.agent.address import check_address
from kb_mcp.agent.catalogue import (
    ChargeApi,
    ChargeArguments,
    ChargeResult,
    ChargeStatusArguments,
    ChargeStatusResult,
    RefundArguments,
    RefundResult,
    ShownRefund,
    ToolName,
)
from kb_mcp.agent.granted import granted_period_kinds, granted_tools
from kb_mcp.agent.keys import STALE, HeldKey, KeySource
from kb_mcp.agent.outcomes import (
    ProxyUnavailableError,
    RateLimitedError,
    Reply,
    ToolNotGrantedError,
    charge_outcome,
    lost,
    raise_if_nothing_sent,
    without_card,
)
from kb_mcp.agent.refunds import (
    describe_refunds,
    refund_outcome,
    refund_params,
    refund_unknown,
)
from kb_mcp.agent.sdk import Lost, NoCard, ProxySdk, Resource
from kb_mcp.agent.status import (
    another_bill,
    contradicts,
    describe_charge,
    describe_operation,
    most_telling,
    not_found,
    not_readable,
)
from kb_mcp.agent.trust import Trust
from kb_mcp.agent.wording import UNAVAILABLE
from kb_mcp.environment import SettingsError
from kb_mcp.idempotency import idempotency_key, refund_name

if TYPE_CHECKING:
    import httpx

    from kb_mcp.agent.calls import CallContext

T = TypeVar("T")

logger = logging.getLogger(__name__)

LOOKED_UP: Final = "Keybrake-Looked-Up"
_RESOURCES: Final[Mapping[str, Resource]] = MappingProxyType(
    {"ch": "charges", "py": "charges", "pi": "payment_intents"}
)


class Billing:
    """The tools behind every door. Thread-safe; close it when done."""

    def __init__(  # noqa: PLR0913 - what a line to a proxy is made of, each by name
        self,
        keys: Mapping[ToolName, KeySource] | KeySource,
        proxy_url: str,
        *,
        transport: httpx.BaseTransport | None = None,
        charge_api: ChargeApi = "charges",
        allow_reference: bool = False,
        allow_http: bool = False,
        trust: Trust | None = None,
        sdk: ProxySdk | None = None,
        period_kinds: tuple[str, ...] = (),
    ) -> None:
        """Hold `keys`; `transport` replaces the network for an embedded proxy.

        `keys` are the keys by tool, or one for all tools that it grants, which the proxy is asked.
        `period_kinds` are those of the key of `charge`, where they are known.
        `sdk` is a line that is open already; `transport`, `allow_http` and `trust` (whose
        certificates are believed) are then not used.

        Raises: AddressError, when `proxy_url` would send a vault key in the clear.
        """
        if sdk is None:
            if transport is None:
                check_address(proxy_url, allow_http=allow_http)
            opened = partial(_open, proxy_url, transport, allow_http=allow_http, trust=trust)
            sdk = ProxySdk(proxy_url.rstrip("/"), opened)
        self._sdk = sdk
        self._proxy_url = proxy_url
        self._charge_api: ChargeApi = charge_api
        self._allow_reference = allow_reference
        self._period_kinds = period_kinds
        by_tool = keys if isinstance(keys, Mapping) else {}
        self._keys = {name: HeldKey(source) for name, source in by_tool.items()}
        self._shared = None if isinstance(keys, Mapping) else HeldKey(keys)

    @property
    def tools(self) -> frozenset[ToolName]:
        """The tools whose vault key is held.

        Raises: ProxyUnavailableError, RateLimitedError, where one key is held for all and the
        proxy does not say what it grants.
        """
        return frozenset(self._keys) if self._shared is None else self._granted(self._shared)

    def may_offer(self, tool: ToolName) -> bool:
        """Say whether a key is held for `tool`, without asking whether the key grants it."""
        return self._shared is not None or tool in self._keys

    @property
    def period_kinds(self) -> tuple[str, ...]:
        """The only kinds of period that the key of `charge` may bill, as far as they are known.

        The proxy tells them with the tools that a key grants: a bearer's, or that of one key for
        all tools. A key for `charge` alone is not asked about: a server on stdio lists its tools
        without a proxy. The proxy refuses other kinds and names these all the same.
        """
        return self._period_kinds

    @property
    def allow_reference(self) -> bool:
        """Whether `reference` is switched on."""
        return self._allow_reference

    @property
    def charge_api(self) -> ChargeApi:
        """Which of Stripe's ways to charge is used."""
        return self._charge_api

    @property
    def sdk(self) -> ProxySdk:
        """The line to the proxy, for doors that look a bearer key up."""
        return self._sdk

    def with_keys(
        self, keys: Mapping[ToolName, KeySource], period_kinds: tuple[str, ...] = ()
    ) -> Billing:
        """Return a Billing with other keys over the same connections."""
        return Billing(
            keys,
            self._proxy_url,
            charge_api=self._charge_api,
            allow_reference=self._allow_reference,
            period_kinds=period_kinds,
            sdk=self._sdk,
        )

    def close(self) -> None:
        """Close the connections to the proxy."""
        self._sdk.close()

    def charge(self, arguments: ChargeArguments, context: CallContext) -> ChargeResult:
        """Charge once for a period.

        Raises: ProxyUnavailableError, RateLimitedError, ToolNotGrantedError, where nothing was
        sent.
        """
        answer = self._ask(ToolName.CHARGE, lambda token: self._charge(arguments, context, token))
        match answer:
            case Reply():
                return charge_outcome(arguments, answer)
            case Lost():
                return lost(arguments, livemode=answer.livemode)
            case NoCard():
                return without_card(arguments, livemode=answer.livemode)
            case _:
                assert_never(answer)

    def charge_status(
        self, arguments: ChargeStatusArguments, context: CallContext
    ) -> ChargeStatusResult:
        """Look up a charge by its id, or by customer and period; all three must agree.

        Raises: ProxyUnavailableError, RateLimitedError, ToolNotGrantedError.
        """
        if arguments.charge_id is not None:
            found = self._status_by_id(arguments.charge_id, context)
            return another_bill() if contradicts(found, arguments) else found
        wanted = {
            "customer_id": arguments.customer_id or "",
            "billing_period": arguments.billing_period or "",
        }
        reply = self._read(lambda token: self._sdk.operations(token, wanted, context.headers()))
        if reply.is_error:
            return not_readable(reply)
        operation = most_telling(reply.fields.get("data"))
        if operation is None:
            return not_found()
        charge_id = operation.get("charge_id")
        if isinstance(charge_id, str) and operation.get("state") == "succeeded":
            try:
                shown: ChargeStatusResult | None = self._status_of(charge_id, context)
            except (ProxyUnavailableError, RateLimitedError):
                shown = None
            if shown is not None and shown.found:
                return shown
        # What cannot be read at Stripe now is told as the ledger has it.
        return describe_operation(operation, livemode=reply.livemode)

    def refund(self, arguments: RefundArguments, context: CallContext) -> RefundResult:
        """Give a charge back once, all that is left of it or a part.

        Raises: ProxyUnavailableError, RateLimitedError, where nothing was sent.
        """
        params, key = refund_params(arguments), refund_name(arguments.charge_id)
        answer = self._ask(
            ToolName.REFUND,
            lambda token: self._sdk.refund(token, params, key, context.headers()),
        )
        if isinstance(answer, Lost):
            return refund_unknown(arguments, livemode=answer.livemode)
        return refund_outcome(arguments, answer)

    def _charge(
        self, arguments: ChargeArguments, context: CallContext, token: str
    ) -> Reply | Lost | NoCard:
        headers = context.headers()
        params = _bill(arguments)
        if self._charge_api == "payment_intents":
            card = self._sdk.default_payment_method(token, arguments.customer_id, headers)
            if isinstance(card, Lost) or (isinstance(card, Reply) and card.status >= 500):
                # Only a look-up went wrong: nothing has been charged.
                raise ProxyUnavailableError(UNAVAILABLE)
            if not isinstance(card, str):
                return card
            params |= _off_session(card)
            # The proxy leaves out of the bill what we looked up: a new card is no other bill.
            headers = {**headers, LOOKED_UP: "payment_method"}
        key = idempotency_key(
            arguments.customer_id,
            arguments.amount_cents,
            arguments.billing_period,
            arguments.currency,
            arguments.reference,
        )
        return self._sdk.create(token, self._charge_api, params, key, headers)

    def _status_by_id(self, charge_id: str, context: CallContext) -> ChargeStatusResult:
        """Look a charge up at Stripe; where that does not show it, the ledger may know it."""
        try:
            found = self._status_of(charge_id, context)
        except ProxyUnavailableError:
            found = None
        if found is not None and found.found:
            return found
        wanted = {"charge_id": charge_id}
        reply = self._read(lambda token: self._sdk.operations(token, wanted, context.headers()))
        operation = None if reply.is_error else most_telling(reply.fields.get("data"))
        if operation is not None:
            return describe_operation(operation, livemode=reply.livemode)
        if found is None:
            raise ProxyUnavailableError(UNAVAILABLE)
        return found

    def _status_of(self, charge_id: str, context: CallContext) -> ChargeStatusResult:
        resource = _RESOURCES[charge_id.partition("_")[0]]
        reply = self._read(
            lambda token: self._sdk.retrieve(token, resource, charge_id, context.headers())
        )
        if not reply.is_error:
            refunds = self._refunds_of(charge_id, context)
            return describe_charge(reply).model_copy(update={"refunds": refunds})
        return not_found() if reply.status == 404 else not_readable(reply)

    def _refunds_of(self, charge_id: str, context: CallContext) -> list[ShownRefund] | None:
        """Return the refunds of a charge, or None where they cannot be said."""
        wanted = {"charge_id": charge_id}
        try:
            reply = self._read(lambda token: self._sdk.operations(token, wanted, context.headers()))
        except (ProxyUnavailableError, RateLimitedError):
            # The charge was found: that there is more to say must not hide it.
            return None
        return describe_refunds(reply)

    def _read(self, ask: Callable[[str], Reply | Lost]) -> Reply:
        answer = self._ask(ToolName.CHARGE_STATUS, ask)
        if isinstance(answer, Lost):
            raise ProxyUnavailableError(UNAVAILABLE)
        raise_if_nothing_sent(answer)
        if answer.status >= 500:
            raise ProxyUnavailableError(UNAVAILABLE)
        return answer

    def _ask(self, tool: ToolName, ask: Callable[[str], T]) -> T:
        if self._shared is None:
            return _ask_with(self._keys[tool], ask)
        answer = _ask_with(self._shared, ask)
        if _is_not_authorized(answer) and tool not in self._granted(self._shared):
            raise ToolNotGrantedError
        return answer

    def _granted(self, held: HeldKey) -> frozenset[ToolName]:
        answer = _ask_with(held, lambda token: self._sdk.describe_key(token, {}))
        if isinstance(answer, Lost):
            raise ProxyUnavailableError(UNAVAILABLE)
        raise_if_nothing_sent(answer)
        granted = granted_tools(answer, self._charge_api)
        if granted is None:
            raise ProxyUnavailableError(answer.text("message") or UNAVAILABLE)
        self._period_kinds = granted_period_kinds(answer)
        return granted


def _ask_with(held: HeldKey, ask: Callable[[str], T]) -> T:
    tokens = held.tokens()
    token = _next(tokens)
    if token is None:
        raise ProxyUnavailableError(UNAVAILABLE)
    answer = ask(token)
    if isinstance(answer, Reply) and _is_stale(answer):
        # The key was rotated under us: read it once more and ask again with the newer one.
        newer = _next(tokens)
        if newer is not None:
            return ask(newer)
    return answer


def _open(
    proxy_url: str,
    transport: httpx.BaseTransport | None,
    *,
    allow_http: bool,
    trust: Trust | None,
) -> httpx.Client:
    # Late: a server that only lists its tools needs no httpx.
    from kb_mcp.agent.transport import open_client

    return open_client(proxy_url, transport=transport, allow_http=allow_http, trust=trust)


def _next(tokens: Iterator[str]) -> str | None:
    """Fetch the next token; None where there is none or its source fails: nothing was sent."""
    try:
        return next(tokens, None)
    except Exception as error:  # noqa: BLE001 - a source is a file or a service of anybody's
        # SettingsError names a variable and never its value; of others, only the kind is safe.
        shown = str(error) if isinstance(error, SettingsError) else type(error).__name__
        logger.error("A vault key cannot be read: %s", shown)  # noqa: TRY400 - no frames, no keys
        return None


def _is_not_authorized(answer: object) -> bool:
    return isinstance(answer, Reply) and answer.text("code") == "vault_key_not_authorized"


def _is_stale(reply: Reply) -> bool:
    return reply.status == 401 and reply.text("code") in STALE and not reply.doubtful


def _bill(arguments: ChargeArguments) -> dict[str, Any]:  # the SDK's parameters: JSON by name
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


def _off_session(payment_method: str) -> dict[str, Any]:  # as _bill
    # docs.stripe.com/payments/save-and-reuse, "Charge the saved payment method later": nobody is
    # there to be redirected or to confirm, so either is an error at once.
    return {
        "payment_method": payment_method,
        "off_session": True,
        "confirm": True,
        "error_on_requires_action": True,
    }
