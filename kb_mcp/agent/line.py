"""A line to the proxy: what billing asks of it, with answers as values.

Floor: wing A, above outcomes; below billing. There are two: `ProxySdk` over the network, and
`InProcessLine` into a proxy of this process. Both are asked by coroutines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar

from kb_mcp.agent.keys import is_live
from kb_mcp.agent.outcomes import Reply, as_map

if TYPE_CHECKING:
    from kb_mcp.agent.catalogue import ChargeApi, ChargeArguments

T = TypeVar("T")
Resource = Literal["charges", "payment_intents", "customers"]
Headers = Mapping[str, str]

# The proxy collapses repeats of one key into one send, so a retry cannot charge twice; and it
# answers Stripe-Should-Retry: false wherever a repeat would not help. Two retries carry a call
# over a broken line and over a proxy that is being replaced.
MAX_NETWORK_RETRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Lost:
    """The request may have been sent, and no answer can be read. `livemode`: of the key."""

    livemode: bool


@dataclass(frozen=True, slots=True)
class NoCard:
    """The customer has no payment method that could be meant. `livemode`: of the key."""

    livemode: bool


class Line(ABC):
    """Requests to one proxy. Every method takes the vault key to use.

    Every method raises ProxyUnavailableError when nothing was sent. `on_loop` says that an answer
    is waited for on the event loop; else a coroutine blocks its thread and `finish` runs it.
    """

    on_loop: ClassVar[bool] = False
    livemode: bool | None = None

    def is_live(self, token: str) -> bool:
        """Say whether real money is concerned: `livemode` where it is known, else by the token."""
        return is_live(token) if self.livemode is None else self.livemode

    @abstractmethod
    async def create(
        self, token: str, api: ChargeApi, params: Mapping[str, Any], key: str, headers: Headers
    ) -> Reply | Lost:
        """Create a charge or a payment intent under the idempotency key `key`."""

    @abstractmethod
    async def refund(
        self, token: str, params: Mapping[str, Any], key: str, headers: Headers
    ) -> Reply | Lost:
        """Create a refund under the idempotency key `key`."""

    @abstractmethod
    async def retrieve(
        self, token: str, resource: Resource, object_id: str, headers: Headers
    ) -> Reply | Lost:
        """Read one object."""

    @abstractmethod
    async def payment_methods(self, token: str, customer_id: str, headers: Headers) -> Reply | Lost:
        """List at most two payment methods of a customer, under `data`."""

    @abstractmethod
    async def operations(
        self, token: str, wanted: Mapping[str, str], headers: Headers
    ) -> Reply | Lost:
        """Ask the ledger for operations, newest first, under `data`."""

    @abstractmethod
    async def describe_key(self, token: str, headers: Headers) -> Reply | Lost:
        """Ask what the vault key itself may do."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    async def default_payment_method(
        self, token: str, customer_id: str, headers: Headers
    ) -> str | Reply | Lost | NoCard:
        """Find what to charge: the customer's default, else the only payment method there is.

        With several and no default, choosing would be guessing, so there is none.
        """
        customer = await self.retrieve(token, "customers", customer_id, headers)
        if isinstance(customer, Lost) or customer.is_error:
            return customer
        default = as_map(customer.fields.get("invoice_settings")).get("default_payment_method")
        if isinstance(default, str) and default:
            return default
        methods = await self.payment_methods(token, customer_id, headers)
        if isinstance(methods, Lost) or methods.is_error:
            return methods
        found = methods.fields.get("data")
        if isinstance(found, list) and len(found) == 1:
            only = as_map(found[0]).get("id")
            if isinstance(only, str):
                return only
        return NoCard(self.is_live(token))


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing to its end, here and now."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("this line is asked on an event loop")


def charge_params(
    arguments: ChargeArguments,
) -> dict[str, Any]:  # Stripe's parameters: JSON by name
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


def off_session(payment_method: str) -> dict[str, Any]:  # as above
    """Return what Stripe takes besides for a payment intent that is confirmed at once."""
    # docs.stripe.com/payments/save-and-reuse, "Charge the saved payment method later": nobody is
    # there to be redirected or to confirm, so either is an error at once.
    return {
        "payment_method": payment_method,
        "off_session": True,
        "confirm": True,
        "error_on_requires_action": True,
    }
