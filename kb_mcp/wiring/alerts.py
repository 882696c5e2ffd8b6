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
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from kb_mcp.environment import SettingsError
from kb_mcp.operators.alert_file import (
    AlertFile,
    AlertFileError,
    CommandTarget,
    WebhookTarget,
    load_alert_file,
    shape,
)
from kb_mcp.operators.alerts import Alerts, Kind, Sender
from kb_mcp.operators.reports.views import Views
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores import verifier
from kb_mcp.wiring.stores.store import Store

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
    verify = verifier(settings, store)
    return Alerts(
        views=Views(ledger=store.ledger, records=store.records, now_ms=lambda: store.clock.now(0)),
        senders=senders_of(read, file.parent, lambda: store.clock.now(0) // 1000),
        breaks=lambda: verify().breaks,
        burst=read.refusals_per_minute,
        verify_every_ms=read.verify_every_minutes * 60_000,
        page_url=settings.public_url,
    )


def senders_of(read: AlertFile, folder: Path, now_s: Callable[[], int]) -> list[Sender]:
    """Return a sender for every target; `folder` is where relative secret files lie.

    Raises: SettingsError.
    """
    webhooks = [_webhook(target, folder, now_s) for target in read.webhook]
    return [*webhooks, *(CommandSender(target) for target in read.command)]


@dataclass(frozen=True, slots=True)
class WebhookSender:
    """Posts a signed body: `t=SECONDS,v1=HEX`, HMAC-SHA-256 over `SECONDS.body`."""

    target: WebhookTarget
    secret: bytes | None
    now_s: Callable[[], int]

    @property
    def name(self) -> str:
        """Host and a digest: an address may hold a token of its own."""
        digest = hashlib.sha256(self.target.url.encode()).hexdigest()[:8]
        return f"webhook {urlsplit(self.target.url).hostname} {digest}"

    @property
    def on(self) -> frozenset[Kind]:
        """What it wants to be told."""
        return frozenset(self.target.on)

    async def send(self, body: bytes) -> str | None:
        """Post once, in the receiver's form; anything but a 2xx is a failure."""
        body = shape(body, self.target.format)
        parts = urlsplit(self.target.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(SEND_WITHIN_S):
                address = await self._address(host, port)
                if address is None:
                    return f"{host} is a private address: allow_private would allow it"
                return await self._post(address, body)
        except (OSError, TimeoutError, httpx.HTTPError) as error:
            return type(error).__name__

    async def _address(self, host: str, port: int) -> str | None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        if not self.target.allow_private and not all(map(is_public, addresses)):
            return None
        return addresses[0]

    async def _post(self, address: str, body: bytes) -> str | None:
        url = httpx.URL(self.target.url)
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": "kb-mcp",
        }
        if self.secret is not None:
            seconds = self.now_s()
            signed = hmac.new(self.secret, f"{seconds}.".encode() + body, "sha256").hexdigest()
            headers[SIGNATURE] = f"t={seconds},v1={signed}"
        async with httpx.AsyncClient(trust_env=False, timeout=SEND_WITHIN_S) as client:
            answer = await client.post(
                url.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": url.host},
            )
        return None if answer.is_success else f"it answered {answer.status_code}"


@dataclass(frozen=True, slots=True)
class CommandSender:
    """Runs a program with the body on its stdin; exit code 0 is delivered."""

    target: CommandTarget

    @property
    def name(self) -> str:
        """The program's own name and a digest of all its arguments."""
        digest = hashlib.sha256("\0".join(self.target.run).encode()).hexdigest()[:8]
        return f"command {Path(self.target.run[0]).name} {digest}"

    @property
    def on(self) -> frozenset[Kind]:
        """What it wants to be told."""
        return frozenset(self.target.on)

    async def send(self, body: bytes) -> str | None:
        """Run it once, for at most SEND_WITHIN_S."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self.target.run,
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


def _read(file: Path) -> AlertFile | None:
    try:
        # Who can write this file can run programs as us.
        if file.stat().st_mode & 0o022:
            raise SettingsError(str(file), "may be written by others", "chmod go-w it.")
        return load_alert_file(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(file), "cannot be read", f"{error}.") from error
    except AlertFileError as error:
        hint = "docs/alerts.md shows a whole file."
        raise SettingsError(str(file), f"is not valid: {error}", hint) from None


def _webhook(target: WebhookTarget, folder: Path, now_s: Callable[[], int]) -> WebhookSender:
    secret = target.secret
    if secret is None and target.secret_file is not None:
        path = folder / target.secret_file
        try:
            secret = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            hint = "Put the webhook's secret there."
            raise SettingsError(str(path), "cannot be read", hint) from None
        if not secret:
            raise SettingsError(str(path), "is empty", "Put the webhook's secret there.")
    return WebhookSender(target, None if secret is None else secret.encode(), now_s)
