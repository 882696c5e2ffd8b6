"""Who is compared: each started on the contenders' core, in front of the same upstream."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from stage import passthrough
from stage.children import free_port, started
from stage.house import CONFIG, House, serving
from stage.machine import pinned, tool, version_line
from stage.upstream import UPSTREAM_KEY, Upstream, nginx, temporary_paths

_NGINX = """
daemon off; pid {folder}/nginx.pid; worker_processes 1; worker_rlimit_nofile 8192;
{user} error_log {folder}/nginx.error;
events {{ worker_connections 4096; }}
http {{
  access_log off; {temporary}
  keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nodelay on;
  upstream stripe {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://stripe; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
}}
"""


@dataclass
class Contender:
    """A running proxy. `roots` are the processes whose CPU counts; `least_s` for slow ones."""

    name: str
    url: str
    roots: list[int]
    config: str
    token: str = UPSTREAM_KEY
    mode: str = "charge"
    house: House | None = None
    least_s: float = 0


@contextmanager
def no_proxy(upstream: Upstream) -> Iterator[Contender]:
    """Talk to the upstream itself: what a hop through nothing costs."""
    yield Contender("no proxy", upstream.url, [upstream.child.pid], upstream.config)


@contextmanager
def kb_mcp(
    upstream: Upstream, folder: Path, core: int, *options: str, name: str = "kb-mcp",
    database: dict[str, str] | None = None,
) -> Iterator[Contender]:  # fmt: skip
    """Run kb-mcp on a new store: SQLite, or the `database` that the settings name."""
    folder.mkdir()
    url = (database or {}).get("KEYBRAKE_DATABASE_URL", "")
    house = House(folder, upstream.url, database_url=url)
    token = house.issue()
    with serving(house, core, *options) as (up, address):
        yield Contender(name, address, [up.pid], CONFIG, token=token, house=house)


@contextmanager
def pass_through(upstream: Upstream, core: int, file: Path | None = None) -> Iterator[Contender]:
    """Run the pass-through; with `file`, the one that waits for the disk twice."""
    command = [sys.executable, "-m", "stage.passthrough", upstream.url]
    name, config = "raw pass-through", passthrough.CONFIG
    if file is not None:
        command.append(str(file))
        name, config = "pass-through, 2 fdatasync", f"{config}; 4 KiB to the disk before and after"
    with started(pinned(core, command), "port ", env=_stage_path()) as child:
        port = int(child.said[0].split()[1])
        yield Contender(name, f"http://127.0.0.1:{port}", [child.pid], config)


@contextmanager
def plain_nginx(upstream: Upstream, folder: Path, core: int) -> Iterator[Contender]:
    """Run nginx as plain reverse proxy."""
    folder.mkdir()
    port = free_port()
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        _NGINX.format(
            folder=folder, port=port, upstream=upstream.url.removeprefix("http://"), user=user,
            temporary=temporary_paths(folder),
        )
    )  # fmt: skip
    version = version_line([str(tool("nginx")), "-v"]).removeprefix("nginx version: ")
    described = f"{version}, one worker, keepalive both ways, no log"
    with nginx(config, core, port) as child:
        yield Contender("nginx", f"http://127.0.0.1:{port}", [child.pid], described)


def enter_if_present(stack: ExitStack, build: AbstractContextManager[Contender]) -> Contender | str:
    """Enter a contender, or return why it does not run here."""
    try:
        return stack.enter_context(build)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from running, its row says so
        return (str(error) or type(error).__name__).strip()


def _stage_path() -> dict[str, str]:
    inherited = dict(os.environ)  # noqa: TID251 - for a child process
    return inherited | {"PYTHONPATH": str(Path(__file__).parents[1])}
