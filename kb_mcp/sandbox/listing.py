"""What endpoints share: answers with ids expanded into objects, lists paged by object, search.

Floor: sandbox, ground. The search has another language than the lists, and is late: what was made
within the last minute is not found yet. Source: docs.stripe.com/api/pagination,
/api/expanding_objects and docs.stripe.com/search (query language, and data freshness).
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable
from typing import Final, TypeAlias

from kb_mcp.sandbox.answers import (
    Answer,
    Json,
    Rejected,
    below_one,
    invalid,
    missing_param,
)
from kb_mcp.sandbox.params import Call, Params, integer, text
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


Endpoint: TypeAlias = Callable[[Call], Answer]


def shown(call: Call, body: Json) -> Answer:
    """Answer with an object, expanded as the call asks. Raises: Rejected."""
    return Answer(200, _expanded(call.records, body, call.params))


def saved(call: Call, body: Json) -> Answer:
    """Write an object, and answer with it. Raises: Rejected."""
    call.records.save(body)
    return shown(call, body)


def retrieves(kind: str) -> Endpoint:
    """Return the endpoint that shows the object of a kind that the path names."""
    return lambda call: shown(call, call.named(kind))


def lists(kind: str, *filters: str) -> Endpoint:
    """Return the endpoint that lists objects of a kind; `filters` are the parameters that select.

    Newest first; it raises Rejected on a bad limit or a cursor that is no object.
    """
    return lambda call: shown(call, page(call, kind, *filters))


def page(call: Call, kind: str, *filters: str) -> Json:
    """Return one page of objects of a kind, newest first. Raises: Rejected."""
    params, limit = call.params, _limit(call.params)
    wanted: dict[str, object] = {
        name: value for name in filters if (value := text(params, name)) is not None
    }
    wanted |= _created(params)
    backwards = "ending_before" in params
    if backwards and "starting_after" in params:
        raise invalid("You can only pass one of starting_after or ending_before.")
    for cursor, bound in (("starting_after", "before"), ("ending_before", "after")):
        if cursor in params:
            wanted[bound] = call.require(kind, params[cursor], cursor)["id"]
    found = call.records.select(kind, wanted, limit + 1, oldest_first=backwards)
    data = found[:limit][::-1] if backwards else found[:limit]
    return {"object": "list", "data": data, "has_more": len(found) > limit, "url": call.path}


def _limit(params: Params) -> int:
    limit = integer(params, "limit")
    limit = LIMIT_DEFAULT if limit is None else limit
    if limit < 1:
        raise below_one("limit")
    if limit > LIMIT_MAX:
        sentence = f"This value must be less than or equal to {LIMIT_MAX}."
        raise invalid(sentence, "parameter_invalid_integer", "limit")
    return limit


def _expanded(records: Records, body: Json, params: Params) -> Json:
    """Put objects in the place of ids, as `expand[]` asks."""
    wanted = list((params.get("expand") or {}).values())
    if not wanted:
        return body
    if len(wanted) > EXPANSIONS_MAX:
        raise invalid(f"You can expand at most {EXPANSIONS_MAX} properties.", param="expand")
    expanded = copy.deepcopy(body)
    for path in wanted:
        steps = str(path).split(".")
        if expanded.get("object") in {"list", "search_result"}:
            if steps[0] != "data" or len(steps) < 2:
                raise _not_expandable(str(path))
            for item in expanded["data"]:
                _expand(records, item, steps[1:], str(path))
        else:
            _expand(records, expanded, steps, str(path))
    return expanded


def _expand(records: Records, body: Json, steps: list[str], path: str) -> None:
    name = steps[0]
    if name not in body:
        raise _not_expandable(path)
    value = body[name]
    if isinstance(value, str):
        kind = next((k for prefix, k in _PREFIXES.items() if value.startswith(prefix)), None)
        value = None if kind is None or name == "id" else records.find(kind, value)
        if value is None:
            raise _not_expandable(path)
        body[name] = value
    elif len(steps) == 1 and value is not None and "object" not in value:
        raise _not_expandable(path)
    if len(steps) > 1 and value is not None:
        _expand(records, value, steps[1:], path)


def _not_expandable(path: str) -> Exception:
    return invalid(f"This property cannot be expanded ({path}).", param="expand")


def _created(params: Params) -> dict[str, object]:
    created = params.get("created")
    if not created:
        return {}
    if isinstance(created, str):
        return {"gte": int(created), "lte": int(created)}
    return {bound: int(moment) for bound, moment in created.items()}


LAG_SECONDS: Final = 60
_TEXTS: Final = ("currency", "customer", "status")
_NUMBERS: Final = ("amount", "created")
_COMPARE: Final[dict[str, Callable[[int, int], bool]]] = {
    ":": operator.eq,
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
    return lambda call: _search(call, kind)


def _search(call: Call, kind: str) -> Answer:
    query = text(call.params, "query")
    if query is None:
        raise missing_param("query")
    fits, limit = _query(query), _limit(call.params)
    start = integer(call.params, "page") or 0
    known = call.now - LAG_SECONDS
    found = [
        each for each in call.records.everything(kind) if each["created"] <= known and fits(each)
    ]
    more = len(found) > start + limit
    result: Json = {
        "object": "search_result",
        "data": found[start : start + limit],
        "has_more": more,
        "next_page": str(start + limit) if more else None,
        "url": call.path,
    }
    return shown(call, result)


def _query(query: str) -> Test:
    """Read a query: clauses, joined by AND or by OR, never by both. Raises: Rejected."""
    tests, joins, at = [], set[str](), 0
    while True:
        clause = _CLAUSE.match(query, at)
        if clause is None:
            raise _unreadable(query)
        tests.append(_clause(clause))
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


def _clause(clause: re.Match[str]) -> Test:
    field, name, sign = clause["field"], clause["name"], clause["sign"]
    value, no = clause["value"].strip("\"'"), clause["no"] is not None
    quoted = clause["value"][0] in "\"'"
    if field == "metadata" and name is not None:
        found: Callable[[Json], object] = lambda each: each["metadata"].get(name)  # noqa: E731 one of three
    elif field in _NUMBERS and not quoted and value != "null" and name is None:
        return _number(field, sign, int(value), no=no)
    elif field in _TEXTS and name is None:
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
    if sign not in _COMPARE:
        raise invalid(f"Field `{field}` does not support `{sign}`.", param="query")
    return lambda each: _COMPARE[sign](each[field], value) is not no


def _unreadable(query: str) -> Rejected:
    return invalid(
        f"We were unable to parse your search query: {query[:100]!r}. Try something like "
        '\'status:"succeeded" AND metadata["order"]:"6735"\'.',
        param="query",
    )
