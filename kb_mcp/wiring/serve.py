"""Serving: the two listeners of `up`, the sandbox beside them, the first run, and a drain.

Floor: wiring. How HTTP is carried stands in `listener`. The first run writes a billing key, an
audit key and an operator's token for their owner only: of several first processes one writes the
settings file; the others use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kb_mcp.operators.actions.keys import NewKey, issue_key
from kb_mcp.proxy.access.policy import CapRules
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.access.tokens import Mode
from kb_mcp.serving.host_check import client_url, guard_hosts, local_url, on_every_address
from kb_mcp.serving.listener import accepting, listen, unbounded
from kb_mcp.serving.machine import new_id, random_bytes
from kb_mcp.serving.process_setup import LogFormat, ready_to_serve
from kb_mcp.serving.workers import Workers, answer_first, workers_on
from kb_mcp.settings import Settings
from kb_mcp.wiring.alerts import ALERTS_EVERY_MS, build_alerts
from kb_mcp.wiring.app import Agents
from kb_mcp.wiring.proxy import Proxy
from kb_mcp.wiring.stores import Store, shown_place, store_path, verifier, write_once
from kb_mcp.wiring.upstream import build_sandbox

# For trying out: $100 a charge, $1,000 a day, and for a month.
FIRST_CAPS = CapRules(per_charge={"usd": 10_000}, daily={"usd": 100_000})
FIRST_KEYS_LAST_MS = 30 * 86_400_000
OPERATOR_TOKEN_BYTES = 24


def settings_file(settings: Settings) -> Path:
    """Return the settings file that belongs to the store."""
    return store_path(settings).with_suffix(".env")


def token_file(settings: Settings, role: str) -> Path:
    """Return the file that holds the first key of `role` and nothing else."""
    return store_path(settings).with_suffix(f".{role}.key")


async def first_run(settings: Settings, store: Store, proxy_url: str) -> bool:
    """Issue the first keys unless the settings file is there; say whether this process wrote it."""
    file = settings_file(settings)
    if file.exists() or not store.records.database.claim_first_run(store.node):
        return False
    mode: Mode = "live" if settings.upstream_mode == "live" else "test"
    ends = store.clock.now(0) + FIRST_KEYS_LAST_MS
    billing, tokens = built_in("billing").model_copy(update={"caps": FIRST_CAPS}), {}
    for role, policy in {"billing": billing, "audit": built_in("audit")}.items():
        wanted = NewKey(policy=policy, mode=mode, label="first run", expires_at=ends)
        _, minted = await issue_key(store.ledger, wanted, random_bytes, "first-run")
        tokens[role] = minted.token
    lines = {
        "KEYBRAKE_PROXY_URL": proxy_url,
        "KEYBRAKE_VAULT_KEY_BILLING": tokens["billing"],
        "KEYBRAKE_VAULT_KEY_AUDIT": tokens["audit"],
        "KEYBRAKE_ADMIN_TOKEN": secrets.token_urlsafe(OPERATOR_TOKEN_BYTES),
    }
    written = write_once(file, "".join(f"{name}={value}\n" for name, value in lines.items()))
    if written:
        for role, token in tokens.items():
            write_once(token_file(settings, role), token)
    return written


def admin_token(settings: Settings) -> str | None:
    """Return the operators' token: the configured one, or the first run's."""
    if settings.admin_token is not None:
        return settings.admin_token.reveal()
    try:
        lines = settings_file(settings).read_text().splitlines()
    except OSError:
        return None
    named = dict(line.split("=", 1) for line in lines if "=" in line)
    return named.get("KEYBRAKE_ADMIN_TOKEN")


DRAIN_S = 40
STARTED_POLL_S = 0.005
BACKLOG = 1_024
Say = Callable[[str], None]


class PortTakenError(Exception):
    """An address cannot be listened on; the message is one line, which ends with the option."""

    def __init__(self, host: str, port: int, why: str | None, option: str) -> None:
        """Take the address, what the system says, and the option that takes another port."""
        super().__init__(f"cannot listen on {host}:{port}: {why} ({option})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where to listen; port 0 takes a free one, except `admin_port`, where it turns it off."""

    host: str = "127.0.0.1"
    port: int = 8787
    admin_host: str = "127.0.0.1"
    admin_port: int = 8786
    sandbox_port: int = 8788
    workers: int = 1
    log_format: LogFormat = "text"


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on the fastest event loop there is on this platform."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


async def serve_up(settings: Settings, addresses: Addresses, say: Say) -> None:
    """Run proxy, MCP and operators' listener until SIGTERM or SIGINT, then drain.

    Raises: PortTakenError, StoreError, BindingError, SchemaError.
    """
    stop = _stop_on_signals()
    async with contextlib.AsyncExitStack() as stack:
        sockets = {"agents": bind(addresses.host, addresses.port)}
        if addresses.admin_port:
            admin = addresses.admin_host, addresses.admin_port
            sockets["operators"] = bind(*admin, "--admin-port")
        sandbox_app, urls = None, {}
        if settings.upstream_base is None:
            from kb_mcp.sandbox.app import running

            sandbox_app, place = build_sandbox(settings), ("127.0.0.1", addresses.sandbox_port)
            try:
                urls["sandbox"] = await stack.enter_async_context(running(sandbox_app, *place))
            except OSError as error:
                raise PortTakenError(*place, error.strerror, "--sandbox-port") from error
        proxy = Proxy(settings, sandbox_app)
        workers = Workers()
        if addresses.workers > 1:
            sockets["agents"].listen(BACKLOG)
            workers = await stack.enter_async_context(
                workers_on(sockets["agents"], addresses.workers - 1, addresses.log_format)
            )
        await _run(proxy, sockets, urls, stop, say, workers)


