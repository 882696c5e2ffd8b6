"""A host whose store can be saved and put back: with its heads, as a snapshot of a folder is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from typing_extensions import override

from kb_mcp.settings import load_settings
from kb_mcp.wiring.proxy import Proxy
from kb_mcp.wiring.upstream import build_sandbox
from tests.cli.machine import Machine
from tests.postgres import OWNER, Database

SINCE = ("--since", "30d")
BEHIND = (503, "ledger_behind")


@dataclass(frozen=True)
class Host(Machine):
    """A machine on either store; every request passes a proxy that was started for it."""

    database: Database | None = None
    extra: dict[str, str] = field(default_factory=dict)

    @property
    @override
    def env(self) -> dict[str, str]:
        if self.database is not None:
            return dict(self.database.environ) | self.extra
        return {"KEYBRAKE_DATABASE_URL": f"sqlite:///{self.store}"} | self.extra

    @property
    def files(self) -> Path:
        """Return the folder of the files of this host."""
        return self.folder if self.database is None else self.folder / "data" / "kb-mcp"

    def save(self, name: str = "saved") -> None:
        """Save the store and all that lies beside it, but what stands for Stripe."""
        copy = self.folder.with_name(f"{self.folder.name}-{name}")
        shutil.copytree(self.files, copy, ignore=shutil.ignore_patterns("*.sandbox*"))
        if self.database is not None:
            self.database.server.query(
                f"CREATE DATABASE {self.database.name}_{name} TEMPLATE {self.database.name}"
            )

    def put_back(self, name: str = "saved", *, heads: bool = True) -> None:
        """Put what was saved in the place of the store; `heads` says whether they come too."""
        copy = self.folder.with_name(f"{self.folder.name}-{name}")
        for file in self.files.iterdir():
            if ".sandbox" in file.name or (file.is_dir() and not heads):
                continue
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink()
        for file in copy.iterdir():
            if file.is_dir() and heads:
                shutil.copytree(file, self.files / file.name)
            elif file.is_file():
                shutil.copy2(file, self.files / file.name)
        if self.database is not None:
            server, own = self.database.server, self.database.name
            server.query(f"DROP DATABASE {own} WITH (FORCE)")
            server.query(f"CREATE DATABASE {own} TEMPLATE {own}_{name} OWNER {OWNER}")

    def begin_anew(self) -> None:
        """Lose the store and all that lies beside it, but what stands for Stripe."""
        for file in self.files.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif ".sandbox" not in file.name:
                file.unlink()

    def error(self, answer: httpx.Response) -> tuple[int, str]:
        """Return the status and the code of a refusal."""
        return answer.status_code, str(answer.json()["error"]["code"])

    def succeeded(self) -> list[dict[str, Any]]:
        """Return what was really charged, as Stripe counts it."""
        return [each for each in self.charges() if each["status"] == "succeeded"]

    @override
    async def _through_proxy(
        self, path: str, form: Mapping[str, str], token: str
    ) -> httpx.Response:
        settings = load_settings(self.env)
        sandbox = build_sandbox(settings) if settings.upstream_base is None else None
        proxy = Proxy(settings, sandbox)
        try:
            await proxy.start()
            return await _post(proxy, path, form, token)
        finally:
            await proxy.stop(0)
            if sandbox is not None:
                sandbox.close()


async def _post(proxy: Proxy, path: str, form: Mapping[str, str], token: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=proxy.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        headers = {"authorization": f"Bearer {token}"}
        return await client.post(path, data=dict(form), headers=headers)
