"""Reads: requests that move no money, passed to Stripe and answered as it answered.

Floor: below the pipeline. What goes upstream is rebuilt from the parsed request; the answer is
checked against the customers a key may touch before it is forwarded.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from kb_mcp.proxy.access.authenticate import Admitted
from kb_mcp.proxy.access.authorize import check_answer, customers_to_look_up
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse, scrub_error, strip_client_secret
from kb_mcp.proxy.ledger.port import Ledger, note
from kb_mcp.proxy.ledger.records import AuditDraft
from kb_mcp.proxy.stripe.interpret import Reading
from kb_mcp.proxy.stripe.messages import Answered, Reply, UpstreamAnswer, refused
from kb_mcp.proxy.stripe.reader import WAITED_FOR_MS, StripeReads

LOOKED_UP_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Forwards reads by `stripe`."""

    ledger: Ledger
    stripe: StripeReads
    upstream_key: str

    async def read(
        self, admitted: Admitted, reading: Reading, version: str | None, base: AuditDraft
    ) -> Reply:
        """Answer a read, and leave its audit row before the answer goes out."""
        started = self.stripe.boottime_ms()
        query = reading.form.encode().decode()
        path = f"{reading.path}?{query}" if query else reading.path
        answer = await self.stripe.fetch(path, WAITED_FOR_MS, version)
        shown = await self._shown(admitted, answer)
        row = replace(
            base,
            kind="read",
            code=shown.code.value if isinstance(shown, Refusal) else None,
            decision="forward" if isinstance(answer, Answered) else "failed",
            stripe_status=answer.status if isinstance(answer, Answered) else None,
            object_id=reading.object_id,
            customer_id=reading.customer,
            duration_ms=self.stripe.boottime_ms() - started,
        )
        await note(self.ledger, row)
        return refused(shown) if isinstance(shown, Refusal) else shown

    async def customer_metadata(self, customer: str) -> dict[str, str] | None:
        """Return the metadata of `customer` as Stripe has it, or None where it cannot be had."""
        found = await self.stripe.body(f"/v1/customers/{customer}")
        metadata = None if found is None else found.get("metadata")
        return metadata if isinstance(metadata, dict) else None

    async def _shown(self, admitted: Admitted, answer: UpstreamAnswer) -> Reply | Refusal:
        if not isinstance(answer, Answered):
            # A read that got no answer changed nothing: it may simply be asked again.
            return refuse(Code.UPSTREAM_UNREACHABLE)
        headers = {
            name: answer.headers[name]
            for name in ("request-id", "stripe-version")
            if name in answer.headers
        }
        if answer.status in {401, 403}:
            return refuse(Code.UPSTREAM_REJECTED_KEY)
        if answer.status >= 400:
            return Reply(answer.status, scrub_error(answer.body, self.upstream_key), headers)
        asked = customers_to_look_up(admitted.policy, answer.body)
        # More would be a search among customers, which such a key may not see anyway.
        looked_up = asked if len(asked) <= LOOKED_UP_MAX else frozenset()
        known = {each: await self.customer_metadata(each) for each in sorted(looked_up)}
        hidden = check_answer(admitted.policy, answer.body, known)
        if hidden is not None:
            return hidden
        return Reply(answer.status, strip_client_secret(answer.body), headers)