async def serve_worker(settings: Settings, descriptor: int) -> None:
    """Serve agents on the inherited socket until SIGTERM, or until the first process is gone."""
    stop = _stop_on_signals()
    proxy = Proxy(settings)
    orphaned = asyncio.create_task(answer_first(proxy.meters))
    orphaned.add_done_callback(lambda _: stop.set())
    await _run(proxy, {"agents": socket.socket(fileno=descriptor)}, None, stop, print)
    orphaned.cancel()


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a bound socket; `option` takes another port. Raises: PortTakenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise PortTakenError(host, port, error.strerror, option) from error
    sock.setblocking(False)  # noqa: FBT003 positional only
    return sock


async def _run(
    proxy: Proxy,
    sockets: dict[str, socket.socket],
    urls: dict[str, str] | None,
    stop: asyncio.Event,
    say: Say,
    workers: Workers | None = None,
) -> None:
    """Serve on `sockets` until `stop`; `urls` is None in a worker, which announces nothing."""
    settings, agents, serving = proxy.settings, Agents(proxy), proxy.app
    count = serving.pipeline.refusal_counts.count
    guarded: dict[str, Any] = {"agents": agents}
    if "operators" in sockets:
        guarded["operators"] = _operators_app(proxy, workers or Workers())
    servers = {
        name: listen(
            guard_hosts(app, settings.allowed_hosts, count),
            note=count,
            new_id=new_id,
            free=serving.free if name == "agents" else unbounded,
        )
        for name, app in guarded.items()
    }
    agents.open()
    # One process of each host looks whom to alert: the queue itself is the store's.
    alerts = None if urls is None else build_alerts(settings, proxy.store)
    await proxy.start()
    if alerts is not None:
        proxy.repeat(ALERTS_EVERY_MS, alerts.run)
    ready_to_serve()
    running = [
        asyncio.create_task(server.serve(sockets=accepting(sockets[name])))
        for name, server in servers.items()
    ]
    while not all(server.started for server in servers.values()):  # noqa: ASYNC110 uvicorn has no event
        await asyncio.sleep(STARTED_POLL_S)
    if urls is not None:
        urls |= {name: local_url(sock) for name, sock in sockets.items()}
        async for line in _announcement(proxy, urls, sockets["agents"]):
            say(line)
    await stop.wait()
    if urls is not None:
        say("Draining: requests under way finish, new ones get 503.")
    await serving.drain(DRAIN_S)
    for server in servers.values():
        server.should_exit = True
    await asyncio.gather(*running)
    await agents.close()
    await proxy.stop(0)


def _operators_app(proxy: Proxy, workers: Workers) -> Any:
    from kb_mcp.operators.actions.resolve import StripeActs
    from kb_mcp.operators.app import create_admin
    from kb_mcp.operators.reports.invariants import Verifying

    settings, store = proxy.settings, proxy.store
    now_ms = partial(store.clock.now, 0)
    return create_admin(
        ledger=store.ledger,
        records=store.records,
        token=lambda: admin_token(settings),
        now_ms=now_ms,
        public_url=settings.public_url,
        operators=store.open_store_admin().operator_hashes,
        stripe=StripeActs(store.ledger, proxy.reads, proxy.recovery),
        verifying=Verifying(verifier(store), now_ms),
        meters=proxy.meters,
        workers=workers.readings,
        stopping=lambda: proxy.app.draining,
    )


async def _announcement(
    proxy: Proxy, urls: Mapping[str, str], agents: socket.socket
) -> AsyncIterator[str]:
    """Issue the first keys if need be, and yield where everything is.

    The configuration of MCP clients names the files of tokens, and holds none.
    """
    settings, client = proxy.settings, client_url(agents, proxy.settings)
    written = await first_run(settings, proxy.store, client or urls["agents"])
    yield f"Agents: {urls['agents']}  (Stripe at /v1 and /stripe/v1, MCP at /mcp)"
    if "operators" in urls:
        yield f"Operators: {urls['operators']}"
    shown = {"sandbox": "SANDBOX (no real money moves)", "test": "test", "live": "LIVE"}
    where = f" at {urls['sandbox']}" if "sandbox" in urls else ""
    yield f"Upstream: {shown[settings.upstream_mode]}{where}"
    yield f"Ledger: {shown_place(settings)}"
    if settings.oauth_issuers:
        yield f"Tokens: of {', '.join(settings.oauth_issuers)} for {settings.oauth_resource}"
    if proxy.store.behind:
        yield "The ledger is behind its exported heads: nothing is sent until it is reconciled."
    new = " (first run: just written)" if written else ""
    yield f"Keys and settings: {settings_file(settings)}{new}"
    if client is None:
        yield "MCP client configuration: none until KEYBRAKE_ALLOWED_HOSTS names clients' host."
        return
    if on_every_address(agents):
        yield "Other machines use a host in KEYBRAKE_ALLOWED_HOSTS, over https (docs/settings.md)."
    env = {
        "KEYBRAKE_PROXY_URL": client,
        "KEYBRAKE_VAULT_KEY_BILLING_FILE": str(token_file(settings, "billing")),
        "KEYBRAKE_VAULT_KEY_AUDIT_FILE": str(token_file(settings, "audit")),
        **({"KEYBRAKE_ALLOW_HTTP": "1"} if settings.allow_http else {}),
    }
    entry = {"command": sys.executable, "args": ["-m", "kb_mcp", "mcp"], "env": env}
    shown_entry = json.dumps({"mcpServers": {"kb-mcp": entry}}, indent=2)
    yield f"MCP client configuration:\n{shown_entry}"
