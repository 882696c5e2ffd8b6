"""The body of an alert, as its receiver reads it.

Floor: beside the alerts file. Pure. Source of the forms: api.slack.com/messaging/webhooks (`text`,
mrkdwn), and Microsoft's "Create incoming webhooks with Workflows" (a message with one Adaptive
Card).
"""

from __future__ import annotations

import json
from typing import Any, Literal, assert_never

Format = Literal["json", "slack", "teams"]
_CARD = "application/vnd.microsoft.card.adaptive"


def shape(body: bytes, form: Format) -> bytes:
    """Return the alert in `body` (its own JSON) in the form that the receiver takes."""
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
