"""`kb-mcp doctor`: is everything as it must be?

Floor: the commands. A check that cannot be made is a check that failed, and says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import click

from kb_mcp.cli.audit import verified
from kb_mcp.cli.opening import OpenProxy, open_proxy
from kb_mcp.cli.output import Output, example, failure_of, found_something, json_option
from kb_mcp.instants import day_of
from kb_mcp.operators import alerts
from kb_mcp.operators.actions.grants import find_problems
from kb_mcp.operators.reports.invariants import Examination, count_overlaps
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.access.policy import missing_caps
from kb_mcp.proxy.edge.records import every_operation
from kb_mcp.proxy.ledger.clock import AGREE_MS, CONFIRMED
from kb_mcp.proxy.ledger.records import Changes, Refs
from kb_mcp.proxy.store_walk import LOOK_BACK_AT_START_MS, BrokenWalk, LostObjects
from kb_mcp.proxy.stripe.reader import Unread
from kb_mcp.serving.host_check import known_host
from kb_mcp.settings import load_settings
from kb_mcp.wiring.stores import shown_place

EXPIRES_SOON_MS = 7 * 86_400_000
READS_MAX = 3
SHOWN = 5
Finding = tuple[bool, str]  # whether all is as it must be, and what there is to say
Check = tuple[str, bool, str]  # its name, and what was found


@click.command()
@json_option
@example("doctor --json")
def doctor(*, as_json: bool) -> None:
    """Check settings, store, invariants, clock, upstream key, vault keys, grants and issuers.

    Exit code 1 when a check found something.
    """
    checks = asyncio.run(_examine())
    ok = all(holds for _, holds, _ in checks)
    if as_json:
        names = ("name", "ok", "detail")
        records = [dict(zip(names, check, strict=True)) for check in checks]
        Output().json({"ok": ok, "checks": records})
    else:
        width = max(len(name) for name, _, _ in checks)
        for name, holds, detail in checks:
            click.echo(f"{'ok ' if holds else 'NO '} {name:<{width}}  {detail}")
    if not ok:
        found_something()


async def _examine() -> list[Check]:
    try:
        settings = load_settings()
    except ValueError as error:
        return [("settings", False, str(error))]
    checks = [("settings", True, f"upstream {settings.upstream_mode}")]
    try:
        async with open_proxy(settings, Output(as_json=True), looks_only=True) as opened:
            found = [(name, *await examine(opened)) for name, examine in CHECKS.items()]
            return checks + found + await _issuers(opened)
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        return [*checks, ("store", False, failure.message)]


async def _store(opened: OpenProxy) -> Finding:
    records = opened.store.records
    reachable, log_bytes = await records.ping(), records.log_bytes()
    detail = (
        f"{shown_place(opened.settings)} reachable, schema {opened.store_admin.database.schema()}"
    )
    if log_bytes is None:
        return reachable, detail
    detail += f", write-ahead log {log_bytes // 2**20} MiB"
    if log_bytes > alerts.WAL_LARGE_BYTES:
        detail += ": something outside reads an older state, so that it cannot be emptied"
    return reachable and log_bytes <= alerts.WAL_LARGE_BYTES, detail


async def _account(opened: OpenProxy) -> Finding:
    bound = opened.store.settings
    if "mode" not in opened.store_admin.facts():
        return True, f"not bound yet: the first process that serves binds it to {bound.account!r}"
    return True, f"bound to account {bound.account!r} in {bound.mode} mode"


async def _heads(opened: OpenProxy) -> Finding:
    behind = opened.store.behind
    if not behind:
        return True, "the store reaches every exported head"
    first = behind[0]
    return False, (
        f"the store lacks row {first.node}:{first.seq}, which was exported: it was restored or "
        "cut, and sends nothing until `kb-mcp adopt --since … --apply` has closed the gap"
    )


async def _gap(opened: OpenProxy) -> Finding:
    """Walk Stripe's lists without keeping anything: a store may have been put back just now."""
    walk = opened.proxy.walks.walk
    match await walk.run(LOOK_BACK_AT_START_MS, writes=False):
        case BrokenWalk(path=path, why=why):
            return False, f"{path} cannot be read: {why}"
        case LostObjects(objects=objects, any_store=any_store):
            shown = _some(objects, ", ")
            if any_store and walk.warns:
                return True, f"the sandbox has charges of another store: {shown}"
            return False, (
                f"Stripe has charges that this store does not know ({shown}): nothing is sent "
                "until `kb-mcp adopt --since … --apply` has taken them in"
            )
        case _:
            return True, "the store knows every charge of its own at Stripe"


