"""Runs every Python block of docs/from-samples.md as what it is: a Lambda function, called twice.

`<!-- runs: at=WHERE charges=N [raises=ERROR] [later=SECONDS] -->` above a block says what has to
come of it: WHERE is what its Stripe key and address point at, SECONDS pass before the second call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from kb_mcp.demo.machines import STRIPE_KEY, DemoError, SandboxClient, command, running
from kb_mcp.demo.scenarios import charging

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-samples.md"
BLOCK = re.compile(r"((?:<!-- runs: [^\n]* -->\n)*)```python\n(.*?)```", re.DOTALL)
RUN = re.compile(r"<!-- runs: (.*) -->")


@dataclass(frozen=True)
class Run:
    """One block, and what has to come of it at one place."""

    number: int
    code: str
    at: str
    charges: int
    raises: str | None = None
    later: int = 0

    @property
    def customer(self) -> str:
        return f"cus_Block{self.number}{self.at.replace('-', '')}{self.later}"


@dataclass(frozen=True)
class Places:
    """The environment of a function, by place."""

    sandbox: SandboxClient
    environs: dict[str, dict[str, str]]


def runs() -> Iterator[Run]:
    for number, (marks, code) in enumerate(BLOCK.findall(PAGE.read_text(encoding="utf-8")), 1):
        for mark in RUN.findall(marks):
            said = dict(part.split("=", 1) for part in mark.split())
            yield Run(
                number,
                code,
                said.pop("at"),
                int(said.pop("charges")),
                said.pop("raises", None),
                int(said.pop("later", "0")),
            )
            assert said == {}, mark


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    folder = tmp_path_factory.mktemp("places")
    alone = ["kb_mcp", "sandbox", "--port", "0"]
    up = ["kb_mcp", "up", "--port", "0", "--admin-port", "0"]
    with running(alone, {}, folder / "sandbox.log") as sandbox:
        stripe = sandbox.address("Sandbox listening on")
        settings = {
            "HOME": str(folder),
            "KEYBRAKE_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
            "KEYBRAKE_STRIPE_KEY": STRIPE_KEY,
            "KEYBRAKE_STRIPE_API_BASE": stripe,
        }
        with running(up, settings, folder / "up.log") as serving:
            proxy = serving.address("Agents:")
            billing, audit = (
                command(
                    ["keys", "issue", "--role", role, "--uncapped", "--json"], settings, folder
                )["token"]
                for role in ("billing", "audit")
            )
            environs = {
                "sandbox": {"STRIPE_SECRET_KEY": STRIPE_KEY, "STRIPE_API_BASE": stripe},
                "proxy": {"STRIPE_SECRET_KEY": billing, "STRIPE_API_BASE": f"{proxy}/stripe"},
                "proxy-audit": {"STRIPE_SECRET_KEY": audit, "STRIPE_API_BASE": f"{proxy}/stripe"},
                "tools": {"KEYBRAKE_PROXY_URL": proxy, "KEYBRAKE_VAULT_KEY_BILLING": billing},
            }
            with closing(SandboxClient(stripe)) as client:
                yield Places(client, environs)


def test_every_python_block_of_the_page_is_run() -> None:
    blocks = PAGE.read_text(encoding="utf-8").count("```python")
    assert len({run.number for run in runs()}) == blocks > 0


@pytest.mark.parametrize("run", list(runs()), ids=lambda run: run.customer)
def test_a_block_does_what_the_page_says(run: Run, places: Places, tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(run.code, encoding="utf-8")
    bill = charging(run.customer, places.sandbox.month())
    event = bill.event("session", "Charge it.")
    arguments = ["kb_mcp.demo.lambda_runtime", "sample:lambda_handler"]
    environ = places.environs[run.at]
    with running(arguments, environ, tmp_path / "sample.log") as function:
        raised = []
        for wait in (0, run.later):
            if wait:
                places.sandbox.advance(wait)
            try:
                raised.append(function.invoke(event).error)
            except DemoError as error:
                # It could not even be imported: what the log says last is what was raised.
                raised.append(str(error).split(": ")[1])

    assert raised == [run.raises, run.raises]
    assert len(places.sandbox.made("charge", {"customer": run.customer})) == run.charges
