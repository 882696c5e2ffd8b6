"""What a person sees who opens the agents' address in a browser.

Floor: below the edge's application. Pure.
"""

from __future__ import annotations

from http import HTTPStatus

from kb_mcp.proxy.stripe.messages import Reply, Request

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>kb-mcp</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { margin: 3rem auto; max-width: 40rem; padding: 0 1rem; }
</style></head>
<body>
<h1>kb-mcp</h1>
<p>This address is for agents. They reach Stripe's API at <code>/stripe/v1</code> and
<code>/v1</code>, and MCP at <code>/mcp</code>, each with a vault key.</p>
<p>Are you looking for the dashboard? It has an address of its own, which <code>kb-mcp up</code>
prints as it starts: <code>http://127.0.0.1:8786</code> unless it was changed.</p>
</body>
</html>
"""
_GREETING = Reply(
    status=HTTPStatus.OK,
    body=_PAGE.encode(),
    headers={
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    },
)


def greet(request: Request) -> Reply | None:
    """Return the page, where a browser asks for `/`; None for every other request."""
    asks = request.method == "GET" and request.raw_path == b"/"
    return _GREETING if asks and "text/html" in (request.header("accept") or "") else None
