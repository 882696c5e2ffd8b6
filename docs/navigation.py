"""The order of the site: its pages in sections; a page that nobody placed comes last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# From docs/ one folder up, from docs/attach/ two.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:examples|deploy|schemas|[A-Z])[^)]*\)")
SECTIONS: list[tuple[str, list[str]]] = [
    ("Try it", ["index.md", "sandbox.md"]),
    (
        "Attach it",
        [
            "attach/index.md",
            *(f"attach/{name}.md" for name in ("claude", "openai-agents", "langchain", "strands")),
            *(f"attach/{name}.md" for name in ("bedrock-agents", "agentcore", "converse")),
            *(f"attach/{name}.md" for name in ("stripe-python", "stripe-node", "others")),
            *("clients.md", "from-samples.md"),
        ],
    ),
    ("Give keys", ["policies.md", "identities.md"]),
    ("Go live", ["go-live.md"]),
    (
        "Operate",
        [
            *("operators.md", "runbooks.md", "alerts.md", "metrics.md", "audit.md"),
            *("upgrading.md", "operations-postgres.md", "scale.md"),
        ],
    ),
    (
        "Understand",
        [
            *("concepts.md", "glossary.md", "exactly-once.md", "threat-model.md"),
            "comparison.md",
        ],
    ),
    ("Lab notes", ["tested.md", "performance.md"]),
    ("Reference", ["commands.md", "settings.md", "errors.md"]),
    (
        "Decisions",
        [
            *("decisions/index.md", "decisions/content-names-the-bill.md"),
            *("decisions/two-transactions.md", "decisions/recovery-never-sends.md"),
            *("decisions/stripe-is-the-wall.md", "decisions/pyreqwest.md"),
        ],
    ),
]


def navigation(folder: Path) -> list[dict[str, list[str]]]:
    """Return the navigation over the pages in `folder`."""
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.md"))
    placed = {name for _, names in SECTIONS for name in names}
    sections = [(title, [name for name in names if name in there]) for title, names in SECTIONS]
    sections.append(("More", [name for name in there if name not in placed]))
    return [{title: names} for title, names in sections if names]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leave of a link to a file of the repository, which is no page of the site, its text."""
    return _OUTSIDE.sub(r"\1", markdown)


def on_config(config: Any) -> Any:
    """Give mkdocs the navigation."""
    config["nav"] = navigation(Path(config["docs_dir"]))
    return config
