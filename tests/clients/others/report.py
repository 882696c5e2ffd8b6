"""The page that a run of all clients writes: what the upstream counted, client by client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.clients.others.catalogue import Other
from tests.clients.others.environments import version_of
from tests.clients.others.trial import STEPS, Outcome

HEAD = """<!-- Written by `make clients`: run it, do not edit this page. -->
# Other people's clients

Each client runs in an environment of its own, pinned by hash, against one proxy in front of the
[sandbox](sandbox.md). It lists the tools, charges, charges the same again, and asks for the status,
as its own documentation shows it; no model takes part. A cell is the number of charges that the
**upstream** counted for that customer after the step, not what the client said. `-` is a step that
the client does not have: Stripe's SDKs list no tools, and a command that lists servers charges
nothing.

| client | version | over | list | charge | again | status |
|---|---|---|---|---|---|---|
"""
NOTES = """
Over stdio a client starts `kb-mcp mcp`; over HTTP it reaches `kb-mcp up`, at `/mcp` or, for
Stripe's SDKs, at Stripe's own paths. mcp-remote is a stdio server that speaks HTTP to the proxy;
supergateway and LiteLLM's gateway stand in front of it, and the MCP SDK for Python uses them. With
localstripe the upstream is that server, which knows no idempotency keys: what keeps the second
charge away there is the ledger alone. Lambda's runtime client is `awslambdaric` with a runtime API
of the test's. The vault keys of the last row lie in a Secrets Manager (moto), one as the console
writes it, one addressed by `ARN:json-key::`.

`make clients` runs them all and writes this page; `make prove` tries six of them, `make test` two.
"""


@dataclass(frozen=True, slots=True)
class NotInstalled:
    """A client that is not in the table: what installs it, and how that ended."""

    other: Other
    command: str
    error: str


def page(outcomes: Sequence[Outcome], missing: Sequence[NotInstalled]) -> str:
    """Return the page."""
    rows = "".join(f"{row}\n" for row in (*map(_row, outcomes), *map(_missing, missing)))
    return HEAD + rows + NOTES + "".join(_notes(outcomes, missing))


def _row(outcome: Outcome) -> str:
    cells = [_cell(outcome, step) for step in STEPS]
    other = outcome.other
    over = "stdio" if outcome.transport == "stdio" else "HTTP"
    return f"| {other.name} | {version_of(other)} | {over} | {' | '.join(cells)} |"


def _cell(outcome: Outcome, step: str) -> str:
    if step not in outcome.steps:
        return "-"
    return str(outcome.counted[step]) if step in outcome.counted else "failed"


def _missing(each: NotInstalled) -> str:
    return f"| {each.other.name} | {version_of(each.other)} | not installed | | | | |"


def _notes(outcomes: Sequence[Outcome], missing: Sequence[NotInstalled]) -> Iterator[str]:
    if missing:
        yield "\nWhat could not be installed here:\n\n"
    for absent in missing:
        told = f"`{_plain(absent.command)}` ended with `{_plain(absent.error)}`"
        yield f"- {absent.other.name}: {told}\n"
    failed = [each for each in outcomes if each.failed]
    if failed:
        yield "\nWhat failed:\n\n"
    for each in failed:
        yield f"- {each.other.name} over {each.transport}: `{_plain(each.failed)}`\n"


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
