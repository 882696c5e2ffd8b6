"""Search, as Stripe's: another language than the lists, and late.

Floor: sandbox, ground. What was made within the last minute is not found yet. Source:
docs.stripe.com/search (query language, and data freshness).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from kb_mcp.sandbox.answers import Answer, Json, Rejected, invalid, missing_param
from kb_mcp.sandbox.calls import Call
from kb_mcp.sandbox.listing import expand, page_limit
from kb_mcp.sandbox.params import integer, text

LAG_SECONDS: Final = 60
_TEXTS: Final = {
    "charge": ("currency", "customer", "status"),
    "payment_intent": ("currency", "customer", "status"),
}
_NUMBERS: Final = ("amount", "created")
_CLAUSE: Final = re.compile(
    r"""\s*(?P<no>-)?(?P<field>[a-z_.]+)(?:\[(?P<quote>["'])(?P<name>[^"']+)(?P=quote)\])?
        \s*(?P<sign>[:~]|[<>]=?)\s*(?P<value>"[^"]*"|'[^']*'|-?\d{1,18}|null)\s*""",
    re.VERBOSE,
)
_JOINED: Final = re.compile(r"(and|or)\b", re.IGNORECASE)
Test = Callable[[Json], bool]


def search_charges(call: Call) -> Answer:
    """GET /v1/charges/search."""
    return _search(call, "charge", "/v1/charges/search")


def search_intents(call: Call) -> Answer:
    """GET /v1/payment_intents/search."""
    return _search(call, "payment_intent", "/v1/payment_intents/search")


def _search(call: Call, kind: str, url: str) -> Answer:
    query = text(call.params, "query")
    if query is None:
        raise missing_param("query")
    fits, limit = _query(query, kind), page_limit(call.params)
    start = integer(call.params, "page") or 0
    known = call.now - LAG_SECONDS
    found = [
        each for each in call.records.everything(kind) if each["created"] <= known and fits(each)
    ]
    more = len(found) > start + limit
    page: Json = {
        "object": "search_result",
        "data": found[start : start + limit],
        "has_more": more,
        "next_page": str(start + limit) if more else None,
        "url": url,
    }
    return Answer(200, expand(call.records, page, call.params))


def _query(query: str, kind: str) -> Test:
    """Read a query: clauses, joined by AND or by OR, never by both. Raises: Rejected."""
    tests, joins, at = [], set[str](), 0
    while True:
        clause = _CLAUSE.match(query, at)
        if clause is None:
            raise _unreadable(query)
        tests.append(_clause(clause, kind))
        at = clause.end()
        if at == len(query):
            break
        joined = _JOINED.match(query, at)
        # Without a word between them, clauses are joined by AND.
        joins.add(joined[1].lower() if joined else "and")
        at = joined.end() if joined else at
    if len(joins) > 1:
        raise invalid("You may not mix AND and OR in one query.", param="query")
    every = "or" not in joins
    return lambda each: (all if every else any)(test(each) for test in tests)


def _clause(clause: re.Match[str], kind: str) -> Test:
    field, name, sign = clause["field"], clause["name"], clause["sign"]
    value, no = clause["value"].strip("\"'"), clause["no"] is not None
    quoted = clause["value"][0] in "\"'"
    if field == "metadata" and name is not None:
        found: Callable[[Json], object] = lambda each: each["metadata"].get(name)  # noqa: E731 one of three
    elif field in _NUMBERS and not quoted and value != "null" and name is None:
        return _number(field, sign, int(value), no=no)
    elif field in _TEXTS[kind] and name is None:
        found = lambda each: each[field]  # noqa: E731 as above
    else:
        raise invalid(f"Field `{field}` is an unsupported search field.", param="query")
    if sign not in {":", "~"} or (sign == "~" and field != "metadata"):
        raise invalid(f"Field `{field}` does not support `{sign}`.", param="query")
    if clause["value"] == "null":
        return lambda each: (found(each) is None) is not no
    if sign == "~":
        return lambda each: (value in str(found(each) or "")) is not no
    return lambda each: (found(each) == value) is not no


def _number(field: str, sign: str, value: int, *, no: bool) -> Test:
    compare: dict[str, Callable[[int], bool]] = {
        ":": lambda held: held == value,
        ">": lambda held: held > value,
        "<": lambda held: held < value,
        ">=": lambda held: held >= value,
        "<=": lambda held: held <= value,
    }
    if sign not in compare:
        raise invalid(f"Field `{field}` does not support `{sign}`.", param="query")
    return lambda each: compare[sign](each[field]) is not no


def _unreadable(query: str) -> Rejected:
    return invalid(
        f"We were unable to parse your search query: {query[:100]!r}. Try something like "
        '\'status:"succeeded" AND metadata["order"]:"6735"\'.',
        param="query",
    )
