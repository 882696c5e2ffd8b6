"""Tries every client, or those that are named, and writes docs/clients.md: `make clients`.

    python -m tests.clients.others [NAME...]

With names nothing is written: the page is of a whole run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.clients.installs import InstallError
from tests.clients.others.bridges import place_on, tried
from tests.clients.others.catalogue import OTHERS, Other
from tests.clients.others.environments import install_commands, installed
from tests.clients.others.report import NotInstalled, page
from tests.clients.others.trial import Outcome
from tests.last_runs import write
from tests.proxy_processes import cluster

PAGE = Path(__file__).resolve().parents[3] / "docs" / "clients.md"


def main(names: Sequence[str]) -> int:
    """Try the clients whose name or environment contains one of `names`; all without any."""
    wanted = [
        other
        for other in OTHERS
        if not names or any(name in (other.lock, other.name) for name in names)
    ]
    outcomes, missing, began = list[Outcome](), list[NotInstalled](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as running:
        place = place_on(running, Path(folder))
        for result in _all_of(wanted, lambda other, over: tried(other, over, place)):
            if isinstance(result, NotInstalled):
                missing.append(result)
                _say(f"{result.other.name}: not installed: {result.error}")
            else:
                outcomes.append(result)
                told = "once" if result.charged_once else f"{result.counted} {result.failed}"
                _say(f"{result.other.name} over {result.transport}: {told}")
    if not names:
        PAGE.write_text(page(outcomes, missing), encoding="utf-8")
        passed = sum(each.charged_once for each in outcomes)
        write("clients", time.monotonic() - began, passed, len(outcomes) - passed)
    return 0 if all(each.charged_once for each in outcomes) and len(missing) <= 5 else 1


def _all_of(
    wanted: Sequence[Other], attempt: Callable[[Other, str], Outcome]
) -> Iterator[Outcome | NotInstalled]:
    for other in wanted:
        try:
            installed(other)
        except InstallError as error:
            command = " ".join(install_commands(other)[-1])
            yield NotInstalled(other, command, " ".join(str(error).split())[-300:])
            continue
        for transport in other.transports:
            try:
                yield attempt(other, transport)
            except Exception as error:  # noqa: BLE001 - whatever a trial ends with is a row
                yield Outcome(other, transport, failed=f"{type(error).__name__}: {error}"[:300])


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
