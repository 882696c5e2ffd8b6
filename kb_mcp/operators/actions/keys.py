"""Vault keys: what may be asked for, and issue, rotate, revoke, unfreeze.

Floor: operators, above the ledger. Command, admin API and form hand over the fields of one
`KeyRequest`, and give its refusals. Each act is one audited transaction. A revocation writes the
key's row, which every reservation locks: none commits after it, on any process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from msgspec.structs import replace
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kb_mcp.instants import epoch_ms, future_ms
from kb_mcp.money import parse_caps
from kb_mcp.operators.actions.operations import admin_row
from kb_mcp.operators.reports.views import NoSuchKeyError
from kb_mcp.proxy.access import policy as policies
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.access.policy import Policy, PolicyError
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.access.tokens import Minted, Mode, mint
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Changes, KeyId, Lineage, LineageId, Refs, VaultKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_at
from kb_mcp.proxy.stores.reads import StoreReads

Counts = dict[str, int]
POLL_S = 0.05
TEXT_MAX = 128
REASON_MAX = 500
# The fields of a request that take the place of the policy's; caps are added to its caps.
NARROWING: Final = (
    "daily_charges", "daily_refunds", "rate", "approval_above", "refund_approval_above",
    "overlaps", "period_kinds",
)  # fmt: skip


class KeyEndedError(Exception):
    """A vault key that can have no successor: `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        """Take `key_revoked`, `key_rotated` or `key_ended`, and a sentence."""
        super().__init__(message)
        self.code = code


class CapRequiredError(Exception):
    """A new key would move money without a cap over time, and nobody said that it shall."""

    def __init__(self, policy: Policy) -> None:
        """Take the policy that lacks the cap."""
        super().__init__(
            f"a key of role {policy.role} moves money, and no cap per day, month or customer "
            "holds it"
        )
        self.policy = policy


class KeyRequestError(ValueError):
    """A new key that is not valid: a line for each reason, and the field, like `caps.daily`."""

    def __init__(self, errors: Sequence[str], param: str) -> None:
        """Take a line for each reason, and the field."""
        super().__init__("; ".join(errors))
        self.errors = tuple(errors)
        self.param = param


def clean_reason(text: str | None, limit: int = REASON_MAX) -> str | None:
    """Bound a text and take out what does not print; an empty one is none."""
    return (clean_text(text, limit).strip() or None) if text else None


def given_reason(text: str) -> str:
    """Return a reason that has to be given, as `clean_reason` does. Raises: ValueError."""
    reason = clean_reason(text)
    if reason is None:
        raise ValueError("say why")
    return reason


def _or_text(read: Callable[[str], object]) -> BeforeValidator:
    """Return what takes a value as it is, or reads the text that stands for it."""
    return BeforeValidator(lambda value: read(value) if isinstance(value, str) else value)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 7):
        raise ValueError("give a whole number, like 100")
    return int(text)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(map(str.strip, text.split(","))))


_Caps = Annotated[dict[str, Any], _or_text(parse_caps)]
_Count = Annotated[int, _or_text(_count)]
_Text = Annotated[
    str | None, Field(max_length=TEXT_MAX), AfterValidator(partial(clean_reason, limit=TEXT_MAX))
]


class KeyRequest(BaseModel):
    """What is asked of a new key: a built-in role or a policy, what narrows it, and for whom.

    Caps are minor units by currency, or text in major units like `500.00usd,450.00eur`; numbers may
    be text, too. A policy is its record, or the text of a file, TOML or JSON.
    """

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    role: str | None = None
    policy: dict[str, Any] | str | None = None
    label: _Text = None
    agent: _Text = None
    expires_at: str | None = None
    caps: dict[str, _Caps] | None = None
    refund_caps: dict[str, _Caps] | None = None
    daily_charges: _Count | None = None
    daily_refunds: _Count | None = None
    rate: int | str | None = None
    approval_above: _Caps | None = None
    refund_approval_above: _Caps | None = None
    uncapped: bool = False
    overlaps: str | None = None
    period_kinds: Annotated[list[str], _or_text(_names)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What a new key shall be; `expires_at` in ms UTC.

    `uncapped` says, in so many words, that it may move money without a cap over time.
    """

    policy: Policy
    mode: Mode
    label: str | None = None
    agent: str | None = None
    expires_at: int | None = None
    uncapped: bool = False


def read_new_key(fields: Mapping[str, Any], mode: Mode, now: int) -> NewKey:
    """Return the key that `fields`, those of a `KeyRequest`, describe; `now` in ms UTC.

    Raises: KeyRequestError.
    """
    try:
        asked = KeyRequest.model_validate(fields)
        policy = _narrowed(asked)
    except ValidationError as error:
        place = error.errors(include_url=False, include_input=False)[0]["loc"]
        named = place[:2] if place[0] in {"caps", "refund_caps"} else place[:1]
        param = clean_text(".".join(map(str, named)), TEXT_MAX)
        raise KeyRequestError(policies.policy_errors(error), param) from None
    except PolicyError as error:
        raise KeyRequestError(error.errors, "policy") from None
    if policy.expires_at is not None and epoch_ms(policy.expires_at) <= now:
        raise KeyRequestError(["expires_at: this is already past"], "policy")
    try:
        expires_at = None if asked.expires_at is None else future_ms(asked.expires_at, now)
    except ValueError as error:
        raise KeyRequestError([f"expires_at: {error}"], "expires_at") from None
    same = asked.model_dump(include={"label", "agent", "uncapped"})
    return NewKey(policy=policy, mode=mode, expires_at=expires_at, **same)


async def issue_key(
    ledger: Ledger, wanted: NewKey, random_bytes: Callable[[int], bytes], operator: str
) -> tuple[VaultKey, Minted]:
    """Mint and store a key; the token is in the result and nowhere else.

    Raises: CapRequiredError.
    """
    uncapped, policy = policies.missing_caps(wanted.policy), wanted.policy
    if uncapped and not wanted.uncapped:
        raise CapRequiredError(policy)
    minted = mint(wanted.mode, random_bytes)

    def step(snapshot: Snapshot) -> tuple[VaultKey, Changes]:
        key = VaultKey(
            id=minted.id,
            lineage_id=LineageId(minted.id),
            token_hash=minted.token_hash,
            mode=wanted.mode,
            role=policy.role,
            label=wanted.label,
            agent=wanted.agent,
            policy=policies.dump_policy(policy),
            created_at=snapshot.now,
            expires_at=_earliest(wanted.expires_at, _policy_ends(policy)),
        )
        said = "uncapped" if uncapped else None
        row = admin_row(operator, "issue", said, key_id=key.id, role=key.role)
        return key, Changes(keys=(key,), lineages=(Lineage(key.lineage_id),), audit=(row,))

    return await ledger.transact(lambda _: Refs(), step), minted


async def rotate_key(
    ledger: Ledger,
    key_id: KeyId,
    overlap_ms: int,
    random_bytes: Callable[[int], bytes],
    operator: str,
) -> tuple[VaultKey, Minted]:
    """Mint the successor of `key_id`: same policy and lineage, so caps and freezes go on.

    It lives as long as the old key, within the policy; the old one expires after `overlap_ms`.
    Raises: NoSuchKeyError, KeyEndedError.
    """

    def step(snapshot: Snapshot) -> tuple[tuple[VaultKey, Minted], Changes]:
        old, now = _key(snapshot, key_id), snapshot.now
        policy_ends = _policy_ends(policy_of(old.policy))
        _check_rotatable(old, policy_ends, now)
        minted = mint("live" if old.mode == "live" else "test", random_bytes)
        lasts = None if old.expires_at is None else now + old.expires_at - old.created_at
        successor = replace(
            old, id=minted.id, token_hash=minted.token_hash, created_at=now,
            expires_at=_earliest(lasts, policy_ends),
            revoked_at=None, revoke_reason=None, last_used_at=None, rotated_to=None,
        )  # fmt: skip
        ends = _earliest(now + overlap_ms, old.expires_at)
        retired = replace(old, expires_at=ends, rotated_to=minted.id)
        row = admin_row(operator, "rotate", f"to {minted.id}", key_id=old.id, role=old.role)
        return (successor, minted), Changes(keys=(retired, successor), audit=(row,))

    return await ledger.transact(lambda _: Refs(keys=frozenset({key_id})), step)


async def revoke_key(
    ledger: Ledger,
    records: StoreReads,
    key_id: KeyId,
    reason: str | None,
    operator: str,
    wait_s: int,
) -> Counts:
    """Revoke a key now; return how many of its sends were under way, and still are.

    It waits at most `wait_s` for them to end. Raises: NoSuchKeyError.
    """

    def step(snapshot: Snapshot) -> tuple[LineageId, Changes]:
        key = _key(snapshot, key_id)
        if key.revoked_at is None:
            key = replace(key, revoked_at=snapshot.now, revoke_reason=reason)
        row = admin_row(operator, "revoke", reason, key_id=key.id, role=key.role)
        return key.lineage_id, Changes(keys=(key,), audit=(row,))

    lineage_id = await ledger.transact(lambda _: Refs(keys=frozenset({key_id})), step)
    return await await_sends(records, lineage_id, wait_s)


async def unfreeze_key(ledger: Ledger, key_id: KeyId, reason: str, operator: str) -> Lineage:
    """Unfreeze the lineage of `key_id`, and start its count of the day's declines anew.

    Raises: NoSuchKeyError.
    """
    known = await ledger.find_key(key_id)
    if known is None:
        raise NoSuchKeyError(key_id)
    lineage_id = known[0].lineage_id

    def step(snapshot: Snapshot) -> tuple[Lineage, Changes]:
        key = _key(snapshot, key_id)
        row = admin_row(operator, "unfreeze", reason, key_id=key.id, role=key.role)
        unfrozen = replace(snapshot.lineage(lineage_id), frozen_at=None, frozen_reason=None)
        today = snapshot.window(windows_at(snapshot.now, lineage_id, None, "").counts)
        anew = (replace(today, declines=0),) if today.declines else ()
        return unfrozen, Changes(lineages=(unfrozen,), windows=anew, audit=(row,))

    def refs(now: int) -> Refs:
        counts = windows_at(now, lineage_id, None, "").counts
        return Refs(keys=frozenset({key_id}), windows=frozenset({counts}))

    return await ledger.transact(refs, step)


async def await_sends(records: StoreReads, lineage_id: str, wait_s: int) -> Counts:
    """Wait at most `wait_s` for a lineage's sends to end; return how many there were, and are."""

    async def under_way() -> int:
        found = await records.operations(state="reserved", lineage_id=lineage_id)
        return sum(operation.lease_owner is not None for operation, _ in found)

    first = left = await under_way()
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while left:
                await asyncio.sleep(POLL_S)
                left = await under_way()
    return {"under_way": first, "still_under_way": left}


def _key(snapshot: Snapshot, key_id: KeyId) -> VaultKey:
    key = snapshot.keys.get(key_id)
    if key is None:
        raise NoSuchKeyError(key_id)
    return key


def _check_rotatable(key: VaultKey, policy_ends: int | None, now: int) -> None:
    if key.revoked_at is not None:
        code, why = "key_revoked", "was revoked: issue a new one"
    elif key.rotated_to is not None:
        code, why = "key_rotated", f"was rotated to {key.rotated_to}: rotate that one"
    elif policy_ends is not None and policy_ends <= now:
        code, why = "key_ended", "has a policy that ended: issue a new one under another policy"
    else:
        return
    raise KeyEndedError(code, f"vault key {key.id} {why}")


def _policy_ends(policy: Policy) -> int | None:
    return None if policy.expires_at is None else epoch_ms(policy.expires_at)


def _earliest(*ends: int | None) -> int | None:
    return min((each for each in ends if each is not None), default=None)


def _narrowed(asked: KeyRequest) -> Policy:
    """Return the policy that is asked for. Raises: KeyRequestError, PolicyError."""
    match asked.role, asked.policy:
        case None, str(text):
            # A TOML document never begins with a brace, a JSON object always does.
            base = policies.parse_policy(text, "json" if text.lstrip().startswith("{") else "toml")
        case None, dict(record):
            base = policies.load_policy(record)
        case str(role), None:
            try:
                base = built_in(role)
            except KeyError as error:
                raise KeyRequestError([f"role: {error.args[0]}"], "role") from None
        case _:
            raise KeyRequestError(["give either a built-in role or a policy"], "role")
    data = json.loads(policies.dump_policy(base))
    for name in ("caps", "refund_caps"):
        data[name] = data.get(name, {}) | (getattr(asked, name) or {})
    given = asked.model_dump(include=set(NARROWING), exclude_none=True)
    return policies.load_policy(data | given)