async def _adopted(opened: OpenProxy) -> Finding:
    since = opened.store_admin.facts().get("adopted_since")
    if since is not None:
        return True, f"charges since {since} were adopted"
    return True, "not adopted: what was charged before kb-mcp came may be billed again"


async def _invariants(opened: OpenProxy) -> Finding:
    found, reads = await _violations(opened), 1
    # A serving process writes between two of our reads; what is really wrong stays so.
    while found and reads < READS_MAX:
        found, reads = found & await _violations(opened), reads + 1
    return not found, _some(sorted(found), "; ") or "hold"


def _some(found: Sequence[str], between: str) -> str:
    left = len(found) - SHOWN
    return between.join(found[:SHOWN]) + (f" and {left} more" if left > 0 else "")


async def _violations(opened: OpenProxy) -> set[str]:
    records, archived = opened.store.records, bool(opened.store_admin.archived())
    examination = Examination()
    async for operation, attempts in every_operation(records):
        # Where old segments were archived nothing can be said.
        audited = archived or any(records.audit(operation=operation.id, limit=1))
        examination.look(operation, attempts, audited=audited)
    policies: dict[Any, list[Any]] = {}
    for key, _ in await records.keys():
        policies.setdefault(key.lineage_id, []).append(policy_of(key.policy))
    windows = await records.windows()
    # From the day on which an operator set the ceiling, or "" where nobody did.
    at = opened.store_admin.facts().get("ceilings_set_at")
    since = "" if at is None else day_of(int(at)).isoformat()
    return set(examination.end(windows, policies, opened.store.settings.ceilings, since))


async def _overlaps(opened: OpenProxy) -> Finding:
    """Count what was billed before overlaps were refused: it stands, and is for people to judge."""
    keys = await opened.store.records.keys()
    allowed = {key.id for key, _ in keys if policy_of(key.policy).overlaps == "allow"}
    count = count_overlaps(await opened.store.records.billed_days(), allowed)
    if not count:
        return True, "no two live bills share days"
    pairs = "pair of live bills shares" if count == 1 else "pairs of live bills share"
    return True, f"{count} {pairs} days; the later one would be refused now"


async def _audit(opened: OpenProxy) -> Finding:
    outcome, _ = verified(opened)
    if outcome.breaks:
        return False, str(outcome.breaks[0])
    return True, f"{outcome.rows} rows in {len(outcome.ends)} chains verify"


async def _upstream(opened: OpenProxy) -> Finding:
    key, mode = opened.settings.stripe_key, opened.settings.upstream_mode
    what = "SANDBOX, no real money moves"
    if mode != "sandbox":
        restricted = key is not None and key.reveal().startswith("rk_")
        what = f"{'a restricted' if restricted else 'an UNRESTRICTED'} {mode} key"
        if not restricted:
            return False, f"{what}: make a restricted one (rk_…)"
    seen = await opened.proxy.reads.get("/v1/charges?limit=1")
    why = seen.why if isinstance(seen, Unread) else None
    return why is None, f"{what}; {why or 'answers'}"


