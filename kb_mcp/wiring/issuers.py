"""Building the issuers: the identity providers that the settings name, asked over HTTP.

Floor: wiring. A document is fetched within a bound, as it is: no redirects, no compression, and
nothing of the environment but the certificates that it trusts.
"""

from __future__ import annotations

import ssl

import httpx

from kb_mcp.proxy.access.issuers import (
    DOCUMENT_BYTES_MAX,
    FETCH_WITHIN_S,
    FetchError,
    Issuers,
)
from kb_mcp.serving.machine import boottime_ms
from kb_mcp.settings import Settings

_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


def build_issuers(settings: Settings) -> Issuers | None:
    """Return the issuers of `settings`; None where vault keys alone are accepted."""
    if not settings.oauth_issuers or settings.oauth_resource is None:
        return None
    return Issuers(
        settings.oauth_issuers,
        settings.oauth_resource,
        fetch_document,
        settings.may_reach,
        boottime_ms,
    )


async def fetch_document(url: str) -> bytes:
    """Get the document at `url`. Raises: FetchError."""
    # A client for each document: keys are fetched once in minutes.
    try:
        async with (
            httpx.AsyncClient(
                verify=ssl.create_default_context() if url.startswith("https:") else False,
                trust_env=False,
                follow_redirects=False,
                timeout=FETCH_WITHIN_S,
            ) as client,
            client.stream("GET", url, headers=_HEADERS) as response,
        ):
            return await _read(response)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{type(error).__name__} at {url}") from error


async def _read(response: httpx.Response) -> bytes:
    if response.status_code != httpx.codes.OK:
        raise FetchError(f"status {response.status_code} at {response.url}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError(f"a compressed answer at {response.url}")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > DOCUMENT_BYTES_MAX:
            raise FetchError(f"more than {DOCUMENT_BYTES_MAX} bytes at {response.url}")
    return bytes(body)
