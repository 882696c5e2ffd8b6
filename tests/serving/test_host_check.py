"""On every address of the machine the checks of Host, Origin and size stay on.

MCP's SDK turns its own off there; a server on a public address is what rebinding looks for.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.proxy_processes import cluster

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Serve on 0.0.0.0; the client comes over loopback with a good key."""
    with cluster(tmp_path_factory.mktemp("town")) as place:
        proxy = place.start_proxy("--host", "0.0.0.0")
        base = proxy.url.replace("0.0.0.0", "127.0.0.1")
        headers = {
            "Authorization": f"Bearer {place.issue()}",
            "Accept": "application/json, text/event-stream",
        }
        with httpx.Client(base_url=base, headers=headers, timeout=60, trust_env=False) as client:
            yield client


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "0.0.0.0:80.evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 200),
    ],
    ids=str,
)
def test_host_and_origin_are_checked(
    exposed: httpx.Client, headers: dict[str, str], status: int
) -> None:
    assert exposed.post("/mcp", json=LIST, headers=headers).status_code == status


def test_the_size_is_bounded(exposed: httpx.Client) -> None:
    big = b'"' + b"x" * (4 * 1024 * 1024) + b'"'
    headers = {"Content-Type": "application/json"}

    assert exposed.post("/mcp", content=big, headers=headers).status_code == 413
