"""`kb-mcp doctor`: is everything as it must be?

Floor: the commands. A check that cannot be made is a check that failed, and says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from kb_mcp.cli.opening import OpenProxy, on_proxy
from kb_mcp.cli.output import failure_of, found_something, json_option, print_json
from kb_mcp.instants import day_of
from kb_mcp.settings import load_settings

EXPIRES_SOON_MS = 7 * 86_400_000
READS_AGAIN = 3
SHOWN = 5
Check = dict[str, Any]


@click.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """Check settings, store, invariants, clock, upstream key, vault keys, grants and issuers.

    Exit code 1 when a check found something.

    Example: kb-mcp doctor --json
    """
    checks = _examine()
    ok = all(check["ok"] for check in checks)
    if as_json:
        print_json({"ok": ok, "checks": checks})
    else:
        width = max(len(check["name"]) for check in checks)
        for check in checks:
            click.echo(
                f"{'ok ' if check['ok'] else 'NO '} {check['name']:<{width}}  {check['detail']}"
            )
    if not ok:
        found_something()


def _examine() -> list[Check]:
    try:
        settings = load_settings()
    except ValueError as error:
        return [_check("settings", str(error), ok=False)]
    checks = [_check("settings", f"upstream {settings.upstream_mode}")]
    try:
        return checks + asyncio.run(on_proxy(settings, _examine_store, looks_only=True))
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        return [*checks, _check("store", failure.message, ok=False)]


async def _examine_store(opened: OpenProxy) -> list[Check]:
    named = (
        ("store", _store), ("account", _account), ("heads", _heads), ("gap", _gap),
        ("adopted", _adopted), ("invariants", _invariants), ("overlaps", _overlaps),
        ("audit", _audit), ("upstream", _upstream), ("clock", _clock), ("keys", _keys),
        ("grants", _grants),
    )  # fmt: skip
    checks = []
    for name, examine in named:
        ok, detail = await examine(opened)
        checks.append(_check(name, detail, ok=ok))
    return checks + await _issuers(opened)


async def _store(opened: OpenProxy) -> tuple[bool, str]:
    from kb_mcp.operators.alerts import WAL_LARGE_BYTES
    from kb_mcp.wiring.stores.store import shown_place

    records = opened.store.records
    reachable, log_bytes = await records.ping(), records.log_bytes()
    detail = f"{shown_place(opened.settings)} reachable, schema {opened.store_admin.schema()}"
    if log_bytes is None:
        return reachable, detail
    detail += f", write-ahead log {log_bytes // 2**20} MiB"
    if log_bytes > WAL_LARGE_BYTES:
        detail += ": something outside reads an older state, so that it cannot be emptied"
    return reachable and log_bytes <= WAL_LARGE_BYTES, detail


async def _account(opened: OpenProxy) -> tuple[bool, str]:
    bound = opened.store.settings
    if "mode" not in opened.store_admin.facts():
        return True, f"not bound yet: the first process that serves binds it to {bound.account!r}"
    return True, f"bound to account {bound.account!r} in {bound.mode} mode"


async def _heads(opened: OpenProxy) -> tuple[bool, str]:
    behind = opened.store.behind
    if not behind:
        return True, "the store reaches every exported head"
    first = behind[0].head
    return False, (
        f"the store lacks row {first.node}:{first.seq}, which was exported: it was restored or "
        "cut, and sends nothing until `kb-mcp adopt --since … --apply` has closed the gap"
    )


async def _gap(opened: OpenProxy) -> tuple[bool, str]:
    """Walk Stripe's lists without keeping anything: a store may have been put back just now."""
    from kb_mcp.proxy.store_walk import LOOK_BACK_AT_START_MS, BrokenWalk, LostObjects

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


async def _adopted(opened: OpenProxy) -> tuple[bool, str]:
    since = opened.store_admin.facts().get("adopted_since")
    if since is not None:
        return True, f"charges since {since} were adopted"
    return True, "not adopted: what was charged before kb-mcp came may be billed again"


async def _invariants(opened: OpenProxy) -> tuple[bool, str]:
    found: set[str] | None = None
    for _ in range(READS_AGAIN):
        # A serving process writes between two of our reads; what is really wrong stays so.
        again = await _violations(opened)
        found = again if found is None else found & again
        if not found:
            return True, "hold"
    return False, _some(sorted(found or ()), "; ")


def _some(found: Sequence[str], between: str) -> str:
    left = len(found) - SHOWN
    return between.join(found[:SHOWN]) + (f" and {left} more" if left > 0 else "")


