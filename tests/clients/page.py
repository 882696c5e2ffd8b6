"""The blocks of docs/attach/, what they print, and configurations as the clients expand them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parents[2] / "docs" / "attach"
BLOCK = re.compile(
    r"(?:<!-- ([a-z]+)(?:: ([a-z]+))? -->\n)?```(\w+)\n(.*?)```"
    r"(?:\n\n<!-- prints -->\n```text\n(.*?)```)?",
    re.DOTALL,
)
VARIABLE = re.compile(r"\$\{(?:env:|input:)?([\w-]+)(?::-([^}]*))?\}")
PROXY = "http://127.0.0.1:8787"
CUSTOMER = "cus_Abc123"


@dataclass(frozen=True)
class Block:
    """One block: what the mark above it says, its language and text, and what it prints."""

    page: str
    number: int
    mark: str
    where: str
    language: str
    text: str
    prints: str

    @property
    def customer(self) -> str:
        """A customer of this block's own, in the place of the page's."""
        return f"cus_Page{self.number}"

    def own(self) -> str:
        """Return the text with its own customer."""
        return self.text.replace(CUSTOMER, self.customer)


def blocks(mark: str = "") -> list[Block]:
    """Return the blocks of the pages with a mark, or all."""
    there = (
        (file.stem, match)
        for file in sorted(PAGES.glob("*.md"))
        for match in BLOCK.finditer(file.read_text(encoding="utf-8"))
    )
    found = [
        Block(page, number, *match.groups(default=""))
        for number, (page, match) in enumerate(there, 1)
    ]
    return [block for block in found if mark in {"", block.mark}]


def printed(text: str) -> str:
    """Return what a program printed, without what is another in every run: ids and the month."""
    text = re.sub(r"\b(ch|op|cus)_\w+", r"\1_", text)
    return re.sub(r"\b20\d\d-\d\d\b", "MONTH", text)


def expanded(text: str, proxy: str, values: Mapping[str, str], files: Mapping[str, Path]) -> Any:
    """Return a configuration as a client reads it: variables, inputs and paths in place."""
    for name, path in files.items():
        text = text.replace(name, str(path))
    text = VARIABLE.sub(lambda match: values.get(match[1], match[2] or match[0]), text)
    return json.loads(text.replace(PROXY, proxy))


def entry_of(configuration: Any) -> dict[str, Any]:
    """Return the one server of a configuration, whichever client's form it has."""
    servers = configuration.get("mcpServers") or configuration["servers"]
    (entry,) = servers.values()
    return dict(entry)
