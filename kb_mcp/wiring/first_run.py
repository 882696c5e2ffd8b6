"""The first run: a billing key, an audit key and an operator's token, written for their owner only.

Floor: wiring. Of several first processes one writes the settings file; the others use it.
"""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from kb_mcp.operators.actions.keys import NewKey, issue_key
from kb_mcp.proxy.access.policy import CapRules, Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.access.tokens import Mode
from kb_mcp.serving.machine import random_bytes
from kb_mcp.settings import Settings
from kb_mcp.wiring.opening import store_path
from kb_mcp.wiring.store import Store, write_once

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
