"""The file of alerts: whom to tell, of what, and in which form each receiver reads it.

Floor: operators, above alerts. It does no IO: wiring reads the file and sends.
"""

from __future__ import annotations

import json
import tomllib
from html import escape
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kb_mcp.operators.alerts import Kind
from kb_mcp.proxy.access.policy import policy_errors

Format = Literal["json", "slack", "teams"]
TARGETS_MAX = 16
_SECRET_CHARACTERS_MIN = 16
_CARD = "application/vnd.microsoft.card.adaptive"


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
        return AlertFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise AlertFileError(f"it is no TOML: {error}") from None
    except ValidationError as error:
        raise AlertFileError("; ".join(policy_errors(error))) from None


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
