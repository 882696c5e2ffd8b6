"""Which kinds of period a policy lets a key bill."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from kb_mcp.periods import KINDS, parse_period
from kb_mcp.proxy.access.authorize import check_period
from kb_mcp.proxy.access.policy import Policy, load_policy
from kb_mcp.proxy.errors.refusals import Code


def policy(**fields: Any) -> Policy:
    return load_policy({"role": "r", "allow": ["POST /v1/charges"], **fields})


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_names_the_kinds_of_period_that_may_be_billed(kind: str) -> None:
    today = date(2026, 11, 24)
    of_kind = {
        "year": "2026", "quarter": "2026-Q4", "month": "2026-11", "week": "2026-W46",
        "day": "2026-11-11", "range": "2026-11-10/2026-11-20",
    }  # fmt: skip
    granted = policy(period_kinds=[kind])
    for each, text in of_kind.items():
        refusal = check_period(granted, parse_period(text), today)
        assert (refusal is None) == (each == kind), text
        if refusal is not None:
            assert refusal.code is Code.PERIOD_OUT_OF_WINDOW
            assert refusal.facts == {"period_kinds": (kind,)}
            assert f"it bills by {kind}" in refusal.message


def test_a_range_that_is_a_month_is_a_month() -> None:
    granted = policy(period_kinds=["month"])
    today = date(2026, 11, 24)
    assert check_period(granted, parse_period("2026-11-01/2026-11-30"), today) is None
    assert check_period(granted, parse_period("2026-11-01/2026-11-29"), today) is not None