async def _clock(opened: OpenProxy) -> Finding:
    # The clock reads what the store holds about the time.
    await opened.store.ledger.transact(lambda _: Refs(), lambda _: (None, Changes()))
    clock = opened.store.clock
    if clock.dispute:
        return False, (
            f"{clock.dispute}: what depends on the time answers 503. Set this host's clock right; "
            "if it is right, type `kb-mcp settings confirm-clock`"
        )
    if opened.store_admin.facts().get(CONFIRMED, "").isdigit():
        apart_s = abs(clock.skew_ms) // 1000
        return True, f"the host's, as an operator confirmed; Stripe's is {apart_s} s apart"
    if clock.followed():
        return True, "the sandbox's"
    if not clock.heard:
        return True, "the host's alone: Stripe has told no time"
    if abs(clock.skew_ms) > AGREE_MS:
        return True, f"Stripe's: this host's is {clock.skew_ms // 1000} s apart"
    return True, f"within {abs(clock.skew_ms) // 1000 + 1} s of Stripe's"


async def _keys(opened: OpenProxy) -> Finding:
    now = opened.now()
    wanted = "live" if opened.settings.upstream_mode == "live" else "test"
    problems, serving, uncapped = [], 0, []
    for key, lineage in await opened.store.records.keys():
        expired = key.expires_at is not None and key.expires_at <= now
        if key.revoked_at is not None or expired:
            continue
        serving += 1
        if missing_caps(policy_of(key.policy)):
            uncapped.append(key.id)
        if key.mode != wanted:
            problems.append(f"{key.id} is a {key.mode} key")
        if lineage.frozen_at is not None:
            problems.append(f"{key.id} is frozen ({lineage.frozen_reason})")
        soon = key.expires_at is not None and _ends_soon(key.created_at, key.expires_at, now)
        if soon and key.rotated_to is None:
            problems.append(f"{key.id} expires within 7 days")
    # Somebody chose to have no cap: that is told, and no fault.
    without = [f"without a cap over time: {', '.join(uncapped)}"] if uncapped else []
    return not problems, "; ".join([*problems, f"{serving} serve", *without])


async def _grants(opened: OpenProxy) -> Finding:
    issuers = opened.settings.oauth_issuers
    grants = [each for each in await opened.store.records.grants() if each.removed_at is None]
    problems = await find_problems(opened.store.ledger, grants, issuers, opened.now())
    if issuers and not grants:
        return True, "none: tokens get 403 until `kb-mcp grants add` lets identities in"
    return not problems, "; ".join([*problems, f"{len(grants)} stand"])


async def _issuers(opened: OpenProxy) -> list[Check]:
    """Say what tokens must be meant for, and check each issuer: metadata, name and keys."""
    issuers, settings = opened.proxy.app.pipeline.issuers, opened.settings
    if issuers is None:
        return []
    shown = f"tokens must be meant for {settings.oauth_resource}"
    host = urlsplit(settings.oauth_address or "").netloc
    if host and not known_host(host, settings.allowed_hosts):
        shown += (
            f"; clients that use {host} get 421 until KEYBRAKE_ALLOWED_HOSTS names it, unless what "
            "stands in front writes another Host"
        )
    advice = (
        "its tokens get 503 once its last keys have ended: set KEYBRAKE_OAUTH_ISSUERS as `iss` "
        "writes it, or mend the issuer"
    )
    checks = [("audience", True, shown)]
    for name, problem in (await issuers.examine()).items():
        said = "serves its keys" if problem is None else f"- {problem}; {advice}"
        checks.append(("issuer", problem is None, f"{name} {said}"))
    return checks


def _ends_soon(created_at: int, expires_at: int, now: int) -> bool:
    """Say whether a key is about to expire; one that was made for a few days is not news."""
    left = expires_at - now
    return left < EXPIRES_SOON_MS and 4 * left < expires_at - created_at


CHECKS = {
    "store": _store, "account": _account, "heads": _heads, "gap": _gap, "adopted": _adopted,
    "invariants": _invariants, "overlaps": _overlaps, "audit": _audit, "upstream": _upstream,
    "clock": _clock, "keys": _keys, "grants": _grants,
}  # fmt: skip
"""What is looked at in an open store, by the name that is told, in this order."""
