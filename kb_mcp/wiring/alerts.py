"""Alerts, wired: the file beside the store, and the ways by which somebody is told.

Floor: wiring. A webhook goes to the very address that was looked up and checked, so that a name
cannot turn into another address between check and use; nothing is redirected, nothing proxied. A
command runs without a shell and without this process's environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
import socket
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, assert_never
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kb_mcp.environment import SettingsError
from kb_mcp.operators.alerts import Alerts, Kind, Sender
from kb_mcp.operators.reports.views import Views
from kb_mcp.proxy.access.policy_files import policy_errors
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores import verifier
from kb_mcp.wiring.stores.store import Store

ALERTS_EVERY_MS = 5_000
SEND_WITHIN_S = 10
SIGNATURE = "Keybrake-Signature"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Format = Literal["json", "slack", "teams"]
_CARD = "application/vnd.microsoft.card.adaptive"


def shape(body: bytes, form: Format) -> bytes:
    """Return the alert in `body` (its own JSON) in the form that the receiver takes.

    Source: api.slack.com/messaging/webhooks (`text`, mrkdwn), and Microsoft's "Create incoming
    webhooks with Workflows" (a message with one Adaptive Card).
    """
    match form:
        case "json":
            return body
        case "slack":
            shaped = _slack(json.loads(body))
        case "teams":
            shaped = _teams(json.loads(body))
        case _:
            assert_never(form)
    return json.dumps(shaped, separators=(",", ":")).encode("ascii")


def _slack(alert: dict[str, Any]) -> dict[str, Any]:
    link = alert.get("link")
    # Slack reads <, > and & as its own signs; a client's text must not make a link.
    text = alert["text"].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": text if link is None else f"{text} <{link}|Open>"}


def _teams(alert: dict[str, Any]) -> dict[str, Any]:
    card: dict[str, Any] = {
        "type": "AdaptiveCard",
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "version": "1.4",
        "body": [{"type": "TextBlock", "text": alert["text"], "wrap": True}],
    }
    if alert.get("link") is not None:
        card["actions"] = [{"type": "Action.OpenUrl", "title": "Open", "url": alert["link"]}]
    attachment = {"contentType": _CARD, "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


TARGETS_MAX = 16
_SECRET_CHARACTERS_MIN = 16


class AlertFileError(Exception):
    """The alerts file is not valid; the message is one line."""


def _check_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 reading the port is what checks it
    except ValueError:
        raise ValueError("it must be a URL") from None
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username:
        raise ValueError("it must be an https address without a user in it")
    return text


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class WebhookTarget(_Part):
    """An address that is posted to. Plain http is for private addresses that are allowed.

    `format` is what the receiver reads: the alert's own JSON, or what Slack's or Teams' incoming
    webhooks take. Their addresses are secrets themselves, so that they need no `secret`.
    """

    url: Annotated[str, AfterValidator(_check_url)]
    secret: str | None = Field(default=None, min_length=_SECRET_CHARACTERS_MIN, repr=False)
    secret_file: str | None = None
    allow_private: bool = False
    format: Format = "json"
    on: tuple[Kind, ...] = tuple(Kind)

    @model_validator(mode="after")
    def _consistent(self) -> WebhookTarget:
        given = (self.secret is not None) + (self.secret_file is not None)
        if given > 1 or (given == 0 and self.format == "json"):
            raise ValueError("give either secret or secret_file")
        if self.url.startswith("http://") and not self.allow_private:
            raise ValueError("plain http needs allow_private, for a receiver on this machine")
        return self


class CommandTarget(_Part):
    """A program that is run, without a shell, with the alert as JSON on its stdin."""

    run: Annotated[tuple[str, ...], Field(min_length=1)]
    on: tuple[Kind, ...] = tuple(Kind)


class AlertFile(_Part):
    """The whole file. `refusals_per_minute` is what makes a burst."""

    version: Literal[1]
    refusals_per_minute: int = Field(default=30, ge=1, le=100_000)
    verify_every_minutes: int = Field(default=60, ge=1, le=10_080)
    webhook: Annotated[tuple[WebhookTarget, ...], Field(max_length=TARGETS_MAX)] = ()
    command: Annotated[tuple[CommandTarget, ...], Field(max_length=TARGETS_MAX)] = ()


def load_alert_file(text: str) -> AlertFile:
    """Read the alerts file. Raises: AlertFileError."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AlertFileError(f"it is no TOML: {error}") from None
    try:
        return AlertFile.model_validate(data)
    except ValidationError as error:
        raise AlertFileError("; ".join(policy_errors(error))) from None


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
