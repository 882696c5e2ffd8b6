"""What endpoints share: ids expanded into objects, lists paged by object, search.

Floor: sandbox, ground. The search has another language than the lists, and is late: what was made
within the last minute is not found yet. Source: docs.stripe.com/api/pagination,
/api/expanding_objects and docs.stripe.com/search (query language, and data freshness).
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from kb_mcp.sandbox.answers import Answer, Json, Rejected, invalid, refuse_if
from kb_mcp.sandbox.params import Call
from kb_mcp.sandbox.store import Records

LIMIT_DEFAULT: Final = 10
LIMIT_MAX: Final = 100
EXPANSIONS_MAX: Final = 20

_PREFIXES: Final = {
    "ch_": "charge",
    "cus_": "customer",
    "dp_": "dispute",
    "in_": "invoice",
    "pi_": "payment_intent",
    "pm_": "payment_method",
    "re_": "refund",
}

Endpoint: TypeAlias = Callable[[Call], Json | Answer]
"""Returns the object to show, or another answer than 200. Raises: Rejected."""


def retrieves(kind: str) -> Endpoint:
    """Return the endpoint that shows the object of a kind that the path names."""
    return lambda call: call.named(kind)


def updates(kind: str, wording: str = "") -> Endpoint:
    """Return the endpoint that sets the metadata and `wording` of an object that the path names."""

    def update(call: Call) -> Json:
        held = call.named(kind)
        return call.save(held | call.sent(wording) | {"metadata": call.metadata(held)})

    return update


def lists(kind: str, *filters: str) -> Endpoint:
    """Return the endpoint that lists objects of a kind; `filters` are the parameters that select.

    Newest first; it raises Rejected on a bad limit or a cursor that is no object.
    """
    return lambda call: page(call, kind, *filters)


def page(call: Call, kind: str, *filters: str) -> Json:
    """Return one page of objects of a kind, newest first. Raises: Rejected."""
    params, limit = call.params, _limit(call)
    wanted: Json = {name: value for name in filters if (value := call.text(name)) is not None}
    created = params.get("created") or {}
    bounds = {"gte": created, "lte": created} if isinstance(created, str) else created
    wanted |= {bound: int(moment) for bound, moment in bounds.items()}
    backwards = "ending_before" in params
    both = backwards and "starting_after" in params
    refuse_if(both, "You can only pass one of starting_after or ending_before.")
    for cursor, bound in (("starting_after", "before"), ("ending_before", "after")):
        if cursor in params:
            wanted[bound] = call.require(kind, params[cursor], cursor)["id"]
    found = call.records.select(kind, wanted, limit + 1, oldest_first=backwards)
    data = found[:limit][::-1] if backwards else found[:limit]
    return {"object": "list", "data": data, "has_more": len(found) > limit, "url": call.path}


def _limit(call: Call) -> int:
    limit = call.positive("limit", LIMIT_DEFAULT)
    sentence = f"This value must be less than or equal to {LIMIT_MAX}."
    refuse_if(limit > LIMIT_MAX, sentence, "parameter_invalid_integer", "limit")
    return limit


def expanded(call: Call, body: Json) -> Json:
    """Put objects in the place of ids, as `expand[]` asks. Raises: Rejected."""
    wanted = [str(path) for path in (call.params.get("expand") or {}).values()]
    if not wanted:
        return body
    sentence = f"You can expand at most {EXPANSIONS_MAX} properties."
    refuse_if(len(wanted) > EXPANSIONS_MAX, sentence, param="expand")
    body = copy.deepcopy(body)
    for path in wanted:
        items, steps = [body], path.split(".")
        if body.get("object") in {"list", "search_result"}:
            first, *steps = steps
            if first != "data" or not steps:
                raise _not_expandable(path)
            items = body["data"]
        for item in items:
            _expand(call.records, item, steps, path)
    return body


def _expand(records: Records, body: Json, steps: list[str], path: str) -> None:
    name, *further = steps
    if name not in body:
        raise _not_expandable(path)
    value = body[name]
    if isinstance(value, str):
        kind = next((k for prefix, k in _PREFIXES.items() if value.startswith(prefix)), None)
        value = None if kind is None or name == "id" else records.find(kind, value)
        if value is None:
            raise _not_expandable(path)
        body[name] = value
    elif not further and value is not None and "object" not in value:
        raise _not_expandable(path)
    if further and value is not None:
        _expand(records, value, further, path)


def _not_expandable(path: str) -> Rejected:
    return invalid(f"This property cannot be expanded ({path}).", param="expand")


LAG_SECONDS: Final = 60
_TEXTS: Final = ("currency", "customer", "status")
_NUMBERS: Final = ("amount", "created")
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    ":": operator.eq,
    "~": lambda found, value: value in str(found or ""),
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_CLAUSE: Final = re.compile(
    r"""\s*(?P<no>-)?(?P<field>[a-z_.]+)(?:\[(?P<quote>["'])(?P<name>[^"']+)(?P=quote)\])?
        \s*(?P<sign>[:~]|[<>]=?)\s*(?P<value>"[^"]*"|'[^']*'|-?\d{1,18}|null)\s*""",
    re.VERBOSE,
)
_JOINED: Final = re.compile(r"(and|or)\b", re.IGNORECASE)
Test = Callable[[Json], bool]


def searches(kind: str) -> Endpoint:
    """Return the endpoint that searches objects of a kind."""

    def search(call: Call) -> Json:
        fits, limit = _query(call.required("query")), _limit(call)
        start = call.integer("page", 0)
        known = call.now - LAG_SECONDS
        found = [
            each for each in call.records.select(kind) if each["created"] <= known and fits(each)
        ]
        end = start + limit
        return {
            "object": "search_result",
            "data": found[start:end],
            "has_more": len(found) > end,
            "next_page": str(end) if len(found) > end else None,
            "url": call.path,
        }

    return search


def _query(query: str) -> Test:
    """Read a query: clauses, joined by AND or by OR, never by both. Raises: Rejected."""
    tests, joins, at = [], set[str](), 0
    while True:
        clause = _CLAUSE.match(query, at)
        if clause is None:
            raise invalid(
                f"We were unable to parse your search query: {query[:100]!r}. Try something like "
                '\'status:"succeeded" AND metadata["order"]:"6735"\'.',
                param="query",
            )
        tests.append(_clause(clause))
        at = clause.end()
        if at == len(query):
            break
        joined = _JOINED.match(query, at)
        # Without a word between them, clauses are joined by AND.
        joins.add(joined[1].lower() if joined else "and")
        at = joined.end() if joined else at
    refuse_if(len(joins) > 1, "You may not mix AND and OR in one query.", param="query")
    every = "or" not in joins
    return lambda each: (all if every else any)(test(each) for test in tests)


def _clause(clause: re.Match[str]) -> Test:
    field, label, sign, given = (clause[part] for part in ("field", "name", "sign", "value"))
    number = field in _NUMBERS and given[0] not in "\"'n"
    if label is not None and field == "metadata":
        signs = {":", "~"}
    elif label is None and (number or field in _TEXTS):
        signs = _COMPARE.keys() - {"~"} if number else {":"}
    else:
        raise invalid(f"Field `{field}` is an unsupported search field.", param="query")
    refuse_if(sign not in signs, f"Field `{field}` does not support `{sign}`.", param="query")
    value = int(given) if number else None if given == "null" else given.strip("\"'")
    compare, no = _COMPARE[":" if value is None else sign], clause["no"] is not None

    def test(each: Json) -> bool:
        found = each[field] if label is None else each["metadata"].get(label)
        return compare(found, value) is not no

    return test
