"""The flows that end in the store, in the browser once more, with the ledger in PostgreSQL."""

from __future__ import annotations

import pytest

from tests.browser.test_dashboard import (  # noqa: F401 collected here once more
    test_a_grant_is_added_and_removed_in_the_browser,
    test_a_key_issued_in_the_browser_charges_within_its_cap,
    test_a_policy_file_is_chosen_mended_where_the_form_says_so_and_issued,
    test_a_verification_is_shown,
    test_an_approval_given_in_the_browser_is_used_once,
    test_an_unknown_operation_is_settled_with_the_charge_that_was_found,
    test_every_page_is_readable_by_everyone,
    test_stored_text_never_runs,
    test_the_tail_follows_without_a_reload_and_shows_text_as_text,
    test_two_clicks_revoke_a_key_while_its_agent_is_charging,
)
from tests.browser.test_people import (  # noqa: F401 collected here once more
    mira,
    test_a_bill_is_found_by_everything_it_is_known_by,
    test_a_bill_that_never_reached_stripe_is_voided_and_charged_once,
    test_a_frozen_key_is_unfrozen_with_a_reason,
    test_a_refunded_bill_is_reopened_and_charged_once_more,
    test_a_session_that_ran_out_before_the_click_does_nothing,
    test_the_declines_of_a_bill_are_forgotten,
    test_two_operators_decide_one_bill_and_the_first_verdict_stands,
    test_two_operators_settle_one_operation_and_it_is_settled_once,
)
from tests.in_process_proxy import InProcessProxy
from tests.postgres import Database, database, server  # noqa: F401 fixtures are found by name

pytestmark = pytest.mark.prove


@pytest.fixture(autouse=True)
def on_postgres(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811 the fixture above
    monkeypatch.setattr(InProcessProxy, "store", database.environ)