async def _violations(opened: OpenProxy) -> set[str]:
    from kb_mcp.operators.reports.invariants import Examination
    from kb_mcp.proxy.access.authenticate import policy_of
    from kb_mcp.proxy.edge.records import every_operation

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


async def _overlaps(opened: OpenProxy) -> tuple[bool, str]:
    """Count what was billed before overlaps were refused: it stands, and is for people to judge."""
    from kb_mcp.operators.reports.invariants import count_overlaps
    from kb_mcp.proxy.access.authenticate import policy_of

    keys = await opened.store.records.keys()
    allowed = {key.id for key, _ in keys if policy_of(key.policy).overlaps == "allow"}
    count = count_overlaps(await opened.store.records.billed_days(), allowed)
    if not count:
        return True, "no two live bills share days"
    pairs = "pair of live bills shares" if count == 1 else "pairs of live bills share"
    return True, f"{count} {pairs} days; the later one would be refused now"


async def _audit(opened: OpenProxy) -> tuple[bool, str]:
    from kb_mcp.cli.audit import verified

    outcome, _ = verified(opened, shown=False)
    if outcome.breaks:
        return False, str(outcome.breaks[0])
    return True, f"{outcome.rows} rows in {len(outcome.ends)} chains verify"


async def _upstream(opened: OpenProxy) -> tuple[bool, str]:
    from kb_mcp.proxy.stripe.reader import Unread

    key, mode = opened.settings.stripe_key, opened.settings.upstream_mode
    if mode == "sandbox":
        what = "SANDBOX, no real money moves"
    else:
        restricted = key is not None and key.reveal().startswith("rk_")
        what = f"{'a restricted' if restricted else 'an UNRESTRICTED'} {mode} key"
        if not restricted:
            return False, f"{what}: make a restricted one (rk_…)"
    seen = await opened.reads.get("/v1/charges?limit=1")
    if isinstance(seen, Unread):
        return False, f"{what}; {seen.why}"
    return True, f"{what}; answers"


async def _clock(opened: OpenProxy) -> tuple[bool, str]:
    from kb_mcp.proxy.ledger.clock import AGREE_MS, CONFIRMED
    from kb_mcp.proxy.ledger.records import Changes, Refs

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
    if clock.follows:
        return True, "the sandbox's"
    if not clock.heard:
        return True, "the host's alone: Stripe has told no time"
    if abs(clock.skew_ms) > AGREE_MS:
        return True, f"Stripe's: this host's is {clock.skew_ms // 1000} s apart"
    return True, f"within {abs(clock.skew_ms) // 1000 + 1} s of Stripe's"


async def _keys(opened: OpenProxy) -> tuple[bool, str]:
    from kb_mcp.proxy.access.authenticate import policy_of
    from kb_mcp.proxy.access.policy import is_uncapped

    now = opened.now()
    wanted = "live" if opened.settings.upstream_mode == "live" else "test"
    problems, serving, uncapped = [], 0, []
    for key, lineage in await opened.store.records.keys():
        expired = key.expires_at is not None and key.expires_at <= now
        if key.revoked_at is not None or expired:
            continue
        serving += 1
        if is_uncapped(policy_of(key.policy)):
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


async def _grants(opened: OpenProxy) -> tuple[bool, str]:
    from kb_mcp.operators.actions.grants import find_problems

    issuers = opened.settings.oauth_issuers
    grants = [each for each in await opened.store.records.grants() if each.removed_at is None]
    problems = await find_problems(opened.store.ledger, grants, issuers, opened.now())
    if issuers and not grants:
        return True, "none: tokens get 403 until `kb-mcp grants add` lets identities in"
    return not problems, "; ".join([*problems, f"{len(grants)} stand"])


async def _issuers(opened: OpenProxy) -> list[Check]:
    """Say what tokens must be meant for, and check each issuer: metadata, name and keys."""
    from urllib.parse import urlsplit

    from kb_mcp.serving.host_check import known_host

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
    checks = [_check("audience", shown)]
    for name, problem in (await issuers.examine()).items():
        said = "serves its keys" if problem is None else f"- {problem}; {advice}"
        checks.append(_check("issuer", f"{name} {said}", ok=problem is None))
    return checks


def _ends_soon(created_at: int, expires_at: int, now: int) -> bool:
    """Say whether a key is about to expire; one that was made for a few days is not news."""
    left = expires_at - now
    return left < EXPIRES_SOON_MS and 4 * left < expires_at - created_at


def _check(name: str, detail: str, *, ok: bool = True) -> Check:
    return {"name": name, "ok": ok, "detail": detail}
