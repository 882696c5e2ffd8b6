"""Alerts: raised once, queued in the store, and sent until the receiver has taken them.

Floor: operators, above the views. An alert is raised in one transaction: its audit row, and a
delivery under its id that keeps every other process from raising it again. What was raised and not
yet delivered is the queue: it outlives this process, and any process on the store goes on with it.
Whom to tell, and of what, is set by a TOML file only: no page and no API can point alerts, with
their facts about money, at another address.
"""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, TypeVar, assert_never
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.operators.alerts import rules
from kb_mcp.operators.alerts.rules import Alert, Kind
from kb_mcp.operators.reports.views import Views
from kb_mcp.proxy.access.policy_files import policy_errors
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.audit.verification import Break
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.counts import Delivery
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs, State
from kb_mcp.proxy.ledger.snapshot import Snapshot

Format = Literal["json", "slack", "teams"]
T = TypeVar("T")
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


AUDIT_KIND = "alert"
NEWS_MS = 24 * 3_600_000
EXPIRING_MS = 3_600_000  # an approval that ends within this time is told once more
QUEUE_MS = 3 * 24 * 3_600_000
LOOK_BACK_ROWS = 2_000
OPEN_MAX = 100
QUEUE_MAX = 200
TRIES_MAX = 12
BACKOFF_FIRST_MS = 5_000
BACKOFF_MAX_MS = 3_600_000
_TEXT_MAX = 400
_DELIVERED = 1_000_000
_PASSED_ON = ("key_id", "operation_id", "customer_id", "amount", "currency")


class Sender(Protocol):
    """A way to tell somebody. `name` is the same after a restart, and holds no secret."""

    @property
    def name(self) -> str:
        """What its deliveries are counted under."""
        ...

    @property
    def on(self) -> frozenset[Kind]:
        """What it wants to be told."""
        ...

    async def send(self, body: bytes) -> str | None:
        """Deliver `body`, a JSON document; return None, or in one line why not."""
        ...


