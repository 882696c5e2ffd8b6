"""Alerts, wired: the file that says whom to tell of what, and the ways by which they are told.

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
from functools import partial
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kb_mcp.environment import SettingsError
from kb_mcp.operators.alerts import Alerts, Kind, Sender
from kb_mcp.operators.reports.views import Views
from kb_mcp.proxy.access.policy import policy_errors
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores import Store, verifier

ALERTS_EVERY_MS = 5_000
SEND_WITHIN_S = 10
SIGNATURE = "Keybrake-Signature"
Format = Literal["json", "slack", "teams"]
TARGETS_MAX = 16
_SECRET_CHARACTERS_MIN = 16
_CARD = "application/vnd.microsoft.card.adaptive"
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


def _webhook(target: WebhookTarget, folder: Path, now_ms: Callable[[], int]) -> Sender:
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


def _command(target: CommandTarget) -> Sender:
    name = f"command {Path(target.run[0]).name} {_digest(*target.run)}"
    return Sender(name, frozenset(target.on), partial(_run, target.run))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


async def _post(
    target: WebhookTarget, secret: bytes | None, now_ms: Callable[[], int], body: bytes
) -> str | None:
    """Post once, in the receiver's form, and signed: `t=SECONDS,v1=HEX`.

    The signature is HMAC-SHA-256 over `SECONDS.body`. Anything but a 2xx is a failure.
    """
    url, body = httpx.URL(target.url), shape(body, target.format)
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


def _read(file: Path) -> AlertFile | None:
    try:
        loose, text = file.stat().st_mode & 0o022, file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(file), "cannot be read", f"{error}.") from error
    if loose:
        # Who can write this file can run programs as us.
        raise SettingsError(str(file), "may be written by others", "chmod go-w it.")
    try:
        return load_alert_file(text)
    except ValueError as error:
        hint = "docs/alerts.md shows a whole file."
        raise SettingsError(str(file), f"is not valid: {error}", hint) from None


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
    """Read the alerts file. Raises: ValueError, in one line."""
    try:
        return AlertFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is no TOML: {error}") from None
    except ValidationError as error:
        raise ValueError("; ".join(policy_errors(error))) from None


def shape(body: bytes, form: Format) -> bytes:
    """Return the alert in `body` (its own JSON) in the form that the receiver takes.

    Source: api.slack.com/messaging/webhooks (`text`, mrkdwn), and Microsoft's "Create incoming
    webhooks with Workflows" (a message with one Adaptive Card).
    """
    if form == "json":
        return body
    shaped = {"slack": _slack, "teams": _teams}[form](json.loads(body))
    return json.dumps(shaped, separators=(",", ":")).encode("ascii")


def _slack(alert: dict[str, Any]) -> dict[str, Any]:
    link = alert.get("link")
    # Slack reads <, > and & as its own signs; a client's text must not make a link.
    text = escape(alert["text"], quote=False)
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
