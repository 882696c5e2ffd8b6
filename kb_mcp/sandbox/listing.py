"""Lists, newest first, paged by object, and expansion of ids into objects.

Floor: sandbox, ground. Source: docs.stripe.com/api/pagination and /api/expanding_objects.
"""

from __future__ import annotations

import copy
from typing import Final

from kb_mcp.sandbox.answers import Json, invalid, missing_object
from kb_mcp.sandbox.params import Params, integer, text
from kb_mcp.sandbox.store import Records

LIMIT_DEFAULT: Final = 10
LIMIT_MAX: Final = 100
EXPANSIONS_MAX: Final = 20

_PREFIXES: Final = {
    "ch_": "charge",
    "cus_": "customer",
    "dp_": "dispute",
    "pi_": "payment_intent",
    "pm_": "payment_method",
    "re_": "refund",
}


def list_objects(
    records: Records, kind: str, url: str, params: Params, filters: tuple[str, ...]
) -> Json:
    """Return one page of objects of a kind; `filters` are the parameters that select.

    Raises: Rejected, on a bad limit or a cursor that is no object.
    """
    limit = page_limit(params)
    wanted: dict[str, object] = {
        name: value for name in filters if (value := text(params, name)) is not None
    }
    wanted |= _created(params)
    backwards = "ending_before" in params
    if backwards and "starting_after" in params:
        raise invalid("You can only pass one of starting_after or ending_before.")
    for cursor, bound in (("starting_after", "before"), ("ending_before", "after")):
        if cursor in params:
            wanted[bound] = _position(records, kind, params[cursor], cursor)
    found = records.select(kind, wanted, limit + 1, oldest_first=backwards)
    page = found[:limit]
    if backwards:
        page.reverse()
    return {"object": "list", "data": page, "has_more": len(found) > limit, "url": url}


def page_limit(params: Params) -> int:
    """Return how many objects a page is to have. Raises: Rejected."""
    limit = integer(params, "limit")
    limit = LIMIT_DEFAULT if limit is None else limit
    if not 1 <= limit <= LIMIT_MAX:
        bound = "greater than or equal to 1" if limit < 1 else f"less than or equal to {LIMIT_MAX}"
        raise invalid(f"This value must be {bound}.", "parameter_invalid_integer", "limit")
    return limit


def expand(records: Records, body: Json, params: Params) -> Json:
    """Put objects in the place of ids, as `expand[]` asks.

    Raises: Rejected, when a property can't be expanded.
    """
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


def _position(records: Records, kind: str, object_id: str, cursor: str) -> int:
    position = records.position(kind, object_id)
    if position is None:
        raise missing_object(kind, object_id, cursor)
    return position
