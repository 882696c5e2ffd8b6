"""Stripe's own SDKs, Python and Node, asked for the same things and answering alike."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import stripe

from tests.clients.installs import HERE, environ, node


@dataclass(frozen=True)
class Call:
    """One call of an SDK; `raw` is method and path of an endpoint that it has no name for."""

    key: str
    params: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    retries: int = 0
    raw: tuple[str, str] | None = None


@dataclass(frozen=True)
class Outcome:
    """The charge, or the class of what was raised with what the body says."""

    id: str | None = None
    replayed: bool = False
    error: str | None = None
    code: str | None = None
    status: int | None = None


class Sdk(Protocol):
    """Makes one call after another against a proxy."""

    def __call__(self, url: str, *calls: Call) -> list[Outcome]: ...


def python_sdk(url: str, *calls: Call) -> list[Outcome]:
    """Call through `stripe.StripeClient`."""
    return [_python_call(url, call) for call in calls]


def node_sdk(npm: str, folder: Path) -> Sdk:
    """Return the Node SDK; its script is copied into `folder`, beside the installed package."""
    script = Path(npm) / HERE.joinpath("stripe_calls.mjs").name
    shutil.copy(HERE / script.name, script)

    def call(url: str, *calls: Call) -> list[Outcome]:
        return run_node(str(script), url, calls, folder)

    return call


def run_node(script: str, url: str, calls: tuple[Call, ...], folder: Path) -> list[Outcome]:
    """Run the script on `calls`, one after the other."""
    asked = [_node_call(call) for call in calls]
    done = subprocess.run(
        [node(), script],
        input=json.dumps({"url": url, "calls": asked}),
        env=environ(),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return [
        Outcome(each.get("id"), each.get("replayed") == "true",
                each.get("error"), each.get("code"), each.get("status"))
        for each in json.loads(done.stdout)
    ]  # fmt: skip


def _node_call(call: Call) -> dict[str, Any]:
    names = {"idempotency_key": "idempotencyKey", "stripe_account": "stripeAccount"}
    options = {names[name]: value for name, value in call.options.items()}
    raw = [call.raw[0].upper(), call.raw[1], call.params, options] if call.raw else None
    return {"key": call.key, "params": call.params, "options": options,
            "retries": call.retries, "raw": raw}  # fmt: skip


def _python_call(url: str, call: Call) -> Outcome:
    client = stripe.StripeClient(
        call.key, base_addresses={"api": f"{url}/stripe"}, max_network_retries=call.retries
    )
    try:
        if call.raw:
            method, path = call.raw
            answer = client.raw_request(method, path, **call.params, **call.options)
            return Outcome(json.loads(answer.data).get("id"))
        made = client.v1.charges.create(call.params, call.options)  # type: ignore[arg-type]  # JSON, not TypedDicts
    except stripe.StripeError as error:
        code = None if error.error is None else error.error.code
        return Outcome(error=type(error).__name__, code=code, status=error.http_status)
    replayed = made.last_response is not None and (
        made.last_response.headers.get("Idempotent-Replayed") == "true"
    )
    return Outcome(made.id, replayed)
