"""The line to the proxy over the network: the Stripe SDK and two plain look-ups.

Floor: wing A, above line and transport; below billing.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from typing_extensions import override

from kb_mcp.agent.keys import is_live
from kb_mcp.agent.line import MAX_NETWORK_RETRIES, Headers, Line, Lost, Resource
from kb_mcp.agent.outcomes import ProxyUnavailableError, Reply, as_map
from kb_mcp.agent.transport import why_unreached
from kb_mcp.agent.wording import UNAVAILABLE, UNREACHED

if TYPE_CHECKING:
    import httpx
    import stripe
    from stripe import RequestOptions

    from kb_mcp.agent.catalogue import ChargeApi
    from kb_mcp.agent.stripe_http import ProxyHTTPClient

logger = logging.getLogger(__name__)


class ProxySdk(Line):
    """Requests to one proxy, from whatever thread; each waits for its answer where it is called."""

    def __init__(self, proxy_url: str, open_http: Callable[[], httpx.Client]) -> None:
        """Send to `proxy_url` (no trailing slash) through what `open_http` opens at first need."""
        self._proxy_url = proxy_url
        self._open_http = open_http
        self._lock = threading.Lock()
        self._opened: httpx.Client | None = None
        self._made: tuple[stripe.StripeClient, ProxyHTTPClient] | None = None

    @override
    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()

    @override
    async def create(
        self, token: str, api: ChargeApi, params: Mapping[str, Any], key: str, headers: Headers
    ) -> Reply | Lost:
        client = self._client()[0]
        options = _options(token, headers, key)
        if api == "charges":
            # The SDK's parameter types are TypedDicts per endpoint; ours are checked at the door.
            return self._send(token, lambda: client.v1.charges.create(dict(params), options))  # type: ignore[arg-type]  # the SDK's TypedDict
        return self._send(token, lambda: client.v1.payment_intents.create(dict(params), options))  # type: ignore[arg-type]  # as above

    @override
    async def refund(
        self, token: str, params: Mapping[str, Any], key: str, headers: Headers
    ) -> Reply | Lost:
        client = self._client()[0]
        options = _options(token, headers, key)
        return self._send(token, lambda: client.v1.refunds.create(dict(params), options))  # type: ignore[arg-type]  # as above

    @override
    async def retrieve(
        self, token: str, resource: Resource, object_id: str, headers: Headers
    ) -> Reply | Lost:
        v1 = self._client()[0].v1
        read: Mapping[Resource, Callable[..., stripe.StripeObject]] = {
            "charges": v1.charges.retrieve,
            "payment_intents": v1.payment_intents.retrieve,
            "customers": v1.customers.retrieve,
        }
        options = _options(token, headers)
        return self._send(token, lambda: read[resource](object_id, None, options))

    @override
    async def payment_methods(self, token: str, customer_id: str, headers: Headers) -> Reply | Lost:
        client = self._client()[0]
        options = _options(token, headers)
        return self._send(
            token,
            lambda: client.v1.customers.payment_methods.list(customer_id, {"limit": 2}, options),
        )

    @override
    async def operations(
        self, token: str, wanted: Mapping[str, str], headers: Headers
    ) -> Reply | Lost:
        return self._get(token, "/keybrake/v1/operations", wanted, headers)

    @override
    async def describe_key(self, token: str, headers: Headers) -> Reply | Lost:
        return self._get(token, "/keybrake/v1/key", {}, headers)

    def _get(
        self, token: str, path: str, query: Mapping[str, str], headers: Headers
    ) -> Reply | Lost:
        import httpx

        pairs = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        url = f"{self._proxy_url}{path}{'?' if pairs else ''}{pairs}"
        sent = {"Authorization": f"Bearer {token}", **headers}
        try:
            response = self._http().get(url, headers=sent)
            document = as_map(json.loads(response.content))
        except httpx.HTTPError as error:
            raise self._unreached(error) from error
        except (ValueError, RecursionError):
            return Lost(is_live(token))
        failed = response.status_code != 200
        return Reply(
            status=response.status_code,
            fields=as_map(document.get("error")) if failed else document,
            headers={name.lower(): value for name, value in response.headers.items()},
            is_error=failed,
            livemode=is_live(token),
        )

    def _send(self, token: str, call: Callable[[], stripe.StripeObject]) -> Reply | Lost:
        import stripe

        from kb_mcp.agent.stripe_http import MaybeSentError, NeverSentError

        http = self._client()[1]
        http.begin()
        try:
            made = call()
        except NeverSentError as error:
            raise self._unreached(error) from error
        except MaybeSentError:
            return Lost(is_live(token))
        except stripe.StripeError as error:
            if error.error is None or error.http_status is None:
                return Lost(is_live(token))  # an answer, but none of the proxy's or Stripe's
            return _reply_of(error, token, doubtful=http.doubtful)
        except Exception as error:  # the SDK itself breaks on errors that are not objects
            if not http.tried:
                logger.error("The Stripe SDK failed before it sent: %s", type(error).__name__)  # noqa: TRY400 - no frames, no keys
                raise ProxyUnavailableError(UNAVAILABLE) from error
            return Lost(is_live(token))
        response = made.last_response
        return Reply(
            status=200,
            fields=made.to_dict(),
            headers=_lower(response.headers if response else None),
            livemode=is_live(token),
        )

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = self._open_http()
                except OSError as error:  # no descriptor left, no certificates: nothing was sent
                    raise self._unreached(error) from error
            return self._opened

    def _unreached(self, error: Exception) -> ProxyUnavailableError:
        """Log why the proxy was not reached, and return what the caller is told."""
        cause, detail = why_unreached(error)
        logger.error("The proxy at %s cannot be reached: %s: %s", self._proxy_url, cause, detail)
        if cause == "certificate":
            logger.error("KEYBRAKE_CA_FILE, SSL_CERT_FILE or SSL_CERT_DIR name whom to trust.")
        return ProxyUnavailableError(UNREACHED.format(cause=cause))

    def _client(self) -> tuple[stripe.StripeClient, ProxyHTTPClient]:
        opened = self._http()
        with self._lock:
            if self._made is None:
                self._made = self._make_client(opened)
            return self._made

    def _make_client(self, opened: httpx.Client) -> tuple[stripe.StripeClient, ProxyHTTPClient]:
        import stripe

        from kb_mcp.agent.stripe_http import ProxyHTTPClient, settle_telemetry

        settle_telemetry()
        http = ProxyHTTPClient(opened)
        client = stripe.StripeClient(
            # Every call brings its own key in its options: one client serves all of them.
            "vk_none",
            base_addresses={"api": f"{self._proxy_url}/stripe"},
            http_client=http,
            max_network_retries=MAX_NETWORK_RETRIES,
        )
        return client, http


def _options(token: str, headers: Headers, key: str | None = None) -> RequestOptions:
    options: RequestOptions = {"api_key": token, "headers": dict(headers)}
    if key is not None:
        options["idempotency_key"] = key
    return options


def _reply_of(error: stripe.StripeError, token: str, *, doubtful: bool) -> Reply:
    body = as_map(error.json_body)
    return Reply(
        status=error.http_status or 0,
        fields=as_map(body.get("error")),
        headers=_lower(error.headers),
        is_error=True,
        doubtful=doubtful,
        livemode=is_live(token),
    )


def _lower(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}
