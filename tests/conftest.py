"""What every test stands on: property-test profiles, and an environment without settings."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadline: a slow machine is no failure.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "fuzz", deadline=None, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")

# A developer's own settings, perhaps with a live key, must not reach a test.
for _name in [name for name in os.environ if name.startswith("KEYBRAKE_")]:  # noqa: TID251 - as above
    del os.environ[_name]  # noqa: TID251 - as above
