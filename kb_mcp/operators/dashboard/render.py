"""Rendering: templates to pages, with every text escaped and cleaned on its way out.

Floor: operators, below the dashboard. Templates hold no rule; numbers arrive as integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from kb_mcp.instants import how_many
from kb_mcp.money import Money, format_money
from kb_mcp.proxy.audit.chain import clean_text

TEXT_MAX = 500
STATIC = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Render a page."""
    return HTMLResponse(_environment().get_template(template).render(**values), status)


async def static(name: str, _request: Request) -> Response:
    """Return a file that pages refer to; `name` is one of STATIC."""
    text = (files(__package__) / "templates" / name).read_text()
    headers = {"cache-control": "private, max-age=300"}
    return Response(text, media_type=STATIC[name], headers=headers)


def sums(amounts: Mapping[str, int]) -> str:
    """Write amounts by currency, the largest number first; they are never summed up."""
    ordered = sorted(amounts.items(), key=lambda each: -each[1])
    return " and ".join(written(amount, currency) for currency, amount in ordered)


def written(amount: int, currency: str | None) -> str:
    """Write an amount in minor units as people read it: `1,073.00 USD`."""
    number, _, code = format_money(Money(amount, currency or "")).partition(" ")
    whole, dot, rest = number.partition(".")
    return f"{int(whole):,}{dot}{rest} {code}".rstrip()


@pass_context
def ago(context: Context, text: str) -> str:
    """Say how long before or after the page's `now_ms` (UTC) a time is, as people say it."""
    seconds = context["now_ms"] // 1000 - int(datetime.fromisoformat(text).timestamp())
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if abs(seconds) >= size:
            count = how_many(abs(seconds) // size, unit)
            return f"{count} ago" if seconds > 0 else f"in {count}"
    return "just now" if seconds >= 0 else "in a moment"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        # Escaped, but not cleaned: cleaning masks keys, and a new key's token is shown once.
        "own": escape,
        "typed": _typed,
        "money": lambda amount, currency: None if amount is None else written(amount, currency),
        "moment": lambda text: None if text is None else f"{text[:10]} {text[11:19]} UTC",
        "sums": sums,
        "ago": ago,
    }
    return environment


def _shown(value: object) -> object:
    # What clients and Stripe wrote is cleaned again here, whatever was done when it was stored.
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, str) and not isinstance(value, Markup):
        return clean_text(value, TEXT_MAX)
    return value


def _typed(text: str) -> Markup:
    # What an operator typed into a long field goes back into it whole, but for what cannot be seen.
    return escape("".join(each for each in text if each.isprintable() or each in "\n\t"))
