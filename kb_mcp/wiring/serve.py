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
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kb_mcp.operators.actions.keys import NewKey, issue_key
from kb_mcp.proxy.access.policy import CapRules, Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.access.tokens import Mode
from kb_mcp.serving.host_check import HostGuard, client_url, local_url, on_every_address
from kb_mcp.serving.listener import accepting, listen, unbounded
from kb_mcp.serving.machine import boottime_ms, new_id, random_bytes
from kb_mcp.serving.process_setup import LogFormat, ready_to_serve
from kb_mcp.serving.workers import Workers, answer_first, workers_on
from kb_mcp.settings import Settings
from kb_mcp.wiring.alerts import ALERTS_EVERY_MS, build_alerts
from kb_mcp.wiring.app import Agents
from kb_mcp.wiring.proxy import Proxy
from kb_mcp.wiring.stores import store_path, verifier
from kb_mcp.wiring.stores.store import Store, shown_place, write_once
from kb_mcp.wiring.upstream import build_sandbox

# For trying out: $100 a charge, $1,000 a day, and for a month.
FIRST_CAPS = CapRules(per_charge={"usd": 10_000}, daily={"usd": 100_000})
FIRST_KEYS_LAST_MS = 30 * 86_400_000
OPERATOR_TOKEN_BYTES = 24


@dataclass(frozen=True, slots=True)
class FirstRun:
    """Where the settings file is, and whether this process wrote it."""

    file: Path
    written: bool


def settings_file(settings: Settings) -> Path:
    """Return the settings file that belongs to the store."""
    return store_path(settings).with_suffix(".env")


def token_file(settings: Settings, role: str) -> Path:
    """Return the file that holds the first key of `role` and nothing else."""
    return store_path(settings).with_suffix(f".{role}.key")


async def first_run(settings: Settings, store: Store, proxy_url: str) -> FirstRun:
    """Issue the first keys unless the settings file is there."""
    file = settings_file(settings)
    if file.exists() or not store.claim_first_run():
        return FirstRun(file, written=False)
    mode: Mode = "live" if settings.upstream_mode == "live" else "test"
    ends = store.clock.now(0) + FIRST_KEYS_LAST_MS
    tokens = {}
    for role in ("billing", "audit"):
        policy = _first_policy(role)
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
    return FirstRun(file, written)


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


def client_configuration(settings: Settings, proxy_url: str) -> str:
    """Return an MCP client's configuration; it names token files, never a token."""
    env = {
        "KEYBRAKE_PROXY_URL": proxy_url,
        "KEYBRAKE_VAULT_KEY_BILLING_FILE": str(token_file(settings, "billing")),
        "KEYBRAKE_VAULT_KEY_AUDIT_FILE": str(token_file(settings, "audit")),
    }
    if settings.allow_http:
        env["KEYBRAKE_ALLOW_HTTP"] = "1"
    entry = {"command": sys.executable, "args": ["-m", "kb_mcp", "mcp"], "env": env}
    return json.dumps({"mcpServers": {"kb-mcp": entry}}, indent=2)


def _first_policy(role: str) -> Policy:
    policy = built_in(role)
    if role == "audit":
        return policy
    return policy.model_copy(update={"caps": FIRST_CAPS})


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
            sandbox_app = build_sandbox(settings)
            urls["sandbox"] = await stack.enter_async_context(
                _sandbox(sandbox_app, addresses.sandbox_port)
            )
        proxy = Proxy(settings, sandbox_app)
        workers = Workers()
        if addresses.workers > 1:
            sockets["agents"].listen(BACKLOG)
            workers = await stack.enter_async_context(
                workers_on(sockets["agents"], addresses.workers - 1, addresses.log_format)
            )
        await _run(settings, proxy, sockets, urls, stop, say, workers)


