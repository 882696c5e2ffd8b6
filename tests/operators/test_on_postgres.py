"""Operators' work on PostgreSQL: the tests of the pipeline, run again on the other store."""

from __future__ import annotations

import pytest

from tests.in_process_proxy import InProcessProxy
from tests.operators.actions.test_approvals import *  # noqa: F403 every one of them
from tests.operators.actions.test_operations import *  # noqa: F403 every one of them
from tests.operators.alerts.test_alerts import (  # noqa: F401 collected here once more
    in_process,
    test_a_receiver_that_fails_is_told_again_later_and_after_a_restart,
    test_every_kind_of_trouble_is_told_once,
    test_two_processes_on_one_store_tell_once,
)
from tests.operators.dashboard.test_dashboard import (  # noqa: F401 collected here once more
    test_revoking_takes_one_page_and_one_form_and_no_reservation_follows,
    test_the_overview_shows_spend_refusals_and_what_needs_a_person,
)
from tests.operators.metrics.test_families import (  # noqa: F401 collected here once more
    operators_app,
    test_a_key_that_ended_keeps_its_series_only_while_it_holds_something,
    test_a_scrape_counts_what_happened_since_the_one_before,
    test_of_too_many_keys_the_fullest_have_series_and_are_chosen_now_and_then,
    test_what_the_ledger_and_stripe_took_is_counted_in_whole_milliseconds,
)
from tests.postgres import Database, database, server  # noqa: F401 fixtures are found by name

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_postgres(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811 the fixture above
    monkeypatch.setattr(InProcessProxy, "store", database.environ)
