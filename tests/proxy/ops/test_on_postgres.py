"""Operators' work on PostgreSQL: the tests of the desk, run again on the other store."""

from __future__ import annotations

import pytest

from tests.house import House
from tests.postgres import Database, database, server  # noqa: F401 fixtures are found by name
from tests.proxy.ops.test_admin_metrics import (  # noqa: F401 collected here once more
    desk,
    test_a_key_that_ended_keeps_its_series_only_while_it_holds_something,
    test_a_scrape_counts_what_happened_since_the_one_before,
    test_of_too_many_keys_the_fullest_have_series_and_are_chosen_now_and_then,
    test_what_the_ledger_and_stripe_took_is_counted_in_whole_milliseconds,
)
from tests.proxy.ops.test_alerts import (  # noqa: F401 collected here once more
    house,
    test_a_receiver_that_fails_is_told_again_later_and_after_a_restart,
    test_every_kind_of_trouble_is_told_once,
    test_two_processes_on_one_store_tell_once,
)
from tests.proxy.ops.test_approvals import *  # noqa: F403 every one of them
from tests.proxy.ops.test_dashboard import (  # noqa: F401 collected here once more
    test_revoking_takes_one_page_and_one_form_and_no_reservation_follows,
    test_the_overview_shows_spend_refusals_and_what_needs_a_person,
)
from tests.proxy.ops.test_operation_acts import *  # noqa: F403 every one of them

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_postgres(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811 the fixture above
    monkeypatch.setattr(House, "store", database.environ)
