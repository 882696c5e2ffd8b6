"""Workers of one `up`: they share a socket and a store, and a scrape counts all of them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.proxy_processes import ProxyProcesses, Running, charge, cluster

pytestmark = pytest.mark.slow
CHARGES = 24


@pytest.fixture
def here(tmp_path: Path) -> Iterator[ProxyProcesses]:
    with cluster(tmp_path) as built:
        yield built


def operators(running: Running) -> str:
    (url,) = [found[1] for line in running.said if (found := re.match(r"Operators: (\S+)", line))]
    return url


def scraped(url: str, name: str) -> dict[str, int]:
    """Return the samples of a metric, by their labels."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text
    found = re.findall(rf"^keybrake_{name}{{(.*)}} (\d+)$", text, re.MULTILINE)
    return {labels: int(value) for labels, value in found}


def start(here: ProxyProcesses) -> tuple[Running, str]:
    running = here.start_proxy("--workers", "3", "--admin-port", str(free_port()))
    url = operators(running)
    while scraped(url, "processes")[""] < 3:
        pass  # the others are still starting
    return running, url


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_scrape_counts_what_every_worker_did(here: ProxyProcesses) -> None:
    running, url = start(here)
    token = here.issue()
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: charge(running.url, token, customer=f"cus_N{n}"), range(CHARGES))
        )
    assert {answer.status_code for answer in answers} == {200}
    sent = scraped(url, "send_duration_ms_count")
    assert set(sent) == {
        f'worker="{worker}",ending="{ending}"'
        for worker in range(3)
        for ending in ("answered", "not_sent", "lost")
    }
    assert sum(sent.values()) == CHARGES == len(here.charges())
    batches = scraped(url, "ledger_batch_size_sum")
    assert sum(batches.values()) >= 2 * CHARGES
    assert running.stop() == 0


def test_a_worker_that_dies_is_missed_and_another_takes_its_number(here: ProxyProcesses) -> None:
    running, url = start(here)
    workers = psutil.Process(running.process.pid).children()
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].wait(30)
    while scraped(url, "processes")[""] < 3:
        pass  # another is started in its place
    assert set(scraped(url, "ledger_waiting")) == {f'worker="{number}"' for number in range(3)}
    # A worker that hangs holds up no scrape: it is left out.
    stuck = psutil.Process(running.process.pid).children()[0]
    stuck.suspend()
    assert scraped(url, "processes") == {"": 2}
    stuck.resume()
    assert running.stop() == 0


def test_workers_end_with_the_process_that_started_them(here: ProxyProcesses) -> None:
    running, _ = start(here)
    workers = psutil.Process(running.process.pid).children()
    running.kill()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert (len(gone), alive) == (2, [])
