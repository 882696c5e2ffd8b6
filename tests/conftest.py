"""What every test stands on: property-test profiles, an environment without settings, signals."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# No deadline: a slow machine is no failure.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "fuzz", deadline=None, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow]
)
# For `make mutate`: the same examples for every mutant, and none made smaller once one is killed.
settings.register_profile(
    "mutate",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")

# A developer's own settings, perhaps with a live key, must not reach a test.
for _name in [name for name in os.environ if name.startswith("KEYBRAKE_")]:  # noqa: TID251 - as above
    del os.environ[_name]  # noqa: TID251 - as above

# Tests kill processes, never the machine, so that their files may lie in memory: what is synced
# then costs nothing. A container may have 64 MB of it, which are too few.
_MEMORY = Path("/dev/shm")
if (
    "TMPDIR" not in os.environ  # noqa: TID251 - as above
    and _MEMORY.is_dir()
    and shutil.disk_usage(_MEMORY).free > 4 << 30
):
    os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)  # noqa: TID251 - as above


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hand out the long files first, so that none is left for one worker at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# A shell without job control starts what it runs in the background with SIGINT ignored, and every
# child inherits that; a handler of our own is not inherited, so that children can be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