@dataclass(slots=True, kw_only=True)
class Alerts:
    """Looks, raises and delivers; one per serving process. `breaks` verifies the audit.

    `page_url` is where operators reach the dashboard; an alert links to its operation there.
    """

    views: Views
    senders: Sequence[Sender]
    breaks: Callable[[], Sequence[Break]]
    burst: int
    verify_every_ms: int
    page_url: str | None = None
    _verified_at: int = -1
    _broken: Sequence[Break] = ()
    _over: set[tuple[str, str]] = field(default_factory=set)
    _raised: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Make one round. Raises: LedgerUnavailableError."""
        for alert in await self._look():
            if alert.id not in self._raised:
                await self._raise(alert)
                self._raised.add(alert.id)
        for row in list(raised(self.views, self._ago(QUEUE_MS), QUEUE_MAX)):
            for sender in self.senders:
                if row["code"] in sender.on and (row["request_id"], sender.name) not in self._over:
                    await self._deliver(row, sender)

    async def _look(self) -> list[Alert]:
        """Return what stands to be told, each under an id that does not change."""
        views, now, since = self.views, self.views.now_ms(), self._ago(NEWS_MS)
        if self._verified_at < 0 or now - self._verified_at >= self.verify_every_ms:
            # Walking the audit takes long; on a thread of its own it holds no charge up.
            self._broken = await asyncio.to_thread(self.breaks)
            self._verified_at = now
        keys, today = await views.keys(), day_of(now)
        rows = [
            row
            for code in rules.TOLD_CODES
            for row in views.audit(OPEN_MAX, code=code, since=since)
        ]
        newest = views.audit(LOOK_BACK_ROWS, since=since)
        refused = [row["time"] for row in newest if row["decision"] == "refuse"]
        waiting = await views.approvals(OPEN_MAX, "pending")
        return [
            *rules.of_spend(await views.spend(today)),
            *rules.of_keys(keys, since),
            *rules.of_unknown(await views.operations(OPEN_MAX, state=State.UNKNOWN.value)),
            *rules.of_breaks(self._broken),
            *map(rules.of_row, rows),
            *rules.of_refusals(refused, self.burst),
            *rules.of_log(views.records.log_bytes() or 0, today.isoformat()),
            *rules.of_approvals(waiting, keys, self._ago(-EXPIRING_MS)),
        ]

    def _ago(self, ms: int) -> str:
        return rfc3339(self.views.now_ms() - ms)

    async def _raise(self, alert: Alert) -> None:
        key = f"alert|{alert.id}"
        row = AuditDraft(
            kind=AUDIT_KIND,
            decision="raise",
            code=alert.kind.value,
            # An alert answers no request: the column names the alert instead.
            request_id=clean_text(alert.id, _TEXT_MAX),
            note=clean_text(alert.text, _TEXT_MAX),
            **{name: getattr(alert, name) for name in _PASSED_ON},
        )

        def step(snapshot: Snapshot) -> tuple[None, Changes]:
            if snapshot.delivery(key).tries:
                return None, Changes()
            delivery = Delivery(key, tries=1, last_tried_at=snapshot.now)
            return None, Changes(deliveries=(delivery,), audit=(row,))

        await self._write(key, step)

    async def _deliver(self, row: Record, sender: Sender) -> None:
        key = f"alert|{row['request_id']}|{sender.name}"
        tried = await self._take(key)
        if tried is None:
            return
        if tried >= 0:
            failure = await sender.send(self._body(row))
            if failure is not None and tried + 1 < TRIES_MAX:
                return
            await self._note(key, row, sender, failure)
        self._over.add((row["request_id"], sender.name))

    async def _take(self, key: str) -> int | None:
        """Take one delivery: return how often it was tried; -1 it is over, None not due yet."""

        def step(snapshot: Snapshot) -> tuple[int | None, Changes]:
            delivery = snapshot.delivery(key)
            if delivery.tries >= TRIES_MAX:
                return -1, Changes()
            wait = min(BACKOFF_FIRST_MS << max(delivery.tries - 1, 0), BACKOFF_MAX_MS)
            if delivery.tries and snapshot.now < delivery.last_tried_at + wait:
                return None, Changes()
            taken = Delivery(key, tries=delivery.tries + 1, last_tried_at=snapshot.now)
            return delivery.tries, Changes(deliveries=(taken,))

        return await self._write(key, step)

    async def _note(self, key: str, row: Record, sender: Sender, failure: str | None) -> None:
        note = AuditDraft(
            kind=AUDIT_KIND,
            decision="deliver" if failure is None else "give_up",
            request_id=row["request_id"],
            key_id=row["key_id"],
            operation_id=row["operation_id"],
            note=clean_text(f"{sender.name}: {failure or 'taken'}", _TEXT_MAX),
        )

        def step(snapshot: Snapshot) -> tuple[None, Changes]:
            over = Delivery(key, tries=_DELIVERED, last_tried_at=snapshot.now)
            return None, Changes(deliveries=(over,), audit=(note,))

        await self._write(key, step)

    async def _write(self, key: str, step: Callable[[Snapshot], tuple[T, Changes]]) -> T:
        refs = Refs(deliveries=frozenset({key}))
        return await self.views.ledger.transact(lambda _: refs, step)

    def _body(self, row: Record) -> bytes:
        settings, operation_id = self.views.ledger.settings, row["operation_id"]
        linked = self.page_url is not None and operation_id is not None
        document = {
            "id": row["request_id"],
            "kind": row["code"],
            "text": row["note"],
            "time": row["time"],
            "account": settings.account,
            "mode": settings.mode,
            "link": f"{self.page_url}/operations/{operation_id}" if linked else None,
            **{name: row[name] for name in _PASSED_ON},
        }
        return json.dumps(document, separators=(",", ":")).encode("ascii")


def raised(views: Views, since: str, most: int) -> Iterator[Record]:
    """Yield the alerts raised since then (RFC 3339), at most `most` of a kind, oldest of it first.

    Raises: LedgerUnavailableError.
    """
    for kind in Kind:
        rows = views.audit(most, code=kind.value, since=since)
        yield from (row for row in rows[::-1] if row["decision"] == "raise")
