"""The table of endpoints."""

from __future__ import annotations

import pytest

from kb_mcp.proxy.errors.refusals import Code, Refusal
from kb_mcp.proxy.stripe.endpoints import (
    ENDPOINTS,
    ID_PREFIXES,
    ROUTES,
    Moves,
    Route,
    find_route,
    object_ids,
)

METERED = "POST /v1/charges, POST /v1/payment_intents, POST /v1/payouts, POST /v1/topups"


def found(method: str, path: str) -> str:
    """Return the endpoint of a request, or the code it is refused with."""
    route = find_route(method, path)
    return route.code.value if isinstance(route, Refusal) else route.endpoint


def example(route: Route) -> str:
    """Return a path that `route` matches."""
    segments = route.template.split("/")
    for place, segment in enumerate(segments):
        if segment == "*":
            segments[place] = ID_PREFIXES[segments[place - 1]].split("|")[0] + "_1Ab"
    return "/".join(segments)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.endpoint)
def test_every_row_is_found_by_its_own_path_and_no_other_row_is(route: Route) -> None:
    assert find_route(route.method, example(route)) is route
    assert ENDPOINTS[route.endpoint] is route
    assert len(object_ids(route, example(route))) == route.template.count("*")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/charges/ch_1", "GET /v1/charges/*"),
        ("GET", "/v1/charges/py_1", "GET /v1/charges/*"),
        ("GET", "/v1/charges", "GET /v1/charges"),
        ("GET", "/v1/charges/search", "GET /v1/charges/search"),
        ("GET", "/v1/charges/pi_1", "path_unknown"),
        ("GET", "/v1/charges/*", "path_unknown"),
        ("GET", "/v1/charges/ch_", "path_unknown"),
        ("GET", "/v1/charges/CH_1", "path_unknown"),
        ("GET", "/v1/charges/ch_1_secret_2", "path_unknown"),
        ("GET", "/v1/charges/ch_1/refunds", "path_unknown"),
        ("GET", "/v1/charges/ch_" + "a" * 129, "path_unknown"),
        ("GET", "/v1/Charges", "path_unknown"),
        ("GET", "/v1/cus_1/payment_methods", "path_unknown"),
        ("GET", "/v1/nothing", "path_unknown"),
        ("DELETE", "/v1/charges/ch_1", "method_not_allowed"),
        ("PUT", "/v1/charges", "method_not_allowed"),
        ("HEAD", "/v1/charges", "method_not_allowed"),
        ("OPTIONS", "/v1/charges", "method_not_allowed"),
        ("post", "/v1/charges", "method_not_allowed"),
        ("POST", "/v1/charges/search", "method_not_allowed"),
        ("GET", "/v1/charges/ch_1/capture", "method_not_allowed"),
    ],
)
def test_a_star_is_one_id_of_the_right_prefix(method: str, path: str, expected: str) -> None:
    assert found(method, path) == expected


def test_only_these_tell_how_much_they_move_and_each_can_be_found_again() -> None:
    metered = [route for route in ROUTES if route.moves is Moves.METERED]
    assert ", ".join(route.endpoint for route in metered) == METERED
    for route in metered:
        assert route.listing is not None
        assert f"GET {route.listing.path}" in ENDPOINTS


@pytest.mark.parametrize(
    "endpoint",
    [
        "POST /v1/invoices/*/send",
        "POST /v1/subscriptions",
        "POST /v1/subscription_items",
        "POST /v1/subscription_schedules",
        "POST /v1/quotes/*/accept",
        "POST /v1/checkout/sessions",
        "POST /v1/payment_links",
        "POST /v1/disputes/*/close",
        "POST /v1/transfers",
        "POST /v1/charges/*/capture",
        "POST /v1/payment_intents/*/confirm",
        "POST /v1/payment_intents/*/increment_authorization",
    ],
)
def test_what_moves_money_without_saying_how_much_is_known_as_such(endpoint: str) -> None:
    assert ENDPOINTS[endpoint].moves is Moves.UNMETERED


def test_reads_are_exactly_the_gets_and_rows_continue_rows_that_exist() -> None:
    for route in ROUTES:
        assert (route.moves is Moves.READS) is (route.method == "GET")
        assert route.belongs_to is None or ENDPOINTS[route.belongs_to].moves is Moves.METERED
    assert len(ENDPOINTS) == len(ROUTES)


def test_no_status_means_two_things() -> None:
    for route in ROUTES:
        life = route.lifecycle
        assert not life.done & life.pending
        assert not life.done & life.failed
        assert not life.pending & life.failed


def test_the_codes_are_those_of_the_contract() -> None:
    assert found("GET", "/v1/nothing") == Code.PATH_UNKNOWN
