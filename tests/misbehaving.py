"""A Stripe that can be told to misbehave: what stands between the proxy and the sandbox.

The sandbox does what it is asked; only what the proxy hears of it is changed, by rules. So a test
can let Stripe charge and then say nonsense, lag, lie or lose a mark.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from typing_extensions import override

from tests.in_process_proxy import InProcessProxy

Heard = tuple[int, bytes]  # status and body
Change = Callable[[Heard], Heard]


@dataclass(slots=True)
class Rule:
    """`change` what is heard of the next `times` requests (None: all) that `match` begins."""

    match: str
    change: Change
    times: int | None


@dataclass(slots=True)
class Misbehaving:
    """An ASGI application over `app`, the sandbox. `asked` are the requests it passed on."""

    app: Any
    rules: list[Rule] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def hear(self, match: str, change: Change, times: int | None = None) -> None:
        """Let the proxy hear `change(answer)` to requests that begin with `match`."""
        self.rules.append(Rule(match, change, times))

    def behave(self) -> None:
        """Forget every rule."""
        self.rules.clear()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass one request on, and its answer back, changed where a rule says so."""
        query = scope["query_string"].decode()
        line = f"{scope['method']} {scope['path']}" + (f"?{query}" if query else "")
        if not scope["path"].startswith("/_sandbox"):
            self.asked.append(line)
        rule = next((each for each in self.rules if line.startswith(each.match)), None)
        if rule is None:
            await self.app(scope, receive, send)
            return
        if rule.times is not None:
            rule.times -= 1
            if rule.times <= 0:
                self.rules.remove(rule)
        await self._change(rule.change, scope, receive, send)

    async def _change(self, change: Change, scope: Any, receive: Any, send: Any) -> None:
        begun: dict[str, Any] = {}
        body = bytearray()

        async def keep(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                begun.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        await self.app(scope, receive, keep)
        status, changed = change((begun["status"], bytes(body)))
        headers = [pair for pair in begun["headers"] if pair[0] != b"content-length"]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": changed, "more_body": False})


class MisledProxy(InProcessProxy):
    """A proxy in this process that hears of Stripe only what `rogue` lets it hear."""

    @cached_property
    def rogue(self) -> Misbehaving:
        """What stands between proxy and sandbox; it outlives a restart of the proxy."""
        return Misbehaving(self.sandbox)

    @override
    def upstream(self) -> Any:
        return self.rogue


def say(status: int, body: bytes | Mapping[str, Any] = b"{}") -> Change:
    """Answer `status` and `body` instead; an error, unless the body is given."""
    if body == b"{}" and status >= 400:
        body = {"error": {"type": "api_error", "code": "broken", "message": "It broke."}}
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda _: (status, text)


def with_fields(**fields: Any) -> Change:
    """Change fields of the object that is answered, or of every object in a list."""

    def change(heard: Heard) -> Heard:
        status, body = heard
        parsed = json.loads(body)
        for item in parsed.get("data", [parsed]):
            item.update(fields)
        return status, json.dumps(parsed).encode()

    return change


def listing(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Change:
    """Change the objects of a list."""

    def changed(heard: Heard) -> Heard:
        parsed = json.loads(heard[1])
        parsed["data"] = change(parsed["data"])
        return heard[0], json.dumps(parsed).encode()

    return changed


def unmarked(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take every mark of ours off the objects, as somebody does who edits them away at Stripe."""
    for item in items:
        kept = {name: v for name, v in item["metadata"].items() if not name.startswith("keybrake")}
        item["metadata"] = kept
    return items
