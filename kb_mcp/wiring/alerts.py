"""Alerts, wired: the file beside the store, read, and the ways by which somebody is told.

Floor: wiring. A webhook goes to the very address that was looked up and checked, so that a name
cannot turn into another address between check and use; nothing is redirected, nothing proxied. A
command runs without a shell and without this process's environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from kb_mcp.environment import SettingsError
from kb_mcp.operators import alert_file
from kb_mcp.operators.alerts import Alerts, Sender
from kb_mcp.operators.reports.views import Views
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores import Store, verifier

ALERTS_EVERY_MS = 5_000
SEND_WITHIN_S = 10
SIGNATURE = "Keybrake-Signature"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def alerts_path(store: Store) -> Path:
    """Return where the alerts file of `store` is looked for."""
    return store.path.with_name(f"{store.path.name}.alerts.toml")


def build_alerts(settings: Settings, store: Store) -> Alerts | None:
    """Return the alerts that the file beside the store asks for, or None without a file.

    Raises: SettingsError, for a file that is not valid.
    """
    file = alerts_path(store)
    read = _read(file)
    if read is None:
        return None
    verify, now_ms = verifier(store), partial(store.clock.now, 0)
    return Alerts(
        views=Views(ledger=store.ledger, records=store.records, now_ms=now_ms),
        senders=[
            *(_webhook(target, file.parent, now_ms) for target in read.webhook),
            *(_command(target) for target in read.command),
        ],
        breaks=lambda: verify().breaks,
        burst=read.refusals_per_minute,
        verify_every_ms=read.verify_every_minutes * 60_000,
        page_url=settings.public_url,
    )


def _webhook(target: alert_file.WebhookTarget, folder: Path, now_ms: Callable[[], int]) -> Sender:
    """Return the sender to `target`; `folder` is where a relative secret file lies.

    Raises: SettingsError.
    """
    secret = target.secret
    if secret is None and target.secret_file is not None:
        path, problem = folder / target.secret_file, "cannot be read"
        try:
            secret, problem = path.read_text(encoding="utf-8").strip(), "is empty"
        except (OSError, UnicodeDecodeError):
            secret = None
        if not secret:
            raise SettingsError(str(path), problem, "Put the webhook's secret there.")
    # An address may hold a token of its own.
    name = f"webhook {urlsplit(target.url).hostname} {_digest(target.url)}"
    key = None if secret is None else secret.encode()
    return Sender(name, frozenset(target.on), partial(_post, target, key, now_ms))


def _command(target: alert_file.CommandTarget) -> Sender:
    name = f"command {Path(target.run[0]).name} {_digest(*target.run)}"
    return Sender(name, frozenset(target.on), partial(_run, target.run))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


async def _post(
    target: alert_file.WebhookTarget, secret: bytes | None, now_ms: Callable[[], int], body: bytes
) -> str | None:
    """Post once, in the receiver's form, and signed: `t=SECONDS,v1=HEX`.

    The signature is HMAC-SHA-256 over `SECONDS.body`. Anything but a 2xx is a failure.
    """
    url, body = httpx.URL(target.url), alert_file.shape(body, target.format)
    headers = {
        "Host": url.netloc.decode("ascii"),
        "Content-Type": "application/json",
        "User-Agent": "kb-mcp",
    }
    if secret is not None:
        seconds = now_ms() // 1000
        signed = hmac.new(secret, f"{seconds}.".encode() + body, "sha256").hexdigest()
        headers[SIGNATURE] = f"t={seconds},v1={signed}"
    port, loop = url.port or (443 if url.scheme == "https" else 80), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(SEND_WITHIN_S):
            found = await loop.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
            addresses = [str(each[4][0]) for each in found]
            if not target.allow_private and not all(map(is_public, addresses)):
                return f"{url.host} is a private address: allow_private would allow it"
            async with httpx.AsyncClient(trust_env=False, timeout=SEND_WITHIN_S) as client:
                answer = await client.post(
                    url.copy_with(host=addresses[0]),
                    content=body,
                    headers=headers,
                    extensions={"sni_hostname": url.host},
                )
    except (OSError, TimeoutError, httpx.HTTPError) as error:
        return type(error).__name__
    return None if answer.is_success else f"it answered {answer.status_code}"


async def _run(command: tuple[str, ...], body: bytes) -> str | None:
    """Run a program once, with `body` on its stdin; exit code 0 is delivered."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={"PATH": os.defpath},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        return f"it cannot be run: {error.strerror}"
    try:
        async with asyncio.timeout(SEND_WITHIN_S):
            await process.communicate(body)
    except TimeoutError:
        process.kill()
        await process.wait()
        return "it took too long"
    return None if process.returncode == 0 else f"it exited with {process.returncode}"


def is_public(address: str) -> bool:
    """Say whether `address` is of the public internet; one that cannot be read is not."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        # An IPv4 address in IPv6's clothes is judged as what it reaches.
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None,))[0]
        parsed = inner or parsed
        if parsed in _NAT64:
            return False
    return parsed.is_global and not parsed.is_multicast


def _read(file: Path) -> alert_file.AlertFile | None:
    try:
        # Who can write this file can run programs as us.
        if file.stat().st_mode & 0o022:
            raise SettingsError(str(file), "may be written by others", "chmod go-w it.")
        return alert_file.load_alert_file(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(file), "cannot be read", f"{error}.") from error
    except alert_file.AlertFileError as error:
        hint = "docs/alerts.md shows a whole file."
        raise SettingsError(str(file), f"is not valid: {error}", hint) from None