async def serve_worker(settings: Settings, descriptor: int) -> None:
    """Serve agents on the inherited socket until SIGTERM, or until the first process is gone."""
    stop = _stop_on_signals()
    proxy = Proxy(settings)
    orphaned = asyncio.create_task(answer_first(proxy.meters))
    orphaned.add_done_callback(lambda _: stop.set())
    await _run(settings, proxy, {"agents": socket.socket(fileno=descriptor)}, None, stop, print)
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
    settings: Settings,
    proxy: Proxy,
    sockets: dict[str, socket.socket],
    urls: dict[str, str] | None,
    stop: asyncio.Event,
    say: Say,
    workers: Workers | None = None,
) -> None:
    """Serve on `sockets` until `stop`; `urls` is None in a worker, which announces nothing."""
    agents = Agents(settings, proxy)
    count = proxy.app.pipeline.refusal_counts.count
    apps: dict[str, Any] = {"agents": HostGuard(agents, settings.allowed_hosts, count)}
    if "operators" in sockets:
        apps["operators"] = _operators_app(settings, proxy, workers or Workers())
    free = {"agents": proxy.app.free}
    servers = {
        name: listen(app, note=count, new_id=new_id, free=free.get(name, unbounded))
        for name, app in apps.items()
    }
    agents.open()
    alerts = None if urls is None else build_alerts(settings, proxy.store)
    await proxy.start()
    ready_to_serve()
    running = [
        asyncio.create_task(server.serve(sockets=accepting(sockets[name])))
        for name, server in servers.items()
    ]
    while not all(server.started for server in servers.values()):  # noqa: ASYNC110 uvicorn has no event
        await asyncio.sleep(STARTED_POLL_S)
    if urls is not None:
        # One process of each host looks: the queue itself is the store's.
        if alerts is not None:
            proxy.repeat(ALERTS_EVERY_MS, alerts.run)
        urls |= {name: local_url(sock) for name, sock in sockets.items()}
        client = client_url(sockets["agents"], settings)
        first = await first_run(settings, proxy.store, client or urls["agents"])
        _announce(settings, urls, proxy, say, first)
        _announce_client(settings, sockets["agents"], client, say)
    await stop.wait()
    if urls is not None:
        say("Draining: requests under way finish, new ones get 503.")
    await proxy.app.drain(DRAIN_S)
    for server in servers.values():
        server.should_exit = True
    await asyncio.gather(*running)
    await agents.close()
    await proxy.stop(0)


@contextlib.asynccontextmanager
async def _sandbox(app: Any, port: int) -> AsyncIterator[str]:
    from kb_mcp.sandbox.app import running

    try:
        async with running(app, "127.0.0.1", port) as url:
            yield url
    except OSError as error:
        raise PortTakenError("127.0.0.1", port, error.strerror, "--sandbox-port") from error


def _operators_app(settings: Settings, proxy: Proxy, workers: Workers) -> Any:
    from kb_mcp.operators.actions.resolve import StripeActs
    from kb_mcp.operators.app import Bench, create_admin
    from kb_mcp.operators.reports.invariants import Verifying
    from kb_mcp.proxy.stripe.reader import StripeReads

    store = proxy.store
    store_admin = store.open_store_admin()
    reads = StripeReads(proxy.upstream, store.clock, boottime_ms)

    def now_ms() -> int:
        return store.clock.now(0)

    admin = create_admin(
        ledger=store.ledger,
        records=store.records,
        token=lambda: admin_token(settings),
        now_ms=now_ms,
        public_url=settings.public_url,
        operators=store_admin.operator_hashes,
        bench=Bench(
            acts=StripeActs(store.ledger, reads, proxy.recovery),
            verifying=Verifying(verifier(settings, store), now_ms),
            meters=proxy.meters,
            workers=workers.readings,
            stopping=lambda: proxy.app.draining,
        ),
    )
    return HostGuard(admin, settings.allowed_hosts, proxy.app.pipeline.refusal_counts.count)


def _announce(
    settings: Settings, urls: dict[str, str], proxy: Proxy, say: Say, first: FirstRun
) -> None:
    say(f"Agents: {urls['agents']}  (Stripe at /v1 and /stripe/v1, MCP at /mcp)")
    if "operators" in urls:
        say(f"Operators: {urls['operators']}")
    shown = {"sandbox": "SANDBOX (no real money moves)", "test": "test", "live": "LIVE"}
    where = f" at {urls['sandbox']}" if "sandbox" in urls else ""
    say(f"Upstream: {shown[settings.upstream_mode]}{where}")
    say(f"Ledger: {shown_place(settings)}")
    if settings.oauth_issuers:
        say(f"Tokens: of {', '.join(settings.oauth_issuers)} for {settings.oauth_resource}")
    if proxy.store.behind:
        say("The ledger is behind its exported heads: nothing is sent until it is reconciled.")
    say(f"Keys and settings: {first.file}{' (first run: just written)' if first.written else ''}")


def _announce_client(settings: Settings, sock: socket.socket, client: str | None, say: Say) -> None:
    if client is None:
        say("MCP client configuration: none until KEYBRAKE_ALLOWED_HOSTS names clients' host.")
        return
    if on_every_address(sock):
        say("Other machines use a host in KEYBRAKE_ALLOWED_HOSTS, over https (docs/settings.md).")
    say(f"MCP client configuration:\n{client_configuration(settings, client)}")
